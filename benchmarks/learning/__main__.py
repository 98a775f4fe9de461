"""Measure what each similarity learns, and write docs/results.md: see README.md in this folder."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.learning import page
from benchmarks.learning.datasets import DATASETS, SIGNALS, MissingRecordings
from benchmarks.learning.runs import (
    COMBINED,
    EQUAL_TIME,
    FULL,
    MODELS,
    PLAIN,
    QUICK,
    TINY,
    Size,
    measure,
)
from clipseq.data import MapDataset


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing in the results, and write the page."""
    options = _parser().parse_args(arguments)
    size = TINY if options.tiny else QUICK if options.quick else FULL
    results = Results(options.results)

    @cache
    def dataset(name: str) -> MapDataset:
        return DATASETS[name](options.recordings, options.results / "clips", size.counts)

    wanted = [
        (name, seed, model)
        for seed in range(options.seeds)
        for name in options.datasets
        for model in options.models
    ]
    for done, (name, seed, model) in enumerate(wanted):
        if options.report or results.path(name, model, seed).exists():
            continue
        try:
            steps = _steps(results, name, seed, model, size)
            run = measure(
                dataset(name),
                size,
                steps=steps,
                seed=seed,
                tables=MODELS[model],
                signal=SIGNALS.get(name, {}),
            )
        except (MissingRecordings, MissingRun) as reason:
            print(f"{name}, {model}, seed {seed}: skipped, since {reason}", file=sys.stderr)
            continue
        results.add(name, model, seed, run)
        print(f"{done + 1} of {len(wanted)}: {name}, {model}, seed {seed}: {page.line(run)}")
    runs = results.read()
    if not runs:
        sys.exit(f"{options.results} must hold at least one run; there is none to report")
    print(page.tables(runs))
    if options.docs is not None:
        page.write(runs, size, options.docs)


class MissingRun(Exception):
    """The reason why a run has to wait for another."""


class Results:
    """A folder with a JSON file for each run, so that parts of the benchmark can run anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, dataset: str, model: str, seed: int) -> Path:
        """Return the file of a run."""
        return self.folder / dataset / f"{model.replace(', ', '-').replace(' ', '-')}-{seed}.json"

    def add(self, dataset: str, model: str, seed: int, run: dict[str, Any]) -> None:
        """Write the file of a run."""
        path = self.path(dataset, model, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"dataset": dataset, "model": model, **run}) + "\n")
        partial.replace(path)

    def read(self) -> list[dict[str, Any]]:
        """Return all runs of known data sets and models, in their order."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*/*.json")]
        known = [run for run in found if run["dataset"] in DATASETS and run["model"] in MODELS]
        orders = list(DATASETS), list(MODELS)
        return sorted(
            known,
            key=lambda run: (
                orders[0].index(run["dataset"]),
                orders[1].index(run["model"]),
                run["seed"],
            ),
        )


def _steps(results: Results, dataset: str, seed: int, model: str, size: Size) -> int:
    """Return the number of optimizer steps of a run."""
    if model != EQUAL_TIME:
        return size.steps
    seconds = []
    for other in (COMBINED, PLAIN):
        path = results.path(dataset, other, seed)
        if not path.exists():
            raise MissingRun(f"its number of steps depends on the missing {path}")
        seconds.append(json.loads(path.read_text())["cpu_seconds"])
    return max(size.steps, round(size.steps * seconds[0] / max(seconds[1], 0.1)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("learning"), help="folder of the runs")
    parser.add_argument(
        "--recordings",
        type=Path,
        default=Path("../shared/data"),
        help="folder of radhar_maps, fsdd_logmel and uiprmd_points (default: %(default)s)",
    )
    parser.add_argument("--docs", type=Path, help="folder for results.md, its figure and its JSON")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--quick", action="store_true", help="halve the batches")
    parser.add_argument("--tiny", action="store_true", help="show that everything runs")
    parser.add_argument("--report", action="store_true", help="report the finished runs only")
    return parser


if __name__ == "__main__":
    main()
