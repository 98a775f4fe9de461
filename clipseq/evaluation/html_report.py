"""One evaluation as a web page in one file, which needs neither a network nor a script."""

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipseq import __version__
from clipseq.data import Clip, MapDataset
from clipseq.engine.options import check_kind, finite_number
from clipseq.evaluation.evaluate import Confusion, Evaluation, Metric, hits_of
from clipseq.evaluation.metrics import retrieval_ranks
from clipseq.figures import Curve, draw_losses
from clipseq.retrieval.sides import check_model

if TYPE_CHECKING:
    from clipseq.model import CLIP

SHOWN = 3
"""Number of examples that are right, and of examples that are wrong, in the page."""
ALIGNED = 2
"""Number of these whose alignment is drawn."""
_FIGURE = 4.8
"""Width of a figure in inches: its letters are readable on a telephone."""

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; background: #fff; color: #1b1b1b;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; max-width: 45rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem .75rem; }
nav a { color: #0059a0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; text-align: left; border-bottom: 1px solid #e4e4e4; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
@media (max-width: 40rem) { .interval { display: block; } th, td { padding: .2rem .3rem; } }
.interval, .muted { color: #595959; font-size: .85em; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.card { border: 1px solid #ddd; border-radius: .5rem; padding: .75rem; min-width: 0; }
.right { border-left: .35rem solid #009e73; }
.wrong { border-left: .35rem solid #d55e00; }
ol { margin: .25rem 0; padding-left: 1.5rem; }
li.hit { font-weight: 600; }
figure { margin: 0; }
img { display: block; width: 100%; max-width: 34rem; height: auto; }
table.confusion th, table.confusion td { border: 0; padding: 0 .2rem; font-size: .8rem; }
table.confusion td { text-align: center; min-width: 1.4rem; height: 1.4rem; }
table.confusion thead th { writing-mode: vertical-rl; transform: rotate(180deg);
  font-weight: 400; padding: .2rem 0; vertical-align: bottom; }
table.confusion tbody th { position: sticky; left: 0; background: #fff; text-align: right;
  white-space: nowrap; font-weight: 400; }
table.confusion td.diagonal { outline: 1px solid #1b1b1b; outline-offset: -1px; }
"""


def html_report(
    evaluation: Evaluation,
    model: "CLIP",
    dataset: MapDataset,
    *,
    title: str = "Evaluation",
    curves: Mapping[str, Curve] | None = None,
    chance: float | None = None,
) -> str:
    """Return an evaluation as a page of HTML, which a browser opens without a network.

    It shows the metrics, clips whose right answer was found first and clips whose was not, the
    alignments of some of these, the confusion between actions, and the losses of the training.

    Args:
        evaluation: the evaluation of `model` on `dataset`.
        model: the model.
        dataset: the data set with all its splits.
        title: title of the page.
        curves: the losses of the training by their names, see `Curve`; None: they are unknown.
        chance: the loss of a model that guesses; None if that is not a single number.

    Raises:
        ClipseqError: matplotlib is not installed.
    """
    check_kind("evaluation", evaluation, Evaluation, "an Evaluation")
    check_model(model)
    check_kind("dataset", dataset, MapDataset, "a MapDataset")
    check_kind("title", title, str, "a string")
    if chance is not None:
        chance = finite_number("chance", chance)
    clips = dataset.subset(evaluation.split)
    right, wrong = choose_examples(evaluation, clips)
    sections = {
        "Metrics": _metrics(evaluation),
        "Retrieval": _retrieval(evaluation, model, clips, right, wrong),
        "Alignments": _alignments(model, clips, right, wrong),
        "Confusion": _confusion(evaluation, clips),
        "Losses": _losses(curves, chance),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1><p>{evaluation.clips} clips of the split "
        f"<b>{_text(evaluation.split)}</b>, scored by <b>{_text(evaluation.similarity)}</b>.</p>"
        f"<nav>{links}</nav>{body}"
        f'<p class="muted">Written by clipseq {__version__}.</p></body></html>\n'
    )


def choose_examples(evaluation: Evaluation, clips: MapDataset) -> tuple[list[int], list[int]]:
    """Choose clips of which the right answer came first, and clips of which it came late.

    Returns:
        The numbers of up to `SHOWN` clips each: the most certain ones that are right, and those
        whose right answer has the worst rank.
    """
    scores, hits = _own_scores(evaluation), hits_of(clips)
    ranks = retrieval_ranks(scores, hits)
    best_hit = scores.masked_fill(~hits, -torch.inf).amax(1)
    lead = best_hit - scores.masked_fill(hits, -torch.inf).amax(1)
    right = [i for i in lead.argsort(descending=True).tolist() if ranks[i] == 1]
    wrong = [i for i in ranks.argsort(descending=True, stable=True).tolist() if ranks[i] > 1]
    return right[:SHOWN], wrong[:SHOWN]


def _own_scores(evaluation: Evaluation) -> Tensor:
    return next(iter(evaluation.scores.values()))


def _text(value: object) -> str:
    return html.escape(str(value))


def _metrics(evaluation: Evaluation) -> str:
    titles = {"sequence": f"sequence ({evaluation.similarity})", "pooled": "pooled cosine"}
    columns = evaluation.metrics
    head = "".join(f'<th class="number">{_text(titles[score])}</th>' for score in columns)
    rows = []
    for name, metric in evaluation.own.items():
        cells = "".join(_estimate(metrics.get(name)) for metrics in columns.values())
        chance = "" if metric.chance is None else f"{metric.chance:.3f}"
        rows.append(f'<tr><td>{_text(name)}</td>{cells}<td class="number">{chance}</td></tr>')
    absent = "".join(
        f"<p>No {_text(name)}: {_text(reason)}.</p>" for name, reason in evaluation.absent.items()
    )
    return (
        f'<p>With 95 % bootstrap intervals over the clips.</p><div class="scroll"><table><thead>'
        f'<tr><th>metric</th>{head}<th class="number">chance</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{absent}"
    )


def _estimate(metric: Metric | None) -> str:
    if metric is None:
        return "<td></td>"
    e = metric.estimate
    digits = 1 if e.value > 1 or e.high > 1 else 3
    return (
        f'<td class="number">{e.value:.{digits}f} <span class="interval">'
        f"[{e.low:.{digits}f}, {e.high:.{digits}f}]</span></td>"
    )


def _retrieval(
    evaluation: Evaluation, model: "CLIP", clips: MapDataset, right: list[int], wrong: list[int]
) -> str:
    x, y = model.names
    scores, hits = _own_scores(evaluation), hits_of(clips)
    ranks = retrieval_ranks(scores, hits)
    cards = []
    for number in (*right, *wrong):
        clip, row = clips[number], scores[number]
        answers = []
        for other in row.argsort(descending=True).tolist()[:SHOWN]:
            hit = bool(hits[number, other])
            mark = "✓" if hit else "✗"
            answers.append(
                f"<li{' class=hit' if hit else ''}>{mark} {_text(_answer(clips[other]))} "
                f'<span class="muted">{row[other]:.3f}</span></li>'
            )
        own, rank = float(row[number]), int(ranks[number])
        late = (
            ""
            if rank == 1
            else (
                f'<p>Its own: {_text(_answer(clip))} <span class="muted">{own:.3f}, rank {rank} of '
                f"{len(clips)}</span></p>"
            )
        )
        cards.append(
            f'<div class="card {"right" if rank == 1 else "wrong"}"><h3>{_text(clip.id)}</h3>'
            f"<ol>{''.join(answers)}</ol>{late}</div>"
        )
    return (
        f"<p>The {SHOWN} best answers for a clip, {_text(x)} to {_text(y)}: first the clips that "
        "the model got right with the largest lead, then those whose right answer came last.</p>"
        f'{_none_right(right)}<div class="cards">{"".join(cards)}</div>'
    )


def _none_right(right: list[int]) -> str:
    return "" if right else "<p>The model got no clip right.</p>"


def _answer(clip: Clip) -> str:
    return clip.caption or f"clip {clip.id}"


def _alignments(model: "CLIP", clips: MapDataset, right: list[int], wrong: list[int]) -> str:
    if not model.compares_sequences:
        return "<p>None: the model compares pooled features only.</p>"
    cards = []
    chosen = [(n, "right") for n in right[:ALIGNED]] + [(n, "wrong") for n in wrong[:ALIGNED]]
    for number, kind in chosen:
        clip = clips[number]
        picture = _picture(
            model.explain(clip).plot(width=_FIGURE), f"Alignment of {clip.id}: {_answer(clip)}"
        )
        cards.append(
            f'<div class="card {kind}"><h3>{_text(clip.id)}</h3><figure>{picture}<figcaption>'
            f"{_text(_answer(clip))}</figcaption></figure></div>"
        )
    return (
        "<p>When each word of a clip's own caption matches the recording. Coloured bars are the "
        f'true actions, where the data set has their times.</p><div class="cards">'
        f"{''.join(cards)}</div>"
    )


def _picture(figure: Any, description: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="{_text(description)}" src="data:image/png;base64,{data}">'


def _confusion(evaluation: Evaluation, clips: MapDataset) -> str:
    confusion, meaning = (
        evaluation.confusion,
        (
            "Rows are the actions of clips with a single action, columns the actions whose "
            "caption scored highest."
        ),
    )
    if confusion is None:
        confusion, meaning = (
            _first_actions(evaluation, clips),
            (
                "Rows are the first actions of the clips, columns the first actions of the clips "
                "whose answer scored highest."
            ),
        )
    if confusion is None:
        return "<p>None: the clips have neither labels nor actions.</p>"
    names = [name.replace("_", " ") for name in confusion.classes]
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    rows = []
    for i, (name, counts) in enumerate(zip(names, confusion.counts.tolist(), strict=True)):
        total = max(sum(counts), 1)
        cells = "".join(_cell(count, count / total, i == j) for j, count in enumerate(counts))
        rows.append(f"<tr><th>{_text(name)}</th>{cells}</tr>")
    return (
        f"<p>{meaning} Numbers count clips; darker cells hold a larger share of their row.</p>"
        f'<div class="scroll"><table class="confusion"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, share: float, diagonal: bool) -> str:
    # From white to a dark blue, with white numbers on dark cells.
    red, green, blue = (round(255 - share * (255 - dark)) for dark in (0, 89, 160))
    letters = "#fff" if share > 0.5 else "#1b1b1b"
    kind = ' class="diagonal"' if diagonal else ""
    style = f"background:rgb({red},{green},{blue});color:{letters}"
    return f'<td{kind} style="{style}">{count or ""}</td>'


def _first_actions(evaluation: Evaluation, clips: MapDataset) -> Confusion | None:
    first = [clips[i].actions[:1] for i in range(len(clips))]
    if not all(first):
        return None
    names = [actions[0] for actions in first]
    classes = sorted(set(names))
    counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    for name, best in zip(names, _own_scores(evaluation).argmax(1).tolist(), strict=True):
        counts[classes.index(name), classes.index(names[best])] += 1
    return Confusion(tuple(classes), counts)


def _losses(curves: Mapping[str, Curve] | None, chance: float | None) -> str:
    if not curves:
        return "<p>None: the folder of the model has no metrics.csv of its training.</p>"
    cards = []
    for name, curve in curves.items():
        figure = draw_losses({"this run": {name: curve}}, chance=chance)
        picture = _picture(figure, f"{name} over the optimizer steps")
        cards.append(f'<div class="card"><figure>{picture}</figure></div>')
    return f'<div class="cards">{"".join(cards)}</div>'
