"""Draw the pictures of docs/similarities.md: `python docs/draw_figures.py` (extra `plot`).

They compare one made-up recording of 30 steps, in which somebody sits, walks and waves, with three
captions of one step per word: the right one, the same words in another order, and other words. For
each similarity they show what `explain` returns and the scores of the three captions.
"""

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import clipseq
from clipseq.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = Path(__file__).parent / "figures"

ACTIONS = {"sits": 8, "walks": 13, "waves": 9}
"""The actions in the recording, and their numbers of steps."""
CAPTIONS = {
    "as it happened": ["sits", "then", "walks", "then", "waves"],
    "in another order": ["waves", "then", "sits", "then", "walks"],
    "other actions": ["falls", "then", "boxes", "then", "squats"],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "global": {},
    "local": {"window": (6, 1)},
    "attention": {"num_heads": 1},
    "temporal": {},
    "combined": {
        "parts": {
            "global": {},
            "local": {"window": (6, 1)},
            "attention": {"num_heads": 1},
            "temporal": {},
        },
        "weights": {"global": 0.25, "local": 0.5, "attention": 0.25, "temporal": 1.0},
    },
}
"""Options that suit such short sequences, with the weights from configs/simulated.toml."""


def recording_and_captions() -> tuple[Tensor, dict[str, Tensor]]:
    """Return the recording (1, 30, 32) and each caption (1, 5, 32): a noisy direction per word."""
    generator = torch.Generator().manual_seed(4)

    def noise(count: int, size: float) -> Tensor:
        return size * torch.randn(count, 32, generator=generator)

    words = sorted({word for caption in CAPTIONS.values() for word in caption})
    directions = dict(zip(words, torch.linalg.qr(noise(32, 1.0))[0], strict=False))
    steps = torch.cat([directions[action].repeat(count, 1) for action, count in ACTIONS.items()])
    # Actions blend into each other, because each step is the mean of itself and its neighbours.
    padded = torch.cat([steps[:1], steps, steps[-1:]])
    steps = padded.unfold(0, 3, 1).mean(2) + noise(len(steps), 0.07)
    read = {word: direction + noise(1, 0.04)[0] for word, direction in directions.items()}
    captions = {
        name: torch.stack([read[word] for word in caption])[None]
        for name, caption in CAPTIONS.items()
    }
    return steps[None], captions


def draw(name: str) -> "Figure":
    """Draw the cosines of the steps, what the similarity matched, and its three scores."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, captions = recording_and_captions()
    similarity = clipseq.get_similarity(name, **OPTIONS[name])
    caption, y = next(iter(captions.items()))
    with torch.no_grad():
        found = similarity.explain(x, y)
        cosines = (clipseq.unit(x) @ clipseq.unit(y).mT)[0]
        scores = {title: float(similarity(x, other)) for title, other in captions.items()}

    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
    weights = found.weights[0] / found.weights.max()
    for panel, values, title, limits in (
        (panels[0], cosines, "cosine of each step with each word", (-1, 1)),
        (panels[1], weights, f"what {name} matched (explain)", (0, 1)),
    ):
        panel.imshow(
            values.T.numpy(),
            aspect="auto",
            cmap="RdBu_r" if limits[0] < 0 else "Blues",
            vmin=limits[0],
            vmax=limits[1],
            interpolation="nearest",
        )
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_yticks(range(len(CAPTIONS[caption])), CAPTIONS[caption])
        stops = list(accumulate(ACTIONS.values()))
        middles = [
            stop - (count + 1) / 2 for stop, count in zip(stops, ACTIONS.values(), strict=True)
        ]
        panel.set_xticks(middles, ACTIONS)
        panel.tick_params(length=0)
        panel.set_xlabel(f"{stops[-1]} steps of the recording")
        for stop in stops[:-1]:
            panel.axvline(stop - 0.5, color="black", linewidth=0.8, linestyle=":")
    bars = panels[2].barh(
        list(scores), list(scores.values()), color=("#0072b2", "#d55e00", "#8a8a8a")
    )
    panels[2].bar_label(bars, fmt="%.2f", padding=3)
    panels[2].invert_yaxis()
    panels[2].tick_params(axis="y", length=0)
    panels[2].set_xlim(-0.25, 1.0)
    panels[2].axvline(0, color="black", linewidth=0.8)
    panels[2].set_title("score of three captions", fontsize=10, loc="left")
    panels[2].spines[["top", "right", "left"]].set_visible(False)
    return figure


def draw_all(folder: Path = FIGURES) -> list[Path]:
    """Draw every picture into `folder`."""
    paths = []
    for name in OPTIONS:
        paths.append(folder / f"similarity-{name}.png")
        save(draw(name), paths[-1])
    return paths


if __name__ == "__main__":
    for path in draw_all():
        print(path)
