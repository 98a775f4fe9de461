"""The demo from beginning to end: simulate, train both models, evaluate, draw, report.

Both models see the same clips in the same order for the same number of steps, from the same seed,
with the same towers and the same optimizer. The only difference is `use_sequence_similarity`.
"""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

from clipseq.data import MapDataset, simulate
from clipseq.demo.alignment import align_clips, mean_agreement
from clipseq.demo.configs import COMBINED, FULL, SMALL, Size, demo_configs
from clipseq.demo.folder import DemoFolder
from clipseq.demo.report import Results, draw_figures, format_report, metrics_to_json
from clipseq.engine.files import write_text
from clipseq.errors import ConfigError
from clipseq.evaluation import evaluate
from clipseq.model import CLIP
from clipseq.training import RunConfig, RunFolder, TrainingInterrupted, read_config, train
from clipseq.training.models import pin_options
from clipseq.training.threads import cpu_threads

Progress = Callable[[int, int, Mapping[str, float]], None]
"""A display of progress, called as progress(step, steps, metrics)."""


@contextmanager
def show_nothing(label: str) -> Iterator[Progress]:
    """Provide a `Progress` that shows nothing."""
    yield lambda step, steps, metrics: None


def write_command(*arguments: object) -> str:
    """Return the command line of clipseq with these arguments."""
    return shlex.join(["clipseq", *map(str, arguments)])


def run_demo(
    out: Path,
    *,
    small: bool = False,
    resume: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[str], AbstractContextManager[Progress]] = show_nothing,
    command_line: Callable[..., str] = write_command,
) -> str:
    """Run the demo and return its report, or return the report of a finished demo in `out`.

    The folder then holds data/, the run folders plain/ and combined/ (see `clipseq train`),
    metrics.json, report.txt and figures/.

    Args:
        out: folder of the demo.
        small: use the size for a quick look, whose results are meaningless for the models.
        resume: keep the finished parts of an interrupted demo in `out`: simulated clips, finished
            runs, and the checkpoint of an unfinished one.
        seed: random seed for the data and both training runs.
        say: called with a line of text as each part begins.
        progress: called with the name of a part; returns a context manager with its `Progress`.
        command_line: called with arguments; returns a clipseq command line for messages.

    Raises:
        ConfigError: `out` holds an unfinished demo and `resume` is not set, or it holds a demo of
            another size or seed.
        TrainingInterrupted: Ctrl-C was pressed; the message names the command that continues.
    """
    folder, size = DemoFolder(out), SMALL if small else FULL
    command = ["demo", *(["--small"] * small), *(["--seed", seed] * (seed != 0))]
    resume_command = command_line(*command, "--resume", "--out", out)
    if not resume and not folder.is_empty():
        rerun_command = command_line(*command, "--out", _unused(out))
        settings = folder.read_settings()
        if settings is None:
            raise ConfigError(
                f"{out} exists and would be overwritten; continue an interrupted demo with: "
                f"{resume_command}; or choose another folder with --out"
            )
        if settings != {"size": attrs.asdict(size), "seed": seed}:
            raise ConfigError(
                f"{out} holds a finished demo of another size or seed, whose report is "
                f"{folder.report}; run this one in a new folder with: {rerun_command}"
            )
        return (
            f"{folder.report.read_text(encoding='utf-8').rstrip()}\n\n"
            f"These results were in {out} already. To run the demo again in a new folder:\n"
            f"  {rerun_command}"
        )
    if small:
        say("this takes under a minute on two cores; its results say nothing about the models")
    else:
        look = command_line("demo", "--small", "--out", _unused(out.with_name(f"{out.name}-small")))
        say(f"this takes about 5 minutes on two cores; under a minute in small: {look}")
    with _name_command_on_interrupt(resume_command), cpu_threads(1):
        return _run(folder, size, seed, resume, _Clock(say), progress)


def _unused(out: Path) -> Path:
    """Return `out`, or the next of out-2, out-3 ... that is not in use."""
    numbered = re.fullmatch(r"(.+)-(\d{1,9})", out.name)
    name, number = (numbered[1], int(numbered[2])) if numbered else (out.name, 1)
    path = out
    while path.exists():
        number += 1
        path = out.with_name(f"{name}-{number}")
    return path


def _run(
    folder: DemoFolder,
    size: Size,
    seed: int,
    resume: bool,
    clock: "_Clock",
    progress: Callable[[str], AbstractContextManager[Progress]],
) -> str:
    with clock.part(f"simulating {size.clips} clips"), progress("simulating") as simulating:
        dataset = simulate(
            folder.data,
            clips=size.clips,
            seed=seed,
            progress=lambda done, clips: simulating(done, clips, {}),
        )
    models = {}
    for name, config in demo_configs(folder.root, size, seed=seed).items():
        with (
            clock.part(f"training {name}: {size.steps} steps of {size.batch_size} clips"),
            progress(name) as training,
        ):
            models[name] = _train(config, dataset, resume=resume, progress=training)
    with clock.part(f"evaluating both on {len(dataset.subset('test'))} test clips"):
        evaluations = {name: evaluate(model, dataset) for name, model in models.items()}
        alignments = align_clips(models[COMBINED], dataset.subset("test"))
        results = Results(evaluations, alignments, mean_agreement(alignments))
    with clock.part("drawing the figures"):
        draw_figures(folder, dataset, results, models[COMBINED])
    report = format_report(folder, results, sum(clock.seconds.values()))
    metrics = {
        "size": attrs.asdict(size),
        "seed": seed,
        **metrics_to_json(results, models[COMBINED]),
        "seconds": clock.seconds,
    }
    write_text(folder.metrics, json.dumps(metrics, indent=2) + "\n")
    write_text(folder.report, report)
    return report


def _train(config: RunConfig, dataset: MapDataset, *, resume: bool, progress: Progress) -> CLIP:
    """Train a model; with `resume`, continue its run, or load the model of a finished one."""
    folder = RunFolder(config.training.out)
    begun = resume and folder.config.exists()
    if begun and pin_options(read_config(folder.config)) != pin_options(config):
        raise ConfigError(
            f"{folder.root} was begun with another configuration (another size or seed?); "
            "choose another folder with --out"
        )
    if begun and (folder.model / "config.json").exists():
        return CLIP.from_pretrained(folder.model)
    return train(config, resume=begun, dataset=dataset, progress=progress)


@contextmanager
def _name_command_on_interrupt(command: str) -> Iterator[None]:
    try:
        yield
    except (TrainingInterrupted, KeyboardInterrupt):
        raise TrainingInterrupted(f"interrupted; continue with: {command}") from None


class _Clock:
    """A clock that announces the parts of the demo and records the duration of each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.say(name)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
