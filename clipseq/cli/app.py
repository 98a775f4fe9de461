"""The commands of ``clipseq``: each is one function below, and each option is an argument.

A command reads its arguments, calls the module that does the work, and prints the result.
`exit_status` turns errors into one line and an exit status.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import typer

import clipseq
from clipseq.cli.exit_status import one_line_warnings, report_errors, standard_streams
from clipseq.cli.invocation import command_line
from clipseq.cli.json_output import print_json
from clipseq.engine.process_state import restored
from clipseq.errors import ConfigError

DESCRIPTION = (
    "Contrastive learning that keeps the sequence: train and evaluate models of signals and text."
)

app = typer.Typer(
    name="clipseq",
    help=DESCRIPTION,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def run() -> None:
    """Run the command line, and leave the state of the calling process unchanged."""
    with restored(), standard_streams(), one_line_warnings():
        app()


def _version(asked: bool) -> bool:
    if asked:
        print(clipseq.__version__)
        raise typer.Exit
    return asked


@app.callback(help=DESCRIPTION)
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version of clipseq.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Accept the options before the command; `exit_status` looks for ``--debug`` itself."""


@app.command()
@report_errors
def init(
    kind_and_file: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] FILE",
            help="Kind of data (radar by default; audio, imu, motion or two_signals), and the file "
            "to write.",
        ),
    ],
) -> None:
    """Write a configuration with every key, its meaning and its default, for you to change."""
    from clipseq.cli.init import write_config_file

    if len(kind_and_file) > 2:
        raise ConfigError(f"init must get [KIND] FILE, got {' '.join(kind_and_file)}")
    *kind, file = kind_and_file
    write_config_file(kind[0] if kind else "radar", Path(file))
    print(f"{file}: try it with\n  {command_line('train', file, '--dry-run')}")


@app.command()
@report_errors
def train(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration of the run, a TOML file.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run folder to continue from its last checkpoint."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write, instead of training.out.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Value to use instead of the one in CONFIG, such as training.max_steps=10; may "
            "be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Report what the run would find and do, without training."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report of --dry-run as JSON.")
    ] = False,
) -> None:
    """Train a model as CONFIG describes it, and write a run folder.

    `clipseq init` writes a CONFIG to start from.

    For several processes, set training.devices in CONFIG, or start them with
    torchrun --nproc-per-node N -m clipseq train CONFIG.
    """
    from clipseq import training
    from clipseq.cli.progress import ProgressBar

    if as_json and not dry_run:
        raise ConfigError("--json prints the report of --dry-run; give both, or omit --json")
    if (config is None) == (resume is None):
        raise ConfigError("give either a CONFIG or --resume RUN")
    if resume is not None:
        if out is not None:
            raise ConfigError(
                f"--out {out} starts a new run, but --resume continues the one in {resume}; omit "
                "--out, or copy the folder and resume the copy"
            )
        folder = training.RunFolder(resume.resolve())
        if not folder.config.exists():
            raise ConfigError(f"nothing to resume: there is no {folder.config}")
        settings = training.read_config(folder.config, overrides or ())
        out = folder.root  # the folder may have been moved since its config was written
    else:
        assert config is not None
        settings = training.read_config(config, overrides or ())
    if out is not None:
        options = attrs.evolve(settings.training, out=out.resolve())
        settings = attrs.evolve(settings, training=options)
    if dry_run:
        if resume is not None:
            raise ConfigError("--dry-run is for a new run; omit it, or give a CONFIG")
        with ProgressBar("simulating") as simulating:
            summary = training.plan(
                settings, data_progress=lambda done, clips: simulating(done, clips, {})
            )
        if as_json:
            print_json(summary.to_json())
        else:
            print(summary.as_text())
        return
    last = steps_to_take = 0
    with ProgressBar("simulating") as simulating, ProgressBar("training") as progress:

        def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            nonlocal last, steps_to_take
            last, steps_to_take = step, steps
            progress(step, steps, metrics)

        training.train(
            settings,
            resume=resume is not None,
            progress=report,
            data_progress=lambda done, clips: simulating(done, clips, {}),
            started=lambda summary: print(summary.as_text(), file=sys.stderr, flush=True),
        )
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:  # the first process alone reports
        return
    folder = training.RunFolder(settings.training.out)
    if not last:
        print(
            "nothing to train: the run was finished already; to train on, raise "
            f"training.max_steps or training.epochs in {folder.config} and resume the run"
        )
    elif last < steps_to_take:
        print(f"stopped early after step {last} of {steps_to_take}: no better validation since")
    print(f"model: {folder.model}\nmetrics: {folder.metrics}")
    print(f"evaluate it with: {command_line('evaluate', folder.root)}")


