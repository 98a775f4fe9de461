"""Evaluations as a table for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipseq.errors import ClipseqError
from clipseq.evaluation.evaluate import Evaluation, Metric

if TYPE_CHECKING:
    from rich.table import Table


def evaluation_table(evaluation: Evaluation) -> "Table":
    """One evaluation: a row per metric, a column per score."""
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
    """A rich table of metrics, one column for each of `columns`, and what chance would get."""
    try:
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise ClipseqError("tables need rich: pip install 'clipseq[train]'") from error
    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("chance", justify="right", style="dim")
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    direction = ""
    for name in names:
        before, direction = direction, name.rsplit(" R@", 1)[0].rsplit(" MRR", 1)[0]
        direction = direction.removesuffix(" median rank")
        if before and direction != before:
            table.add_section()
        found = [metrics.get(name) for metrics in columns.values()]
        chances = [m.chance for m in found if m is not None and m.chance is not None]
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
    """The table as plain text."""
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
