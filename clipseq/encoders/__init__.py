"""The two towers: radar maps and captions in, one pooled vector and a sequence of tokens out."""

from clipseq.encoders.config import RadarConfig, TextConfig
from clipseq.encoders.hugging_face import HuggingFaceTextTower
from clipseq.encoders.module import ModuleTower
from clipseq.encoders.radar import RadarTower
from clipseq.encoders.text import TextTower
from clipseq.encoders.tokenizer import ByteTokenizer, Tokenizer, TrainedTokenizer, train_tokenizer

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTextTower",
    "ModuleTower",
    "RadarConfig",
    "RadarTower",
    "TextConfig",
    "TextTower",
    "Tokenizer",
    "TrainedTokenizer",
    "train_tokenizer",
]
