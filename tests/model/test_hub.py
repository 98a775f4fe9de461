"""Models of the hub: from a local cache without a network, or with an error that helps."""

import sys
from pathlib import Path

import pytest
import torch

from clipseq import CLIP, CheckpointError, TextConfig
from clipseq.encoders.hub import is_hub_id

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def make(seed=0):
    torch.manual_seed(seed)
    return CLIP({"views": {"mel": 6}, "patch_frames": 4}, sequence_similarity_type="local", **SIZE)


def cached(cache: Path, name: str, revision: str) -> Path:
    """Return the folder in which huggingface_hub caches a revision of a model."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(COMMITS[revision])
    folder = root / "snapshots" / COMMITS[revision]
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_model_is_loaded_by_its_name_and_revision(cache):
    for seed, revision in enumerate(COMMITS):
        make(seed).save_pretrained(cached(cache, "me/radar", revision))
    for seed, revision in enumerate(COMMITS):
        given = {} if revision == "main" else {"revision": revision}
        model = CLIP.from_pretrained("me/radar", device="cpu", **given)
        for name, value in make(seed).state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
    assert not model.training


def test_a_local_folder_wins(cache):
    make(0).save_pretrained(cached(cache, "me/radar", "main"))
    make(5).save_pretrained("me/radar")
    model = CLIP.from_pretrained("me/radar")
    assert torch.equal(model.x_encoder.eot, make(5).x_encoder.eot)
    with pytest.raises(ValueError, match="revision must be None for a local folder, got 'v1'"):
        CLIP.from_pretrained("me/radar", revision="v1")


def test_the_device_is_that_which_is_asked_for(tmp_path):
    make().save_pretrained(tmp_path)
    model = CLIP.from_pretrained(tmp_path, device=torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_without_a_network_it_says_what_to_do(cache):
    message = "directory must be .* downloaded, got 'me/radar': .*; connect to the network, or pass"
    with pytest.raises(CheckpointError, match=message):
        CLIP.from_pretrained("me/radar")
    with pytest.raises(CheckpointError, match="TextConfig.pretrained must be .* got 'me/bert': "):
        CLIP(text_cfg={"pretrained": "me/bert"}, **SIZE)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "got 'me/radar', which is neither; check the name, or log in"),
        (
            "RevisionNotFoundError",
            "revision must be a branch, a tag or a commit of 'me/radar'",
        ),
    ],
)
def test_what_the_hub_lacks_is_named(error, message, cache, monkeypatch):
    kind = getattr(huggingface_hub.errors, error)

    def refuse(name, **options):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=message):
        CLIP.from_pretrained("me/radar", revision="v9")


def test_without_the_library_it_names_the_extra(cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'me/radar' is not a local folder.*clipseq\[hf\]"):
        CLIP.from_pretrained("me/radar")


def test_only_the_form_owner_name_is_looked_for_on_the_hub(cache):
    assert is_hub_id("me/radar.v2_x-1")
    for name in ("radar", "./radar", "/me/radar", "me/radar/model", "me\\radar", "../me", "a b/c"):
        assert not is_hub_id(name)
    Path("me").mkdir()
    Path("me/radar.npz").touch()
    assert not is_hub_id("me/radar.npz")
    with pytest.raises(CheckpointError, match=r"a/model/config.json is missing: .*'owner/name'"):
        CLIP.from_pretrained("runs/a/model")


def test_a_text_tower_comes_from_the_hub_and_is_saved_with_the_model(cache, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = cached(cache, "me/bert", "v1")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "he", "sits"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    text = TextConfig(pretrained="me/bert", revision="v1")
    model = CLIP({"views": {"mel": 6}}, text, sequence_similarity_type="local", **SIZE).eval()
    model.save_pretrained(tmp_path / "model")
    again = CLIP.from_pretrained(tmp_path / "model")
    expected, got = (m.encode_batch("text", ["he sits"])[0] for m in (model, again))
    assert torch.equal(expected, got)
    assert "transformers" not in sys.modules or again.y_encoder.config.revision is None
