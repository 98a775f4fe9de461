"""Our similarities and their peers behind one call: (x, y, x_mask, y_mask) -> scores or a loss.

Each peer is used in the way that suits it best. Where it does not compute the same as our
similarity, its note says how it differs.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import attrs
import torch
from pairwise import (
    all_costs,
    attention_pair,
    attention_whole,
    global_pair,
    lengths,
    local_pair,
    local_whole,
    looped,
    real,
    temporal_pair,
    temporal_whole,
)
from torch import Tensor
from torch.nn.functional import normalize

import clipseq

Scores = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


@attrs.frozen
class Contender:
    """A similarity or loss to measure.

    Attributes:
        label: its name in the tables.
        make: creates the call; raises ImportError if a library is not installed.
        against: for a peer, the label of our similarity that does the same job.
        parts: labels of our similarities whose times are added up for comparison.
        masks: whether it takes masks.
        same: for a peer, whether it gives the same scores as ours.
        note: how it differs from ours.
    """

    label: str
    make: Callable[[], Scores]
    against: str | None = None
    parts: tuple[str, ...] = ()
    masks: bool = True
    same: bool = True
    note: str = ""


def _similarity(name: str, **options: Any) -> Scores:
    return clipseq.get_similarity(name, **options)


def _loss(kind: str) -> Scores:
    return clipseq.SequenceLoss(clipseq.get_similarity("global"), kind=kind)


def _combined_loop() -> Scores:
    """Return the weighted mean of the four, with the weights and options of `combined`."""
    weights = {"global": 0.1, "local": 0.5, "attention": 0.3, "temporal": 1.0}
    loops = {
        "global": global_pair,
        "local": local_pair(1 / 6, 1),
        "attention": partial(attention_pair, heads=2),
        "temporal": temporal_pair(),
    }

    def pair(x: Tensor, y: Tensor) -> Tensor:
        scores = [weight * loops[name](x, y) for name, weight in weights.items()]
        return torch.stack(scores).sum() / sum(weights.values())

    return looped(pair)


def _without_init(*packages: str) -> None:
    """Make modules of a package importable without running its ``__init__``."""
    for package in packages:
        if package in sys.modules:
            continue
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{package} must be installed, got no such package")
        bare = ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations)
        bare.__spec__ = spec
        sys.modules[package] = bare


def _with_numba(name: str) -> ModuleType:
    """Import a package that numba compiles, with as many threads as torch has.

    Numba must not use OpenMP, which torch uses too: that would change torch's number of threads.
    """
    os.environ["NUMBA_THREADING_LAYER"] = "workqueue"
    os.environ["NUMBA_NUM_THREADS"] = str(torch.get_num_threads())
    return importlib.import_module(name)


def _tslearn() -> Scores:
    module = _with_numba("tslearn.metrics")

    def scores(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        costs = all_costs(x, y)
        loss = module.SoftDTWLossPyTorch(gamma=0.1, dist_func=lambda a, b: costs)
        # The costs are computed already, so only the shapes matter.
        shapes = (x.new_empty(len(costs), side.shape[1], 1) for side in (x, y))
        return loss(*shapes).view(len(x), len(y))

    return scores


def _pysdtw() -> Scores:
    module = _with_numba("pysdtw")
    packed = partial(
        torch.nn.utils.rnn.pack_padded_sequence, batch_first=True, enforce_sorted=False
    )

    def scores(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        costs = all_costs(x, y)
        loss = module.SoftDTW(gamma=0.1, use_cuda=False, dist_func=lambda a, b: costs)
        first, second = (x.new_zeros(len(costs), side.shape[1], 1) for side in (x, y))
        if x_mask is None:
            return loss(first, second).view(len(x), len(y))
        t = lengths(x, x_mask).repeat_interleave(len(y))
        length = lengths(y, y_mask).repeat(len(x))
        return loss(packed(first, t), packed(second, length)).view(len(x), len(y))

    return scores


def _pylate() -> Scores:
    _without_init("pylate", "pylate.utils", "pylate.scores")
    colbert = importlib.import_module("pylate.scores.colbert")

    def scores(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        masks = (None, None) if x_mask is None else (x_mask.float(), y_mask.float())
        return colbert.colbert_scores(normalize(x, dim=2), normalize(y, dim=2), *masks)

    return scores


def _x_clip() -> Scores:
    # This module needs torchvision, and no similarity uses it.
    absent = ModuleType("x_clip.visual_ssl")
    absent.SimSiam = absent.SimCLR = None
    sys.modules.setdefault("x_clip.visual_ssl", absent)
    module = importlib.import_module("x_clip.x_clip")

    class Given(torch.nn.Module):
        """An encoder that returns given steps."""

        def forward(self, *_: Any) -> Tensor:
            return self.steps

    text, image = Given(), Given()
    model = module.CLIP(
        text_encoder=text,
        image_encoder=image,
        text_has_cls_token=False,
        visual_has_cls_token=False,
        use_all_token_embeds=True,
        text_ssl_loss_weight=0.0,
        image_ssl_loss_weight=0.0,
    )
    model.to_text_latent = model.to_visual_latent = torch.nn.Identity()

    def loss(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        text.steps, image.steps = y, x
        return model(real(y, y_mask).long(), x, return_loss=True)

    return loss


def _open_clip(name: str, *scale: float) -> Scores:
    _without_init("open_clip")
    criterion = getattr(importlib.import_module("open_clip.loss"), name)()

    def loss(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        means = []
        for values, mask in ((x, x_mask), (y, y_mask)):
            values = values if mask is None else values.masked_fill(~mask[..., None], 0.0)
            means.append(normalize(values.sum(1), dim=1))
        return criterion(*means, *(torch.tensor(value) for value in scale))

    return loss


OURS = {
    ours.label: ours
    for ours in (
        Contender("global", partial(_similarity, "global")),
        Contender("global, CLIP loss", partial(_loss, "clip")),
        Contender("global, SigLIP loss", partial(_loss, "siglip")),
        Contender("local window=1", partial(_similarity, "local", window=1)),
        Contender("local", partial(_similarity, "local")),
        Contender("attention", partial(_similarity, "attention")),
        Contender("temporal", partial(_similarity, "temporal")),
        Contender("temporal band=0.1", partial(_similarity, "temporal", band=0.1)),
        Contender(
            "combined",
            partial(_similarity, "combined"),
            parts=("global", "local", "attention", "temporal"),
        ),
    )
}

_SOFT_DTW = "plain soft-DTW: each step has weight one, paths are not counted; it is given the costs"

PEERS = {
    peer.label: peer
    for peer in (
        Contender("per-pair loop: global", lambda: looped(global_pair), "global"),
        Contender("per-pair loop: local window=1", lambda: looped(local_pair(1)), "local window=1"),
        Contender("per-pair loop: local", lambda: looped(local_pair(16)), "local"),
        Contender("per-pair loop: attention", lambda: looped(attention_pair), "attention"),
        Contender("per-pair loop: temporal", lambda: looped(temporal_pair()), "temporal"),
        Contender("per-pair loop: combined", _combined_loop, "combined"),
        Contender("einsum: local window=1", lambda: local_whole(1), "local window=1"),
        Contender("einsum: local", lambda: local_whole(16), "local"),
        Contender("einsum: attention", lambda: attention_whole, "attention"),
        Contender("einsum: temporal", lambda: temporal_whole, "temporal"),
        Contender(
            "tslearn SoftDTWLossPyTorch",
            _tslearn,
            "temporal",
            masks=False,
            same=False,
            note=_SOFT_DTW,
        ),
        Contender("pysdtw SoftDTW", _pysdtw, "temporal", same=False, note=_SOFT_DTW),
        Contender(
            "PyLate colbert_scores",
            _pylate,
            "local window=1",
            same=False,
            note="one direction only, summed; a masked step counts as a product of 0",
        ),
        Contender(
            "x-clip FILIP",
            _x_clip,
            "local window=1",
            masks=False,
            same=False,
            note="includes its contrastive loss, which cannot be separated; "
            "takes no mask for the images; loaded without its torchvision part",
        ),
        Contender(
            "open_clip ClipLoss", lambda: _open_clip("ClipLoss", 1 / 0.07), "global, CLIP loss"
        ),
        Contender(
            "open_clip SigLipLoss",
            lambda: _open_clip("SigLipLoss", 10.0, -10.0),
            "global, SigLIP loss",
        ),
    )
}

CONTENDERS = OURS | PEERS
