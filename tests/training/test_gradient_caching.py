"""A batch larger than memory has the same loss and gradients, one micro-batch at a time."""

import csv
import sys

import pytest
import torch
from processes import fork
from torch import nn

from clipseq import CLIP, Sequences, SignalConfig, TextConfig
from clipseq.errors import ConfigError
from clipseq.training import RunFolder, train

VIEWS = {"range_time": 5, "doppler_time": 3}
CAPTIONS = ["walks", "sits down and waves", "waves", "walks", "stands up", "falls, then sits"]


def make(seed=0, dropout=0.0, gradient_checkpointing=False, **options):
    torch.manual_seed(seed)
    tower = {"dropout": dropout, "gradient_checkpointing": gradient_checkpointing}
    options = {
        "encoder_cfg": SignalConfig(views=VIEWS, patch_frames=4, **tower),
        "text_cfg": TextConfig(**tower),
        "context_length": 24,
        "transformer_width": 8,
        "transformer_layers": 2,
        "transformer_heads": 2,
        **options,
    }
    return CLIP(**options)


def batch(dtype=torch.float64, captions=CAPTIONS, frames=13):
    generator = torch.Generator().manual_seed(1)
    radar = {
        name: torch.randn(len(captions), bins, frames, generator=generator).to(dtype)
        for name, bins in VIEWS.items()
    }
    lengths = torch.tensor([frames, 3, 7, frames - 1, 9, 5])
    return {"radar": radar, "radar_lengths": lengths, "text": list(captions)}


def step(model, data, micro_batch=None):
    """Return loss and every gradient of one step."""
    model.micro_batch = micro_batch
    model.zero_grad()
    loss = model.training_step(data)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(found, wanted, tolerance=1e-10):
    (loss, gradients), (wanted_loss, wanted_gradients) = found, wanted
    torch.testing.assert_close(loss, wanted_loss, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted_gradients[name], rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_sequence_similarity": False},
        {"sequence_similarity_weight": 0.0},
        {"use_siglip": True, "sequence_similarity_type": "attention"},
        {"gradient_checkpointing": True, "sequence_similarity_type": "global"},
    ],
    ids=["combined", "plain", "weight 0", "siglip", "checkpointing"],
)
def test_loss_and_gradients_are_those_of_the_whole_batch(options, size):
    model = make(**options).double()
    whole = step(model, batch())
    metrics = model.metrics
    assert_same(step(model, batch(), size), whole)
    assert model.metrics.keys() == metrics.keys()


def _masked_frames(data):
    frames = torch.arange(13)
    lengths = data.pop("radar_lengths")
    return data | {"radar_mask": (frames >= 1) & (frames < lengths[:, None])}


def _token_ids(data):
    ids = torch.arange(1, 25).repeat(6, 1).roll(3, 1)
    ids[torch.arange(24) > torch.tensor([[5], [23], [1], [2], [9], [11]])] = 0
    return data | {"text": ids}


def _masked_ids(data):
    ids = torch.arange(1, 25).repeat(6, 1)
    mask = torch.arange(24) % torch.tensor([[2], [9], [5], [2], [4], [7]]) == 1
    return data | {"text": ids, "text_mask": mask}


@pytest.mark.parametrize(
    "change",
    [
        _masked_frames,
        _token_ids,
        _masked_ids,
        lambda data: data | {"radar_lengths": None},
        lambda data: data | {"radar_lengths": data["radar_lengths"].tolist()},
        lambda data: data | {"text": tuple(CAPTIONS)},
        lambda data: data | {"radar": {"doppler_time": data["radar"]["doppler_time"]}},
    ],
    ids=["mask", "ids", "ids and mask", "no lengths", "list of lengths", "tuple", "one view"],
)
def test_every_form_of_input(change, unchecked_signatures):
    local = {"sequence_similarity_options": {"window": 2}}
    model = make(sequence_similarity_type="local", **local).double()
    data = change(batch())
    assert_same(step(model, data, 4), step(model, data))


