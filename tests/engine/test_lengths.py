import torch
from hypothesis import given
from hypothesis import strategies as st

from clipseq.engine import group_by_length, longest_first

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=30)


@given(lengths=LENGTHS)
def test_the_longest_come_first_and_equal_ones_keep_their_order(lengths):
    items, descending = longest_first(torch.tensor(lengths))
    expected = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    assert items.tolist() == expected
    assert descending == [lengths[i] for i in expected]


@given(lengths=LENGTHS, cells=st.integers(1, 60), multiple=st.none() | st.integers(1, 8))
def test_groups_are_as_large_as_allowed_and_hold_every_item_once(lengths, cells, multiple):
    groups = group_by_length(
        torch.tensor(lengths), lambda steps: max(1, cells // steps), multiple=multiple
    )
    order = [item for group in groups for item in group.items.tolist()]
    assert order == longest_first(torch.tensor(lengths)).items.tolist()

    def width(length):
        return length if multiple is None else -(-length // multiple) * multiple

    for group, after in zip(groups, [*groups[1:], None], strict=True):
        assert group.lengths == [lengths[item] for item in group.items.tolist()]
        most = max(1, cells // width(group.steps))
        assert len(group.lengths) <= most
        if multiple is not None:
            assert len({width(length) for length in group.lengths}) == 1
        # A group ends early only if it is full or the width changes.
        if after is not None and len(group.lengths) < most:
            assert multiple is not None
            assert width(after.steps) != width(group.steps)
