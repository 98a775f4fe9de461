import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import ragged, real_steps

import clipseq
from clipseq_temporal import recursion, scores


def in_band(i, j, t, length, band):
    if band is None or t == 1 or length == 1:
        return True
    width = max(band, 1 / (2 * (min(t, length) - 1)))
    return abs(i / (t - 1) - j / (length - 1)) <= width + 1e-12


def paths(t, length, band=None):
    """Return every path from the first cell to the last, as [(i, j, weight), ...]."""

    def extend(path):
        i, j, _ = path[-1]
        if (i, j) == (t - 1, length - 1):
            yield path
        for di, dj, weight in ((1, 0, 1), (0, 1, 1), (1, 1, 2)):
            a, b = i + di, j + dj
            if a < t and b < length and in_band(a, b, t, length, band):
                yield from extend([*path, (a, b, weight)])

    yield from extend([(0, 0, 2)])


def by_enumeration(cost, gamma, band=None):
    """Return the score by the definition, a mean over all paths."""
    t, length = cost.shape
    costs = [
        sum(weight * float(cost[i, j]) for i, j, weight in path) for path in paths(t, length, band)
    ]
    best = min(costs)
    mean = sum(math.exp(-(c - best) / gamma) for c in costs) / len(costs)
    return 1 - (best - gamma * math.log(mean)) / (t + length)


def by_recursion(cost, gamma):
    """Return the score by the textbook recursion in log space, cell by cell."""

    def soft_dtw(cost):
        t, length = cost.shape
        total = [[math.inf] * (length + 1) for _ in range(t + 1)]
        for i in range(t):
            for j in range(length):
                c = float(cost[i, j])
                if i == j == 0:
                    total[1][1] = 2 * c
                    continue
                ways = (total[i][j + 1] + c, total[i + 1][j] + c, total[i][j] + 2 * c)
                best = min(ways)
                weights = sum(math.exp(-(way - best) / gamma) for way in ways)
                total[i + 1][j + 1] = best - gamma * math.log(weights)
        return total[t][length]

    t, length = cost.shape
    log_count = -soft_dtw(torch.zeros_like(cost)) / gamma
    return 1 - (soft_dtw(cost) + gamma * log_count) / (t + length)


def unit(steps):
    return steps / steps.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("band", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "length"), [*itertools.product(range(1, 6), repeat=2)])
def test_is_the_mean_over_all_paths(t, length, band):
    x = torch.randn(2, t, 3, dtype=torch.float64)
    y = torch.randn(2, length, 3, dtype=torch.float64)
    scores = clipseq.get_similarity("temporal", gamma=0.2, band=band)(x, y)
    for i, j in itertools.product(range(2), range(2)):
        expected = by_enumeration(1 - unit(x[i]) @ unit(y[j]).T, 0.2, band)
        assert scores[i, j].item() == pytest.approx(expected, abs=1e-10)


@given(
    gamma=st.sampled_from([0.01, 0.1, 1.0]),
    steps=st.tuples(st.integers(1, 14), st.integers(1, 9)),
    seed=st.integers(0, 2**16),
)
def test_reads_every_pair_at_its_own_lengths(gamma, steps, seed):
    x, x_mask = ragged(3, steps[0], 4, seed=seed)
    y, y_mask = ragged(4, steps[1], 4, seed=seed + 1)
    scores = clipseq.get_similarity("temporal", gamma=gamma)(x, y, x_mask, y_mask)
    for i, a in enumerate(real_steps(x, x_mask)):
        for j, b in enumerate(real_steps(y, y_mask)):
            expected = by_recursion(1 - unit(a) @ unit(b).T, gamma)
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-10)


def by_recursion_with_gradient(cost, gamma, band):
    """Return the score as `by_recursion` does, over the cells of a band, with its graph."""

    def soft_dtw(cost):
        t, length = cost.shape
        nowhere = cost.new_tensor(math.inf)
        total = {}
        for i in range(t):
            for j in range(length):
                if not in_band(i, j, t, length, band):
                    continue
                if i == j == 0:
                    total[i, j] = 2 * cost[i, j]
                    continue
                before = ((i - 1, j, 1), (i, j - 1, 1), (i - 1, j - 1, 2))
                ways = [total.get((a, b), nowhere) + w * cost[i, j] for a, b, w in before]
                ways = torch.stack([way for way in ways if way < math.inf])
                total[i, j] = -gamma * torch.logsumexp(-ways / gamma, 0)
        return total[t - 1, length - 1]

    with torch.no_grad():
        log_count = -soft_dtw(torch.zeros_like(cost)) / gamma
    return 1 - (soft_dtw(cost) + gamma * log_count) / sum(cost.shape)


