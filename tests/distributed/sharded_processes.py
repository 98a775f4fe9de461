"""The scenarios of the sharded tests; test_fsdp.py calls `main` in a process for each rank."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import PATIENCE
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from clipseq import CLIP, Sequences, SignalConfig, TextConfig
from clipseq.errors import ClipseqError
from clipseq.training.optimizer import parameter_groups

CAPTIONS = ["walks", "sits down and waves", "waves", "falls", "stands up", "turns, then sits"]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def make(seed=0, kind=CLIP, **options):
    torch.manual_seed(seed)
    options = {
        "encoder_cfg": SignalConfig(views={"range_time": 5, "doppler_time": 3}, patch_frames=4),
        "text_cfg": TextConfig(),
        "context_length": 48,
        "transformer_width": 8,
        "transformer_layers": 2,
        "transformer_heads": 2,
        **options,
    }
    return kind(**options)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    radar = {
        "range_time": torch.randn(6, 5, 13, generator=generator),
        "doppler_time": torch.randn(6, 3, 13, generator=generator),
    }
    lengths = torch.randint(2, 14, (6,), generator=generator)
    captions = [f"{caption} {'and ' * (seed % 3)}rests" for caption in CAPTIONS]
    return {"radar": radar, "radar_lengths": lengths, "text": captions}


def shard_all(model, **options):
    fully_shard(model, **options)


def shard_blocks(model, **options):
    for tower in (model.x_encoder, model.y_encoder):
        for block in tower.transformer.blocks:
            fully_shard(block, **options)
    fully_shard(model, **options)


def shard_as_documented(model, **options):
    for tower in (model.x_encoder, model.y_encoder):
        for block in tower.transformer.blocks:
            fully_shard(block, **options)
    for loss in (model.clip_loss_fn, model.sequence_loss_fn):
        fully_shard(loss, reshard_after_forward=False)
    fully_shard(model, **options)


LAYOUTS = {"all": shard_all, "blocks": shard_blocks, "documented": shard_as_documented}


class Step(nn.Module):
    """The training step as `forward`, which is where DDP prepares for backward."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def forward(self, data):
        return self.clip.training_step(data)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(model):
    return {name: whole(p.grad).clone() for name, p in model.named_parameters()}


def ddp_step(model, data, micro_batch=None):
    """Return the loss, the gradients, and the parameters in the order in which DDP reduced them."""
    model.micro_batch = micro_batch
    reduced = []

    def hook(group, bucket):
        names = {p: name for name, p in model.named_parameters()}
        reduced.extend(names[p] for p in bucket.parameters())
        return allreduce_hook(group, bucket)

    ddp = DistributedDataParallel(Step(model))
    ddp.register_comm_hook(None, hook)
    for _ in range(2):  # DDP arranges its buckets anew after the first step
        reduced.clear()
        model.zero_grad()
        loss = ddp(data)
        loss.backward()
    return {"loss": loss.detach(), "gradients": gradients(model), "reduced": reduced}


def same_gradients(rank, folder):
    data = batch(rank)
    data["radar"] = {name: view.double() for name, view in data["radar"].items()}
    found = {}
    for kind in ("clip", "siglip"):
        siglip = kind == "siglip"
        for micro_batch in (None, 2):
            model = make(use_siglip=siglip).double()
            found[kind, "ddp", micro_batch] = ddp_step(model, data, micro_batch)
            for layout in ("documented",) if siglip else LAYOUTS:
                model = make(use_siglip=siglip).double()
                LAYOUTS[layout](model)
                model.micro_batch = micro_batch
                loss = model.training_step(data)
                loss.backward()
                step = {"loss": loss.detach(), "gradients": gradients(model)}
                step["metrics"] = {name: whole(v) for name, v in model.metrics.items()}
                found[kind, layout, micro_batch] = step
    return found


class Counting(CLIP):
    """A model with its own training step, as users write them."""

    steps = 0

    def training_step(self, batch, batch_idx=0):
        self.steps += 1
        return 2 * super().training_step(batch, batch_idx)


