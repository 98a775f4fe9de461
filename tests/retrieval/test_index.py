"""An index finds what the model itself ranks first, keeps it, and refuses what is not its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from clipseq import CLIP, DataError, Encoded, Index, pad
from clipseq.retrieval import table

pytest.importorskip("lancedb", reason="the extra search is not installed")

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}


def encoded(count, model, side="text", seed=0, **options):
    """Make random items of any lengths, as if `model` had encoded them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    steps = [torch.randn(length, 8, generator=generator) for length in lengths]
    pooled = torch.stack([s.mean(0) for s in steps])
    fingerprint = model.encode("text", ["x"], progress=False).model
    half = Encoded.from_sequences(pooled, pad(steps), side=side, model=fingerprint, **options)
    return half.to(dtype=torch.float16)


@pytest.fixture(scope="module")
def corpus(model):
    return encoded(40, model, ids=[f"item {i}" for i in range(40)])


@pytest.fixture(scope="module")
def queries(model):
    return encoded(6, model, side="radar", seed=1)


@pytest.fixture
def index(tmp_path, model, corpus):
    made = Index.create(tmp_path / "an index", model)
    rows = [{"n": i, "kind": "it's" if i % 2 else "even"} for i in range(len(corpus))]
    made.add(corpus, metadata=rows)
    return made


def by_hand(model, queries, corpus, k, candidates, allowed=None):
    """Search without an index, in float64 and one query at a time."""
    similarity = model.sequence_loss_fn.similarity_fn
    places = torch.arange(len(corpus)) if allowed is None else torch.tensor(allowed)
    ids, scores = [], []
    for query in queries:
        cosines = torch.cosine_similarity(
            query.pooled.double(), corpus.pooled[places].double(), dim=1
        )
        near = places[cosines.argsort(descending=True)[:candidates]]
        x, y = query.sequences(), corpus.sequences(near)
        own = similarity(x.values, y.values, x.mask, y.mask)[0]
        order = own.argsort(descending=True)[:k]
        ids.append([corpus.ids[int(near[i])] for i in order])
        scores.append(own[order])
    return ids, torch.stack(scores)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("candidates", [5, 100])
def test_hits_are_those_of_a_search_by_hand(index, model, corpus, queries, optimized, candidates):
    if optimized:
        index.optimize()
    hits = index.search(queries, k=4, candidates=candidates)
    ids, scores = by_hand(model, queries, corpus, 4, candidates)
    assert hits.ids == ids
    torch.testing.assert_close(hits.scores, scores.detach(), rtol=0, atol=1e-5)
    n = int(hits.ids[2][1].removeprefix("item "))
    assert hits.metadata[2][1] == {"n": n, "kind": "it's" if n % 2 else "even"}
    one = index.search(queries[2], k=4, candidates=candidates)
    assert one.ids == ids[2:3]


def test_the_first_side_can_be_searched_too(tmp_path, model, corpus, queries):
    index = Index.create(tmp_path / "radar", model)
    index.add(queries, ids=[f"q{i}" for i in range(len(queries))])
    hits = index.search(corpus[:3], k=2)
    similarity = model.sequence_loss_fn.similarity_fn
    x, y = queries.sequences(), corpus[:3].sequences()
    scores = similarity(x.values, y.values, x.mask, y.mask).T
    assert hits.ids == [[f"q{i}" for i in row.argsort(descending=True)[:2]] for row in scores]


def test_many_queries_find_what_each_finds_alone(index, model):
    """The queries of a search take turns, so that its memory does not grow with their number."""
    many = encoded(21, model, side="radar", seed=3)
    together = index.search(many, k=2, candidates=5)
    for i in range(len(many)):
        alone = index.search(many[i : i + 1], k=2, candidates=5)
        assert alone.ids[0] == together.ids[i]
        torch.testing.assert_close(alone.scores[0], together.scores[i])


