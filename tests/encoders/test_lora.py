"""Adapters of a pretrained tower are trained alone, and saved with their effect."""

import subprocess
import sys

import pytest
import torch

from clipseq import CLIP, ConfigError, TextConfig
from clipseq.encoders import Lora

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft", reason="the extra lora is not installed")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "he", "she", "sits", "waves"]
CAPTIONS = ["he sits", "she waves", "she sits"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def make(folder, lora):
    torch.manual_seed(1)
    text = TextConfig(pretrained=str(folder), lora=lora)
    return CLIP(
        {"views": {"mel": 4}, "patch_frames": 2}, text, transformer_width=8, transformer_layers=1,
        transformer_heads=2, sequence_similarity_type="global",
    )  # fmt: skip


def train(model, steps=3):
    generator = torch.Generator().manual_seed(2)
    mel = torch.randn(3, 4, 6, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(steps):
        model.training_step({"radar": {"mel": mel}, "text": CAPTIONS}).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def encode(model):
    with torch.no_grad():
        return model.encode_batch("text", CAPTIONS)[0]


def test_it_starts_as_the_model_without_adapters_and_trains_only_these(bert):
    model = make(bert, Lora(rank=2))
    torch.testing.assert_close(encode(model.eval()), encode(make(bert, None).eval()))
    tower = model.y_encoder.language_model
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    train(model.train())
    changed = {n for n, v in tower.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {name for name in before if ".lora_" in name}
    assert changed
    trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert trained == changed


@pytest.mark.parametrize("lora", [Lora(rank=2, alpha=5), Lora(rank=3, targets=("query", "value"))])
def test_a_saved_model_has_the_effect_and_no_adapters(bert, lora, tmp_path):
    model = train(make(bert, lora))
    untrained = encode(make(bert, lora).eval())
    assert (encode(model) - untrained).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path)
    torch.testing.assert_close(encode(again), encode(model), atol=1e-5, rtol=1e-5)
    assert again.y_encoder.config.lora is None
    assert not [name for name in again.state_dict() if "lora" in name]
    # The folder of the tower is a plain model of transformers.
    plain = transformers.AutoModel.from_pretrained(tmp_path / "y_encoder")
    assert set(plain.state_dict()) == set(make(bert, None).y_encoder.language_model.state_dict())
    # Saving does not change the model, which can be trained on and saved again.
    assert [name for name in model.state_dict() if "lora" in name]
    model.save_pretrained(tmp_path)
    assert "LoRA of rank" in (tmp_path / "README.md").read_text()


def test_the_layers_of_gpt2_are_merged_the_other_way_round(tmp_path):
    from clipseq.encoders.lora import add_adapters, merge_adapters

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model, ids = transformers.GPT2Model(config).eval(), torch.tensor([[1, 2, 3]])
    lora = Lora(rank=2, targets=("c_attn", "c_fc"))
    add_adapters(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_()
        expected = model(ids).last_hidden_state
        plain = transformers.GPT2Model(config).eval()
        plain.load_state_dict(merge_adapters(model, lora, model.state_dict()))
        torch.testing.assert_close(plain(ids).last_hidden_state, expected)


def test_a_run_configures_it_as_a_table():
    from clipseq.model import ModelConfig

    table = {"text_cfg": {"pretrained": "bert", "lora": {"rank": 4, "targets": ["query"]}}}
    config = ModelConfig.from_table(table).text_cfg
    assert config.lora == Lora(rank=4, targets=("query",))
    assert ModelConfig.from_table(ModelConfig.from_table(table).table()).text_cfg == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": Lora()}, "lora must be None without pretrained"),
        ({"lora": Lora(), "pretrained": "x", "freeze": True}, "lora must be None with freeze"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig(**options)


def test_wrong_numbers_and_layers_are_refused(bert, monkeypatch):
    for options in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            Lora(**options)
    with pytest.raises(ValueError, match="lora.targets must be ends of the names of layers"):
        make(bert, Lora(targets=("nowhere",)))
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "peft" else find(name)
    )
    with pytest.raises(ImportError, match=r"pip install 'clipseq\[lora\]'"):
        make(bert, Lora())


@pytest.mark.slow
def test_a_model_is_imported_without_peft():
    code = "import sys, clipseq.model, clipseq.encoders; assert 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