def other_calls(rank, folder):
    data = batch(0)
    plain, sharded = make().eval(), make().eval()
    shard_as_documented(sharded)
    both = data["radar"], data["text"]
    lengths = {"radar_lengths": data["radar_lengths"]}
    calls = {
        "encode_sequences": lambda m: m.encode_sequences(*both, **lengths)[0],
        "encode_batch x": lambda m: m.encode_batch(
            "radar", data["radar"], lengths=lengths["radar_lengths"]
        )[0],
        "encode_batch y": lambda m: m.encode_batch("text", data["text"])[0],
        "similarity": lambda m: m.similarity(*both, **lengths),
        "forward": lambda m: m(*both, **lengths)[1],
        "training_step": lambda m: m.training_step(data),
    }
    found = {}
    for name, call in calls.items():
        with torch.no_grad():
            found[name] = call(sharded), call(plain)
        call(sharded).sum().backward()  # the weights are sharded again
    own = make(kind=Counting)
    fully_shard(own)
    found["own step"] = own.training_step(data), 2 * make().training_step(data)
    found["own steps"] = own.steps, 1
    return found


def half_precision(rank, folder):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {}
    for layout, micro_batch in (("all", None), ("documented", 2)):
        model = make()
        seen = set()
        model.x_encoder.projection.register_forward_hook(
            lambda module, args, output, seen=seen: seen.add(output.dtype)
        )
        LAYOUTS[layout](model, mp_policy=policy)
        model.micro_batch = micro_batch
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model.training_step(batch(rank))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        found[layout, micro_batch] = {
            "losses": losses,
            "computed in": {str(dtype) for dtype in seen},
            "kept in": {str(p.dtype) for p in model.parameters()},
            "scale": str(model.metrics["seq_scale"].dtype),
        }
    return found


def trained(model, seed=0):
    """Train for three steps; return the optimizer."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        model.training_step(batch(seed + step)).backward()
        optimizer.step()
    return optimizer


def write_checkpoint(model, optimizer, folder, **options):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder, **options)


def read_checkpoint(model, optimizer, folder, **options):
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder, **options)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def whole_states(model, optimizer):
    weights, state = get_state_dict(model, optimizer, options=WHOLE)
    # Copy the states, because the optimizer counts steps in place.
    return copy.deepcopy({"model": weights, "optimizer": state["state"]}) if weights else None


def writes(rank, folder):
    model = make()
    shard_blocks(model)
    optimizer = trained(model, seed=rank)
    write_checkpoint(model, optimizer, folder / "checkpoint")
    model.save_pretrained(folder / "model")
    (folder / "a file").touch()
    try:
        model.save_pretrained(folder / "a file")
        refused = "nothing"
    except (OSError, ClipseqError) as error:
        refused = type(error).__name__
    with torch.no_grad():
        model.training_step(batch(0))  # leaves weights gathered
    model.save_pretrained(folder / "again")
    return {"refused": refused, "states": whole_states(model, optimizer)}


class Own(nn.Module):
    """A tower of the user's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, values, mask=None):
        return Sequences.from_tensor(self.linear(values.mT))


def writes_own_tower(rank, folder):
    model = make(encoder_cfg=Own())
    fully_shard(model.x_encoder.module)
    fully_shard(model)
    data = {"radar": batch(0)["radar"]["doppler_time"], "text": CAPTIONS}
    model.training_step(data).backward()
    model.save_pretrained(folder / "own model")
    return get_model_state_dict(model, options=WHOLE)


def writes_hugging_face(rank, folder):
    model = make(text_cfg=TextConfig(pretrained=str(folder / "bert")))
    fully_shard(model.y_encoder.language_model)
    fully_shard(model)
    data = {"radar": batch(0)["radar"], "text": CAPTIONS}
    model.training_step(data).backward()
    model.save_pretrained(folder / "bert model")
    return get_model_state_dict(model, options=WHOLE)


def reads(rank, folder):
    model = make(seed=1)
    shard_as_documented(model)
    optimizer = trained(model)
    read_checkpoint(model, optimizer, folder / "checkpoint")
    states = whole_states(model, optimizer)
    model.training_step(batch(rank)).backward()
    optimizer.step()
    return states


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        same_gradients,
        other_calls,
        half_precision,
        writes,
        writes_own_tower,
        writes_hugging_face,
        reads,
    )
}


@contextmanager
def process_group(rank: int, world: int, folder: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def main(folder: Path, rank: int, world: int, *scenarios: str) -> None:
    """Run the scenarios, and save the result of each."""
    with process_group(rank, world, folder):
        for scenario in scenarios:
            result = SCENARIOS[scenario](rank, folder)
            torch.save(result, folder / f"{scenario}.{rank}.pt")
        dist.barrier()
