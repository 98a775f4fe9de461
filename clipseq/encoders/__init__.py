"""The towers, which encode maps or captions as one pooled vector and a sequence per item."""

from clipseq.encoders.config import Lora, SignalConfig, TextConfig
from clipseq.encoders.hugging_face import HuggingFaceTextTower
from clipseq.encoders.inputs import Inputs
from clipseq.encoders.module import ModuleTower
from clipseq.encoders.signal import SignalTower
from clipseq.encoders.text import TextTower
from clipseq.encoders.tokenizer import ByteTokenizer, Tokenizer, TrainedTokenizer, train_tokenizer
from clipseq.encoders.tower import Tower

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTextTower",
    "Inputs",
    "Lora",
    "ModuleTower",
    "SignalConfig",
    "SignalTower",
    "TextConfig",
    "TextTower",
    "Tokenizer",
    "Tower",
    "TrainedTokenizer",
    "train_tokenizer",
]
