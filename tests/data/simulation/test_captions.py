"""A caption describes its actions in order, and its permutations describe every other order."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipseq.data.simulation.captions import PHRASES, WORDINGS, describe_in_order

EVERY = sorted(p for several in PHRASES.values() for p in several)


@settings(max_examples=60, deadline=None)
@given(
    phrases=st.lists(st.sampled_from(EVERY), min_size=2, max_size=4, unique=True),
    seed=st.integers(0, 10**6),
)
def test_permuted_captions_describe_the_same_in_every_other_order(phrases, seed):
    caption, permuted = describe_in_order(phrases, np.random.default_rng(seed))
    assert len(permuted) == math.factorial(len(phrases)) - 1 == len(set(permuted))
    assert caption not in permuted
    letters = sorted(caption.replace(",", " ").split())
    for other in permuted:
        assert sorted(other.replace(",", " ").split()) == letters


def test_a_caption_describes_its_actions_in_order():
    for seed in range(40):
        caption, _ = describe_in_order(("aaa", "bbb", "ccc"), np.random.default_rng(seed))
        assert caption.index("aaa") < caption.index("bbb") < caption.index("ccc")


def test_one_action_is_described_alone():
    assert describe_in_order(("waves",), np.random.default_rng(0)) == ("a person waves", ())


def test_there_are_several_wordings():
    captions = {w.describe(("sits down", "waves")) for w in WORDINGS}
    assert "a person sits down, then waves" in captions
    assert len(captions) >= 10
    assert all(len(set(several)) == len(several) >= 3 for several in PHRASES.values())
    assert len(set(EVERY)) == sum(map(len, PHRASES.values())), "each phrase belongs to one action"