@pytest.mark.parametrize(
    ("x_lengths", "y_lengths", "band", "gamma"),
    [
        # Here the edge of the band is an integer where a strip begins or ends.
        ((58, 6), (19, 11, 4), 0.1, 1.0),
        ((8, 7), (40, 21), 0.0, 1.0),
        ((11,), (44, 60, 7), 0.1, 0.1),
        ((60, 37, 1), (21, 20, 1), 0.05, 0.1),
        ((50, 31), (33, 2), 0.2, 0.02),
        # All lengths are equal, so all lanes have one band.
        ((60, 60), (19, 19), 0.05, 0.1),
        ((9, 9), (9, 9), 0.25, 0.02),
    ],
)
def test_strips_of_a_band_are_the_band(x_lengths, y_lengths, band, gamma):
    def batch(lengths):
        values = torch.randn(len(lengths), max(lengths), 4, dtype=torch.float64)
        return values, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    (x, x_mask), (y, y_mask) = batch(x_lengths), batch(y_lengths)
    similarity = clipseq.get_similarity("temporal", gamma=gamma, band=band)
    found = scores_and_gradients(similarity, x, y, x_mask, y_mask)

    def definition(x, y, *_):
        pairs = itertools.product(zip(x, x_lengths, strict=True), zip(y, y_lengths, strict=True))
        wanted = [
            by_recursion_with_gradient(1 - unit(a[:t]) @ unit(b[:length]).T, gamma, band)
            for (a, t), (b, length) in pairs
        ]
        return torch.stack(wanted).view(len(x), len(y))

    expected = scores_and_gradients(definition, x, y, x_mask, y_mask)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-9, rtol=0)


@given(
    cosine=st.floats(-1, 1),
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    gamma=st.sampled_from([0.02, 0.1, 2.0]),
    band=st.sampled_from([None, 0.0, 0.25]),
)
def test_a_constant_cost_gives_one_minus_it_at_any_lengths(cosine, lengths, gamma, band):
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(lengths), max(lengths), 2)
    step = torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
    y = step.expand(len(lengths), max(lengths), 2)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    similarity = clipseq.get_similarity("temporal", gamma=gamma, band=band)
    scores = similarity(x, y, mask, mask.flip(0))
    torch.testing.assert_close(scores, torch.full_like(scores, cosine), atol=1e-9, rtol=0)


def test_small_gamma_is_normalised_dtw():
    x, y = torch.randn(1, 8, 4, dtype=torch.float64), torch.randn(1, 6, 4, dtype=torch.float64)
    cost = 1 - unit(x[0]) @ unit(y[0]).T
    best = min(sum(weight * float(cost[i, j]) for i, j, weight in path) for path in paths(8, 6))
    score = clipseq.get_similarity("temporal", gamma=1e-6)(x, y)
    assert score.item() == pytest.approx(1 - best / 14, abs=1e-5)


def test_order_matters():
    x = torch.randn(1, 8, 16)
    similarity = clipseq.get_similarity("temporal")
    assert similarity(x, x).item() > similarity(x, x.flip(1)).item() + 0.2


@pytest.mark.parametrize("band", [None, 0.2])
def test_align_is_the_expected_path(band):
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    y = torch.randn(1, 4, 3, dtype=torch.float64)
    cost = 1 - unit(x[0]) @ unit(y[0]).T
    expected, total = torch.zeros(5, 4, dtype=torch.float64), 0.0
    for path in paths(5, 4, band):
        likelihood = math.exp(-sum(w * float(cost[i, j]) for i, j, w in path) / 0.1)
        total += likelihood
        for i, j, weight in path:
            expected[i, j] += weight * likelihood
    weights = clipseq.get_similarity("temporal", band=band).explain(x, y).weights[0]
    torch.testing.assert_close(weights, expected / total)


@pytest.mark.parametrize("band", [None, 0.0, 0.3])
def test_gradient_is_that_of_the_definition(band):
    x, x_mask = ragged(2, 6, 3, seed=5)
    y, y_mask = ragged(3, 4, 3, seed=6)
    similarity = clipseq.get_similarity("temporal", band=band)
    assert torch.autograd.gradcheck(
        lambda a, b: similarity(a, b, x_mask, y_mask),
        (x.requires_grad_(), y.requires_grad_()),
    )


