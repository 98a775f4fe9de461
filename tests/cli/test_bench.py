"""A benchmark reports the time and memory of a similarity whose cost is known."""

import json
import sys
import time

import pytest
import torch

from clipseq import Similarity, UnknownSimilarityError, register_similarity
from clipseq import __main__ as entry
from clipseq.cli.bench import bench


class Hungry(Similarity):
    """A similarity that takes 50 ms and 64 MiB more than it needs, at each scoring."""

    def score_all(self, x, y, steps):
        time.sleep(0.05)
        torch.ones(16 * 2**20)
        return self.score(x, y)

    def score(self, x, y):
        return x.values.sum((1, 2))[:, None] * y.values.sum((1, 2)) * 0

    def align(self, x, y):
        return x.values.new_zeros(len(x.values), x.mask.shape[1], y.mask.shape[1])


SIZES = {"batch": 3, "steps": 5, "others": 4, "features": 8, "repeats": 2}


def test_it_measures_time_and_memory(fresh_registry):
    register_similarity("hungry", Hungry)
    # An earlier peak must not hide this one, nor may freed heap memory be reused unnoticed.
    del_me = torch.ones(64 * 2**20)
    del del_me
    torch.ones(7 * 2**20)  # from now on glibc takes blocks below 28 MiB from the heap
    blocks = [torch.ones(2**18) for _ in range(100)]
    kept = [blocks.pop(), torch.ones(2**17)]
    del blocks
    found = bench("hungry", **SIZES)
    assert 0.05 <= found.seconds < 1
    assert 0 < found.floor_seconds < 0.05
    assert found.times_floor == found.seconds / found.floor_seconds
    if found.added_bytes is not None:
        assert 60 * 2**20 <= found.added_bytes < 100 * 2**20
    del kept


def test_the_floor_is_three_products(monkeypatch):
    """The floor runs in blocks of rows, with as many operations as three whole products."""
    from clipseq.cli import bench as module

    monkeypatch.setattr(module, "_FLOOR_CELLS", 50)
    x, y = torch.randn(21, 6), torch.randn(12, 6)
    products = []
    mm, addmm = torch.mm, torch.Tensor.addmm_
    monkeypatch.setattr(torch, "mm", lambda a, b, out: (products.append((a, b)), mm(a, b, out=out)))
    monkeypatch.setattr(
        torch.Tensor, "addmm_", lambda c, a, b: (products.append((a, b)), addmm(c, a, b))
    )
    module.matmul_floor(x, y)()
    operations = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in products)
    assert operations == 3 * 2 * 21 * 12 * 6


@pytest.mark.parametrize("name", ["local", "temporal", "combined"])
def test_it_measures_a_built_in(name):
    before = torch.get_num_threads()
    found = bench(name, **SIZES, threads=2)
    assert torch.get_num_threads() == before
    assert (found.similarity, found.threads, found.device) == (name, 2, "cpu")
    assert json.loads(json.dumps(found.to_json()))["times_floor"] == found.times_floor
    assert f"{name}: B=C=3 T=5 L=4 D=8, float32, cpu, 2 threads, medians of 2" in found.as_text()


@pytest.mark.parametrize(("dtype", "handed"), [("bfloat16", "float32"), ("float64", "float64")])
def test_sequences_and_floor_have_the_dtype(dtype, handed, fresh_registry, monkeypatch):
    from clipseq.cli import bench as module

    class Seen(Hungry):
        def prepare_x(self, x):
            seen.append(x.values.dtype)
            return super().prepare_x(x)

    register_similarity("seen", Seen)
    seen, plain = [], module.matmul_floor
    monkeypatch.setattr(
        module, "matmul_floor", lambda x, y: (seen.extend([x.dtype, y.dtype]), plain(x, y))[1]
    )
    assert bench("seen", **SIZES, dtype=dtype).dtype == dtype
    # A similarity receives float32 or better, whatever the caller passes.
    assert set(seen) == {getattr(torch, dtype), getattr(torch, handed)}


def test_bad_arguments_are_named():
    with pytest.raises(UnknownSimilarityError, match="did you mean 'local'"):
        bench("locl")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    for device in (absent, "warp", "meta"):
        with pytest.raises(ValueError, match=f"device must be .*, got '{device}' .*doctor"):
            bench("local", **SIZES, device=device)
    with pytest.raises(ValueError, match="dtype must be one of float32, .*, got 'int8'"):
        bench("local", **SIZES, dtype="int8")
    for option in (*SIZES, "threads"):
        with pytest.raises(ValueError, match=f"{option} must be positive, got 0"):
            bench("local", **{option: 0})


def test_it_is_a_command(monkeypatch, capsys):
    pytest.importorskip("typer")
    sizes = [f"--{name}={SIZES[name]}" for name in ("batch", "steps", "others", "features")]
    for more, wanted in (([], "times the floor"), (["--json"], '"times_floor": ')):
        monkeypatch.setattr(
            sys, "argv", ["clipseq", "bench", "local", *sizes, "--threads=1", *more]
        )
        with pytest.raises(SystemExit) as end:
            entry.main()
        assert end.value.code == 0
        assert wanted in capsys.readouterr().out
