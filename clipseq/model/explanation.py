"""Explanation: the alignment of one recording and its caption, in seconds and words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from jaxtyping import Float

from clipseq.errors import ClipseqError, suggest
from clipseq.figures import Action, SignalSteps, TextSteps, draw_alignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@attrs.frozen(eq=False)
class ExplainedPart:
    """The contribution of one part of a similarity that is made of others, such as ``combined``.

    Attributes:
        share: the part's weight, as a share of the weights of all parts; shares sum to 1.
        score: the part's own score, in [-1, 1].
        weights: (T, L) the part's own alignment, as in `Explanation`.
    """

    share: float
    score: float
    weights: Float[np.ndarray, "T L"] = attrs.field(repr=False)

    @property
    def contribution(self) -> float:
        """``share·score``; the contributions of all parts of ``combined`` sum to its score."""
        return self.share * self.score


@attrs.frozen(eq=False)
class Explanation:
    """The steps of one x and one y that match each other, as `CLIP.explain` returns them.

    Attributes:
        score: similarity of the two, as `CLIP.similarity` returns it.
        similarity: name of the similarity.
        x: steps of x: the words of a text, or the times of a signal with its maps.
        y: steps of y, likewise.
        weights: (T, L) how strongly each step of x matches each step of y; never negative. The
            weight of a word is the sum over its tokens. Each similarity documents the meaning of
            its weights.
        parts: the same for each part of ``combined``; empty for a similarity without parts.
        actions: the actions of the clip that was explained, if their times are known.
    """

    score: float
    similarity: str
    x: SignalSteps | TextSteps
    y: SignalSteps | TextSteps
    weights: Float[np.ndarray, "T L"] = attrs.field(repr=False)
    parts: Mapping[str, ExplainedPart] = attrs.field(factory=dict)
    actions: tuple[Action, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the text; of two texts, those of y.

        Raises:
            ClipseqError: both sides are signals.
        """
        for side in (self.y, self.x):
            if isinstance(side, TextSteps):
                return side.words
        raise ClipseqError(
            f"words must come from a text, got the signals {self.x.name} and {self.y.name}; read "
            "x.spans and y.spans"
        )

    @property
    def seconds(self) -> Float[np.ndarray, "n 2"]:
        """Start and stop of each step of the signal, in seconds; of two signals, those of x.

        Raises:
            ClipseqError: both sides are texts, or the frame rate is unknown.
        """
        for side in (self.x, self.y):
            if isinstance(side, SignalSteps):
                if side.unit != "s":
                    raise ClipseqError(
                        f"seconds must come from a frame rate, got {side.name} in {side.unit}; "
                        "pass frame_rate to explain, or read spans"
                    )
                return side.spans
        raise ClipseqError(
            f"seconds must come from a signal, got the texts {self.x.name} and {self.y.name}; read "
            "x.words and y.words"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything except the maps as plain numbers, strings, lists and dictionaries."""
        return {
            "score": self.score,
            "similarity": self.similarity,
            "x": _side_to_json(self.x),
            "y": _side_to_json(self.y),
            "weights": self.weights.tolist(),
            "parts": {
                name: {
                    "share": part.share,
                    "score": part.score,
                    "contribution": part.contribution,
                    "weights": part.weights.tolist(),
                }
                for name, part in self.parts.items()
            },
        }

    def as_text(self) -> str:
        """Return the score, and the contribution of each part, as a few lines of text."""
        lines = [f"{self.similarity}: {self.score:.3f}"]
        if self.parts:
            longest = max(map(len, self.parts))
            lines += [
                f"  {name:{longest}}  {part.share:.3f} of {part.score:.3f} = "
                f"{part.contribution:.3f}"
                for name, part in self.parts.items()
            ]
        return "\n".join(lines)

    def plot(
        self,
        *,
        part: str | None = None,
        actions: Sequence[Action] | None = None,
        title: str | None = None,
        width: float = 10.5,
    ) -> "Figure":
        """Draw the maps of the signal over time, and below them the times that match each word.

        Words run down and time runs to the right; see `clipseq.figures.draw_alignment`. Punctuation
        is left out. In a notebook the figure is shown; elsewhere, call its ``savefig("file.png")``.

        Args:
            part: draw the alignment of this part. None: that of the whole similarity.
            actions: true actions, with the indices of the words that describe them. None: those of
                the clip.
            title: title of the figure. None: the score, and what the parts contribute to it.
            width: width of the figure in inches.

        Raises:
            ClipseqError: matplotlib is not installed.
            ValueError: there is no such part.
        """
        if part is not None and part not in self.parts:
            known = ", ".join(self.parts) or "no parts"
            raise ValueError(
                f"part must be one of the similarity's parts ({known}), got {part!r}"
                f"{suggest(part, self.parts)}"
            )
        weights = self.weights if part is None else self.parts[part].weights
        x, x_kept = _without_punctuation(self.x)
        y, y_kept = _without_punctuation(self.y)
        actions = self.actions if actions is None else actions
        # The words that run down are those of y, unless x is the text of a signal y.
        kept = x_kept if isinstance(self.y, SignalSteps) else y_kept
        place = {word: i for i, word in enumerate(kept)}
        actions = [
            attrs.evolve(action, words=tuple(place[w] for w in action.words if w in place))
            for action in actions
        ]
        return draw_alignment(
            x,
            y,
            weights[np.ix_(x_kept, y_kept)],
            actions=actions,
            title=self._title(part, width) if title is None else title,
            width=width,
        )

    def _title(self, part: str | None, width: float) -> str:
        if part is not None:
            return f"{part}, a part of {self.similarity}: {self.parts[part].score:.2f}"
        line = f"{self.similarity}: {self.score:.2f}"
        if not self.parts:
            return line
        shares = [f"{name} {p.share:.2f}·{p.score:.2f}" for name, p in self.parts.items()]
        each = max(1, int(width / 2.4))
        rows = [" + ".join(shares[k : k + each]) for k in range(0, len(shares), each)]
        return "\n".join([line, *rows])


def _side_to_json(side: SignalSteps | TextSteps) -> dict[str, Any]:
    if isinstance(side, TextSteps):
        return {"name": side.name, "words": list(side.words)}
    return {"name": side.name, "unit": side.unit, "spans": side.spans.tolist()}


def _without_punctuation(
    side: SignalSteps | TextSteps,
) -> tuple[SignalSteps | TextSteps, list[int]]:
    """Return the side without its punctuation, and the numbers of the steps that are kept."""
    everything = list(range(len(side)))
    if isinstance(side, SignalSteps):
        return side, everything
    kept = [i for i in everything if any(char.isalnum() for char in side.words[i])] or everything
    return attrs.evolve(side, words=tuple(side.words[i] for i in kept)), kept
