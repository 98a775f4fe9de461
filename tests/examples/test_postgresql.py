"""The example for PostgreSQL finds what the similarity ranks first, in a server of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from clipseq import Encoded, get_similarity, pad

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "postgresql.py"
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture
def connection():
    """A connection to a new server, which is stopped afterwards."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    if not SERVERS:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    programs = SERVERS[-1].parent
    version = programs.parent.name
    if not Path(f"/usr/share/postgresql/{version}/extension/vector.control").exists():
        pytest.skip(f"pgvector is not installed (Debian: postgresql-{version}-pgvector)")
    # The path of a socket must be short, and the server refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        user = ["runuser", "-u", "postgres", "--"]

    def run(program, *arguments):
        command = [*user, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    try:
        run("initdb", "-A", "trust", "-U", "clipseq", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            with psycopg.connect(host=str(folder), user="clipseq", dbname="postgres") as opened:
                yield opened
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the tests were copied without the docs")
def test_a_search_in_postgresql_is_one_by_the_similarity(connection):
    spec = importlib.util.spec_from_file_location("postgresql", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    sys.modules["postgresql"] = example
    spec.loader.exec_module(example)

    def encoded(count):
        steps = [torch.randn(int(n), 8) for n in torch.randint(1, 9, (count,))]
        pooled = torch.stack([s.mean(0) for s in steps])
        return Encoded.from_sequences(pooled, pad(steps)).to(dtype=torch.float16)

    items, queries = encoded(50), encoded(4)
    similarity = get_similarity("temporal")
    example.create(connection, features=8)
    example.add(connection, items)
    found = example.search(connection, similarity, queries, k=5, candidates=50)
    x, y = queries.sequences(), items.sequences()
    scores = similarity(x.values, y.values, x.mask, y.mask)
    for best, row in zip(found, scores, strict=True):
        order = row.argsort(descending=True)[:5]
        assert [name for name, _ in best] == [items.ids[int(i)] for i in order]
        assert [score for _, score in best] == pytest.approx(row[order].tolist(), abs=1e-5)
    # Fewer candidates are the nearest by their pooled features.
    few = example.search(connection, similarity, queries, k=5, candidates=5)
    cosines = torch.cosine_similarity(queries.pooled[:, None].float(), items.pooled.float(), dim=2)
    for best, row in zip(few, cosines, strict=True):
        assert {name for name, _ in best} == {items.ids[int(i)] for i in row.topk(5).indices}
