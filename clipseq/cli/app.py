"""The command line (extra `train`): runs, data, the demo, and the plugins."""

import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from clipseq.errors import ClipseqError, ConfigError, DataError, UnknownSimilarityError, origin

app = typer.Typer(
    name="clipseq",
    help="Contrastive learning that keeps the sequence: radar and text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def run() -> None:
    """Run the command line."""
    with warnings.catch_warnings():
        warnings.showwarning = _one_line_warning
        app()


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of ours and bad values become one line and an exit status.

    Status 2: what was asked for is wrong (arguments, config, data, a folder that holds something
    already). Status 1: it went wrong on the way. Status 130: Ctrl-C. ``clipseq --debug ...`` shows
    the traceback. What is none of these is a defect of clipseq, and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as error:
            error.args = ("interrupted",)
            raise _failed(error, INTERRUPTED) from None
        except (ConfigError, DataError, UnknownSimilarityError) as error:
            raise _failed(error, 2) from error
        except ClipseqError as error:
            from clipseq.training.launch.interruption import TrainingInterrupted

            status = INTERRUPTED if isinstance(error, TrainingInterrupted) else 1
            raise _failed(error, status) from error
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise _failed(error, 2) from error

    return wrapper


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Contrastive learning that keeps the sequence: radar and text."""


@app.command()
@reported
def train(
    config: Annotated[
        Path | None, typer.Argument(help="The run's configuration, a TOML file.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue the run in this folder from its last checkpoint."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder, instead of training.out.")
    ] = None,
) -> None:
    """Train a model, as CONFIG says, and leave a run folder.

    In several processes: torchrun --nproc-per-node N -m clipseq train CONFIG, or with
    training.devices in CONFIG.
    """
    from clipseq import training
    from clipseq.cli.progress import ProgressBar

    if (config is None) == (resume is None):
        raise ConfigError("give either a CONFIG or --resume RUN")
    if resume is not None:
        if out is not None:
            raise ConfigError(
                f"--out {out} is for a new run, and --resume goes on in {resume}: leave --out "
                "out, or copy the folder and resume the copy"
            )
        folder = training.RunFolder(resume.resolve())
        if not folder.config.exists():
            raise ConfigError(f"nothing to resume: there is no {folder.config}")
        settings = training.read_config(folder.config)
        # The folder may have been moved since.
        out = folder.root
    else:
        assert config is not None
        settings = training.read_config(config)
    if out is not None:
        options = attrs.evolve(settings.training, out=out.resolve())
        settings = attrs.evolve(settings, training=options)
    trained = False
    with ProgressBar("simulating") as simulating, ProgressBar("training") as progress:

        def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            nonlocal trained
            trained = True
            progress(step, steps, metrics)

        training.train(
            settings,
            resume=resume is not None,
            progress=report,
            data_progress=lambda done, clips: simulating(done, clips, {}),
        )
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:  # one process tells it
        return
    folder = training.RunFolder(settings.training.out)
    if not trained:
        print(
            "nothing to train: the run was finished already; to go on, raise training.max_steps or "
            f"training.epochs in {folder.config}"
        )
    print(f"model: {folder.model}\nmetrics: {folder.metrics}")
    print(f"evaluate it with: clipseq evaluate {folder.root}")


@app.command()
@reported
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a saved model's folder.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="A data set; default: the one the run was trained on."),
    ] = None,
    split: Annotated[str, typer.Option(help="What to evaluate on.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Evaluate a run on a whole split; print a table and write RUN/evaluation.json."""
    from clipseq.evaluation import as_text, evaluation_table
    from clipseq.training.runs import evaluate_run

    evaluation, path = evaluate_run(run, data, split=split)
    if as_json:
        print(json.dumps(evaluation.to_json(), indent=2))
    else:
        print(as_text(evaluation_table(evaluation)), end="")
        print(f"written to {path}")


@app.command()
@reported
def similarities(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """List the registered similarities, and the plugins that could not be loaded."""
    from clipseq.registry import available_similarities, disabled_plugins, failed_plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what failed is told below, with its cause
        infos = available_similarities()
        failed = failed_plugins()
    if as_json:
        listed = {
            "similarities": [
                {
                    "name": info.name,
                    "distribution": info.distribution,
                    "version": info.version,
                    "summary": info.summary,
                    "options": {name: _plain(value) for name, value in info.options.items()},
                    "default_weight": None if info.composite else info.default_weight,
                    "composite": info.composite,
                }
                for info in infos.values()
            ],
            "failed": [attrs.asdict(plugin) for plugin in failed],
        }
        print(json.dumps(listed, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "distribution", "version", "weight", "summary", "options"):
        table.add_column(column, no_wrap=column in ("name", "version"), overflow="fold")
    for info in infos.values():
        table.add_row(
            info.name,
            info.distribution,
            info.version,
            "" if info.composite else f"{info.default_weight:g}",
            info.summary,
            ", ".join(f"{name}={value!r}" for name, value in info.options.items()),
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    if not infos:
        disabled = ", ".join(disabled_plugins())
        print(
            f"none registered: CLIPSEQ_DISABLE leaves out {disabled}"
            if disabled
            else "none registered: clipseq itself is not installed (pip install .)"
        )
    for plugin in failed:
        print(
            f"could not be loaded: {plugin.name!r} of {plugin.distribution} {plugin.version}: "
            f"{plugin.cause}"
        )


@app.command("new-plugin")
@reported
def new_plugin(
    name: Annotated[str, typer.Argument(help="Of the similarity, such as best_match.")],
    directory: Annotated[
        Path, typer.Option(help="An existing folder, to make the new one in.")
    ] = Path("."),
) -> None:
    """Write a plugin package with a working example and its tests, to make your own of."""
    from clipseq.cli.scaffold import new_plugin as write

    made = write(name, directory)
    print(f"{made}: try it with\n  cd {made}\n  pip install -e '.[test]'\n  pytest")


@app.command()
@reported
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no text.")] = False,
) -> None:
    """Tell which plugins are loaded, from where, how fast, what failed and why; torch, devices.

    Status 1 when something that is installed does not work.
    """
    from clipseq.cli.doctor import diagnose

    found = diagnose()
    print(json.dumps(found.to_json(), indent=2) if as_json else found.as_text().rstrip())
    if not found.healthy:
        raise typer.Exit(1)


@app.command()
@reported
def bench(
    name: Annotated[str, typer.Argument(help="A registered similarity.")],
    batch: Annotated[int, typer.Option(help="B = C.", min=1)] = 32,
    steps: Annotated[int, typer.Option(help="T.", min=1)] = 62,
    others: Annotated[int, typer.Option(help="L.", min=1)] = 20,
    features: Annotated[int, typer.Option(help="D.", min=1)] = 256,
    threads: Annotated[
        int | None, typer.Option(help="Of torch; default: its own choice.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="To compute on.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the sequences: float32, bfloat16, float16 or float64.")
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Time a similarity beside the matrix products of all cosines and their gradients."""
    from clipseq.cli.bench import bench as measure

    found = measure(
        name,
        batch=batch,
        steps=steps,
        others=others,
        features=features,
        threads=threads,
        device=device,
        dtype=dtype,
    )
    print(json.dumps(found.to_json(), indent=2) if as_json else found.as_text().rstrip())


@app.command()
@reported
def simulate(
    out: Annotated[Path, typer.Option(help="The folder of the new data set.")],
    clips: Annotated[int, typer.Option(help="How many clips.", min=1)] = 600,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.", min=0)] = 0,
    motion: Annotated[
        Path | None, typer.Option(help="Recorded motion (.npz) to drive the body with.")
    ] = None,
) -> None:
    """Simulate radar clips with captions and write them as a data set.

    The same command again completes an interrupted one.
    """
    from clipseq import data
    from clipseq.cli.progress import ProgressBar

    with ProgressBar("simulating") as progress:
        dataset = data.simulate(
            out, clips, seed=seed, motion=motion, progress=lambda k, n: progress(k, n, {})
        )
    print(f"{out}: " + ", ".join(f"{count} {split}" for split, count in dataset.splits.items()))


@app.command()
@reported
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    small: Annotated[bool, typer.Option("--small", help="A quick look, under a minute.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what an interrupted demo in OUT has done.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the data and the trainings.", min=0)] = 0,
) -> None:
    """Simulate, train plain CLIP and CLIP with `combined`, compare them, draw figures."""
    from clipseq.demo import run_demo

    print(run_demo(out, small=small, resume=resume, seed=seed, tell=_tell))


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else repr(value)


def _failed(error: BaseException, status: int) -> typer.Exit:
    if "--debug" in sys.argv[1:]:
        traceback.print_exc()
    place = origin(error)
    if place is None or place.here:  # else another process tells it
        rank = f"rank {place.rank}: " if place is not None and place.rank else ""
        # One write: several processes may have something to say at once.
        sys.stderr.write(f"clipseq: {rank}{str(error) or type(error).__name__}\n")
        sys.stderr.flush()
    return typer.Exit(status)


def _one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"clipseq: warning: {message}", file=sys.stderr)
