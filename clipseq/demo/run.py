"""The demo: plain CLIP and CLIP with `combined` on the same simulated radar and captions.

Both see the same clips in the same order for the same number of steps, from the same seed, with
the same towers and the same optimizer; the one difference is `use_sequence_similarity`.
"""

import csv
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from clipseq.cli.progress import ProgressBar
from clipseq.config import structure
from clipseq.data import Clip, MapDataset, simulate
from clipseq.data.simulation.captions import PHRASES
from clipseq.demo import figures
from clipseq.errors import ClipseqError, ConfigError
from clipseq.evaluation import Evaluation, as_text, evaluate, metric_table
from clipseq.evaluation.encoding import collate_for
from clipseq.evaluation.metrics import Estimate, mean_estimate, resamples
from clipseq.model import CLIP
from clipseq.training import RunConfig, RunFolder, TrainingInterrupted, read_config, train
from clipseq.training.models import pinned
from clipseq.training.threads import cpu_threads

PLAIN, COMBINED = "plain CLIP", "CLIP + combined"


@attrs.frozen
class Size:
    """How much the demo simulates and trains."""

    clips: int
    steps: int
    batch_size: int
    width: int


FULL = Size(clips=3000, steps=320, batch_size=64, width=96)
SMALL = Size(clips=160, steps=20, batch_size=16, width=32)


