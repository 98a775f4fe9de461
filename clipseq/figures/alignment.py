"""One alignment: the maps of a signal over time, and below them the words or steps that match."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from jaxtyping import Float

from clipseq.data.header import Axis
from clipseq.engine.options import check_kind, finite_number
from clipseq.figures.canvas import ACTION_COLOURS, MUTED, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray


@attrs.frozen(eq=False)
class SignalSteps:
    """The steps of one recording, and its maps.

    Attributes:
        name: name of the signal, such as "radar".
        edges: start of each step, and stop of the last one. Step k lasts from ``edges[k]`` to
            ``edges[k + 1]``; the last step ends with the recording.
        unit: unit of `edges`: "s", or "frames" if the frame rate is unknown.
        maps: view name -> map (F, T); its T frames divide the time evenly.
        axes: axis of each view for which it is known.
    """

    name: str
    edges: Float[Array, "_"]
    unit: str = "s"
    maps: Mapping[str, Float[Array, "_ T"]] = attrs.field(factory=dict, repr=False)
    axes: Mapping[str, Axis] = attrs.field(factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def spans(self) -> Float[Array, "n 2"]:
        """Start and stop of each step, in `unit`."""
        return np.stack([self.edges[:-1], self.edges[1:]], axis=1)


@attrs.frozen(eq=False)
class TextSteps:
    """The words of one text: its name, such as "text", and the words in order."""

    name: str
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)


@attrs.frozen
class Action:
    """One action of a clip: its name, its start and stop in time, its words in the caption."""

    name: str
    start: float
    stop: float
    words: tuple[int, ...] = ()


def draw_alignment(
    x: SignalSteps | TextSteps,
    y: SignalSteps | TextSteps,
    weights: Float[Array, "T L"],
    *,
    actions: Sequence[Action] = (),
    title: str = "",
    width: float = 10.5,
) -> "Figure":
    """Draw how strongly each step of x matches each step of y.

    Time runs to the right, and the words run down, whichever side is the text. With two signals or
    two texts, x runs to the right and y down. The maps of a signal lie along its time axis; only
    the bins in which something happens are drawn. If a view has an `Axis`, its panel has ticks, a
    unit and a colour scale.

    Args:
        x: the steps of x.
        y: the steps of y.
        weights: how strongly step t of x matches step l of y. Each word is drawn relative to its
            own maximum; of two signals or two texts, all steps are relative to the largest weight.
        actions: the true actions on the time axis, and the words that describe them.
        title: title of the figure.
        width: width of the figure in inches.

    Returns:
        A figure with the maps above and the matches below, on one time axis. Each true action has
        a colour, which marks its time in all panels, its words, and a box around those words at
        that time. A dark streak inside its box means that word and action line up.

    Raises:
        ClipseqError: matplotlib is not installed.
        TypeError: `x` or `y` are not steps, `weights` is not an array, `title` is not a string, or
            `width` is not a number.
        ValueError: `weights` has another shape or is not finite, or `width` is out of its range.
    """
    for name, side in (("x", x), ("y", y)):
        check_kind(name, side, (SignalSteps, TextSteps), "SignalSteps or TextSteps")
    check_kind("weights", weights, np.ndarray, "an array (T, L)")
    check_kind("title", title, str, "a string")
    if weights.shape != (len(x), len(y)) or weights.dtype.kind not in "fiu":
        raise ValueError(
            f"weights must be numbers {(len(x), len(y))}, one for each pair of steps, got "
            f"{weights.dtype} {weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError("weights must be finite, got NaN or infinity")
    width = finite_number("width", width)
    if not 1 <= width <= 200:
        raise ValueError(f"width must be from 1 to 200 inches, got {width}")
    across, down, cells = x, y, weights.T
    if isinstance(x, TextSteps) and isinstance(y, SignalSteps):
        across, down, cells = y, x, weights
    above = across.maps if isinstance(across, SignalSteps) else {}
    beside = down.maps if isinstance(down, SignalSteps) else {}
    grid_height = 0.3 * len(down) + 0.3 if isinstance(down, TextSteps) else 4.0
    figure = make_figure(width, 1.35 * len(above) + grid_height + 1.3)
    layout = figure.add_gridspec(
        len(above) + 1,
        len(beside) + 1,
        height_ratios=[1.35] * len(above) + [grid_height],
        width_ratios=[1.0] * len(beside) + [max(4.0, 1.5 * len(beside))],
    )
    grid: Any = figure.add_subplot(layout[-1, -1])
    upper = [figure.add_subplot(layout[k, -1], sharex=grid) for k in range(len(above))]
    left = [figure.add_subplot(layout[-1, k], sharey=grid) for k in range(len(beside))]
    for panel, view in zip(upper, above, strict=True):
        assert isinstance(across, SignalSteps)
        _draw_map(panel, across, view)
        panel.tick_params(axis="x", labelbottom=False, length=0)
    for panel, view in zip(left, beside, strict=True):
        assert isinstance(down, SignalSteps)
        _draw_map(panel, down, view, upright=True)
        panel.tick_params(axis="y", labelleft=panel is left[0], length=0)
    if left:
        assert isinstance(down, SignalSteps)
        left[0].set_ylabel(_time_label(down))
        grid.tick_params(axis="y", labelleft=False, length=0)

    by_word = isinstance(down, TextSteps) and isinstance(across, SignalSteps)
    largest = cells.max(axis=1, keepdims=True) if by_word else cells.max()
    relative = cells / np.maximum(largest, 1e-12)
    mesh = grid.pcolormesh(
        _edges(across), _edges(down), relative, cmap="Greys", vmin=0.0, vmax=1.0, linewidth=0
    )
    figure.colorbar(
        mesh, ax=grid, pad=0.01, ticks=[0.0, 0.5, 1.0], aspect=30,
        label="match, relative to the word's best" if by_word else "match, relative to the best",
    )  # fmt: skip
    grid.set_xlim(_edges(across)[0], _edges(across)[-1])
    grid.set_ylim(_edges(down)[-1], _edges(down)[0])
    if isinstance(across, SignalSteps):
        grid.set_xlabel(_time_label(across))
    else:
        grid.set_xticks(range(len(across)), across.words, rotation=60, ha="right")
        grid.set_xlabel(across.name)
    if isinstance(down, TextSteps):
        grid.set_yticks(range(len(down)), down.words)
        grid.set_ylabel(f"{down.name}, word by word")
        for word in range(len(down) - 1):
            grid.axhline(word + 0.5, color="white", linewidth=1.5)
        for label in grid.get_yticklabels():
            label.set_color(MUTED)
        grid.tick_params(axis="y", length=0)
    words = len(down) if isinstance(down, TextSteps) else 0
    _mark_actions(upper, grid, actions, words, 0.6 * width / (_edges(across)[-1] or 1.0))
    for panel in (*upper, *left, grid):
        panel.spines[:].set_visible(False)
    if title:
        figure.suptitle(title)
    return figure


def _edges(side: SignalSteps | TextSteps) -> Float[Array, "_"]:
    return side.edges if isinstance(side, SignalSteps) else np.arange(len(side) + 1) - 0.5


def _time_label(side: SignalSteps) -> str:
    return "time (s)" if side.unit == "s" else f"time ({side.unit})"


def _draw_map(panel: Any, side: SignalSteps, view: str, *, upright: bool = False) -> None:
    """Draw the busy bins of one view, with time to the right or, `upright`, downwards."""
    axis, values = side.axes.get(view), side.maps[view]
    shown = busy_rows(values)
    if axis is not None:
        values = axis.offset + axis.scale * values
    low, high = np.percentile(values, [20, 99.5])
    bins, start, stop = _bin_edges(values, shown, axis)
    times = (float(side.edges[0]), float(side.edges[-1]))
    image = panel.imshow(
        bins.T if upright else bins,
        origin="upper" if upright else "lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=max(high, np.nextafter(low, np.inf)),
        extent=(start, stop, times[1], times[0]) if upright else (*times, start, stop),
    )
    label = view.replace("_time", "").replace("_", " ")
    if axis is not None:
        label = f"{axis.label} ({axis.unit})" if axis.unit else axis.label
    if upright:
        panel.set_xlabel(label)
    else:
        panel.set_ylabel(label)
    if axis is None and upright:
        panel.set_xticks([])
    elif axis is None:
        panel.set_yticks([])
    elif axis.values:
        bar = panel.figure.colorbar(
            image, ax=panel, pad=0.01, aspect=12 if not upright else 30,
            location="top" if upright else "right",
        )  # fmt: skip
        bar.set_label(axis.values.replace(" (", "\n("), fontsize=8)


def _bin_edges(
    values: Float[Array, "F T"], shown: slice, axis: Axis | None
) -> tuple[Float[Array, "_ T"], float, float]:
    """Return the bins to draw, and the quantity at the outer edges of the first and last one."""
    bins = values[shown]
    if axis is None:
        return bins, float(shown.start), float(shown.stop)
    width = (axis.last - axis.first) / max(len(values) - 1, 1) or 1.0
    return (
        bins,
        axis.first + (shown.start - 0.5) * width,
        axis.first + (shown.stop - 0.5) * width,
    )


def _mark_actions(
    upper: Sequence[Any], grid: Any, actions: Sequence[Action], words: int, inches: float
) -> None:
    """Mark the actions in all panels, in which one unit of time is about `inches` long."""
    for colour, action in zip(cycle(ACTION_COLOURS), actions, strict=False):
        for panel in upper:
            for edge in (action.start, action.stop):
                panel.axvline(edge, color="white", linewidth=1.0, linestyle=":")
            panel.plot(
                [action.start, action.stop], [1.0, 1.0], color=colour, linewidth=6,
                solid_capstyle="butt", transform=panel.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        top = upper[0] if upper else grid
        # A letter is about 0.65 times as wide as its size.
        room = (action.stop - action.start) * inches * 72 / (0.65 * max(len(action.name), 1))
        top.text(
            (action.start + action.stop) / 2, 1.06, action.name, color=colour, fontweight="bold",
            fontsize=min(10.0, max(room, 5.0)), ha="center", va="bottom",
            transform=top.get_xaxis_transform(),
        )  # fmt: skip
        grid.axvspan(action.start, action.stop, color=colour, alpha=0.10, linewidth=0)
        own = [word for word in action.words if word < words]
        if own:
            first, last = min(own) - 0.5, max(own) + 0.5
            grid.plot(
                [action.start, action.stop, action.stop, action.start, action.start],
                [first, first, last, last, first],
                color=colour, linewidth=2.5,
            )  # fmt: skip
        for word in own:
            label = grid.get_yticklabels()[word]
            label.set_color(colour)
            label.set_fontweight("bold")


def busy_rows(values: Float[Array, "F T"], *, margin: float = 0.15) -> slice:
    """Return the bins to draw: those that stand out from the map's floor at any time, and a margin.

    A bin stands out if it reaches a third of the way from the floor to the peaks. A person fills
    few of a radar's bins, so a whole map would be mostly black.
    """
    low, high = np.percentile(values, [20, 99.5])
    busy = np.flatnonzero(values.max(axis=1) > low + (high - low) / 3)
    if len(busy) == 0:
        return slice(0, len(values))
    extra = max(2, round(margin * (busy[-1] - busy[0] + 1)))
    return slice(max(0, int(busy[0]) - extra), min(len(values), int(busy[-1]) + 1 + extra))
