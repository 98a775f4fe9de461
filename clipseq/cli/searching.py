"""The commands that use a trained model: encode a data set, index it, and search the index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table

from clipseq.cli.progress import ProgressBar
from clipseq.data import MapDataset
from clipseq.errors import ConfigError, DataError, suggest
from clipseq.model import CLIP
from clipseq.retrieval import Encoded, Index
from clipseq.training.datasets import open_path
from clipseq.training.runs import load_model


@attrs.frozen
class Results:
    """The hits of one query.

    Attributes:
        query: the caption, or the id of the clip.
        hits: rank, score, id and metadata of each hit.
    """

    query: str
    hits: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the hits as numbers, strings, lists and dictionaries."""
        return {"query": self.query, "hits": [dict(hit) for hit in self.hits]}

    def print(self) -> None:
        """Print a table as wide as the terminal, with a column for each key of the metadata."""
        keys = list(dict.fromkeys(key for hit in self.hits for key in hit["metadata"]))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("rank", "score", "id", *keys):
            table.add_column(column, no_wrap=column in ("rank", "score"), overflow="fold")
        for hit in self.hits:
            values = [hit["metadata"].get(key) for key in keys]
            cells = ["" if value is None else str(value) for value in values]
            table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", hit["id"], *cells)
        Console(highlight=False, markup=False).print(table)
        if not self.hits:
            print("no item of the index meets the condition")


def encode_data(
    run: Path, data: Path, out: Path, *, side: str | None, split: str | None, batch_size: int
) -> Encoded:
    """Encode one side of a data set and save it; see ``clipseq encode``."""
    model, dataset = _on_device(run), _clips(data, split)
    encoded = _encode(model, _side(model, side), dataset, batch_size)
    encoded.save(out)
    return encoded


def index_data(
    run: Path, data: Path, out: str, *, side: str | None, split: str | None, batch_size: int
) -> Index:
    """Encode one side of a data set into a new index; see ``clipseq index``."""
    model, dataset = _on_device(run), _clips(data, split)
    name = _side(model, side)
    index = Index.create(out, model, source=run.resolve())
    index.add(_encode(model, name, dataset, batch_size), metadata=_metadata(dataset))
    index.optimize()
    return index


def search_index(
    path: str,
    query: str,
    *,
    data: Path | None,
    side: str | None,
    run: Path | None,
    k: int,
    candidates: int,
    where: str | None,
) -> Results:
    """Search with a caption, or with a clip of a data set; see ``clipseq search``."""
    source = run if run is not None else _source(path)
    model = _on_device(source)
    index = Index.open(path, model)
    if data is None:
        if side is not None:
            raise ConfigError("--side is the side of a clip; name its data set with --data")
        if model.text_tower is None:
            raise ConfigError(
                f"query must be a clip of a data set for a model of {' and '.join(model.names)}, "
                "got no --data; name the data set of the clip"
            )
        encoded = model.encode(model.text_tower.name, [query], progress=False)
    else:
        name = _side(model, side) if side is not None else _other_side(model, index)
        encoded = _encode_clip(model, name, open_path(data), query)
    found = index.search(encoded, k=k, candidates=candidates, where=where)
    scores = found.scores[0].tolist()
    rows = zip(found.ids[0], scores, found.metadata[0], strict=True)
    hits = [
        {"rank": rank, "score": score, "id": name, "metadata": metadata}
        for rank, (name, score, metadata) in enumerate(rows, 1)
    ]
    return Results(query, tuple(hits))


def _on_device(run: Path) -> CLIP:
    return load_model(run).to("cuda" if torch.cuda.is_available() else "cpu")


def _clips(data: Path, split: str | None) -> MapDataset:
    dataset = open_path(data)
    return dataset if split is None else dataset.subset(split)


def _side(model: CLIP, side: str | None) -> str:
    if side is not None and side not in model.names:
        raise ConfigError(
            f"--side must be one of {', '.join(model.names)}, the sides of the model, got "
            f"{side!r}{suggest(side, model.names)}"
        )
    return side or model.names[0]


def _encode(model: CLIP, name: str, dataset: MapDataset, batch_size: int) -> Encoded:
    with ProgressBar(f"encoding {name}") as bar:
        return model.encode(
            name,
            dataset,
            batch_size=batch_size,
            progress=lambda done, total: bar(done, total, {}),
        )


def _other_side(model: CLIP, index: Index) -> str:
    x, y = model.names
    return y if index.side == x else x


def _encode_clip(model: CLIP, side: str, dataset: MapDataset, name: str) -> Encoded:
    if name not in dataset.ids:
        raise DataError(
            f"query must be the id of a clip in the data set, got {name!r}"
            f"{suggest(name, dataset.ids)}"
        )
    place = dataset.ids.index(name)
    only = MapDataset.from_clips(
        [dataset[place]], modality=dataset.modality, paired_modality=dataset.paired_modality
    )
    return model.encode(side, only, progress=False)


def _metadata(dataset: MapDataset) -> list[dict[str, Any]]:
    """Return what a search shows of a clip, and may filter by."""
    clips = (dataset[i] for i in range(len(dataset)))
    return [
        {"caption": clip.caption or None, "split": clip.split, "label": clip.label}
        for clip in clips
    ]


def _source(path: str) -> Path:
    source = Index.source(path)
    if not source or not Path(source).exists():
        raise ConfigError(
            f"--run must name the run or saved model of the index {path}, since "
            + (f"{source}, which it was made with, does not exist" if source else "it names none")
        )
    return Path(source)
