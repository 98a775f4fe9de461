"""Tables, the figure and docs/results.md from the runs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from benchmarks.learning.datasets import DATASETS
from benchmarks.learning.runs import COMBINED, EQUAL_TIME, MODELS, PARTS, PLAIN, UNCHANGED, Size
from benchmarks.learning.summary import METRICS, Interval, Run, estimate
from clipseq.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    PLAIN: "#8a8a8a",
    EQUAL_TIME: "#bbbbbb",
    UNCHANGED: "#dddddd",
    "global": "#4d4d4d",
    "local": "#0072b2",
    "attention": "#d55e00",
    "temporal": "#009e73",
    COMBINED: "#cc79a7",
}

PAGE = """\
# Results

What does a model learn from its data with each similarity? `make learning` trains plain CLIP, each
part of `combined` alone, and `combined`, with clipseq's defaults except for the sizes below, and
writes this page. The defaults were chosen with one seed on the test clips of radar and of both sets
of digits; captured and simulated were looked at while the augmentation was chosen.

{table}
Values are means over the seeds and the test clips. An interval is a 95 % bootstrap interval over
both; a difference is paired by seed and clip. R@1 counts a caption as right if it describes the
same actions in the same order, since the wording cannot be told from the signal. Order accuracy
compares a clip's caption with the same caption with its actions in another order.

## `combined` against its best part

Among the parts with most seeds, the best has the largest R@1. A positive difference is in favour of
`combined`; all are paired by seed and clip.

{against}
![R@1 and order accuracy of each model on each data set](figures/results.png)

## Data sets

{datasets}
## Conditions

Towers of {width} features with two layers, a tokenizer of words; {steps} steps of {batch_size}
clips, one thread. `{equal_time}` is trained for as many steps as plain CLIP takes in the processor
time of `combined`. `{unchanged}` is trained on unchanged clips, and every other model with the
default augmentation.

{costs}
All runs, clip by clip, are in [results.json](results.json).
"""


def line(run: Run) -> str:
    """Return a run as one line of text."""
    values = ", ".join(f"{m} {estimate([run], m, draws=1).value:.3f}" for m in METRICS)
    return f"{values}; {run['steps']} steps in {run['cpu_seconds']:.0f} s of processor time"


def tables(runs: Sequence[Run]) -> str:
    """Return a Markdown table of the metrics of each model on each data set."""
    head = ("data set", "model", "seeds", *METRICS, f"R@1 minus `{PLAIN}`")
    rows, groups = [], _grouped(runs)
    for (dataset, model), group in groups.items():
        plain = groups.get((dataset, PLAIN), [])
        rows.append(
            (
                dataset,
                f"`{model}`",
                str(len(group)),
                *(_interval(estimate(group, metric)) for metric in METRICS),
                "" if model == PLAIN else _difference(group, plain),
            )
        )
    return _table(head, rows)


def _against_parts(runs: Sequence[Run]) -> str:
    """Return a table of `combined` minus the part with the largest mean of R@1."""
    groups = _grouped(runs)
    recalls = list(METRICS)[:2]
    rows = []
    for dataset in dict.fromkeys(run["dataset"] for run in runs):
        own = groups.get((dataset, COMBINED), [])
        found = []
        for part in PARTS:
            mine, theirs = _with_equal_seeds(own, groups.get((dataset, part), []))
            if mine:
                mean = sum(estimate(theirs, metric, draws=1).value for metric in recalls)
                found.append((len(mine), mean, part, mine, theirs))
        if found:
            seeds, _, part, mine, theirs = max(found, key=lambda entry: entry[:2])
            differences = [estimate(mine, metric, minus=theirs) for metric in METRICS]
            rows.append((dataset, f"`{part}`", str(seeds), *map(_signed, differences)))
    return _table(("data set", "best part", "seeds", *METRICS), rows)


def _with_equal_seeds(runs: Sequence[Run], others: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the runs of the seeds that both have, in the order of the seeds."""
    seeds = sorted({run["seed"] for run in runs} & {run["seed"] for run in others})
    by_seed = [{run["seed"]: run for run in some} for some in (runs, others)]
    return [by_seed[0][seed] for seed in seeds], [by_seed[1][seed] for seed in seeds]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def write(runs: Sequence[Run], size: Size, docs: Path) -> None:
    """Write results.md, figures/results.png and results.json into a folder of pages."""
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(run["dataset"] for run in runs)
    text = PAGE.format(
        table=tables(runs),
        against=_against_parts(runs),
        datasets="".join(f"- **{name}**: {_description(name)}\n" for name in names),
        equal_time=EQUAL_TIME,
        unchanged=UNCHANGED,
        costs=_costs(runs),
        **attrs.asdict(size),
    )
    (docs / "results.md").write_text(text, encoding="utf-8")
    (docs / "results.json").write_text(
        json.dumps({"size": attrs.asdict(size), "runs": list(runs)}) + "\n", encoding="utf-8"
    )
    save(figure(runs), docs / "figures" / "results.png")


def figure(runs: Sequence[Run]) -> "Figure":
    """Draw a panel for each metric: a group of bars for each data set, a bar for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _grouped(runs)
    datasets = list(dict.fromkeys(dataset for dataset, _ in groups))
    models = [model for model in MODELS if any(key[1] == model for key in groups)]
    drawn = Figure(figsize=(10.5, 2.8 * len(METRICS)), layout="constrained")
    FigureCanvasAgg(drawn)
    panels = drawn.subplots(len(METRICS), 1, sharex=True)
    for panel, metric in zip(panels, METRICS, strict=True):
        for number, model in enumerate(models):
            at = [k for k, dataset in enumerate(datasets) if (dataset, model) in groups]
            found = [estimate(groups[datasets[k], model], metric) for k in at]
            values = [interval.value for interval in found]
            panel.bar(
                [k + (number - (len(models) - 1) / 2) * 0.8 / len(models) for k in at],
                values,
                width=0.75 / len(models),
                yerr=[
                    [max(0.0, i.value - i.low) for i in found],
                    [max(0.0, i.high - i.value) for i in found],
                ],
                color=COLOURS[model],
                error_kw={"elinewidth": 0.8},
                label=model,
            )
        panel.set_title(metric, loc="left", fontweight="bold")
        panel.set_xticks(range(len(datasets)), datasets)
        panel.set_ylim(0.5 if "order" in metric else 0.0, 1.0)
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return drawn


def _grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["dataset"], run["model"]), []).append(run)
    return groups


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _difference(runs: Sequence[Run], plain: Sequence[Run]) -> str:
    """Return the paired differences of R@1, both ways, over the seeds that both models have."""
    mine, theirs = _with_equal_seeds(runs, plain)
    if not mine:
        return ""
    return " / ".join(_signed(estimate(mine, metric, minus=theirs)) for metric in list(METRICS)[:2])


def _costs(runs: Sequence[Run]) -> str:
    """Return a table of milliseconds of processor time per step, validation included."""
    groups = _grouped(runs)
    datasets = list(dict.fromkeys(dataset for dataset, _ in groups))
    rows = [
        (
            f"`{model}`",
            *(
                f"{sum(1e3 * r['cpu_seconds'] / r['steps'] for r in found) / len(found):.0f}"
                if (found := groups.get((dataset, model)))
                else ""
                for dataset in datasets
            ),
        )
        for model in (PLAIN, *PARTS, COMBINED)
    ]
    return _table(("ms per step", *datasets), rows)


def _description(name: str) -> str:
    text = DATASETS[name].__doc__ or ""
    return text.removeprefix("Return ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    lines = [" | ".join(cells) for cells in (head, rule, *rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"
