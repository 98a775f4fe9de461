"""Evaluation on a whole split: evaluate a model, read an `Evaluation`, print its table."""

from clipseq.evaluation.evaluate import Confusion, Evaluation, Metric, evaluate
from clipseq.evaluation.html_report import html_report
from clipseq.evaluation.report import as_text, evaluation_table, metric_table

__all__ = [
    "Confusion",
    "Evaluation",
    "Metric",
    "as_text",
    "evaluate",
    "evaluation_table",
    "html_report",
    "metric_table",
]
