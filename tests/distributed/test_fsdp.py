"""CLIP under FSDP2: gradients, bfloat16, and checkpoints that any number of processes can read.

The processes run sharded_processes.main. Models in this process itself are not sharded.
"""

import importlib
import warnings

import pytest
import torch
from processes import run_ranks

from clipseq import CLIP

ALONE = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # in float64


@pytest.fixture(scope="module")
def here():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed.checkpoint warns at import
        return importlib.import_module("sharded_processes")


def start(scenarios, world, folder):
    """Run the scenarios in `world` processes; return their results by name and rank."""
    (folder / "rendezvous").unlink(missing_ok=True)
    run_ranks("sharded_processes", folder, world, *scenarios)
    return {
        name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(world)]
        for name in scenarios
    }


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Make a folder with a tiny BERT in it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hugging face")
    directory = folder / "bert"
    directory.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "walks",
        "sits",
        "down",
        "waves",
        "then",
        ",",
    ]
    (directory / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), intermediate_size=8, **shape)
    transformers.BertModel(config).save_pretrained(directory)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return the results of two processes, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    scenarios = ["same_gradients", "other_calls", "half_precision", "writes", "writes_own_tower"]
    return start(scenarios, 2, folder), folder


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("clip", layout) for layout in ("ddp", "all", "blocks", "documented")),
        *(("siglip", layout) for layout in ("ddp", "documented")),
    ],
)
def test_gradients_are_those_of_ddp(two, kind, layout, micro_batch):
    """Each process has a batch of its own; DDP holds every weight whole and averages."""
    for rank in (0, 1):
        found = two[0]["same_gradients"][rank]
        expected, step = found[kind, "ddp", None], found[kind, layout, micro_batch]
        torch.testing.assert_close(step["loss"], expected["loss"], **CLOSE)
        assert step["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in step["gradients"].items():
            torch.testing.assert_close(gradient, expected["gradients"][name], **CLOSE, msg=name)
        if layout != "ddp":
            assert step["metrics"]["seq_scale"].ndim == 0
            assert float(step["metrics"]["weight/local"]) == 0.5


def test_the_gradients_are_the_mean_over_the_processes_and_not_zero(two):
    first, second = (found["clip", "all", 2]["gradients"] for found in two[0]["same_gradients"])
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
        assert "qkv.bias" in name or float(gradient.abs().max()) > 1e-6, name


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_ddp_reduces_each_gradient_once_with_micro_batches_too(two, kind):
    found = two[0]["same_gradients"][0]
    cached = found[kind, "ddp", 2]
    assert sorted(cached["reduced"]) == sorted(cached["gradients"])
    assert cached["reduced"] == found[kind, "ddp", None]["reduced"]


def test_every_method_gathers_the_weights(two):
    for name, (found, expected) in two[0]["other_calls"][1].items():
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize(
    ("layout", "micro_batch", "scale"),
    [
        ("all", None, "torch.bfloat16"),
        ("documented", 2, "torch.float32"),
    ],
)
def test_it_learns_in_bfloat16(two, layout, micro_batch, scale):
    found = two[0]["half_precision"][0][layout, micro_batch]
    losses = torch.tensor(found["losses"])
    assert len(losses) == 20
    assert bool(losses.isfinite().all())
    assert losses[-5:].mean() < 0.5 * losses[0]
    assert found["computed in"] == {"torch.bfloat16"}
    assert found["kept in"] == {"torch.float32"}
    assert found["scale"] == scale


def _assert_same_states(found, expected):
    for part in ("model", "optimizer"):
        assert found[part].keys() == expected[part].keys()
    for name, weight in expected["model"].items():
        assert torch.equal(found["model"][name], weight), name
    for name, state in expected["optimizer"].items():
        for key, value in state.items():
            assert torch.equal(found["optimizer"][name][key], value), (name, key)


@ALONE
def test_what_two_processes_wrote_one_reads(two, here):
    found, folder = two
    model = here.make(seed=1)
    optimizer = here.trained(model)
    here.read_checkpoint(model, optimizer, folder / "checkpoint", no_dist=True)
    _assert_same_states(here.whole_states(model, optimizer), found["writes"][0]["states"])


def test_what_two_processes_wrote_three_read(two):
    found, folder = two
    read = start(["reads"], 3, folder)["reads"]
    _assert_same_states(read[0], found["writes"][0]["states"])


@ALONE
def test_what_one_process_wrote_two_read(here, tmp_path):
    model = here.make()
    optimizer = here.trained(model)
    here.write_checkpoint(model, optimizer, tmp_path / "checkpoint", no_dist=True)
    expected = here.whole_states(model, optimizer)
    _assert_same_states(start(["reads"], 2, tmp_path)["reads"][0], expected)


def _assert_saved(model, weights):
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_save_pretrained_writes_a_sharded_model_whole_and_once(two):
    found, folder = two
    for name in ("model", "again"):
        model = CLIP.from_pretrained(folder / name)
        assert type(model) is CLIP
        _assert_saved(model, found["writes"][0]["states"]["model"])
        assert not list((folder / name).glob(".saving-*"))
    # A file is in the way: the process that writes raises, and the other does not wait forever.
    refused = [process["refused"] for process in found["writes"]]
    assert refused == ["NotADirectoryError", "ClipseqError"]


def test_save_pretrained_of_a_sharded_module_of_the_users_own(two, here):
    found, folder = two
    assert '"sharded_processes.Own"' in (folder / "own model" / "config.json").read_text()
    model = CLIP.from_pretrained(folder / "own model", encoder_cfg=here.Own())
    _assert_saved(model, found["writes_own_tower"][0])


def test_save_pretrained_of_a_sharded_hugging_face_tower(bert):
    weights = start(["writes_hugging_face"], 2, bert)["writes_hugging_face"][0]
    _assert_saved(CLIP.from_pretrained(bert / "bert model"), weights)
