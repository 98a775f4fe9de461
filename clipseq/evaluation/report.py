"""Human-readable tables of evaluations."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipseq.engine.options import check_kind
from clipseq.errors import ClipseqError
from clipseq.evaluation.evaluate import Evaluation, Metric

if TYPE_CHECKING:
    from rich.table import Table


def evaluation_table(evaluation: Evaluation) -> "Table":
    """Return one evaluation as a rich table: a row per metric, a column per score.

    Raises:
        ClipseqError: rich is not installed.
        TypeError: `evaluation` is not an `Evaluation`.
    """
    check_kind("evaluation", evaluation, Evaluation, "an Evaluation")
    titles = {"sequence": f"sequence ({evaluation.similarity})", "pooled": "pooled cosine"}
    return metric_table(
        {titles[score]: metrics for score, metrics in evaluation.metrics.items()},
        title=f"{evaluation.clips} clips of the split '{evaluation.split}', 95 % intervals",
        absent=evaluation.absent,
    )


def metric_table(
    columns: Mapping[str, Mapping[str, Metric]],
    *,
    title: str,
    absent: Mapping[str, str] | None = None,
) -> "Table":
    """Return a rich table of metrics, grouped by section.

    Args:
        columns: title of a column -> metric name -> value.
        title: title of the table.
        absent: metric -> reason why it is absent, shown at the end.

    Raises:
        ClipseqError: rich is not installed.
        TypeError: `columns` or `absent` is not a mapping, or a value is not a `Metric`.
    """
    check_kind("columns", columns, Mapping, "a mapping from columns to metrics")
    check_kind("absent", absent, (Mapping, type(None)), "a mapping or None")
    for column, values in columns.items():
        check_kind(f"columns[{column!r}]", values, Mapping, "a mapping from names to metrics")
        for name, metric in values.items():
            check_kind(f"columns[{column!r}][{name!r}]", metric, Metric, "a Metric")
    try:
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise ClipseqError(
            "rich must be installed for tables; pip install 'clipseq[train]'"
        ) from error
    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("chance", justify="right", style="dim")
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    section = None
    for name in names:
        found = [metrics.get(name) for metrics in columns.values()]
        some = [metric for metric in found if metric is not None]
        if section not in (None, some[0].section):
            table.add_section()
        section = some[0].section
        chances = [metric.chance for metric in some if metric.chance is not None]
        table.add_row(
            name,
            *(_cell(metric) for metric in found),
            f"{chances[0]:.3f}" if chances else "",
        )
    for name, reason in (absent or {}).items():
        table.add_section()
        table.add_row(name, f"absent: {reason}", *[""] * len(columns))
    return table


def as_text(table: "Table", *, width: int = 110) -> str:
    """Return a table as plain text."""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return ""
    e = metric.estimate
    digits = 1 if e.value > 1 or e.high > 1 else 3
    return f"{e.value:.{digits}f}  [{e.low:.{digits}f}, {e.high:.{digits}f}]"
