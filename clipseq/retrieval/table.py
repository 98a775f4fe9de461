"""The table of an index, kept by LanceDB.

A row is an item: `id`, `side`, `vector` (the pooled feature, of norm 1, in float16), `steps` (the
sequence, a list of vectors in float16) if the model compares sequences, and a column for each key
of the metadata. The schema of the table holds the `Header`. This is the only module that knows
LanceDB.
"""

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from clipseq.config import structure
from clipseq.engine.process_state import restored
from clipseq.engine.unit_vectors import unit
from clipseq.errors import DataError
from clipseq.retrieval.encoded import Encoded
from clipseq.retrieval.ragged import Ragged

FORMAT, VERSION = b"clipseq.index", 1
NAME = "items"
OWN = ("id", "side", "vector", "steps")
PART = 10_000
"""Number of items in one part of the index of vectors."""
EXACT = 1_000_000
"""Number of items up to which a search looks at every part, so that it is exact."""

_AT_ONCE = 500
"""Number of ids in one condition."""

_QUERIES = 8
"""Number of queries that search together: each holds its own list of distances."""

_CACHE = 64 * 2**20
"""Largest number of bytes of vectors that stay in memory between searches."""


@attrs.frozen
class Header:
    """The origin of an index.

    Attributes:
        model: fingerprint of the model.
        names: names of its two sides.
        features: D.
        sequences: True if the items have sequences.
        source: the run folder or saved model, "" if it was not noted.
        version: version of the format.
    """

    model: str
    names: list[str]
    features: int
    sequences: bool
    source: str = ""
    version: int = VERSION


@attrs.frozen(eq=False)
class Nearest:
    """The candidates of all queries; each item among them is held once.

    Attributes:
        query: (P,) the query of each pair.
        row: (P,) the place of its item below.
        scores: (P,) cosine of the pooled features.
        ids: ids of the items.
        side: side of the items.
        steps: their sequences, if they have any.
        columns: their metadata, one list for each column.
    """

    query: Tensor
    row: Tensor
    scores: Tensor
    ids: Sequence[str]
    side: str
    steps: Ragged | None
    columns: Mapping[str, Sequence[Any]]

    def metadata(self, place: int) -> dict[str, Any]:
        """Return the metadata of one item, without those that it does not have."""
        values = {name: column[place] for name, column in self.columns.items()}
        return {name: value for name, value in values.items() if value is not None}


