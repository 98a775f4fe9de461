"""An index: encoded items on disk, searched in two stages.

The first stage finds candidates by the cosine of pooled features, the second sorts them by the
model's similarity of sequences. LanceDB keeps the items (see `clipseq.retrieval.table`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from clipseq.engine.options import check_kind, check_text, to_path, whole_number
from clipseq.errors import DataError
from clipseq.retrieval.encoded import Encoded
from clipseq.retrieval.fingerprint import fingerprint
from clipseq.retrieval.ragged import Ragged
from clipseq.retrieval.reranking import score_pairs
from clipseq.retrieval.sides import check_model
from clipseq.retrieval.table import Header, Table

if TYPE_CHECKING:
    from clipseq.model import CLIP

Metadata = Sequence[Mapping[str, Any]]
"""One dictionary for each item, of strings, numbers, booleans and None."""


@attrs.frozen(eq=False)
class Hits:
    """The results of a search, the best first.

    If a condition leaves fewer than k items, k is the number of these.

    Attributes:
        ids: ids of the hits, k for each of the Q queries. Where an approximate first stage found
            fewer for one query than for another, the list is filled up with "".
        scores: (Q, k) their scores, in descending order; -inf where there is no hit.
        metadata: the metadata of each hit.
    """

    ids: list[list[str]]
    scores: Float[Tensor, "Q k"]
    metadata: list[list[dict[str, Any]]]


class Index:
    """Encoded items on disk, or in an object store, for search with the model that encoded them.

    `create` makes a new index and `open` opens one. Items of one side are kept: pooled features,
    sequences, ids and metadata. They stay on disk, and a search reads what it needs.

    Every change is one atomic commit: when `add` or `delete` returns, the change is on disk, and a
    process that is killed before loses only that change. Any number of processes may read while one
    writes; a search sees all items of one moment.

    A search compares the queries with every pooled feature, which is exact and takes time in
    proportion to the number of items, until `optimize` builds an index of vectors.
    """

    def __init__(self, table: Table, model: "CLIP", path: str) -> None:
        self._table, self._model, self.path = table, model, path

    @classmethod
    def create(cls, path: str | Path, model: "CLIP", *, source: str | Path = "") -> "Index":
        """Make an empty index.

        Args:
            path: a new folder, or an address of an object store such as "s3://bucket/name".
            model: the model that encodes the items.
            source: the run folder or saved model to note in the index, for ``clipseq search``.

        Raises:
            DataError: there is an index already.
            ImportError: LanceDB is not installed.
            TypeError: `path` is not a path, or `model` is not a CLIP.
        """
        check_model(model)
        to_path("path", path)
        header = Header(
            model=fingerprint(model),
            names=list(model.names),
            features=model.config.transformer_width,
            sequences=model.compares_sequences,
            source=str(source),
        )
        return cls(Table.create(str(path), header), model, str(path))

    @classmethod
    def open(cls, path: str | Path, model: "CLIP") -> "Index":
        """Open an index that `create` made with this model.

        Raises:
            DataError: there is no index, or it belongs to another model, has another number of
                features, or was written in another version of the format.
            ImportError: LanceDB is not installed.
            TypeError: `path` is not a path, or `model` is not a CLIP.
        """
        check_model(model)
        to_path("path", path)
        table = Table.open(str(path))
        header = table.header
        own = fingerprint(model)
        expected = {
            "features": (header.features, model.config.transformer_width),
            "sides": (", ".join(header.names), ", ".join(model.names)),
            "fingerprint": (header.model, own),
        }
        for what, (kept, given) in expected.items():
            if kept != given:
                raise DataError(
                    f"model must be the one that made the index {path}, with the {what} {kept}, "
                    f"got one with {given}; open that model{_from(header)}, or encode the items "
                    "again"
                )
        if header.sequences and not model.compares_sequences:
            raise DataError(
                f"model must compare sequences, as the one that made the index {path} did; set its "
                "sequence_similarity_weight above 0"
            )
        return cls(table, model, str(path))

    @staticmethod
    def source(path: str | Path) -> str:
        """Return the run folder or saved model that an index notes, "" if it notes none.

        Raises:
            DataError: there is no index.
            ImportError: LanceDB is not installed.
        """
        return Table.open(str(path)).header.source

    @property
    def side(self) -> str:
        """Name of the side of the items, "" if there are none yet."""
        return self._table.side()

    def __len__(self) -> int:
        return self._table.count()

    def __repr__(self) -> str:
        return f"Index({self.path!r}, {len(self)} items)"

    def add(
        self,
        encoded: Encoded,
        *,
        ids: Sequence[str] | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        """Add items; an item with the id of one that is there replaces it.

        When this method returns, the items are on disk. If the process is killed before, none of
        them is in the index.

        Args:
            encoded: the items, all of one side, from the model of the index.
            ids: id of each item; None: those of `encoded`.
            metadata: one dictionary for each item; its keys become columns for `where`, and are
                None in items without them. An index may get new columns at any time.

        Raises:
            TypeError: an id is not a string; a value of the metadata has a type that its column or
                an index cannot hold.
            ValueError: `encoded` is of another model, number of features or side, or lacks
                sequences; ids are not distinct, or not one for each item, and neither are metadata;
                the name of a column is not a word, or is one that the index uses itself.
        """
        self._check_encoded(encoded, "encoded")
        check_kind("ids", ids, (Sequence, type(None)), "a list of strings or None")
        check_kind("metadata", metadata, (Sequence, type(None)), "a list of dictionaries or None")
        for row in metadata or ():
            check_kind("metadata", row, Mapping, "a list of dictionaries")
        names = list(encoded.ids if ids is None else ids)
        if len(names) != len(encoded):
            raise ValueError(
                f"ids must name each of the {len(encoded)} items, got {len(names)} ids"
            )
        for i, name in enumerate(names):
            check_text(f"ids[{i}]", name)
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"ids must be distinct, got {twice!r} twice")
        side = self.side
        if encoded.side not in ([side] if side else self._table.header.names):
            known = side or " or ".join(self._table.header.names)
            raise ValueError(
                f"encoded must be of one side of the model, {known}, got {encoded.side!r}; encode "
                "the items with model.encode"
            )
        if len(encoded):
            self._table.add(encoded, names, metadata)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items, and return how many of the ids were in the index.

        Raises:
            TypeError: `ids` is not a list of strings.
        """
        if isinstance(ids, str):
            raise TypeError(f"ids must be a list of ids, got one string; write [{ids!r}]")
        check_kind("ids", ids, Sequence, "a list of ids")
        for one in ids:
            check_text("ids", one)
        return self._table.delete(list(ids))

    def optimize(self) -> None:
        """Merge small files and build the index of vectors that makes searches faster.

        Call it after many or large calls of `add`. The vectors are kept in parts of about 10,000
        neighbours. Up to a million items, the first stage looks at all parts and stays exact; with
        more, at the tenth that is nearest to a query, unless `search` is given `probes`. Items that
        are added later are found nevertheless.
        """
        self._table.optimize()

    @torch.no_grad()
    def search(
        self,
        queries: Encoded,
        k: int = 10,
        *,
        candidates: int = 100,
        where: str | None = None,
        probes: int | None = None,
    ) -> Hits:
        """Return the k best items for each query.

        Args:
            queries: Q encoded queries, usually of the other side.
            k: number of hits.
            candidates: number of items that the first stage hands to the second; at least k. More
                candidates find more, at a cost in proportion. A model that does not compare
                sequences has no second stage.
            where: condition on ids and metadata, in SQL, such as ``"split = 'test' AND age > 3"``;
                only items that meet it are searched.
            probes: number of parts that the first stage looks at, after `optimize`; fewer are
                faster and miss more. None: all parts up to a million items, then a tenth of them.

        Raises:
            TypeError: `queries` is not `Encoded`, or a number is not whole.
            ValueError: `queries` is of another model or number of features, or lacks sequences; k
                or `candidates` is below 1; `where` is not a condition on the columns (the error
                lists them).
        """
        self._check_encoded(queries, "queries")
        k = whole_number("k", k, least=1)
        candidates = whole_number("candidates", candidates, least=1)
        if probes is not None:
            probes = whole_number("probes", probes, least=1)
        check_kind("where", where, (str, type(None)), "a condition in SQL, or None")
        if not len(queries):
            return Hits([], torch.empty(0, k), [])
        second = self._table.header.sequences
        found = self._table.nearest(
            queries.pooled, max(k, candidates) if second else k, where=where, probes=probes
        )
        query, row = found.query, found.row
        if second and len(query):
            assert queries.steps is not None
            assert found.steps is not None
            assert self._model.sequence_loss_fn is not None
            similarity = self._model.sequence_loss_fn.similarity_fn
            # The items are y if they are of the second side, and then the queries stand for x.
            side: Literal["x", "y"] = "x" if found.side == self._model.names[1] else "y"
            steps = Ragged(found.steps.values, found.steps.offsets)
            asked = Ragged(queries.steps.values.cpu(), queries.steps.offsets.cpu())
            scores = score_pairs(similarity, asked, steps, query, row, query_side=side).cpu()
        else:
            scores = found.scores
        return self._best(len(queries), k, query, row, scores, found)

    def _best(
        self, count: int, k: int, query: Tensor, row: Tensor, scores: Tensor, found: Any
    ) -> Hits:
        most = min(k, int(query.bincount().max()) if len(query) else 0)
        best = torch.full((count, most), -torch.inf)
        ids = [[""] * most for _ in range(count)]
        metadata: list[list[dict[str, Any]]] = [[{} for _ in range(most)] for _ in range(count)]
        for i in range(count):
            mine = (query == i).nonzero().flatten()
            order = scores[mine].argsort(descending=True, stable=True)[:most]
            best[i, : len(order)] = scores[mine][order]
            for j, place in enumerate(row[mine[order]].tolist()):
                ids[i][j], metadata[i][j] = found.ids[place], found.metadata(place)
        return Hits(ids, best, metadata)

    def _check_encoded(self, encoded: Encoded, name: str) -> None:
        check_kind(name, encoded, Encoded, "Encoded, as CLIP.encode returns it")
        header = self._table.header
        if encoded.model and header.model and encoded.model != header.model:
            raise ValueError(
                f"{name} must be encoded by the model of the index, with the fingerprint "
                f"{header.model}, got {encoded.model}; encode the items with that model"
            )
        if encoded.pooled.shape[1] != header.features:
            raise ValueError(
                f"{name} must have D={header.features} features, as the index has, got "
                f"D={encoded.pooled.shape[1]}"
            )
        if header.sequences and encoded.steps is None:
            raise ValueError(
                f"{name} must have sequences, as the items of the index have, got pooled features "
                "only; encode the items with a model that compares sequences"
            )


def _from(header: Header) -> str:
    return f" ({header.source})" if header.source else ""