def test_one_tensor_of_radar():
    model = make(encoder_cfg=SignalConfig(views={"doppler_time": 3}, patch_frames=4)).double()
    data = batch()
    data["radar"] = data["radar"]["doppler_time"]
    assert_same(step(model, data, 4), step(model, data))


class Ragged(nn.Module):
    """A tower that returns as many steps as the longest item of its input has."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, values, mask=None):
        if isinstance(values, dict):
            values, mask = values["points"], values["real"]
        steps = int(mask.any(0).nonzero().max()) + 1
        tokens = self.linear(values.to(self.linear.weight.dtype).mT)
        return Sequences(nn.functional.dropout(tokens, 0.0)[:, :steps], mask[:, :steps])


@pytest.mark.parametrize("nested", [False, True])
def test_modules_of_the_users_own_that_return_other_lengths_each_time(nested):
    """The last micro-batch is the shortest: the sequences are padded when they are joined."""
    model = make(encoder_cfg=Ragged(), text_cfg=Ragged()).double()
    data = batch()
    points, mask = data["radar"]["doppler_time"], torch.arange(13) < data["radar_lengths"][:, None]
    words, word_mask = points[:, :, :9].flip(0), torch.arange(9) < torch.arange(9, 3, -1)[:, None]
    if nested:
        data = {
            "radar": {"points": points, "real": mask, "rate": 20.0, "origin": None},
            "text": {"points": words, "real": word_mask},
        }
    else:
        data = {"radar": points, "radar_mask": mask, "text": words, "text_mask": word_mask}
    assert_same(step(model, data, 2), step(model, data))


def test_what_cannot_be_cut_into_items_is_refused(unchecked_signatures):
    model = make(encoder_cfg=Ragged(), text_cfg=Ragged())
    model.micro_batch = 2
    mask = torch.ones(6, 9, dtype=torch.bool)
    text = {"points": torch.ones(6, 3, 9), "real": mask}
    with pytest.raises(ValueError, match=r"radar must be a tensor.*micro_batch=2 .*got object"):
        model.training_step({"radar": object(), "text": text})
    radar = text | {"angles": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"each of the 6 items.*a Tensor with 7"):
        model.training_step({"radar": radar, "text": text})


def _reference(model, data, size):
    """Return loss and gradients from micro-batches that all keep their graph."""
    model.zero_grad()
    outputs = []
    for tower, key in ((model.x_encoder, "radar"), (model.y_encoder, "text")):
        pooled, values, masks = [], [], []
        for i in range(0, len(data["text"]), size):
            if key == "radar":
                some = {name: view[i : i + size] for name, view in data["radar"].items()}
                one, tokens = tower(some, lengths=data["radar_lengths"][i : i + size])
            else:
                one, tokens = tower(data["text"][i : i + size])
            pooled.append(one)
            values += list(tokens.values)
            masks += list(tokens.mask)
        pad = nn.utils.rnn.pad_sequence
        outputs.append((torch.cat(pooled), pad(values, True), pad(masks, True)))
    (radar, x, x_mask), (text, y, y_mask) = outputs
    groups = torch.tensor([CAPTIONS.index(caption) for caption in data["text"]])
    weight = model.sequence_similarity_weight
    loss = (1 - weight) * model.clip_loss_fn(radar, text, groups)
    loss = loss + weight * model.sequence_loss_fn(x, y, x_mask, y_mask, groups)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_dropout_is_replayed_exactly(size, gradient_checkpointing):
    model = make(dropout=0.3, gradient_checkpointing=gradient_checkpointing).double()
    data = batch()
    torch.manual_seed(7)
    found = step(model, data, size)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    wanted = _reference(model, data, size)
    assert_same(found, wanted)
    assert torch.equal(torch.rand(1), drawn)  # backward has not drawn random numbers of its own


def test_a_hugging_face_tower_with_its_own_dropout(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = sorted(set(" ".join(CAPTIONS).replace(",", " ,").split()))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    )
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=5 + len(words), intermediate_size=8, **shape)
    transformers.BertModel(config).save_pretrained(tmp_path)
    model = make(text_cfg=TextConfig(pretrained=str(tmp_path))).double()
    data = batch()
    torch.manual_seed(7)
    found = step(model, data, 4)
    torch.manual_seed(7)
    assert_same(found, _reference(model, data, 4))


def test_in_eval_mode_with_gradients_too():
    model = make(dropout=0.3).double().eval()
    assert_same(step(model, batch(), 4), step(model, batch()))


def _count_calls(model):
    sizes = []
    for tower in (model.x_encoder, model.y_encoder):
        tower.register_forward_hook(lambda module, args, output: sizes.append(len(output[0])))
    return sizes


def test_each_tower_sees_a_micro_batch_at_a_time_and_without_gradients_only_once():
    model = make()
    sizes = _count_calls(model)
    step(model, batch(torch.float32), 4)
    # forward; then backward, which goes from the last to the first
    assert sizes == [4, 2, 4, 2, 2, 4, 2, 4]
    sizes.clear()
    with torch.no_grad():
        loss = model.training_step(batch(torch.float32))
    assert sizes == [4, 2, 4, 2]
    sizes.clear()
    model.micro_batch = 6
    with torch.no_grad():
        torch.testing.assert_close(model.training_step(batch(torch.float32)), loss)
    model.training_step(batch(torch.float32)).backward()
    assert sizes == [6, 6, 6, 6]  # a batch that fits is the plain step


def test_every_gradient_is_complete_once():
    """DDP reduces a gradient as soon as a hook reports it complete."""
    model = make()
    complete = []
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda _, name=name: complete.append(name))
    step(model, batch(torch.float32), 1)
    assert sorted(complete) == sorted(dict(model.named_parameters()))


def test_autocast_is_replayed_and_gradients_are_summed_in_full_precision():
    """Each of 64 micro-batches rounds its own gradient to bfloat16; their sum must not be."""
    model = make(sequence_similarity_type="global", sequence_similarity_weight=0.5)
    captions = [f"caption number {i}" for i in range(64)]
    data = batch(torch.float32, captions[:6])
    data["text"] = captions
    data["radar"] = {name: torch.randn(64, bins, 8) for name, bins in VIEWS.items()}
    data["radar_lengths"] = None
    exact = step(model.double(), data)
    model.float()
    dtypes = set()
    hook = model.x_encoder.projection.register_forward_hook(
        lambda module, args, output: dtypes.add(output.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model.micro_batch = 1
        model.zero_grad()
        loss = model.training_step(data)
    loss.backward()
    hook.remove()
    assert dtypes == {torch.bfloat16}  # in backward as well
    found = model.x_encoder.projection.weight.grad.double()
    wanted = exact[1]["x_encoder.projection.weight"]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8"])
def test_a_size_that_is_no_positive_whole_number(size, small_run, unchecked_signatures):
    with pytest.raises(ValueError, match=r"micro_batch must be a positive whole number or None"):
        make().micro_batch = size
    with pytest.raises(ConfigError, match="micro_batch"):
        small_run(micro_batch=size)


def test_errors_count_items_from_the_start_of_the_batch():
    model = make()
    model.micro_batch = 2
    data = batch(torch.float32)
    data["radar"]["doppler_time"][3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'doppler_time' must be finite.*item 3"):
        model.training_step(data)
    data = batch(torch.float32)
    data["text"][5] = " "
    with pytest.raises(ValueError, match="caption 5 must have at least one token"):
        model.training_step(data)


def test_an_error_of_a_module_says_where_its_micro_batch_begins():
    class Nothing(Ragged):
        def forward(self, values, mask=None):
            tokens = super().forward(values, mask)
            return Sequences(tokens.values, tokens.mask & (values[:, :1, 0] < 1e6))

    model = make(encoder_cfg=Nothing(), text_cfg=Ragged())
    model.micro_batch = 2
    data = {"radar": torch.ones(6, 3, 9), "text": torch.ones(6, 3, 9)}
    masks = {key: torch.ones(6, 9, dtype=torch.bool) for key in ("radar_mask", "text_mask")}
    data["radar"][5] = 1e7
    with pytest.raises(ValueError, match="one real step per item, got none for item 1") as error:
        model.training_step(data | masks)
    assert error.value.__notes__ == ["(micro_batch=2: items are counted from item 4)"]


@pytest.mark.usefixtures("in_float64")
def test_a_run_takes_the_same_steps_with_the_key_of_the_config(dataset, small_run):
    still = {"encoder_cfg": {"patch_frames": 8}}
    losses = []
    for micro_batch in (None, 4):
        run = small_run(str(micro_batch), still, batch_size=6, micro_batch=micro_batch)
        assert train(run, dataset=dataset).micro_batch == micro_batch
        with RunFolder(run.training.out).metrics.open(newline="") as lines:
            losses.append([float(row["loss_total"]) for row in csv.DictReader(lines)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)


MEASURE = """
import resource, sys, torch
from clipseq import CLIP, SignalConfig