def test_where_limits_the_search(index, model, corpus, queries):
    even = [i for i in range(10, 40) if i % 2 == 0]
    ids, scores = by_hand(model, queries, corpus, 3, 100, even)
    hits = index.search(queries, k=3, where="kind = 'even' AND n >= 10")
    assert hits.ids == ids
    torch.testing.assert_close(hits.scores, scores.detach(), rtol=0, atol=1e-5)
    assert index.search(queries, where="id = 'item 7'").ids == [["item 7"]] * 6
    nothing = index.search(queries, where="n > 99")
    assert nothing.ids == [[]] * 6
    assert nothing.scores.shape == (6, 0)
    with pytest.raises(ValueError, match="where must be a condition in SQL on id, n, kind, got"):
        index.search(queries, where="no_such = 3")


def test_items_are_replaced_deleted_and_found_again(index, model, corpus, queries, tmp_path):
    assert len(index) == 40
    assert index.delete(["item 3", "nothing", "it's"]) == 1
    assert len(index) == 39
    other = encoded(2, model, seed=5)
    index.add(other, ids=["item 5", "it's"], metadata=[{"more": 1.5}, {"kind": "new"}])
    assert len(index) == 40
    again = Index.open(tmp_path / "an index", model)
    assert len(again) == 40
    x, y = queries.sequences(), other.sequences()
    scores = model.sequence_loss_fn.similarity_fn(x.values, y.values, x.mask, y.mask)
    hits = again.search(queries, k=2, where="id IN ('item 5', 'it''s')")
    torch.testing.assert_close(
        hits.scores, scores.detach().sort(descending=True).values, rtol=0, atol=1e-5
    )
    metadata = {tuple(m.items()) for row in hits.metadata for m in row}
    assert metadata == {(("more", 1.5),), (("kind", "new"),)}
    assert again.delete(["it's"]) == 1


def test_an_open_index_sees_what_another_writes(index, model, corpus, queries, tmp_path):
    reader = Index.open(tmp_path / "an index", model)
    index.delete(list(corpus.ids))
    assert len(reader) == 0
    assert reader.search(queries).ids == [[]] * 6
    index.add(corpus[:1])
    assert reader.search(queries).ids == [["item 0"]] * 6


def test_plain_clip_has_no_second_stage(tmp_path):
    plain = CLIP({"views": {"m": 2}}, use_sequence_similarity=False, **SIZE)
    captions = ["walks", "sits", "waves"]
    text = plain.encode("text", captions, progress=False)
    index = Index.create(tmp_path / "plain", plain)
    index.add(text)
    hits = index.search(text, k=1, candidates=2)
    assert hits.ids == [["0"], ["1"], ["2"]]
    torch.testing.assert_close(hits.scores, torch.ones(3, 1), rtol=0, atol=1e-3)


