"""A save keeps only what a load gives back, and a load says what is wrong with a corrupt file."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import clipseq
from clipseq import CLIP, CheckpointError, Sequences
from clipseq.encoders import ByteTokenizer, train_tokenizer


def make(**options):
    small = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    similarity = {"sequence_similarity_type": "local"}
    return CLIP({"views": {"d": 4}}, context_length=8, **(small | similarity | options)).eval()


RADAR = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "part",
    ["x_encoder", "y_encoder.transformer.blocks.0", "sequence_loss_fn.similarity_fn", ""],
)
def test_a_compiled_part_is_saved_under_its_plain_names(part, tmp_path):
    model = make(sequence_similarity_type="attention")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = torch.compile(model.get_submodule(part), backend="eager")
    if part:
        model.set_submodule(part, compiled)
        assert any("_orig_mod" in name for name in model.state_dict())
    else:
        model = compiled
    model.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path).state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], value) for name, value in weights.items())


class Letters(ByteTokenizer):
    kind = "letters"

    def __init__(self, note=""):
        self.note = note

    def encode(self, caption):
        return super().encode(caption.lower())

    def save(self, directory):
        (directory / "note.txt").write_text(self.note)


class Lower(ByteTokenizer):
    def encode(self, caption):
        return super().encode(caption.lower())


@pytest.mark.parametrize("tokenizer", [Letters("mine"), Lower()])
def test_a_tokenizer_of_the_users_own_is_asked_for(tokenizer, tmp_path):
    model = make(tokenizer=tokenizer)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{type(tokenizer).__name__}, .*tokenizer=<the"):
        CLIP.from_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path, tokenizer=tokenizer)
    ours, theirs = (m.encode_batch("text", ["WALKS"])[0] for m in (model, again))
    assert torch.equal(ours, theirs)
    if isinstance(tokenizer, Letters):
        assert (tmp_path / "tokenizer" / "note.txt").read_text() == "mine"


def test_a_tokenizer_with_another_vocabulary_does_not_fit(tmp_path):
    model = make(tokenizer=Letters())
    model.save_pretrained(tmp_path)
    other = Letters()
    other.vocab_size = 300
    with pytest.raises(CheckpointError, match=r"token_embedding.weight \(must be \(300, 8\)"):
        CLIP.from_pretrained(tmp_path, tokenizer=other)


def test_a_tokenizer_is_not_given_for_one_that_clipseq_builds(saved):
    with pytest.raises(ValueError, match="tokenizer must be None, .*leave it out"):
        CLIP.from_pretrained(saved, tokenizer=Letters())


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer, self.lora = base, nn.Linear(8, 8)

    def forward(self, x):
        return self.base_layer(x) + self.lora(x)


class Told(nn.Module):
    """A module whose extra state is no tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, x, mask=None):
        return Sequences.from_tensor(self.layer(x.mT), mask)


def weight_norm(model):
    parametrizations.weight_norm(model.x_encoder.projection)


def orthogonal(model):
    parametrizations.orthogonal(model.y_encoder.projection)


def pruned(model):
    prune.l1_unstructured(model.x_encoder.projection, "weight", 0.5)


def adapter(model):
    model.x_encoder.projection = Adapter(model.x_encoder.projection)


def another_layer(model):
    model.x_encoder.transformer.norm = nn.RMSNorm(8)


def another_similarity(model):
    model.sequence_loss_fn.similarity_fn = clipseq.get_similarity("temporal")


def another_window(model):
    model.sequence_loss_fn.similarity_fn.window = (2, 2)


def another_loss(model):
    model.clip_loss_fn = clipseq.SigLipLoss()


def another_bound(model):
    model.clip_loss_fn.max_scale = 50.0


def integers(model):
    model.x_encoder.eot.requires_grad_(False)
    model.x_encoder.eot.data = model.x_encoder.eot.data.long()


def not_a_number(model):
    model.x_encoder.eot.data[0] = torch.nan


def on_meta(model):
    model.to("meta")


def sparse(model):
    model.x_encoder.projection.weight = nn.Parameter(torch.eye(8).to_sparse())


def more(model):
    model.head = nn.Linear(8, 2)