torch.manual_seed(0)
model = CLIP(
    SignalConfig(views={"doppler_time": 16}, patch_frames=4),
    context_length=32, transformer_width=64, transformer_layers=4, transformer_heads=4,
    sequence_similarity_type="local",
)

def step(items):
    captions = [f"number {i} of the batch" for i in range(items)]
    radar = torch.randn(items, 16, 160)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.training_step({"radar": radar, "text": captions}).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

step(2)  # what is loaded at the first call, and the gradients
model.micro_batch = MICRO_BATCH
print(step(ITEMS), file=sys.stderr)
"""


def _start(folder, items, micro_batch=None):
    """Start a process that prints the KiB that a step adds beyond the model and the batch."""
    sizes = f"ITEMS, MICRO_BATCH = {items}, {micro_batch}\n"
    return fork(sizes + MEASURE, folder / f"{items}.txt")


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_eight_times_the_batch_takes_hardly_more_memory(tmp_path):
    processes = [_start(tmp_path, 256, micro_batch=16), _start(tmp_path, 32)]
    (status, many), (other_status, few) = (process.ended() for process in processes)
    assert status == other_status == 0, many + few
    assert 0 < int(many) <= 1.3 * int(few)


DISTINCT = ["walks", "sits", "waves", "falls"]


class WithStatistics(nn.Module):
    """A tower whose layers change their buffers in every forward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.out = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8))

    def forward(self, x, mask=None):
        return Sequences.from_tensor(self.out(self.norm(x).mT), mask)


def test_buffers_change_once_for_each_micro_batch():
    """Loss, gradients and buffers are those of two forwards, and not of four."""
    torch.manual_seed(0)
    sizes = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    model = CLIP(WithStatistics(), sequence_similarity_weight=0.5, **sizes)
    tower = model.double().x_encoder.module
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    x = torch.randn(4, 5, 6, dtype=torch.double) + 3
    data = {"radar": x, "text": DISTINCT}
    step(model, data, micro_batch=2)
    found = {name: value.clone() for name, value in tower.state_dict().items()}
    gradient = tower.norm.weight.grad.clone()
    tower.load_state_dict(state)
    tower.zero_grad()
    values = torch.cat([tower(x[:2]).values, tower(x[2:]).values])
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert int(tower.norm.num_batches_tracked) == 2
    pooled, (y_pooled, y) = values.mean(1), model.encode_batch("text", DISTINCT)
    loss = 0.5 * model.clip_loss_fn(pooled, y_pooled) + 0.5 * model.sequence_loss_fn(
        values, y.values, None, y.mask, model.caption_groups(DISTINCT)
    )
    loss.backward()
    torch.testing.assert_close(gradient, tower.norm.weight.grad)