def test_another_model_is_refused_by_name(index, model, corpus, queries, tmp_path):
    path = tmp_path / "an index"
    torch.manual_seed(7)
    other = CLIP(
        {"views": {"range_time": 4, "doppler_time": 3}, "patch_frames": 4},
        context_length=64,
        **SIZE,
    )
    with pytest.raises(DataError, match=r"the fingerprint [0-9a-f]{32}, got one with [0-9a-f]"):
        Index.open(path, other)
    wide = CLIP({"views": {"m": 2}}, **SIZE | {"transformer_width": 16})
    with pytest.raises(DataError, match="with the features 8, got one with 16"):
        Index.open(path, wide)
    named = CLIP({"views": {"m": 2}, "name": "audio"}, **SIZE)
    with pytest.raises(DataError, match="with the sides radar, text, got one with audio, text"):
        Index.open(path, named)
    foreign = other.encode("text", ["x"], progress=False)
    for use in (index.add, index.search):
        with pytest.raises(ValueError, match="must be encoded by the model of the index, with"):
            use(foreign)
    with pytest.raises(ValueError, match="must have D=8 features, as the index has, got D=4"):
        index.search(Encoded(torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="queries must have sequences, as the items of the index"):
        index.search(Encoded(torch.zeros(1, 8)))
    with pytest.raises(ValueError, match="encoded must be of one side of the model, text, got 'ra"):
        index.add(queries)
    assert len(index) == 40


def test_other_folders_are_refused(index, model, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="path must be a new folder for the index, got .*not empty"):
        Index.create(tmp_path / "an index", model)
    with pytest.raises(DataError, match="path must be an index, got .*none, which does not exist"):
        Index.open(tmp_path / "none", model)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="that Index.create made, got .*folder, which cannot be"):
        Index.open(tmp_path / "folder", model)
    import lancedb

    lancedb.connect(tmp_path / "foreign").create_table("items", [{"a": 1}])
    with pytest.raises(DataError, match="got .*foreign, a table of something else"):
        Index.open(tmp_path / "foreign", model)
    monkeypatch.setattr(table, "VERSION", 2)
    with pytest.raises(DataError, match="must be of version 2 of the format, got version 1"):
        Index.open(tmp_path / "an index", model)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"ids": ["a"]}, ValueError, "ids must name each of the 2 items, got 1"),
        ({"ids": ["a", "a"]}, ValueError, "ids must be distinct, got 'a' twice"),
        ({"ids": ["a", 3]}, TypeError, r"ids\[1\] must be a string, got int"),
        ({"metadata": [{}]}, ValueError, "metadata must hold one dictionary for each of the 2"),
        ({"metadata": [{"a b": 1}, {}]}, ValueError, "names of metadata must be letters, .* 'a b'"),
        ({"metadata": [{"side": 1}, {}]}, ValueError, "must not be id, side, .* got 'side'"),
        ({"metadata": [{"q": 1}, {"q": "x"}]}, TypeError, "'q' must have values of one type"),
        ({"metadata": [{"q": [1]}, {}]}, TypeError, "'q' must be strings, numbers or booleans"),
        ({"metadata": [{"n": "x"}, {}]}, TypeError, "'n' must be int64, as in the index, got str"),
    ],
)
def test_what_cannot_be_added(index, corpus, options, kind, message, unchecked_signatures):
    with pytest.raises(kind, match=message):
        index.add(corpus[:2], **options)
    assert len(index) == 40


def test_wrong_numbers_and_empty_lists(index, corpus, queries, unchecked_signatures):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(queries, k=0)
    with pytest.raises(TypeError, match="ids must be a list of ids, got one string"):
        index.delete("item 3")
    assert index.delete([]) == 0
    index.add(corpus[:0])
    assert index.search(queries[:0], k=3).ids == []


WRITER = """
import sys, torch
from clipseq import CLIP, Encoded, Index
from clipseq.retrieval import Ragged
model = CLIP.from_pretrained(sys.argv[2])
index = Index.open(sys.argv[1], model)
for number in range(10**6):
    count = 200
    steps = Ragged.from_lengths(torch.randn(8 * count, 8), torch.full((count,), 8))
    ids = [f"{number} {i}" for i in range(count)]
    index.add(Encoded(torch.randn(count, 8), steps, ids, "text"))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_was_added(model, queries, tmp_path):
    model.save_pretrained(tmp_path / "model")
    index = Index.create(tmp_path / "index", model)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "index"), str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        for line in writer.stdout:
            # A reader sees whole additions only.
            assert len(index) % 200 == 0
            if int(line) == 2:
                break
        time.sleep(0.05)  # amid another addition, most likely
        os.kill(writer.pid, signal.SIGKILL)
        added = 3 + len(writer.stdout.read().split())
    again = Index.open(tmp_path / "index", model)
    whole, rest = divmod(len(again), 200)
    assert rest == 0
    assert added <= whole <= added + 1
    hits = again.search(queries, k=5, where="id LIKE '2 %'")
    assert all(name.startswith("2 ") for row in hits.ids for name in row)
    again.add(encoded(3, model))  # writing goes on
    assert len(again) == 200 * whole + 3


def test_without_lancedb_the_error_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(
        ImportError, match=r"an index needs LanceDB: pip install 'clipseq\[search\]'"
    ):
        Index.create(tmp_path / "index", model)