class Table:
    """The items of an index."""

    def __init__(self, table: Any, header: Header, path: str) -> None:
        self._table, self.header, self._path = table, header, path
        # A search reads twice, and both must see the same version of the table.
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: str, header: Header) -> "Table":
        """Create an empty table.

        Raises:
            DataError: there is one already.
        """
        _, pa = _libraries()
        vector = pa.list_(pa.float16(), header.features)
        fields = [("id", pa.string()), ("side", pa.string()), ("vector", vector)]
        if header.sequences:
            fields.append(("steps", pa.list_(vector)))
        text = json.dumps(attrs.asdict(header))
        schema = pa.schema(fields, metadata={FORMAT: text.encode()})
        if not _is_remote(path) and Path(path).exists() and any(Path(path).iterdir()):
            raise DataError(
                f"path must be a new folder for the index, got {path}, which is not empty"
            )
        table = _connect(path).create_table(NAME, schema=schema, mode="create")
        return cls(table, header, path)

    @classmethod
    def open(cls, path: str) -> "Table":
        """Open a table.

        Raises:
            DataError: there is none, or it is damaged or of another format or version.
        """
        _libraries()
        if not _is_remote(path) and not Path(path).is_dir():
            raise DataError(f"path must be an index, got {path}, which does not exist")
        try:
            table = _connect(path).open_table(NAME)
            text = (table.schema.metadata or {}).get(FORMAT)
        except Exception as error:
            raise DataError(
                f"path must be an index that Index.create made, got {path}, which cannot be "
                f"opened: {error}"
            ) from error
        if text is None:
            raise DataError(
                f"path must be an index that Index.create made, got {path}, a table of something "
                "else"
            )
        saved = json.loads(text)
        if saved.get("version") != VERSION:
            raise DataError(
                f"the index {path} must be of version {VERSION} of the format, got version "
                f"{saved.get('version')}; make it again, or install the clipseq that wrote it"
            )
        return cls(table, structure(Header, saved), path)

    def count(self) -> int:
        """Return the number of items."""
        with self._lock:
            self._table.checkout_latest()
            return int(self._table.count_rows())

    def side(self) -> str:
        """Return the side of the items, "" if there are none."""
        with self._lock:
            self._table.checkout_latest()
            first = self._table.search().select(["side"]).limit(1).to_list()
        return first[0]["side"] if first else ""

    def add(
        self, encoded: Encoded, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None
    ) -> None:
        """Add items in one commit, replacing those with the same ids.

        Raises:
            TypeError, ValueError: see `Index.add`.
        """
        rows = self._rows(encoded, ids, metadata)
        with self._lock:
            self._table.checkout_latest()
            rows = self._matching(rows)
            if self._table.count_rows() == 0:
                self._table.add(rows)
                return
            merge = self._table.merge_insert("id").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items and return their number."""
        gone = 0
        with self._lock:
            self._table.checkout_latest()
            for start in range(0, len(ids), _AT_ONCE):
                some = ", ".join(_quoted(name) for name in ids[start : start + _AT_ONCE])
                if some:
                    gone += int(self._table.delete(f"id IN ({some})").num_deleted_rows)
        return gone

    def optimize(self) -> None:
        """Merge files and build the index of vectors."""
        from lancedb.index import IvfFlat

        with self._lock:
            self._table.checkout_latest()
            count = int(self._table.count_rows())
            if count == 0:
                return
            self._table.optimize()
            parts = max(1, round(count / PART))
            kind = IvfFlat(distance_type="cosine", num_partitions=parts)
            self._table.create_index("vector", config=kind, replace=True)

    def nearest(
        self, pooled: Tensor, count: int, *, where: str | None, probes: int | None
    ) -> Nearest:
        """Return the items whose pooled features have the largest cosines with each query.

        Raises:
            ValueError: `where` is not a condition on the columns.
        """
        queries = unit(pooled.detach().float().cpu()).numpy()
        with self._lock:
            self._table.checkout_latest()
            if probes is None:
                # Rounded up: there may be more items than there were parts for.
                items = int(self._table.count_rows())
                probes = 1 + items // (PART if items <= EXACT else 10 * PART)
            parts = [
                self._pairs(queries[first : first + _QUERIES], first, count, where, probes)
                for first in range(0, len(queries), _QUERIES)
            ]
            query, found, distances = (np.concatenate(some) for some in zip(*parts, strict=True))
            names = self._table.schema.names
            rows, row = np.unique(found, return_inverse=True)
            items = self._table.take_row_ids(rows.tolist()).select(
                [name for name in names if name != "vector"]
            )
            items = items.with_row_id().to_arrow()
        # Rows need not come back in the order asked for.
        order = np.argsort(items["_rowid"].to_numpy())
        items = items.take(order)
        return Nearest(
            query=torch.from_numpy(query),
            row=torch.from_numpy(row.astype(np.int64)),
            scores=torch.from_numpy(1 - distances),
            ids=items["id"].to_pylist(),
            side=items["side"][0].as_py() if len(items) else "",
            steps=_steps(items["steps"]) if self.header.sequences else None,
            columns={name: items[name].to_pylist() for name in names if name not in OWN},
        )

    def _pairs(
        self, queries: np.ndarray, first: int, count: int, where: str | None, probes: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of the queries, counted from `first`, and their rows and distances."""
        found = self._table.search(queries, vector_column_name="vector").metric("cosine")
        found = found.limit(count).nprobes(probes).select(["_distance"]).with_row_id(True)
        if where is not None:
            found = found.where(where, prefilter=True)
        try:
            pairs = found.to_arrow()
        except (ValueError, RuntimeError) as error:
            if where is None:
                raise
            columns = [name for name in self._table.schema.names if name not in OWN[1:]]
            raise ValueError(
                f"where must be a condition in SQL on {', '.join(columns)}, got {where!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        query = np.zeros(len(pairs), np.int64)  # a single query has no column of this name
        if "query_index" in pairs.column_names:
            query = pairs["query_index"].to_numpy().astype(np.int64)
        return (
            first + query,
            pairs["_rowid"].to_numpy(),
            pairs["_distance"].to_numpy().astype(np.float32),
        )

    def _rows(
        self, encoded: Encoded, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None
    ) -> Any:
        _, pa = _libraries()
        if metadata is not None and len(metadata) != len(ids):
            raise ValueError(
                f"metadata must hold one dictionary for each of the {len(ids)} items, got "
                f"{len(metadata)}"
            )
        vectors = unit(encoded.pooled.detach().float().cpu()).half()
        columns = {
            "id": pa.array(ids, pa.string()),
            "side": pa.array([encoded.side] * len(ids), pa.string()),
            "vector": _vectors(pa, vectors),
        }
        if self.header.sequences:
            assert encoded.steps is not None
            values = encoded.steps.values.detach().cpu().half()
            if not bool(values.isfinite().all()):
                raise ValueError(
                    "encoded must have finite steps within the range of float16, got NaN or larger "
                    "ones"
                )
            offsets = encoded.steps.offsets.cpu().numpy().astype(np.int32)
            columns["steps"] = pa.ListArray.from_arrays(offsets, _vectors(pa, values))
        for name in dict.fromkeys(key for row in metadata or () for key in row):
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(
                    f"names of metadata must be letters, digits and underscores that start with a "
                    f"letter, got {name!r}"
                )
            if name in OWN:
                raise ValueError(
                    f"names of metadata must not be {', '.join(OWN)}, which the index uses, got "
                    f"{name!r}; choose another"
                )
            cells = [row.get(name) for row in metadata or ()]
            try:
                column = pa.array(cells)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise TypeError(
                    f"metadata {name!r} must have values of one type, got {error}"
                ) from error
            types = pa.types
            if types.is_null(column.type):
                continue
            if not any(
                is_one(column.type)
                for is_one in (
                    types.is_string,
                    types.is_integer,
                    types.is_floating,
                    types.is_boolean,
                )
            ):
                raise TypeError(
                    f"metadata {name!r} must be strings, numbers or booleans, got {column.type}"
                )
            columns[name] = column
        return pa.table(columns)

    def _matching(self, rows: Any) -> Any:
        """Add columns that the table lacks, and cast the others to its types."""
        _, pa = _libraries()
        schema = self._table.schema
        new = [field for field in rows.schema if field.name not in schema.names]
        if new:
            self._table.add_columns(new)
        for field in schema:
            if field.name in OWN:
                continue
            if field.name not in rows.column_names:
                # Otherwise an item that is replaced would keep the old value.
                rows = rows.append_column(field, pa.nulls(len(rows), field.type))
                continue
            place = rows.column_names.index(field.name)
            try:
                column = rows[field.name].cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise TypeError(
                    f"metadata {field.name!r} must be {field.type}, as in the index, got "
                    f"{rows.schema.field(field.name).type}: {error}"
                ) from error
            rows = rows.set_column(place, field.name, column)
        return rows


def _connect(path: str) -> Any:
    lancedb, _ = _libraries()
    session = lancedb.Session(index_cache_size_bytes=_CACHE, metadata_cache_size_bytes=_CACHE // 2)
    return lancedb.connect(path, session=session)


def _vectors(pa: Any, values: Tensor) -> Any:
    flat = values.contiguous().view(torch.int16).flatten().numpy().view(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _steps(column: Any) -> Ragged:
    """Return the sequences of a column, which is made of chunks of lists of vectors."""
    values, lengths = [], []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        inner = chunk.values
        features = inner.type.list_size
        flat = inner.values.to_numpy(zero_copy_only=True)
        first = (inner.offset + offsets[0]) * features
        flat = flat[first : first + (offsets[-1] - offsets[0]) * features]
        values.append(flat.reshape(-1, features))
        lengths.append(np.diff(offsets).astype(np.int64))
    whole = np.concatenate(values) if values else np.zeros((0, 1), np.float16)
    counts = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    return Ragged.from_lengths(torch.from_numpy(whole.copy()), torch.from_numpy(counts))


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _is_remote(path: str) -> bool:
    return "://" in path


def _libraries() -> tuple[Any, Any]:
    """Import LanceDB and Arrow, on the first use.

    Raises:
        ImportError: they are not installed.
    """
    with restored():
        # It would log a line about every new table to standard error, and reads this when it
        # starts.
        os.environ.setdefault("LANCE_LOG", "error")
        try:
            import lancedb
            import pyarrow
        except ImportError as error:
            raise ImportError("an index needs LanceDB: pip install 'clipseq[search]'") from error
    return lancedb, pyarrow