def demo_configs(out: Path, size: Size, *, seed: int = 0) -> dict[str, RunConfig]:
    """The two runs, by name; they differ in their folder and in `use_sequence_similarity`."""
    model = {
        "transformer_width": size.width,
        "transformer_layers": 2,
        "transformer_heads": 4,
        "context_length": 64,
        "encoder_cfg": {"patch_frames": 5},
        "use_sequence_similarity": True,
        "sequence_similarity_type": "combined",
        # The sequences are what is compared; a tenth keeps the pooled features of use.
        "sequence_similarity_weight": 0.9,
        # An action lasts two to four seconds, 6 to 13 patches, and takes a few words to tell.
        # The order of the actions is half of what a caption says, so `temporal` leads.
        "sequence_similarity_options": {
            "parts": {
                "global": {},
                "local": {"window": [6, 3]},
                "attention": {"num_heads": 2},
                "temporal": {},
            },
            "weights": {"global": 0.25, "local": 0.5, "attention": 0.25, "temporal": 1.0},
        },
    }
    training = {
        "max_steps": size.steps,
        "batch_size": size.batch_size,
        "learning_rate": 1e-3,
        "warmup_steps": max(1, size.steps // 10),
        "checkpoint_every": max(1, size.steps // 10),
        "threads": 1,
        "seed": seed,
    }

    def config(folder: str, **changes: Any) -> RunConfig:
        return structure(
            RunConfig,
            {
                "data": {"path": str((out / "data").resolve())},
                "model": model | changes,
                "tokenizer": {"kind": "word"},
                "training": training | {"out": str((out / folder).resolve())},
            },
        )

    return {PLAIN: config("plain", use_sequence_similarity=False), COMBINED: config("combined")}


def run_demo(
    out: Path,
    *,
    small: bool = False,
    resume: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = lambda message: None,
) -> str:
    """Simulate, train both models, evaluate both, draw the figures; returns the report.

    The run folder then holds data/, plain/ and combined/ (each a run of its own, as
    `clipseq train` leaves it), metrics.json, report.txt and figures/.

    Args:
        out: the run folder.
        small: the size for a quick look; what it reaches says nothing about the models.
        resume: keep what an interrupted demo in `out` has done already: clips that are
            simulated, trainings that are finished, the checkpoint of one that is not.
        seed: of the data and of both trainings.
        tell: gets a line as each part begins.

    Raises:
        ConfigError: `out` holds something and `resume` is not set; or it holds another demo.
        TrainingInterrupted: Ctrl-C; the message says how to go on.
    """
    size = SMALL if small else FULL
    options = ["--small"] * small + ["--seed", str(seed)] * (seed != 0)
    again = shlex.join(["clipseq", "demo", *options, "--resume", "--out", str(out)])
    if not resume and out.exists() and any(out.iterdir()):
        raise ConfigError(
            f"{out} exists and would be overwritten; continue an interrupted demo with: {again}; "
            "or choose another folder with --out"
        )
    with _continued_by(again), cpu_threads(1):
        return _run(out, size, seed, resume, _Clock(tell))


def _run(out: Path, size: Size, seed: int, resume: bool, clock: "_Clock") -> str:
    with clock.part(f"simulating {size.clips} clips"), ProgressBar("simulating") as progress:
        dataset = simulate(
            out / "data",
            clips=size.clips,
            seed=seed,
            progress=lambda done, clips: progress(done, clips, {}),
        )
    models = {}
    for name, config in demo_configs(out, size, seed=seed).items():
        with clock.part(f"training {name}: {size.steps} steps of {size.batch_size} clips"):
            models[name] = _trained(name, config, dataset, resume=resume)
    with clock.part(f"evaluating both on {len(dataset.subset('test'))} test clips"):
        evaluations = {name: evaluate(model, dataset) for name, model in models.items()}
        alignments = align_clips(models[COMBINED], dataset.subset("test"))
        agreement = alignment_agreement(alignments)
    with clock.part("drawing the figures"):
        _draw(out, dataset, evaluations, alignments, agreement)
    report = _report(out, evaluations, agreement, clock.seconds)
    metrics = {
        "size": attrs.asdict(size),
        "seed": seed,
        "models": {name: evaluation.to_json() for name, evaluation in evaluations.items()},
        "alignment": {name: attrs.asdict(estimate) for name, estimate in agreement.items()},
        "combined_weights": _weights(models[COMBINED]),
        "seconds": clock.seconds,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (out / "report.txt").write_text(report, encoding="utf-8")
    return report


@attrs.frozen(eq=False)
class ClipAlignment:
    """A clip with the alignment of its caption's words, from the `temporal` part.

    Attributes:
        clip: the clip.
        words: the caption's words, punctuation left out.
        weights: (steps, words) how much each step of the radar answered to each word.
        actions: when each action happened, in seconds, and the words that tell it.
        duration: seconds that the steps cover.
        right: share of the time within an action at which that action's words have more of the
            weight than any other action's.
        straight: the same of the alignment of two sequences in which every step is alike: all
            that order alone, without looking, can know.
    """

    clip: Clip
    words: tuple[str, ...]
    weights: np.ndarray
    actions: tuple[figures.Action, ...]
    duration: float
    right: float
    straight: float


@torch.no_grad()
def align_clips(model: CLIP, clips: MapDataset, *, batch_size: int = 64) -> list[ClipAlignment]:
    """The alignment of every clip with its own caption.

    Raises:
        ClipseqError: the model has no `temporal` part, or the clips do not tell their actions.
    """
    temporal = getattr(_similarity(model), "parts", {}).get("temporal")
    if temporal is None or model.tokenizer is None:
        raise ClipseqError("only a model with the part 'temporal' of 'combined' aligns words")
    tower: Any = model.x_encoder
    seconds = tower.config.patch_frames / (clips.frame_rate or 1.0)
    collate = collate_for(model)
    found = []
    for start in range(0, len(clips), batch_size):
        some = [clips[i] for i in range(start, min(start + batch_size, len(clips)))]
        batch = collate(some)
        x, y, x_mask, y_mask = model.encode_sequences(
            batch["radar"], batch["text"], radar_lengths=batch["radar_lengths"], return_masks=True
        )
        weights = temporal.explain(x, y, x_mask, y_mask).weights.cpu().numpy()
        blind = temporal.explain(torch.ones_like(x), torch.ones_like(y), x_mask, y_mask)
        steps = x_mask.sum(dim=1).tolist()
        for i, clip in enumerate(some):
            tokens = model.tokenizer.tokens(clip.caption)
            seen = weights[i, : steps[i], : len(tokens)]
            unseen = blind.weights[i, : steps[i], : len(tokens)].cpu().numpy()
            rate = clips.frame_rate or 1.0
            found.append(_clip_alignment(clip, tokens, seen, unseen, seconds, rate))
    return found


def _clip_alignment(
    clip: Clip,
    tokens: Sequence[str],
    weights: np.ndarray,
    blind: np.ndarray,
    seconds: float,
    frame_rate: float,
) -> ClipAlignment:
    """From token weights to word weights; `seconds` is the length of a step."""
    kept = [i for i, token in enumerate(tokens) if any(char.isalnum() for char in token)]
    words = tuple(tokens[i] for i in kept)
    weights, blind = weights[:, kept], blind[:, kept]
    told = action_words(words, clip.actions)
    spans = [(first / frame_rate, last / frame_rate) for first, last in clip.spans]
    return ClipAlignment(
        clip=clip,
        words=words,
        weights=weights,
        actions=tuple(
            figures.Action(name.replace("_", " "), start, stop, mine)
            for name, (start, stop), mine in zip(clip.actions, spans, told, strict=True)
        ),
        duration=len(weights) * seconds,
        right=right_share(weights, told, spans, seconds),
        straight=right_share(blind, told, spans, seconds),
    )


def right_share(
    weights: np.ndarray,
    told: Sequence[tuple[int, ...]],
    spans: Sequence[tuple[float, float]],
    seconds: float,
) -> float:
    """Share of the time within actions at which the action's own words have the most weight.

    Args:
        weights: (steps, words).
        told: the words of each action.
        spans: when each action happened, in seconds.
        seconds: length of a step.
    """
    edges = np.arange(len(weights) + 1) * seconds
    mass = np.stack([weights[:, list(mine)].sum(axis=1) for mine in told])
    answering = mass.argmax(axis=0)
    right = within = 0.0
    for number, (start, stop) in enumerate(spans):
        overlap = np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None)
        right += float(overlap[answering == number].sum())
        within += float(overlap.sum())
    return right / within


def action_words(words: Sequence[str], actions: Sequence[str]) -> list[tuple[int, ...]]:
    """Which of a caption's words tell each of its actions, for captions of the simulator.

    Raises:
        ClipseqError: an action that the caption does not tell in any known wording.
    """
    found = []
    place = 0
    lowered = [word.lower() for word in words]
    for action in actions:
        told = [re.findall(r"\w+", phrase) for phrase in PHRASES.get(action, ())]
        wordings = sorted(told, key=len, reverse=True)
        for start in range(place, len(words)):
            match = next((w for w in wordings if lowered[start : start + len(w)] == w), None)
            if match is not None:
                break
        else:
            raise ClipseqError(f"{' '.join(words)!r} does not tell the action {action!r}")
        place = start + len(match)
        found.append(tuple(range(start, place)))
    return found


def alignment_agreement(alignments: Sequence[ClipAlignment]) -> dict[str, Estimate]:
    """Mean over clips of `right` ("model") and of `straight`."""
    draws = resamples(len(alignments))
    return {
        name: mean_estimate(torch.tensor([getattr(a, field) for a in alignments]), draws)
        for name, field in (("model", "right"), ("straight", "straight"))
    }


def _trained(name: str, config: RunConfig, dataset: MapDataset, *, resume: bool) -> CLIP:
    folder = RunFolder(config.training.out)
    begun = resume and folder.config.exists()
    if begun and pinned(read_config(folder.config)) != pinned(config):
        raise ConfigError(
            f"{folder.root} was begun with another configuration (another size or seed?); "
            "choose another folder with --out"
        )
    if begun and (folder.model / "config.json").exists():
        return CLIP.from_pretrained(folder.model)
    with ProgressBar(name) as progress:
        return train(config, resume=begun, dataset=dataset, progress=progress)


def _draw(
    out: Path,
    dataset: MapDataset,
    evaluations: Mapping[str, Evaluation],
    alignments: Sequence[ClipAlignment],
    agreement: Mapping[str, Estimate],
) -> None:
    folders = {PLAIN: RunFolder(out / "plain"), COMBINED: RunFolder(out / "combined")}
    curves = {name: read_curves(folder.metrics) for name, folder in folders.items()}
    figures.save(figures.loss_curves(curves), out / "figures" / "losses.png")

    test = dataset.subset("test")
    told = [test[i].actions for i in range(len(test))]
    order = sorted(range(len(told)), key=lambda i: told[i])
    figures.save(
        figures.similarity_matrices(
            {name: own_scores(evaluation) for name, evaluation in evaluations.items()},
            first=[actions[0].replace("_", " ") for actions in told],
            order=np.asarray(order),
            notes={
                name: (
                    f"radar to text R@1 {e.own['radar to text R@1'].estimate.value:.2f}, "
                    f"order accuracy {e.own['order accuracy'].estimate.value:.2f}"
                )
                for name, e in evaluations.items()
            },
        ),
        out / "figures" / "similarity.png",
    )
    shown = representative(alignments)
    figures.save(
        figures.alignment(
            shown.clip.radar,
            duration=shown.duration,
            words=shown.words,
            weights=shown.weights,
            actions=shown.actions,
            title=(
                "When the words of the caption answer to the radar (part 'temporal')\n"
                f"the right action's words lead {shown.right:.0%} of the time; over all test clips "
                f"{agreement['model'].value:.0%}, {agreement['straight'].value:.0%} without looking"
            ),
        ),
        out / "figures" / "alignment.png",
    )


def own_scores(evaluation: Evaluation) -> np.ndarray:
    """The model's own score matrix: by sequences where it uses them, else pooled."""
    return next(iter(evaluation.scores.values())).numpy()


def representative(alignments: Sequence[ClipAlignment]) -> ClipAlignment:
    """The clip to show: the median, by `right`, of those with three actions; not the best one."""
    three = [a for a in alignments if len(a.actions) == 3] or list(alignments)
    return sorted(three, key=lambda a: a.right)[len(three) // 2]


def read_curves(metrics: Path) -> dict[str, figures.Curve]:
    """The losses of a run's metrics.csv, in the order loss_clip, loss_seq, loss_total."""
    with metrics.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    curves = {}
    for name in ("loss_clip", "loss_seq", "loss_total"):
        if name not in rows[0]:
            continue
        validated = [row for row in rows if row.get(f"val_{name}")]
        curves[name] = figures.Curve(
            steps=np.array([int(row["step"]) for row in rows]),
            values=np.array([float(row[name]) for row in rows]),
            validation_steps=np.array([int(row["step"]) for row in validated], dtype=int),
            validation_values=np.array([float(row[f"val_{name}"]) for row in validated]),
        )
    return curves


def _report(
    out: Path,
    evaluations: Mapping[str, Evaluation],
    agreement: Mapping[str, Estimate],
    seconds: Mapping[str, float],
) -> str:
    clips = next(iter(evaluations.values())).clips
    columns = {name: evaluation.own for name, evaluation in evaluations.items()}
    columns[f"{COMBINED}, pooled only"] = evaluations[COMBINED].metrics["pooled"]
    table = metric_table(columns, title=f"{clips} test clips, 95 % bootstrap intervals")
    model, straight = agreement["model"], agreement["straight"]
    return (
        f"{as_text(table, width=120)}\n"
        f"order accuracy: a clip against its own caption and the same caption with its actions "
        f"in another order\n"
        f"words over time (temporal): during an action its own words lead {model.value:.1%} "
        f"[{model.low:.1%}, {model.high:.1%}] of the time; {straight.value:.1%} in an alignment "
        "that knows the order but does not look\n"
        f"figures: {out / 'figures'}\n"
        f"all numbers: {out / 'metrics.json'}\n"
        f"{sum(seconds.values()):.0f} s in all"
    )


def _similarity(model: CLIP) -> Any:
    return None if model.sequence_loss_fn is None else model.sequence_loss_fn.similarity_fn


def _weights(model: CLIP) -> dict[str, float]:
    weights = getattr(_similarity(model), "weights", {})
    return {name: float(weight) for name, weight in weights.items()}


@contextmanager
def _continued_by(command: str) -> Iterator[None]:
    try:
        yield
    except (TrainingInterrupted, KeyboardInterrupt):
        raise TrainingInterrupted(f"interrupted; continue with: {command}") from None


class _Clock:
    """Tells the parts of the demo as they begin, and keeps how long each took."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.tell(name)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
