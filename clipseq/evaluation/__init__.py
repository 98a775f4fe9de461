"""Evaluation on a whole split: evaluate a model, read an `Evaluation`, print its table."""

from clipseq.evaluation.evaluate import Evaluation, Metric, evaluate
from clipseq.evaluation.report import as_text, evaluation_table, metric_table

__all__ = ["Evaluation", "Metric", "as_text", "evaluate", "evaluation_table", "metric_table"]
