"""Explain the similarity of one x and one y: `CLIP.explain`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipseq.data import Axis, Clip
from clipseq.data.clip import Maps
from clipseq.encoders import SignalTower, Tower
from clipseq.encoders.eval_mode import eval_mode
from clipseq.encoders.frames import first_not_finite
from clipseq.encoders.words import token_spans, word_shares, word_spans
from clipseq.figures import Action, SignalSteps, TextSteps
from clipseq.model.explanation import ExplainedPart, Explanation
from clipseq.model.wrappers import unwrap
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity

if TYPE_CHECKING:
    from clipseq.model.clip import CLIP

FrameRate = float | Mapping[str, float] | None
"""Frames per second of all signals, or of each by its name; None: as the data set says."""


@attrs.frozen(eq=False)
class _Side:
    """One encoded side.

    Attributes:
        values: (1, T, D) its real steps.
        steps: the steps in seconds, or its words.
        shares: (T, n) the share of each encoded step in each of `steps`.
        actions: the actions of a clip, in the time of `steps`.
    """

    values: Float[Tensor, "1 T D"]
    steps: SignalSteps | TextSteps
    shares: Float[np.ndarray, "T n"]
    actions: tuple[Action, ...] = ()


@torch.no_grad()
def explain(model: "CLIP", x: Any, y: Any, frame_rate: FrameRate) -> Explanation:
    """Encode both sides and align them; see `CLIP.explain`."""
    if model.sequence_loss_fn is None or not model.compares_sequences:
        raise ValueError(
            "model must compare sequences to explain a score, got one that compares pooled "
            "features only; train it with use_sequence_similarity=True and "
            "sequence_similarity_weight above 0"
        )
    if y is None:
        if not isinstance(x, Clip):
            raise TypeError(
                f"x must be a Clip if y is left out, got {type(x).__name__}; pass a "
                f"{model.names[1]} too"
            )
        y = x
    with eval_mode(model):
        one, two = (
            _encoded(cast(Tower, unwrap(tower)), given, frame_rate, model)
            for tower, given in zip(model.towers, (x, y), strict=True)
        )
        similarity = model.sequence_loss_fn.similarity_fn
        score, weights = _aligned(similarity, one, two)
        return Explanation(
            score=score,
            similarity=model.config.sequence_similarity_type,
            x=one.steps,
            y=two.steps,
            weights=weights,
            parts=_parts(similarity, one, two),
            actions=one.actions if isinstance(one.steps, SignalSteps) else two.actions,
        )


def _aligned(similarity: Similarity, x: _Side, y: _Side) -> tuple[float, Float[np.ndarray, "T L"]]:
    found = similarity.explain(x.values, y.values)
    weights = found.weights[0].double().cpu().numpy()
    return float(found.score[0]), x.shares.T @ weights @ y.shares


def _parts(similarity: Similarity, x: _Side, y: _Side) -> dict[str, ExplainedPart]:
    """Explain each part of a similarity that is made of others and has weights for them."""
    parts, weights = (getattr(similarity, name, None) for name in ("parts", "weights"))
    if not (similarity.composite and isinstance(parts, Mapping) and isinstance(weights, Mapping)):
        return {}
    # The parts see the sequences after the projection of the whole.
    x = attrs.evolve(x, values=similarity.project_x(_whole(x.values)).values)
    y = attrs.evolve(y, values=similarity.project_y(_whole(y.values)).values)
    total = sum(float(weight) for weight in weights.values())
    explained = {}
    for name, part in parts.items():
        score, aligned = _aligned(part, x, y)
        explained[name] = ExplainedPart(float(weights[name]) / total, score, aligned)
    return explained


def _whole(values: Float[Tensor, "1 T D"]) -> Sequences:
    # A similarity computes in float32 or better.
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    return Sequences.from_tensor(wide)


def _encoded(tower: Tower, given: Any, frame_rate: FrameRate, model: "CLIP") -> _Side:
    if tower.is_signal:
        return _encoded_signal(tower, given, frame_rate, model)
    caption = given.caption if isinstance(given, Clip) else given
    if not isinstance(caption, str):
        raise TypeError(
            f"{tower.name} must be one caption or a Clip that has one, got {type(caption).__name__}"
        )
    if not caption.strip():
        raise ValueError(f"{tower.name} must not be empty, got {caption!r}; pass a caption")
    values = _steps(tower, tower.read([caption]))
    count = values.shape[1]
    tokens = [] if tower.tokenizer is None else token_spans(tower.tokenizer, caption)
    if getattr(getattr(tower, "config", None), "truncate", False):
        tokens = tokens[:count]  # the rest of a long caption has been cut off
    if len(tokens) != count:
        # The tower of a user has steps of its own; they are numbered.
        numbers = tuple(str(number) for number in range(1, count + 1))
        return _Side(values, TextSteps(tower.name, numbers), np.eye(count))
    words = [span for span in word_spans(caption) if span[0] < tokens[-1][1]]
    words = words or [(0, len(caption))]
    names = tuple(caption[start:stop] for start, stop in words)
    return _Side(values, TextSteps(tower.name, names), word_shares(tokens, words))


def _encoded_signal(tower: Tower, given: Any, frame_rate: FrameRate, model: "CLIP") -> _Side:
    axes: Mapping[str, Axis] = {}
    rate: float | None = None
    spans: tuple[tuple[int, int], ...] = ()
    maps = given
    if isinstance(given, Clip):
        maps, rate, axes = _signal_of(given, tower)
        # Spans count the frames of the clip's first signal.
        spans = given.spans if maps is given.signal else ()
        views = tower.config.views if isinstance(tower, SignalTower) else maps
        maps = {view: values for view, values in maps.items() if view in views} or maps
    rate = _rate(frame_rate, tower.name, rate)
    tensors = _tensors(maps, tower, model)
    batch = {view: values[None] for view, values in tensors.items()}
    named = isinstance(maps, Mapping)
    inputs = tower.read(batch if named else next(iter(batch.values())))
    bad = first_not_finite(tower.maps(inputs), inputs.mask)
    if bad is not None:
        raise ValueError(
            f"{tower.name} view {bad[0]!r} must be finite, got NaN or infinity; correct the "
            f"recording"
        )
    values = _steps(tower, inputs)
    frames, count = next(iter(tensors.values())).shape[-1], values.shape[1]
    if isinstance(tower, SignalTower):
        # The last patch may be partly empty; it ends with the recording.
        edges = np.minimum(np.arange(count + 1.0) * tower.config.patch_frames, frames)
    else:
        edges = np.linspace(0.0, frames, count + 1)
    shown = {view: v.float().cpu().numpy() for view, v in tensors.items() if v.ndim == 2}
    if isinstance(tower, SignalTower) and not named:
        shown = dict(zip(tower.config.views, shown.values(), strict=False))
    steps = SignalSteps(
        name=tower.name,
        edges=edges if rate is None else edges / rate,
        unit="frames" if rate is None else "s",
        maps=shown,
        axes={view: axis for view, axis in axes.items() if view in shown},
    )
    actions = (
        tuple(
            Action(name.replace("_", " "), start / (rate or 1.0), stop / (rate or 1.0))
            for name, (start, stop) in zip(given.actions, spans, strict=True)
        )
        if spans
        else ()
    )
    return _Side(values, steps, np.eye(count), actions)


def _signal_of(clip: Clip, tower: Tower) -> tuple[Maps, float | None, Mapping[str, Axis]]:
    """Return the maps of the clip that the tower reads, their frame rate and their axes."""
    header = clip.header
    if header is not None:
        if header.modality == tower.name:
            return clip.signal, header.frame_rate, header.axes
        if header.paired_modality == tower.name:
            return clip.paired, header.paired_frame_rate, header.paired_axes
        known = [header.modality, *([header.paired_modality] if header.paired_modality else [])]
        raise ValueError(
            f"the clip must hold the signal {tower.name!r} of the model, got clip {clip.id!r} with "
            f"{' and '.join(known)}; pass the maps themselves"
        )
    if clip.paired:
        raise ValueError(
            f"the clip must come from a data set that says which of its two signals is "
            f"{tower.name!r}, got clip {clip.id!r} on its own; pass clip.signal or clip.paired"
        )
    return clip.signal, None, {}


def _rate(frame_rate: FrameRate, name: str, known: float | None) -> float | None:
    given = frame_rate.get(name) if isinstance(frame_rate, Mapping) else frame_rate
    if given is None:
        return known
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < np.inf:
        raise ValueError(
            f"frame_rate must be frames per second, above 0 and finite, got {given!r} for {name}"
        )
    return float(given)


def _tensors(maps: Any, tower: Tower, model: "CLIP") -> dict[str, Tensor]:
    """Return the maps as tensors of the model's device and dtype; check that each is one item."""
    like = next(p for p in model.parameters() if p.is_floating_point())
    named = maps if isinstance(maps, Mapping) else {tower.name: maps}
    if not named:
        raise ValueError(f"{tower.name} must have at least one map (F, T), got none")
    tensors = {}
    for view, values in named.items():
        if not isinstance(values, Tensor | np.ndarray):
            raise TypeError(
                f"{tower.name} must be a map (F, T), a dictionary of maps by view, or a Clip, got "
                f"{type(values).__name__}"
            )
        if values.ndim != 2 and (isinstance(tower, SignalTower) or values.ndim == 0):
            hint = "; pass one recording, such as values[0]" if values.ndim == 3 else ""
            raise ValueError(
                f"{tower.name} must be one map (F, T) for each view, got {tuple(values.shape)} for "
                f"{str(view)!r}{hint}"
            )
        tensors[str(view)] = torch.as_tensor(values).to(like.device, like.dtype)
    return tensors


def _steps(tower: Tower, inputs: Any) -> Float[Tensor, "1 T D"]:
    """Return the real steps of one encoded item."""
    _, sequences = tower(inputs, sequences=True)
    assert sequences is not None
    values, mask = sequences
    steps: Tensor = values[:, mask[0]]
    if not steps.shape[1]:
        raise ValueError(f"{tower.name} must have at least one step to explain, got none")
    return steps
