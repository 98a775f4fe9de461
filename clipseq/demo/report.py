"""The results of a demo: figures, numbers and a report, from the evaluations of both models."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from clipseq.data import MapDataset
from clipseq.demo.alignment import ClipAlignment, choose_typical, draw_aligned
from clipseq.demo.configs import COMBINED, PLAIN
from clipseq.demo.folder import DemoFolder
from clipseq.evaluation import Evaluation, as_text, metric_table
from clipseq.evaluation.metrics import Estimate
from clipseq.figures import draw_losses, draw_matrices, save
from clipseq.model import CLIP
from clipseq.training.curves import read_curves


@attrs.frozen(eq=False)
class Results:
    """The results of a demo.

    Attributes:
        evaluations: evaluation of each model on the test clips, by the model's name.
        alignments: alignment of each test clip with the words of its caption.
        agreement: mean agreement of the alignments with the true actions, see `mean_agreement`.
    """

    evaluations: Mapping[str, Evaluation]
    alignments: Sequence[ClipAlignment]
    agreement: Mapping[str, Estimate]


def draw_figures(folder: DemoFolder, dataset: MapDataset, results: Results, combined: CLIP) -> None:
    """Draw the losses, the score matrices and one alignment into the folder of the figures."""
    curves = {
        PLAIN: read_curves(folder.plain.metrics),
        COMBINED: read_curves(folder.combined.metrics),
    }
    save(draw_losses(curves), folder.figures / "losses.png")

    test = dataset.subset("test")
    actions = [test[i].actions for i in range(len(test))]
    order = sorted(range(len(actions)), key=lambda i: actions[i])
    save(
        draw_matrices(
            {name: own_scores(evaluation) for name, evaluation in results.evaluations.items()},
            first=[names[0].replace("_", " ") for names in actions],
            order=np.asarray(order),
            notes={
                name: (
                    f"radar to text R@1 {e.own['radar to text R@1'].estimate.value:.2f}, "
                    f"order accuracy {e.own['order accuracy'].estimate.value:.2f}"
                )
                for name, e in results.evaluations.items()
            },
        ),
        folder.figures / "similarity.png",
    )
    shown, agreement = choose_typical(results.alignments), results.agreement
    save(
        draw_aligned(
            combined,
            shown,
            title=(
                "When the words of the caption match the radar (part 'temporal')\n"
                f"the right action's words lead {shown.right:.0%} of the time; over all test clips "
                f"{agreement['model'].value:.0%}, {agreement['straight'].value:.0%} without looking"
            ),
        ),
        folder.figures / "alignment.png",
    )


def own_scores(evaluation: Evaluation) -> np.ndarray:
    """Return the score matrix that the model uses: by sequences if it compares them, or pooled."""
    return next(iter(evaluation.scores.values())).numpy()


def metrics_to_json(results: Results, combined: CLIP) -> dict[str, Any]:
    """Return all numbers, with the weights that the parts of `combined` have learnt."""
    return {
        "models": {name: evaluation.to_json() for name, evaluation in results.evaluations.items()},
        "alignment": {name: attrs.asdict(estimate) for name, estimate in results.agreement.items()},
        "combined_weights": _part_weights(combined),
    }


def format_report(folder: DemoFolder, results: Results, seconds: float) -> str:
    """Return the report: a table of the metrics, and the paths of the other results.

    Args:
        folder: the folder of the demo.
        results: the results.
        seconds: time that the whole demo took.
    """
    evaluations = results.evaluations
    clips = next(iter(evaluations.values())).clips
    columns = {name: evaluation.own for name, evaluation in evaluations.items()}
    columns[f"{COMBINED}, pooled only"] = evaluations[COMBINED].metrics["pooled"]
    table = metric_table(columns, title=f"{clips} test clips, 95 % bootstrap intervals")
    model, straight = results.agreement["model"], results.agreement["straight"]
    return (
        f"{as_text(table, width=120)}\n"
        f"order accuracy: a clip against its own caption and the same caption with its actions "
        f"in another order\n"
        f"words over time (temporal): during an action its own words lead {model.value:.1%} "
        f"[{model.low:.1%}, {model.high:.1%}] of the time; {straight.value:.1%} in an alignment "
        "that knows the order but does not look\n"
        f"figures: {folder.figures}\n"
        f"all numbers: {folder.metrics}\n"
        f"{seconds:.0f} s in all"
    )


def _part_weights(model: CLIP) -> dict[str, float]:
    loss = model.sequence_loss_fn
    weights: Any = getattr(None if loss is None else loss.similarity_fn, "weights", {})
    return {name: float(weight) for name, weight in weights.items()}
