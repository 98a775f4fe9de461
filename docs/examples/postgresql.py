"""Search in PostgreSQL: pgvector finds the candidates, and `clipseq.rerank` sorts them.

It needs the extension pgvector (on Debian, the package postgresql-NN-pgvector) and psycopg:

    import psycopg, clipseq
    with psycopg.connect("dbname=recordings") as connection:
        create(connection, features=model.config.transformer_width)
        add(connection, model.encode("radar", dataset))
        similarity = model.sequence_loss_fn.similarity_fn
        search(connection, similarity, model.encode("text", ["a person waves"]), query_side="y")
"""

from typing import Any, Literal

import numpy as np
import torch

import clipseq

CANDIDATES = """
SELECT id, steps FROM items ORDER BY pooled <=> %s::vector LIMIT %s
"""


def create(connection: Any, features: int) -> None:
    """Create a table of items, with an index of their pooled features."""
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(
        f"CREATE TABLE items (id text PRIMARY KEY, pooled vector({features}), steps bytea)"
    )
    connection.execute("CREATE INDEX ON items USING hnsw (pooled vector_cosine_ops)")


def add(connection: Any, encoded: clipseq.Encoded) -> None:
    """Insert items; the steps of a sequence are float16 numbers, one step after the other."""
    rows = []
    for item in encoded:
        steps = item.sequences().values[0].half().numpy().tobytes()
        rows.append((item.ids[0], _literal(item.pooled[0]), steps))
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO items VALUES (%s, %s::vector, %s)", rows)


def search(
    connection: Any,
    similarity: clipseq.Similarity,
    queries: clipseq.Encoded,
    *,
    k: int = 10,
    candidates: int = 100,
    query_side: Literal["x", "y"] = "x",
) -> list[list[tuple[str, float]]]:
    """Return the ids and scores of the k best items for each query."""
    # pgvector looks at this many items; with fewer than `candidates`, some would be missing.
    connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(candidates)])
    found = [
        connection.execute(CANDIDATES, (_literal(query.pooled[0]), candidates)).fetchall()
        for query in queries
    ]
    features = queries.pooled.shape[1]
    sequences = [[_steps(data, features) for _, data in rows] for rows in found]
    ranked = clipseq.rerank(similarity, queries, sequences, query_side=query_side)
    return [
        [(rows[int(i)][0], float(score)) for i, score in zip(*best, strict=True)][:k]
        for rows, best in zip(found, ranked, strict=True)
    ]


def _literal(vector: torch.Tensor) -> str:
    return "[" + ",".join(f"{value:.6g}" for value in vector.tolist()) + "]"


def _steps(data: bytes, features: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float16).reshape(-1, features).copy())
