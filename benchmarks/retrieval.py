"""Measure a search: recall, hits, milliseconds and memory of `clipseq.Index`.

    python -m benchmarks.retrieval                    20,000 sequences, then 1,000,000
    python -m benchmarks.retrieval --small            2,000 sequences, in seconds
    python -m benchmarks.retrieval --out FILE         where the figures go; those in it are kept

The sequences have 8 to 20 steps of D = 128, and share a random topic; a query is a sequence of the
corpus with noise, and should find that sequence. Time is processor time of one thread, divided by
the number of queries. Memory is the largest that a fresh process holds while it searches. Every
figure is written to FILE as soon as it is measured, so that an interrupted run continues.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from clipseq import CLIP, Encoded, Index, get_similarity
from clipseq.retrieval import Ragged

FEATURES, QUERIES, CANDIDATES = 128, 100, 100
AT_ONCE = 10_000
SIMILARITIES = ("global", "local", "attention", "temporal", "combined")


def make_model(similarity: str) -> CLIP:
    """Return a model whose towers are not used: only its similarity is."""
    torch.manual_seed(0)
    return CLIP(
        {"views": {"any": 2}},
        transformer_width=FEATURES,
        transformer_layers=1,
        transformer_heads=2,
        sequence_similarity_type=similarity,
    ).eval()


def make_items(first: int, count: int) -> Encoded:
    """Return sequences `first` to `first + count` of the corpus, whatever is made beside them."""
    generator = torch.Generator().manual_seed(first)
    lengths = torch.randint(8, 21, (count,), generator=generator)
    owner = torch.repeat_interleave(torch.arange(count), lengths)
    steps = torch.randn(len(owner), FEATURES, generator=generator)
    steps += 0.5 * torch.randn(count, FEATURES, generator=generator)[owner]
    pooled = torch.zeros(count, FEATURES).index_add_(0, owner, steps) / lengths[:, None]
    ids = [str(i) for i in range(first, first + count)]
    return Encoded(pooled, Ragged.from_lengths(steps, lengths), ids, "text")


def make_queries(items: int) -> tuple[Encoded, list[str]]:
    """Return noisy copies of sequences from the first part of the corpus, and their ids."""
    corpus = make_items(0, min(items, AT_ONCE))
    generator = torch.Generator().manual_seed(-1 % 2**32)
    places = torch.randperm(len(corpus), generator=generator)[:QUERIES]
    some = corpus[places]
    assert some.steps is not None
    noise = torch.randn(some.steps.values.shape, generator=generator)
    steps = Ragged(some.steps.values + 1.5 * noise, some.steps.offsets)
    owner = torch.repeat_interleave(torch.arange(len(some)), some.lengths)
    pooled = torch.zeros_like(some.pooled).index_add_(0, owner, steps.values)
    return Encoded(pooled / some.lengths[:, None], steps, side="radar"), list(some.ids)


def build(folder: Path, items: int, model: CLIP) -> dict[str, float]:
    """Make the index, a part at a time, and return how long that took."""
    began = time.process_time()
    index = Index.create(folder, model)
    for first in range(0, items, AT_ONCE):
        index.add(make_items(first, min(AT_ONCE, items - first)))
    added = time.process_time()
    index.optimize()
    return {"add_s": added - began, "optimize_s": time.process_time() - added}


def search(folder: Path, items: int, similarity: str) -> dict[str, float]:
    """Search in this process, whose memory is measured."""
    torch.set_num_threads(1)
    model = make_model("global")
    # The index belongs to the towers; only the similarity differs.
    assert model.sequence_loss_fn is not None
    model.sequence_loss_fn.similarity_fn = get_similarity(similarity)
    queries, own = make_queries(items)
    index = Index.open(folder, model)
    index.search(queries[:2], k=1, candidates=CANDIDATES)  # the first search opens files
    began = time.process_time()
    nearest = index._table.nearest(queries.pooled, CANDIDATES, where=None, probes=None)
    first = time.process_time() - began
    began = time.process_time()
    hits = index.search(queries, k=10, candidates=CANDIDATES)
    whole = time.process_time() - began
    found = [
        own[i] in {nearest.ids[row] for row in nearest.row[nearest.query == i].tolist()}
        for i in range(len(own))
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "first_stage_recall": sum(found) / len(own),
        "R@1": sum(ids[0] == name for ids, name in zip(hits.ids, own, strict=True)) / len(own),
        "first_stage_ms": 1e3 * first / len(own),
        "search_ms": 1e3 * whole / len(own),
        "memory_mib": peak / 2**20,
    }


def measure(out: Path, sizes: dict[int, tuple[str, ...]]) -> dict[str, Any]:
    """Measure what `out` does not have yet, and return all figures."""
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    def note(key: str, values: dict[str, float]) -> None:
        figures[key] = {name: round(value, 3) for name, value in values.items()}
        out.write_text(json.dumps(figures, indent=2) + "\n")
        print(key, figures[key], flush=True)

    for items, similarities in sizes.items():
        missing = [name for name in similarities if f"{items} {name}" not in figures]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "index"
            note(f"{items} build", build(folder, items, make_model("global")))
            for name in missing:
                command = [sys.executable, "-m", "benchmarks.retrieval", "--search"]
                command += [str(folder), str(items), name]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                note(f"{items} {name}", json.loads(done.stdout))
    return figures


def main() -> None:
    """Measure, or search in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="2,000 sequences only")
    parser.add_argument("--out", type=Path, default=Path("retrieval.json"), help="file of figures")
    parser.add_argument("--sizes", help="numbers of sequences, such as 20000,1000000")
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.search:
        folder, items, similarity = given.search
        print(json.dumps(search(Path(folder), int(items), similarity)))
        return
    sizes = {20_000: SIMILARITIES, 1_000_000: ("temporal",)}
    if given.small:
        sizes = {2_000: ("temporal",)}
    if given.sizes:
        sizes = {int(size): sizes.get(int(size), ("temporal",)) for size in given.sizes.split(",")}
    measure(given.out, sizes)


if __name__ == "__main__":
    main()
