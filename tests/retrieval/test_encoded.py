"""`Encoded` keeps ragged items, selects among them, and saves them in a file that is mapped."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from clipseq import CLIP, DataError, Encoded, pad
from clipseq.retrieval import Ids, Ragged


def make(lengths, features=3, ids=()):
    sequences = [torch.randn(length, features) for length in lengths]
    pooled = torch.randn(len(lengths), features)
    encoded = Encoded.from_sequences(pooled, pad(sequences), ids=ids, side="text", model="m")
    return encoded, pooled, sequences


def assert_holds(encoded, pooled, sequences, ids):
    assert torch.equal(encoded.pooled, pooled)
    assert encoded.lengths.tolist() == [len(s) for s in sequences]
    assert list(encoded.ids) == ids
    padded = encoded.sequences()
    for row, mask, steps in zip(*padded, sequences, strict=True):
        assert torch.equal(row[mask], steps)
        assert not row[~mask].any()
        assert mask.tolist() == [True] * len(steps) + [False] * (len(mask) - len(steps))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_any_selection_is_that_of_a_list(lengths, data):
    names = [f"é{i}" * (i % 3) for i in range(len(lengths))]
    encoded, pooled, sequences = make(lengths, ids=names)
    places = range(len(lengths))
    index = data.draw(
        st.one_of(
            st.slices(len(lengths)).filter(lambda s: len(places[s])),
            st.lists(st.sampled_from([*places, *(-1 - p for p in places)]), min_size=1),
            st.lists(st.booleans(), min_size=len(places), max_size=len(places)).filter(any),
        )
    )
    if isinstance(index, slice):
        kept = list(places[index])
    elif isinstance(index[0], bool):
        kept = [p for p in places if index[p]]
    else:
        kept = [places[p] for p in index]
    expected = pooled[kept], [sequences[p] for p in kept], [names[p] for p in kept]
    assert_holds(encoded[index], *expected)
    if isinstance(index, list):
        assert_holds(encoded[torch.tensor(index)], *expected)
    longest = max(1, *(lengths[p] for p in kept), 0)
    assert encoded.sequences(index).values.shape == (len(kept), longest, 3)


def test_one_item_batches_and_iteration():
    encoded, pooled, sequences = make([2, 0, 4])
    assert_holds(encoded[-1], pooled[2:], sequences[2:], ["2"])
    assert [len(batch) for batch in encoded.batches(2)] == [2, 1]
    assert [item.ids[0] for item in encoded] == ["0", "1", "2"]
    assert repr(encoded) == "Encoded(text, 3 items, D=3, 6 steps, float32)"
    for wrong in (3, -4, [3], [0.5], [True]):
        with pytest.raises(IndexError):
            encoded[wrong]
    with pytest.raises(ValueError, match="size must be at least 1"):
        encoded.batches(0)


def test_a_slice_shares_memory_and_another_type_does_not():
    encoded, _, _ = make([2, 3, 4])
    assert encoded[1:].steps.values.data_ptr() == encoded.steps.values[2:].data_ptr()
    half = encoded.to(dtype=torch.bfloat16)
    assert half.pooled.dtype == half.steps.values.dtype == torch.bfloat16
    assert half.to("meta").pooled.device.type == "meta"
    assert (half.side, half.model, half.ids) == ("text", "m", ["0", "1", "2"])


@pytest.mark.parametrize("with_steps", [True, False])
def test_save_and_load(tmp_path, with_steps):
    encoded, pooled, sequences = make([2, 0, 4], ids=["a/b", "", "ü"])
    if not with_steps:
        encoded = Encoded(pooled, ids=["a/b", "", "ü"], side="text", model="m")
    path = tmp_path / "new" / "file"
    encoded.save(path)
    loaded = Encoded.load(path)
    assert (loaded.side, loaded.model, list(loaded.ids)) == ("text", "m", ["a/b", "", "ü"])
    assert torch.equal(loaded.pooled, pooled)
    if with_steps:
        assert_holds(loaded, pooled, sequences, ["a/b", "", "ü"])
    else:
        assert loaded.steps is None
    loaded.pooled.zero_()  # a private copy
    assert torch.equal(Encoded.load(path).pooled, pooled)
    Encoded.load(path)[1:].save(path)  # a file may be replaced by a part of itself
    assert list(Encoded.load(path).ids) == ["", "ü"]
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


MEASURE = """
import sys
from clipseq.retrieval import Encoded
def private():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssFile"))
Encoded.load(sys.argv[2])
before = private()
encoded = Encoded.load(sys.argv[1])
some = encoded.sequences([5, 10**4]).values.sum() + encoded[7:9].pooled.sum()
print(private() - before, encoded.ids[10**4], len(encoded))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_loading_reads_only_what_is_used(tmp_path):
    count, steps = 20_000, 20
    values = torch.zeros(count * steps, 64, dtype=torch.float16)
    ragged = Ragged.from_lengths(values, torch.full((count,), steps))
    Encoded(torch.zeros(count, 64), ragged).save(tmp_path / "big")
    make([1])[0].save(tmp_path / "small")
    assert (tmp_path / "big").stat().st_size > 50 * 2**20
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "big"), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, name, size = done.stdout.split()
    assert (name, size) == ("10000", "20000")
    assert int(grown) < 8 * 1024  # KiB


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(DataError, match=r"path must be a file of encoded items, got .*not exist"):
        Encoded.load(path)
    path.mkdir()
    with pytest.raises(DataError, match=r"file cannot be read: Is a directory"):
        Encoded.load(path)
    path.rmdir()
    for content in (b"", b"pickle" * 20):
        path.write_bytes(content)
        with pytest.raises(DataError, match="which is corrupt or no safetensors file"):
            Encoded.load(path)
    make([2, 3])[0].save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="which is corrupt or no safetensors file"):
        Encoded.load(path)
    save_file({"pooled": torch.zeros(2, 3)}, path)
    with pytest.raises(DataError, match="a safetensors file of something else"):
        Encoded.load(path)
    named = {"format": "clipseq.encoded", "version": "2"}
    save_file({"pooled": torch.zeros(2, 3)}, path, metadata=named)
    with pytest.raises(DataError, match="must be of version 1 of its format, got version 2"):
        Encoded.load(path)
    save_file({"pooled": torch.zeros(2, 3)}, path, metadata=named | {"version": "1"})
    with pytest.raises(DataError, match="is not complete: 'ids'"):
        Encoded.load(path)
    ids = Ids.of(["a", "b"]).text
    for offsets in ([0, 2, 1], [0, 1, 3], [1, 1, 2], []):
        tensors = {"pooled": torch.zeros(2, 3), "ids": ids.values}
        tensors["ids_offsets"] = torch.tensor(offsets, dtype=torch.int64)
        save_file(tensors, path, metadata=named | {"version": "1"})
        with pytest.raises(DataError, match="the offsets of ids do not fit its 2 rows"):
            Encoded.load(path)


