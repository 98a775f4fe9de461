"""Evaluation on a whole split: evaluate a model, read an `Evaluation`, print its table."""

from clipseq.evaluation.evaluate import Confusion, Evaluation, Metric, evaluate
from clipseq.evaluation.html_report import html_report
from clipseq.evaluation.metrics import (
    Estimate,
    OrderCounts,
    average_precision,
    mean_estimate,
    ndcg,
    order_counts,
    resamples,
    retrieval_ranks,
    same_caption,
    zero_shot_correct,
)
from clipseq.evaluation.report import as_text, evaluation_table, metric_table

__all__ = [
    "Confusion",
    "Estimate",
    "Evaluation",
    "Metric",
    "OrderCounts",
    "as_text",
    "average_precision",
    "evaluate",
    "evaluation_table",
    "html_report",
    "mean_estimate",
    "metric_table",
    "ndcg",
    "order_counts",
    "resamples",
    "retrieval_ranks",
    "same_caption",
    "zero_shot_correct",
]