@app.command()
@report_errors
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a saved model.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="Data set; by default the one that the run was trained on."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    checkpoint: Annotated[
        Literal["best", "last"],
        typer.Option(help="Model of the best validation, or model of the last step."),
    ] = "best",
    report: Annotated[
        Path | None,
        typer.Option("--html", help="Web page to write, with examples and figures (extra plot)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run on a whole split, print a table, and write RUN/evaluation.json.

    The evaluation of the last step is written to RUN/evaluation-last.json.
    """
    from clipseq.evaluation import as_text, evaluation_table
    from clipseq.training.runs import evaluate_run

    evaluation, path = evaluate_run(run, data, split=split, checkpoint=checkpoint, report=report)
    if as_json:
        print_json(evaluation.to_json())
    else:
        print(as_text(evaluation_table(evaluation)), end="")
        print(f"written to {path}" + ("" if report is None else f" and {report}"))


@app.command()
@report_errors
def explain(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a saved model.")],
    clip: Annotated[str, typer.Option(help="Id of the clip to explain.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="Data set; by default the one that the run was trained on."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the picture; its suffix names the format.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="Text to compare the clip with, instead of its own caption.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Draw this part of the similarity, such as temporal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which steps of a clip match which words of its caption.

    The score is printed, with what each part of the similarity contributes to it.
    With --out, the alignment is drawn (extra plot).
    """
    from clipseq.training.runs import explain_run

    found = explain_run(run, data, clip=clip, caption=caption)
    if out is not None:
        from clipseq.figures import save

        save(found.plot(part=part), out)
    if as_json:
        print_json(found.to_json())
        return
    print(found.as_text())
    if out is not None:
        print(f"written to {out}")


@app.command()
@report_errors
def encode(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a saved model.")],
    data: Annotated[Path, typer.Argument(help="Data set to encode.")],
    out: Annotated[Path, typer.Option(help="File to write, in the safetensors format.")],
    side: Annotated[
        str | None,
        typer.Option(help="Side of the model to encode; by default the first, such as radar."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to encode; by default the whole data set.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Number of clips that are encoded together.", min=1)
    ] = 64,
) -> None:
    """Encode one side of a data set, for clipseq.Encoded.load."""
    from clipseq.cli.searching import encode_data

    encoded = encode_data(run, data, out, side=side, split=split, batch_size=batch_size)
    print(f"{out}: {encoded}")


@app.command()
@report_errors
def index(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of a saved model.")],
    data: Annotated[Path, typer.Argument(help="Data set to index.")],
    out: Annotated[
        str, typer.Option(help="New folder of the index, or its address in an object store.")
    ],
    side: Annotated[
        str | None,
        typer.Option(help="Side of the model to index; by default the first, such as radar."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to index; by default the whole data set.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Number of clips that are encoded together.", min=1)
    ] = 64,
) -> None:
    """Encode one side of a data set into an index for clipseq search.

    The caption, split and label of a clip are kept with it.
    """
    from clipseq.cli.searching import index_data

    made = index_data(run, data, out, side=side, split=split, batch_size=batch_size)
    print(f"{out}: {len(made)} items")
    print(f"search it with: {command_line('search', out, 'a caption')}")


@app.command()
@report_errors
def search(
    index: Annotated[str, typer.Argument(help="Index that clipseq index made.")],
    query: Annotated[str, typer.Argument(help="Caption; with --data, the id of a clip.")],
    k: Annotated[int, typer.Option("-k", help="Number of results.", min=1)] = 10,
    data: Annotated[
        Path | None, typer.Option(help="Data set that holds the clip with the id QUERY.")
    ] = None,
    side: Annotated[
        str | None,
        typer.Option(
            help="Side of the clip to search with; by default one that is not in the index."
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Condition that results must meet, in SQL, such as \"split = 'test'\"."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(help="Number of items whose sequences are compared.", min=1)
    ] = 100,
    run: Annotated[
        Path | None,
        typer.Option(help="Run or saved model; by default the one that made the index."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search an index with a caption or with a clip, and print the best items."""
    from clipseq.cli.searching import search_index

    results = search_index(
        index, query, data=data, side=side, run=run, k=k, candidates=candidates, where=where
    )
    _print_listing(results, as_json)


@app.command()
@report_errors
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the new data set.")],
    clips: Annotated[int, typer.Option(help="Number of clips.", min=1)] = 600,
    seed: Annotated[
        int, typer.Option(help="Random seed; the same seed gives the same clips.", min=0)
    ] = 0,
    motion: Annotated[
        Path | None, typer.Option(help="Recorded motion (.npz) that moves the body.")
    ] = None,
) -> None:
    """Simulate radar clips with captions, and write them as a data set.

    If the command is interrupted, run it again: it completes the data set.
    """
    from clipseq import data
    from clipseq.cli.progress import ProgressBar

    with ProgressBar("simulating") as progress:
        dataset = data.simulate(
            out,
            clips,
            seed=seed,
            motion=motion,
            progress=lambda done, clips: progress(done, clips, {}),
        )
    print(f"{out}: " + ", ".join(f"{count} {split}" for split, count in dataset.splits.items()))


@app.command()
@report_errors
def demo(
    out: Annotated[Path, typer.Option(help="Run folder of the demo.")] = Path("runs/demo"),
    small: Annotated[
        bool, typer.Option("--small", help="Run a small version, which takes under a minute.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted demo in OUT.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Random seed for the data and both training runs.", min=0)
    ] = 0,
) -> None:
    """Train plain CLIP and CLIP with `combined` on simulated radar, and compare them.

    This takes about five minutes on two cores. If OUT holds a finished demo,
    its results are shown again.
    """
    from clipseq.cli.progress import ProgressBar
    from clipseq.demo import run_demo

    report = run_demo(
        out,
        small=small,
        resume=resume,
        seed=seed,
        say=lambda message: print(message, file=sys.stderr, flush=True),
        progress=ProgressBar,
        command_line=command_line,
    )
    print(report)


@app.command()
@report_errors
def similarities(as_json: Json = False) -> None:
    """List the registered similarities, and the plugins that could not be loaded."""
    from clipseq.cli.listing import list_similarities

    _print_listing(list_similarities(), as_json)


@app.command()
@report_errors
def losses(as_json: Json = False) -> None:
    """List the registered losses, and the plugins that could not be loaded."""
    from clipseq.cli.listing import list_losses

    _print_listing(list_losses(), as_json)


@app.command()
@report_errors
def doctor(as_json: Json = False) -> None:
    """Report which plugins are loaded, what failed and why, and what torch can compute on.

    The exit status is 1 if something that is installed does not work.
    """
    from clipseq.cli.doctor import diagnose

    diagnosis = diagnose()
    _print_record(diagnosis, as_json)
    if not diagnosis.healthy:
        raise typer.Exit(1)


@app.command()
@report_errors
def bench(
    name: Annotated[str, typer.Argument(help="Name of a registered similarity.")],
    batch: Annotated[
        int, typer.Option(help="Number of sequences on either side, B = C.", min=1)
    ] = 32,
    steps: Annotated[int, typer.Option(help="Steps of each x, T.", min=1)] = 62,
    others: Annotated[int, typer.Option(help="Steps of each y, L.", min=1)] = 20,
    features: Annotated[int, typer.Option(help="Features of each step, D.", min=1)] = 256,
    threads: Annotated[
        int | None, typer.Option(help="Number of torch's threads; by default torch's own.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="Device to compute on.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="Dtype of the sequences: float32, bfloat16, float16 or float64."),
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Time a similarity, and compare it with the matrix products of all cosines.

    The products include those for the gradients. Every similarity that compares
    each pair of steps takes at least that long.
    """
    from clipseq.cli.bench import bench as measure

    benchmark = measure(
        name,
        batch=batch,
        steps=steps,
        others=others,
        features=features,
        threads=threads,
        device=device,
        dtype=dtype,
    )
    _print_record(benchmark, as_json)


@app.command("new-plugin")
@report_errors
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the similarity, such as best_match.")],
    directory: Annotated[
        Path, typer.Option(help="Existing folder in which the new one is created.")
    ] = Path("."),
) -> None:
    """Write a plugin package with a working example and its tests, for you to change."""
    from clipseq.cli.scaffold import new_plugin as write

    written = write(name, directory)
    print(f"{written}: try it with\n  cd {written}\n  pip install -e '.[test]'\n  pytest")


def _print_listing(listing: Any, as_json: bool) -> None:
    if as_json:
        print_json(listing.to_json())
    else:
        listing.print()


def _print_record(record: Any, as_json: bool) -> None:
    if as_json:
        print_json(record.to_json())
    else:
        print(record.as_text().rstrip())
