"""The model card: README.md of a saved model, which says what it is, how to use it, and how good.

The hub shows it as the model's page. It is written anew by every save, unless somebody has removed
the line `OWNER` from it: then it is theirs, and left alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from clipseq.encoders import HuggingFaceTextTower, ModuleTower, SignalTower, TextTower, Tower
from clipseq.engine.files import write_text
from clipseq.model.saved import CARD, CardFacts, SavedModel, TwoTowers
from clipseq.model.wrappers import unwrap

OWNER = "# Written by clipseq, and by its next save again. Remove this line to keep your text."
METRICS = ("<!-- clipseq: metrics -->", "<!-- clipseq: end of metrics -->")
"""The lines around the metrics, between which `write_metrics` puts them."""
NOT_STATED = "Not stated."
_DATA, _LICENCE, _CITATION = "## Training data", "## Licence", "## Citation"
NO_METRICS = "Not evaluated yet: `clipseq evaluate` writes the metrics here."


def write_card(
    model: TwoTowers,
    saved: SavedModel,
    facts: CardFacts,
    directory: Path,
    *,
    name: str = ".",
    previous: Path | None = None,
    metrics: str | None = None,
) -> None:
    """Write the card of `model` into `directory`, or copy the one that somebody has made theirs.

    Args:
        model: the model.
        saved: the content of its config.json.
        facts: what the model does not know.
        directory: the folder to write into.
        name: the model in the example: "owner/name", or "." for the folder of the card.
        previous: the folder that the model is saved into, which may hold a card.
        metrics: the text about metrics of an earlier card of the same weights.
    """
    if previous is not None:
        existing = _read(previous / CARD)
        if existing is not None and OWNER not in existing:
            (directory / CARD).write_text(existing, encoding="utf-8")
            return
    text = format_card(model, saved, facts, name=name, metrics=metrics)
    (directory / CARD).write_text(text, encoding="utf-8")


def format_card(
    model: TwoTowers,
    saved: SavedModel,
    facts: CardFacts,
    *,
    name: str = ".",
    metrics: str | None = None,
) -> str:
    """Return the text of a model card; see `write_card`."""
    x, y = _towers_of(model)
    text_only = not (x.is_signal or y.is_signal)
    title = facts.title or f"{x.name} and {y.name}"
    head = {
        "library_name": "clipseq",
        "pipeline_tag": "sentence-similarity" if text_only else "feature-extraction",
        "tags": ["clipseq", "contrastive-learning", x.name, y.name],
        **({"license": facts.license} if facts.license else {}),
    }
    parts = [
        "---\n" + OWNER + "\n" + _yaml(head) + "---",
        f"# {title}",
        f"A model of clipseq that compares {_kind(x)} with "
        f"{_kind(y)}, by one vector of each" + _and_sequences(saved) + ".",
        f"## Use\n\n{_install(model, saved)}\n\n```python\n{_usage(model, saved, name)}```",
        "## Model\n\n" + _table([*_towers(model), *_comparison(model, saved)]),
        f"{_DATA}\n\n{facts.data or NOT_STATED}",
        f"## Metrics\n\n{METRICS[0]}\n{metrics or NO_METRICS}\n{METRICS[1]}",
        f"{_LICENCE}\n\n{facts.license or NOT_STATED}",
        f"{_CITATION}\n\n" + (_fenced(facts.citation) if facts.citation else NOT_STATED),
    ]
    return "\n\n".join(parts) + "\n"


def write_metrics(directory: Path, rows: Sequence[Sequence[str]], caption: str) -> bool:
    """Put a table of metrics into the card in `directory`, between the lines `METRICS`.

    Args:
        directory: the folder of a saved model.
        rows: rows of the table; the first one is its head.
        caption: a sentence above the table.

    Returns:
        False if there is no card, or its owner has removed those lines.
    """
    text = _read(directory / CARD)
    if text is None or not all(text.count(line) == 1 for line in METRICS):
        return False
    before, rest = text.split(METRICS[0])
    after = rest.split(METRICS[1])[1]
    new = f"{before}{METRICS[0]}\n{caption}\n\n{_table(rows)}\n{METRICS[1]}{after}"
    write_text(directory / CARD, new)
    return True


def read_facts(directory: Path) -> tuple[CardFacts, str | None]:
    """Return what the card in `directory` says: its facts, and the text about metrics.

    They are empty without a card, and as far as its owner has changed its headings.
    """
    text = _read(directory / CARD)
    if text is None:
        return CardFacts(), None
    metrics = None
    if all(text.count(line) == 1 for line in METRICS):
        metrics = text.split(METRICS[0])[1].split(METRICS[1])[0].strip()
    title = re.search(r"^# (.+)$", text.partition("\n---\n")[2], re.MULTILINE)
    citation = _section(text, _CITATION)
    if citation is not None:
        citation = citation.removeprefix("```bibtex\n").removesuffix("\n```")
    facts = CardFacts(
        title=title[1] if title else None,
        license=_section(text, _LICENCE),
        data=_section(text, _DATA),
        citation=citation,
    )
    return facts, None if metrics == NO_METRICS else metrics


def _section(text: str, heading: str) -> str | None:
    """Return the text below a heading, up to the next heading; None if it is not stated."""
    found = re.search(rf"^{heading}\n\n(.*?)\n*(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    return None if found is None or found[1] == NOT_STATED else found[1]


def _towers_of(model: TwoTowers) -> list[Tower]:
    return [cast(Tower, unwrap(tower)) for tower in (model.x_encoder, model.y_encoder)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _yaml(head: Mapping[str, Any]) -> str:
    # JSON's strings and lists are YAML's too; a plain word needs no quotes.
    lines = []
    for key, value in head.items():
        plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value)
        lines.append(f"{key}: {value if plain else json.dumps(value)}\n")
    return "".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *others = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _kind(tower: Tower) -> str:
    return f"recordings ({tower.name})" if tower.is_signal else f"text ({tower.name})"


def _and_sequences(saved: SavedModel) -> str:
    config = saved.model
    if not (config.use_sequence_similarity and config.sequence_similarity_weight):
        return ""
    return f", and by their sequences with the similarity `{config.sequence_similarity_type}`"


def _install(model: TwoTowers, saved: SavedModel) -> str:
    extras = []
    if saved.tokenizer not in (None, "byte"):
        extras.append("train")
    if any(isinstance(tower, HuggingFaceTextTower) for tower in _towers_of(model)):
        extras.append("hf")
    origins = (*saved.similarities.values(), *saved.losses.values())
    plugins = sorted({o.distribution for o in origins if o.distribution} - {"clipseq"})
    extra = f"[{','.join(extras)}]" if extras else ""
    words = [f'"clipseq{extra}=={saved.clipseq_version}"', *plugins]
    return f"```sh\npip install {' '.join(words)}\n```"


def _usage(model: TwoTowers, saved: SavedModel, name: str) -> str:
    note = "  # the folder of this file" if name == "." else ""
    given = "".join(f", {argument}={_class(kind)}()" for argument, kind in saved.modules.items())
    lines = ["import torch", "from clipseq import CLIP"]
    for kind in dict.fromkeys(saved.modules.values()):
        lines.append(f"from {kind.rpartition('.')[0]} import {_class(kind)}  # yours")
    lines += ["", f"model = CLIP.from_pretrained({json.dumps(name)}{given}){note}", ""]
    sides = [(side.name, _example(side)) for side in _towers_of(model)]
    lines += [f"{side} = {example}" for side, example in sides]
    arguments = ", ".join(side for side, _ in sides)
    lines.append("with torch.no_grad():")
    lines.append(f"    scores = model.similarity({arguments})  # every pair, in [-1, 1]")
    lines.append("print(scores)")
    return "\n".join(lines) + "\n"


def _example(tower: Tower) -> str:
    """Return Python for two items that the tower reads."""
    if isinstance(tower, SignalTower):
        frames = 4 * tower.config.patch_frames
        views = ", ".join(
            f"{json.dumps(view)}: torch.randn(2, {bins}, {frames})"
            for view, bins in tower.config.views.items()
        )
        return f"{{{views}}}  # two recordings: (items, bins, frames) of each view"
    if isinstance(tower, ModuleTower):
        return "...  # a batch that your tower takes" if tower.is_signal else '["one", "two"]'
    assert isinstance(tower, TextTower | HuggingFaceTextTower)
    for captions in (["a person walks", "a person sits down"], ["a walk", "a fall"], ["a", "b"]):
        if all(_fits(tower, caption) for caption in captions):
            return json.dumps(captions)
    return "[...]  # your captions"


def _fits(tower: TextTower | HuggingFaceTextTower, caption: str) -> bool:
    try:
        tower.read([caption])
    except ValueError:
        return False
    return True


def _class(kind: str) -> str:
    return kind.rpartition(".")[2]


def _towers(model: TwoTowers) -> list[list[str]]:
    rows = [["", ""]]
    for tower in _towers_of(model):
        rows.append([f"tower of `{tower.name}`", _describe_tower(tower)])
    size = sum(p.numel() for p in model.parameters())
    config = model.config
    return [
        *rows,
        ["features", f"{config.transformer_width} per step, and as many pooled"],
        ["parameters", f"{size:,}"],
    ]


def _describe_tower(tower: Tower) -> str:
    if isinstance(tower, SignalTower):
        config = tower.config
        views = ", ".join(f"{view} ({bins} bins)" for view, bins in config.views.items())
        return f"signal: {views}; {config.patch_frames} frames per step, {config.fusion} fusion"
    if isinstance(tower, HuggingFaceTextTower):
        kind = type(tower.language_model).__name__
        state = "frozen" if tower.config.freeze else "fine-tuned"
        if tower.config.lora is not None:
            state = f"fine-tuned with LoRA of rank {tower.config.lora.rank}"
        return f"text: {kind} of transformers, {state}; at most {tower.context_length} tokens"
    if isinstance(tower, TextTower):
        return (
            f"text: {tower.vocab_size} token ids ({tower.tokenizer.kind} tokenizer), at most "
            f"{tower.context_length} tokens"
        )
    assert isinstance(tower, ModuleTower)
    kind = "signal" if tower.is_signal else "text"
    return f"{kind}: a module of the author's, {type(tower.module).__name__}"


def _comparison(model: TwoTowers, saved: SavedModel) -> list[list[str]]:
    config = saved.model
    rows = [["loss", _with_origins([config.loss], saved.losses)]]
    if model.sequence_loss_fn is None:
        return [*rows, ["similarity", "cosine of the pooled features"]]
    name = config.sequence_similarity_type
    parts = [other for other in saved.similarities if other != name]
    rows.append(["similarity of sequences", _with_origins([name, *parts], saved.similarities)])
    rows.append(["weight of its loss", f"{config.sequence_similarity_weight:g}"])
    weights = getattr(model.sequence_loss_fn.similarity_fn, "weights", None)
    if isinstance(weights, Mapping):
        learnt = ", ".join(f"{part} {float(weight):.3f}" for part, weight in weights.items())
        rows.append(["learnt weights of its parts", learnt])
    return rows


def _with_origins(names: Sequence[str], origins: Mapping[str, Any]) -> str:
    grouped: dict[str, list[str]] = {}
    for name in names:
        origin = origins.get(name)
        source = f"{origin.distribution} {origin.version}".strip() if origin else ""
        grouped.setdefault(source, []).append(f"`{name}`")
    return "; ".join(
        ", ".join(members) + (f" of {source}" if source else "")
        for source, members in grouped.items()
    )


def _fenced(citation: str) -> str:
    return f"```bibtex\n{citation.strip()}\n```"
