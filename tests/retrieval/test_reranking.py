"""`rerank` sorts candidates by the similarity's own scores of one pair at a time."""

import pytest
import torch

from clipseq import Encoded, Sequences, available_similarities, get_similarity, pad, rerank
from clipseq.retrieval import Ragged


def sequences(count, features=6):
    lengths = torch.randint(1, 12, (count,)).tolist()
    return [torch.randn(length, features) for length in lengths]


def expected(similarity, query, candidates, side):
    found = []
    for candidate in candidates:
        x, y = (query, candidate) if side == "x" else (candidate, query)
        found.append(similarity(x[None], y[None])[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("name", sorted(available_similarities()))
def test_every_candidate_gets_the_score_of_its_pair(name, side):
    options = {"local": {"window": (2, 3)}, "attention": {"num_heads": 2}}.get(name, {})
    if name == "combined":
        options = {"parts": {"local": {"window": (2, 3)}, "global": {}, "temporal": {}}}
    similarity = get_similarity(name, **options)
    queries = sequences(5)
    candidates = [sequences(count) for count in (4, 1, 0, 7, 3)]
    similarity.tile_elements = 300  # several tiles
    for query, some, ranked in zip(
        queries,
        candidates,
        rerank(similarity, queries, candidates, query_side=side),
        strict=True,
    ):
        assert len(ranked.places) == len(some)
        if some:
            scores = expected(similarity, query, some, side)
            torch.testing.assert_close(ranked.scores, scores[ranked.places], rtol=0, atol=2e-6)
            assert ranked.scores.tolist() == sorted(ranked.scores.tolist(), reverse=True)
            assert sorted(ranked.places.tolist()) == list(range(len(some)))
            assert not ranked.scores.requires_grad


def test_equal_candidates_stay_in_their_order_and_empty_ones_come_last():
    twin = torch.randn(4, 6)
    candidates = [torch.zeros(0, 6), twin, -twin, twin.clone()]
    (ranked,) = rerank(get_similarity("temporal"), [twin], [candidates])
    assert ranked.places.tolist() == [1, 3, 2, 0]
    assert ranked.scores[3] == -1


def test_every_form_of_sequences_gives_the_same():
    similarity = get_similarity("local", window=2)
    queries, candidates = sequences(2), sequences(3)
    lists = rerank(similarity, queries, [candidates] * 2)
    batch = pad(candidates)
    encoded = Encoded.from_sequences(torch.zeros(3, 6), batch)
    values, mask = torch.nn.functional.pad(batch.values, (0, 0, 1, 0)), batch.mask
    gaps = Sequences(values, torch.nn.functional.pad(mask, (1, 0)))  # padding comes first
    wide = Encoded(
        torch.zeros(2, 6),
        Ragged.from_lengths(torch.cat(queries).double(), torch.tensor([len(q) for q in queries])),
    )
    for first, second in (
        (pad(queries), batch),
        (pad(queries), encoded),
        (queries, gaps),
        (wide.to(dtype=torch.float32), candidates),
    ):
        for one, two in zip(rerank(similarity, first, [second] * 2), lists, strict=True):
            assert torch.equal(one.places, two.places)
            torch.testing.assert_close(one.scores, two.scores)
    # Half precision is rounded, and then computed in float32.
    half = rerank(similarity, [q.half() for q in queries], [candidates] * 2)
    torch.testing.assert_close(half[0].scores, lists[0].scores, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("queries", "candidates", "options", "kind", "message"),
    [
        ([torch.zeros(2, 3)], [], {}, ValueError, "one list for each of the 1 queries, got 0"),
        (
            [torch.zeros(2, 3)],
            [[torch.zeros(2, 4)]],
            {},
            ValueError,
            r"candidates\[0\] must have D=3 features, as the queries have, got D=4",
        ),
        ([torch.zeros(2)], [[]], {}, ValueError, r"queries\[0\] must be floating point \(T, D\)"),
        (torch.zeros(2, 3, 4), [], {}, TypeError, "queries must be Encoded, Sequences, or a list"),
        (Encoded(torch.zeros(1, 3)), [[]], {}, ValueError, "queries must have sequences"),
        ([torch.zeros(2, 3)], [[]], {"query_side": "z"}, ValueError, "must be 'x' or 'y', got"),
    ],
)
def test_what_cannot_be_ranked(queries, candidates, options, kind, message, unchecked_signatures):
    with pytest.raises(kind, match=message):
        rerank(get_similarity("global"), queries, candidates, **options)