CHANGES = [
    (weight_norm, r"unexpected: x_encoder.projection.parametrizations.weight.original0"),
    (orthogonal, "y_encoder.projection.parametrizations"),
    (pruned, "unexpected: x_encoder.projection.weight_mask"),
    (adapter, "x_encoder.projection.base_layer"),
    (another_layer, "missing: x_encoder.transformer.norm.bias"),
    (another_similarity, "similarity_fn must be a LocalSimilarity, .* got TemporalSimilarity"),
    (another_window, r"similarity_fn.window must be \(16, 16\), .* got \(2, 2\)"),
    (another_loss, "unexpected: clip_loss_fn.bias_offset"),
    (another_bound, "clip_loss_fn.max_scale must be 100.0"),
    (integers, r"x_encoder.eot \(must be floating point, got int64\)"),
    (not_a_number, "x_encoder.eot must not be NaN"),
    (on_meta, "must have values, got a tensor on the meta device"),
    (sparse, "x_encoder.projection.weight must be a dense tensor"),
    (more, "unexpected: head.bias"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_what_a_load_could_not_give_back_is_refused(change, reason, copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    model = make()
    change(model)
    with pytest.raises(CheckpointError, match=reason):
        model.save_pretrained(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_extra_state_that_is_no_tensor_is_refused(tmp_path):
    model = CLIP(Told(), transformer_width=8, transformer_layers=1, transformer_heads=2)
    with pytest.raises(CheckpointError, match=r"_extra_state must be a tensor, got dict"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_right_modules_of_a_user_are_saved(tmp_path):
    """Batch norm in a user's tower counts batches in integers, and is loaded again."""

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 8)

        def forward(self, x, mask=None):
            return Sequences.from_tensor(self.out(self.norm(x).mT), mask)

    model = make_of(Tower())
    model.training_step({"radar": RADAR, "text": ["walks", "sits"]})
    model.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path, encoder_cfg=Tower())
    assert int(again.x_encoder.module.norm.num_batches_tracked) == 1


def make_of(tower):
    return CLIP(tower, transformer_width=8, transformer_layers=1, transformer_heads=2)


def test_a_save_draws_no_random_numbers(tmp_path):
    before = torch.get_rng_state()
    make().save_pretrained(tmp_path)
    after_build = torch.get_rng_state()
    assert not torch.equal(before, after_build)
    model = make()
    state = torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def set_in(path, *keys, value):
    table = json.loads(path.read_text())
    inner = table
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer_width", 10**30),
        ("transformer_width", 2 * 10**9),
        ("transformer_layers", 10**12),
        ("transformer_heads", 10**20),
        ("context_length", 10**15),
        ("context_length", 0),
        ("temperature", float("nan")),
        ("sequence_similarity_weight", 1e400),
        ("encoder_cfg", {"tower": "signal", "views": {"d": 10**14}}),
        ("encoder_cfg", {"tower": "signal", "views": {"d": 4}, "patch_frames": 10**16}),
        ("text_cfg", {"tower": "text", "vocab_size": 10**17}),
        ("sequence_similarity_options", {"embed_dim": 10**9}),
        ("sequence_similarity_options", [1]),
        ("loss_options", {"init_scale": -1.0}),
        ("loss", "kl"),
    ],
)
def test_a_corrupt_number_is_found_before_memory_is_taken(key, value, copy):
    set_in(copy / "config.json", "model", key, value=value)
    with pytest.raises(CheckpointError):
        CLIP.from_pretrained(copy)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model":' * 5000 + "1" + "}" * 5000,
        "[]",
        "null",
        "",
        "\x00",
        '{"model": []}',
    ],
)
def test_a_config_of_another_shape_is_corrupt(text, copy):
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json"):
        CLIP.from_pretrained(copy)


def damage(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.update({"x_encoder.eot": torch.zeros(8, dtype=torch.int64)}), "got int64"),
        (lambda w: w.update({"x_encoder.eot": torch.zeros(8, dtype=torch.bool)}), "got bool"),
        (lambda w: w.update({"x_encoder.eot": torch.full((8,), torch.nan)}), "eot holds NaN"),
        (lambda w: w.update({"x_encoder.eot": torch.zeros(8, 1)}), "of another shape"),
        (lambda w: w.pop("x_encoder.eot"), "missing: x_encoder.eot"),
    ],
)
def test_weights_of_another_kind_are_refused(change, reason, copy):
    damage(copy, change)
    with pytest.raises(CheckpointError, match=reason):
        CLIP.from_pretrained(copy)


def test_a_run_folder_points_to_its_model(saved, tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match=r"finish it with: clipseq train --resume"):
        CLIP.from_pretrained(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"load the model in it, {tmp_path / 'model'}"):
        CLIP.from_pretrained(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match="directory must be a folder .* got the file"):
        make().save_pretrained(path)
    with pytest.raises(CheckpointError, match="is missing"):
        CLIP.from_pretrained(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("call", [make().save_pretrained, CLIP.from_pretrained])
def test_a_number_is_no_path(call, unchecked_signatures):
    with pytest.raises(TypeError, match="directory must be a path, got 5"):
        call(5)


def test_options_that_json_changes_are_refused(fresh_registry, tmp_path):
    class Mapped(type(clipseq.get_similarity("global"))):
        def __init__(self, *, weights=None):
            super().__init__()

    clipseq.register_similarity("mapped", Mapped)
    model = make(
        sequence_similarity_type="mapped", sequence_similarity_options={"weights": {1: 2.0}}
    )
    with pytest.raises(CheckpointError, match="use strings as the keys"):
        model.save_pretrained(tmp_path)


def test_a_trained_tokenizer_that_was_derived_is_not_replaced():
    class Derived(type(train_tokenizer(["a b"], 300))):
        pass

    model = make(tokenizer=Derived(train_tokenizer(["a b"], 300)._serialized))
    folder = Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="Derived, which only you can build"):
        CLIP.from_pretrained(folder)