def test_long_sequences_keep_float32_precision():
    x, y = torch.randn(2, 300, 8), torch.randn(2, 200, 8)
    similarity = clipseq.get_similarity("temporal", gamma=0.02)
    expected = similarity(x.double(), y.double())
    torch.testing.assert_close(similarity(x, y).double(), expected, atol=1e-5, rtol=0)


def scores_and_gradients(similarity, x, y, x_mask, y_mask):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    result = similarity(x, y, x_mask, y_mask)
    weights = torch.linspace(-1, 1, result.numel()).view_as(result).to(result.dtype)
    return result, *torch.autograd.grad((result * weights).sum(), (x, y))


@pytest.fixture
def cells_in_log_space(monkeypatch):
    """Count the cells whose log weights are computed, tile by tile."""
    counted = []
    weigh = recursion.Sweep.weigh

    def count(sweep):
        counted.append(sum(at.cells.numel() for at in sweep._views))
        weigh(sweep)

    monkeypatch.setattr(recursion.Sweep, "weigh", count)
    return counted


@pytest.mark.parametrize("band", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("shortest", [1.0, 0.6])
def test_cells_are_computed_in_proportion_to_the_band(band, shortest, cells_in_log_space):
    t, length = 248, 77
    x, y = torch.randn(4, t, 4), torch.randn(4, length, 4)
    x_lengths = torch.linspace(shortest * t, t, 4).long()
    y_lengths = torch.linspace(shortest * length, length, 4).long()
    x_mask = torch.arange(t) < x_lengths[:, None]
    y_mask = torch.arange(length) < y_lengths[:, None]
    similarity = clipseq.get_similarity("temporal", band=band)
    # Counting paths is not part of this, and its results are remembered.
    recursion.log_paths(x_lengths.repeat(4), y_lengths.repeat_interleave(4), band, torch.float32)
    cells_in_log_space.clear()
    scores_and_gradients(similarity, x, y, x_mask, y_mask)
    # Forward runs once, and again in backward.
    computed = sum(cells_in_log_space) / 2
    inside = 2 * band - band**2  # the share of a band of that width in all cells of a long pair
    # If lengths are equal, no other cells; otherwise the cells of every band in a tile.
    assert computed <= (1.05 if shortest == 1.0 else 1.35) * inside * 16 * t * length


def test_tiles_of_one_shape_may_differ_in_their_bands(monkeypatch):
    x, y = torch.randn(1, 30, 4), torch.randn(6, 24, 4)
    y_mask = torch.arange(24) < torch.tensor([24, 24, 24, 5, 24, 24])[:, None]
    similarity = clipseq.get_similarity("temporal", band=0.05)
    x_mask = torch.ones(1, 30, dtype=torch.bool)
    expected = scores_and_gradients(similarity, x, y, x_mask, y_mask)
    # Equal lengths, then different ones, then equal ones: every tile has two pairs of 30 by 24
    # steps.
    groups = [torch.tensor([0])], list(torch.arange(6).split(2))
    monkeypatch.setattr(scores, "_groups", lambda *_: groups)
    found = scores_and_gradients(similarity, x, y, x_mask, y_mask)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=0)


@given(
    x_lengths=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    y_lengths=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    band=st.sampled_from([None, 0.0, 0.05, 0.1, 0.3, 1.0]),
)
def test_products_are_made_of_the_cells_and_little_more(x_lengths, y_lengths, band):
    pairs = torch.cartesian_prod(torch.tensor(x_lengths), torch.tensor(y_lengths))
    t, length = pairs.view(-1, 2).unbind(1)
    for strip in recursion.strips(t, length, band):
        reach = None
        if band is not None:
            reach = recursion.reach_of(*recursion.edges(strip, t, length, band, torch.float64))
        rows, columns = strip.shape
        made = torch.zeros(rows, columns, dtype=torch.int64)
        for some, others in recursion.blocks(strip.shape, reach):
            made[some, others] += 1
        assert made.max() == 1  # no cell is made twice
        needed = torch.zeros_like(made)
        for corner, count in recursion.diagonals(rows, columns, reach):
            for k in range(count):
                needed[divmod(corner + k * columns, columns + 1)] = 1
        assert not (needed > made).any()
        # No path leads through some cells: corners in the first and last row of a diagonal.
        assert made.sum() <= 1.15 * needed.sum() + 2 * columns