def test_parts_that_do_not_fit_are_refused():
    pooled = torch.zeros(2, 3)
    ragged = Ragged.from_lengths(torch.zeros(4, 3), torch.tensor([1, 3]))
    with pytest.raises(ValueError, match="one sequence for each of the 1 pooled features, got 2"):
        Encoded(pooled[:1], ragged)
    with pytest.raises(ValueError, match=r"steps must be \(S, 2\)"):
        Encoded(pooled[:, :2], ragged)
    with pytest.raises(ValueError, match="ids must name each of the 2 items, got 1"):
        Encoded(pooled, ragged, ["a"])
    with pytest.raises(ValueError, match=r"pooled must be floating point \(N, D\)"):
        Encoded(torch.zeros(2, 3, dtype=torch.int64))


def test_ids_are_a_sequence_of_strings():
    ids = Ids.of(["a", "", "ßc"])
    assert ids == ["a", "", "ßc"]
    assert ids != ["a", "", "c"]
    assert ids != "abc"
    assert ids[-1] == "ßc"
    assert ids[1:] == ["", "ßc"]
    assert "ßc" in ids
    assert repr(ids) == "Ids(['a', '', 'ßc'], 3 in all)"
    assert Ids.of([]) == []
    with pytest.raises(IndexError):
        ids[3]


def test_the_fingerprint_is_that_of_the_towers(model, captions, tmp_path):
    first = model.encode("text", captions, progress=False).model
    assert len(first) == 32
    assert model.encode("text", captions[:1], progress=False).model == first
    model.save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path)
    assert loaded.encode("text", captions, progress=False).model == first
    with torch.no_grad():  # the similarity and the losses do not change encodings
        for loss in (loaded.clip_loss_fn, loaded.sequence_loss_fn):
            for parameter in loss.parameters():
                parameter += 1
    assert loaded.encode("text", captions, progress=False).model == first
    loaded.y_encoder.eot.data[0] += 1e-3
    changed = loaded.encode("text", captions, progress=False).model
    assert changed != first
    loaded.double()
    assert loaded.encode("text", captions, progress=False).model not in (first, changed)
