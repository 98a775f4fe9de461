"""Alignment of a caption's words with the radar, and its agreement with the true actions.

The `temporal` part of a model with `combined` explains a clip and its caption: how strongly each
step of the radar matches each word. The simulator knows when each action happened and which words
of the caption describe it, so the explanation can be compared with the truth.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch

from clipseq.data import Clip, MapDataset
from clipseq.data.simulation.captions import PHRASES
from clipseq.errors import ClipseqError
from clipseq.evaluation.metrics import Estimate, mean_estimate, resamples
from clipseq.figures import Action
from clipseq.model import CLIP
from clipseq.retrieval.sides import collate_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@attrs.frozen(eq=False)
class ClipAlignment:
    """A clip with the alignment of its caption's words, from the `temporal` part.

    Attributes:
        clip: the clip.
        words: words of the caption, without punctuation.
        weights: (steps, words), how strongly each step of the radar matches each word.
        actions: start and stop of each action in seconds, and the words that describe it.
        duration: seconds that the steps cover.
        right: share of the time within actions at which the words of the current action have more
            weight than those of any other action.
        straight: the same share for an alignment of steps that are all equal, which knows the order
            of the words but not the radar.
    """

    clip: Clip
    words: tuple[str, ...]
    weights: np.ndarray
    actions: tuple[Action, ...]
    duration: float
    right: float
    straight: float


@torch.no_grad()
def align_clips(model: CLIP, clips: MapDataset, *, batch_size: int = 64) -> list[ClipAlignment]:
    """Align every clip with its own caption.

    Raises:
        ClipseqError: the model has no `temporal` part, or a caption does not describe its actions.
    """
    loss = model.sequence_loss_fn
    parts: Any = getattr(None if loss is None else loss.similarity_fn, "parts", {})
    temporal = parts.get("temporal")
    if temporal is None or model.tokenizer is None:
        raise ClipseqError(
            "model must have the part 'temporal' of 'combined' and a tokenizer to align words; "
            "train one with sequence_similarity_type 'combined'"
        )
    tower: Any = model.x_encoder
    frame_rate = clips.frame_rate or 1.0
    seconds = tower.config.patch_frames / frame_rate
    collate = collate_for(model, clips)
    alignments = []
    for start in range(0, len(clips), batch_size):
        some = [clips[i] for i in range(start, min(start + batch_size, len(clips)))]
        batch = collate(some)
        x, y, x_mask, y_mask = model.encode_sequences(
            batch["radar"], batch["text"], radar_lengths=batch["radar_lengths"], return_masks=True
        )
        seen = temporal.explain(x, y, x_mask, y_mask).weights.cpu().numpy()
        blind = temporal.explain(torch.ones_like(x), torch.ones_like(y), x_mask, y_mask)
        unseen = blind.weights.cpu().numpy()
        steps = x_mask.sum(dim=1).tolist()
        for i, clip in enumerate(some):
            tokens = model.tokenizer.tokens(clip.caption)
            real = (i, slice(steps[i]), slice(len(tokens)))
            alignments.append(
                _align_clip(clip, tokens, seen[real], unseen[real], seconds, frame_rate)
            )
    return alignments


def _align_clip(
    clip: Clip,
    tokens: Sequence[str],
    weights: np.ndarray,
    blind: np.ndarray,
    seconds: float,
    frame_rate: float,
) -> ClipAlignment:
    """Reduce the weights of tokens to those of words; a step lasts `seconds`."""
    kept = [i for i, token in enumerate(tokens) if any(char.isalnum() for char in token)]
    words = tuple(tokens[i] for i in kept)
    weights, blind = weights[:, kept], blind[:, kept]
    described = find_action_words(words, clip.actions)
    spans = [(first / frame_rate, last / frame_rate) for first, last in clip.spans]
    return ClipAlignment(
        clip=clip,
        words=words,
        weights=weights,
        actions=tuple(
            Action(name.replace("_", " "), start, stop, own)
            for name, (start, stop), own in zip(clip.actions, spans, described, strict=True)
        ),
        duration=len(weights) * seconds,
        right=right_share(weights, described, spans, seconds),
        straight=right_share(blind, described, spans, seconds),
    )


def right_share(
    weights: np.ndarray,
    action_words: Sequence[tuple[int, ...]],
    spans: Sequence[tuple[float, float]],
    seconds: float,
) -> float:
    """Return the share of the time within actions at which the current action's words weigh most.

    Args:
        weights: (steps, words).
        action_words: the words of each action.
        spans: start and stop of each action in seconds.
        seconds: duration of a step.
    """
    edges = np.arange(len(weights) + 1) * seconds
    mass = np.stack([weights[:, list(own)].sum(axis=1) for own in action_words])
    leading = mass.argmax(axis=0)
    right = within = 0.0
    for number, (start, stop) in enumerate(spans):
        overlap = np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None)
        right += float(overlap[leading == number].sum())
        within += float(overlap.sum())
    return right / within


def find_action_words(words: Sequence[str], actions: Sequence[str]) -> list[tuple[int, ...]]:
    """Find the words of a simulated caption that describe each of its actions.

    Raises:
        ClipseqError: the caption does not contain a known wording of an action.
    """
    found = []
    place = 0
    lowered = [word.lower() for word in words]
    for action in actions:
        phrases = [re.findall(r"\w+", phrase) for phrase in PHRASES.get(action, ())]
        wordings = sorted(phrases, key=len, reverse=True)
        for start in range(place, len(words)):
            match = next((w for w in wordings if lowered[start : start + len(w)] == w), None)
            if match is not None:
                break
        else:
            raise ClipseqError(
                f"caption must describe the action {action!r} in a wording of the simulator, got "
                f"{' '.join(words)!r}"
            )
        place = start + len(match)
        found.append(tuple(range(start, place)))
    return found


def mean_agreement(alignments: Sequence[ClipAlignment]) -> dict[str, Estimate]:
    """Return the mean over clips of `right` (as "model") and of `straight`."""
    draws = resamples(len(alignments))
    return {
        name: mean_estimate(torch.tensor([getattr(a, field) for a in alignments]), draws)
        for name, field in (("model", "right"), ("straight", "straight"))
    }


def choose_typical(alignments: Sequence[ClipAlignment]) -> ClipAlignment:
    """Return the clip to show: the median, by `right`, of those with three actions."""
    three = [a for a in alignments if len(a.actions) == 3] or list(alignments)
    return sorted(three, key=lambda a: a.right)[len(three) // 2]


def draw_aligned(model: CLIP, shown: ClipAlignment, *, title: str) -> "Figure":
    """Draw the `temporal` part of a clip's explanation, with its true actions and their words."""
    found = model.explain(shown.clip)
    # `shown` counts the words without punctuation.
    places = [i for i, word in enumerate(found.words) if any(char.isalnum() for char in word)]
    actions = [
        attrs.evolve(action, words=tuple(places[word] for word in action.words))
        for action in shown.actions
    ]
    return found.plot(part="temporal", actions=actions, title=title)