@pytest.mark.parametrize("shortest", [1, 2, 5])
def test_a_short_x_does_not_widen_the_band_of_the_others(shortest, cells_in_log_space):
    x, y = torch.randn(12, 200, 4), torch.randn(3, 200, 4)
    similarity = clipseq.get_similarity("temporal", band=0.02)
    computed = []
    for length in (200, shortest):
        x_mask = torch.arange(200) < torch.tensor([200] * 11 + [length])[:, None]
        for _ in range(2):  # the second time, the number of paths is remembered
            cells_in_log_space.clear()
            similarity(x, y, x_mask)
        computed.append(sum(cells_in_log_space))
    assert computed[1] <= 1.1 * computed[0]
    # The same holds where all of them have to be counted.
    recursion._IN_BANDS.clear()
    cells_in_log_space.clear()
    similarity(x, y, x_mask)
    assert sum(cells_in_log_space) <= 1.5 * computed[0]


@pytest.mark.parametrize(
    ("x_lengths", "y_lengths", "options", "scale"),
    [
        ([60] * 12, [40] * 9, {}, 1.0),
        # The shortest x of a group has the widest band.
        ([60] * 14 + [1] * 17, [40] * 20, {"band": 0.05}, 1.0),
        ([60, 50, 3, 2, 1] * 3, [40, 9, 1], {"band": 0.1}, 1.0),
        # Log space from the start, and after ratios have overflowed.
        ([60] * 12, [40] * 9, {"gamma": 0.01}, 1.0),
        ([60] * 12, [40] * 9, {}, 100.0),
        # A few pairs fill a tile.
        ([300] * 3, [200] * 3, {}, 1.0),
    ],
)
def test_a_tile_holds_no_more_numbers_than_it_may(
    x_lengths, y_lengths, options, scale, monkeypatch
):
    """This holds for any lengths, apart from a border, one pair, and a third more after
    overflow."""
    most, held = 2**16, []
    take = scores.Room.take

    def record(room, name, *shape):
        memory = take(room, name, *shape)
        held.append(room.size)
        return memory

    monkeypatch.setattr(scores, "NUMBERS", most)
    monkeypatch.setattr(scores.Room, "take", record)

    def batch(lengths):
        values = torch.randn(len(lengths), max(lengths), 4)
        if scale != 1.0:  # alike for long stretches, then unlike everything: see the next test
            values[:, : max(lengths) // 2] = values[:, :1]
            values[:, max(lengths) // 2 :] = -values[:, :1]
        return values, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    (x, x_mask), (y, y_mask) = batch(x_lengths), batch(y_lengths)
    similarity = clipseq.get_similarity("temporal", **options)
    scores_and_gradients(similarity, x, y, x_mask, y_mask)
    one_pair = 4 * (max(x_lengths) + 1) * (max(y_lengths) + 1)
    assert max(held) <= 1.4 * max(most, one_pair)


@pytest.mark.parametrize("band", [None, 0.3])
def test_ratios_that_overflow_change_nothing(band, cells_in_log_space):
    # Long stretches of similar steps lie next to steps unlike all of them, also at the last column
    # of a sequence, where only padding follows, and in the other sequences of its tile.
    step = torch.tensor([1.0, 0.0], dtype=torch.float64)
    x = torch.cat([step.expand(60, 2), -step.expand(60, 2)])[None].repeat(2, 1, 1)
    x[1] = -x[1]
    y = torch.stack([step, -step, -step, step, -step, step, -step, step])[None].repeat(3, 1, 1)
    y[1] = -step
    y[2] = -y[2]
    x = x + 0.1 * torch.randn_like(x)
    x_mask = torch.arange(120) < torch.tensor([[120], [100]])
    y_mask = torch.arange(8) < torch.tensor([[8], [5], [7]])
    similarity = clipseq.get_similarity("temporal", band=band)
    exact = scores_and_gradients(similarity, x, y, x_mask, y_mask)
    cells_in_log_space.clear()
    single = scores_and_gradients(similarity, x.float(), y.float(), x_mask, y_mask)
    assert cells_in_log_space
    for value, other in zip(single, exact, strict=True):
        assert (value - other).abs().max() <= 2e-5 * other.abs().max()
    if band is None:
        for i, a in enumerate(real_steps(x, x_mask)):
            for j, b in enumerate(real_steps(y, y_mask)):
                expected = by_recursion(1 - unit(a) @ unit(b).T, 0.1)
                assert single[0][i, j].item() == pytest.approx(expected, abs=1e-5)


def test_padding_beside_unlike_steps_harms_no_gradient(cells_in_log_space):
    # A ratio that overflows in padding must change neither the score nor the gradient.
    step = torch.tensor([1.0, 0.0])
    x, y = step.expand(2, 60, 2), 0.1 * torch.randn(2, 8, 2) - step
    x_mask = torch.ones(2, 60, dtype=torch.bool)
    y_mask = torch.arange(8) < torch.tensor([[5], [8]])
    similarity = clipseq.get_similarity("temporal")
    exact = scores_and_gradients(similarity, x.double(), y.double(), x_mask, y_mask)
    similarity(x, y, x_mask, y_mask)
    assert not cells_in_log_space
    single = scores_and_gradients(similarity, x, y, x_mask, y_mask)
    assert cells_in_log_space
    for value, other in zip(single, exact, strict=True):
        assert (value - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("band", [None, 0.1])
def test_any_number_of_threads_gives_the_same_bits(band, monkeypatch):
    monkeypatch.setattr(scores, "DIAGONAL", 256)  # many tiles
    x, x_mask = ragged(9, 20, 4, seed=1, prefix=True)
    y, y_mask = ragged(9, 12, 4, seed=2, prefix=True)
    similarity = clipseq.get_similarity("temporal", band=band)
    one = scores_and_gradients(similarity, x, y, x_mask, y_mask)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = scores_and_gradients(similarity, x, y, x_mask, y_mask)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"gamma": float("nan")}, "gamma must be positive"),
        ({"band": 1.5}, r"band must be None or lie in \[0, 1\]"),
        ({"band": -0.1}, r"band must be None or lie in \[0, 1\]"),
        ({"gamma": 1e300}, "gamma must be positive"),
        ({"gamma": None}, "gamma must be positive"),
        ({"band": "wide"}, r"band must be None or lie in \[0, 1\]"),
    ],
)
def test_refuses_bad_options(options, message, unchecked_signatures):
    with pytest.raises(ValueError, match=message):
        clipseq.get_similarity("temporal", **options)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=11),
    fixed=st.integers(0, 300),
    each=st.integers(0, 20),
)
def test_groups_of_like_lengths_are_the_cheapest(lengths, fixed, each):
    lengths, cells = sorted(lengths, reverse=True), 3

    def cost(sizes):
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return sum(
            fixed + lengths[start] * (each + size * cells)
            for start, size in zip(starts, sizes, strict=True)
        )

    def every(left):
        if left == 0:
            yield []
        for size in range(1, left + 1):
            yield from ([size, *rest] for rest in every(left - size))

    found = scores._sizes(lengths, len(lengths), fixed, each, cells)
    assert cost(found) == min(map(cost, every(len(lengths))))


@given(
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=500),
    most=st.integers(1, 40),
    fixed=st.integers(0, 10**6),
)
def test_groups_are_of_all_and_none_is_too_large(lengths, most, fixed):
    sizes = scores._sizes(sorted(lengths, reverse=True), most, fixed, 2**13, 1000)
    assert sum(sizes) == len(lengths)
    assert min(sizes) >= 1
    assert max(sizes) <= most


@pytest.mark.parametrize(("gamma", "band"), [(0.1, None), (0.02, None), (1.0, 0.3), (0.1, 0.0)])
def test_matched_pairs_are_means_over_their_own_paths(gamma, band):
    x, x_mask = ragged(4, 5, 3, seed=1)
    y, y_mask = ragged(4, 4, 3, seed=2)
    similarity = clipseq.get_similarity("temporal", gamma=gamma, band=band)
    pairs = similarity.pairs(x, y, x_mask, y_mask)
    both = zip(real_steps(x, x_mask), real_steps(y, y_mask), strict=True)
    for pair, (a, b) in zip(pairs, both, strict=True):
        cost = 1 - torch.cosine_similarity(a[:, None], b[None], dim=2)
        assert pair.item() == pytest.approx(by_enumeration(cost, gamma, band), abs=1e-10)


@pytest.mark.parametrize("band", [None, 0.3])
def test_the_gradient_of_matched_pairs_is_that_of_their_definition(band):
    x, y = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    similarity = clipseq.get_similarity("temporal", band=band)
    assert torch.autograd.gradcheck(similarity.pairs, (x, y))
