"""Captions that describe actions in order, and the same captions in every other order."""

import itertools
from collections.abc import Sequence

import attrs
import numpy as np

PHRASES: dict[str, tuple[str, ...]] = {
    "walk_towards": (
        "walks towards the radar",
        "walks closer",
        "comes nearer at a walk",
    ),
    "walk_away": ("walks away from the radar", "walks off", "goes further away at a walk"),
    "walk_left": ("walks to the left", "walks across to the left", "crosses leftwards on foot"),
    "walk_right": ("walks to the right", "walks across to the right", "crosses rightwards on foot"),
    "run_towards": ("runs towards the radar", "runs closer", "comes running"),
    "run_away": ("runs away from the radar", "runs off", "goes away at a run"),
    "sit_down": ("sits down", "takes a seat", "sits down on a chair"),
    "stand_up": ("stands up", "rises from the chair", "gets up from the seat"),
    "squat": ("squats", "does squats", "does knee bends"),
    "lunge": ("does lunges", "lunges forward", "drops into lunges"),
    "wave": ("waves", "waves a hand", "waves with one arm"),
    "box": ("boxes", "throws punches", "punches the air"),
    "stretch": ("stretches both arms overhead", "raises both arms", "lifts the arms up high"),
    "turn_around": ("turns around", "turns about", "makes an about-turn"),
    "bend": ("bends down", "bends forward", "bows deeply"),
    "jump": ("jumps", "hops up and down", "jumps on the spot"),
    "jumping_jacks": ("does jumping jacks", "does star jumps", "jumps opening arms and legs"),
    "kick": ("kicks", "kicks with one leg", "kicks the air"),
    "march": ("marches on the spot", "steps in place", "lifts the knees in turn"),
    "stand_still": ("stands still", "keeps still", "stays motionless"),
    "fall": ("falls down", "falls to the floor", "collapses to the ground"),
    "get_up": ("gets up from the floor", "rises from the ground", "scrambles back up"),
}
"""Phrases for each simulated action, which follow a subject such as "a person"."""


@attrs.frozen
class Wording:
    """A way to describe a sequence of actions.

    Attributes:
        opening: beginning of the caption, such as "a person".
        join: text between two phrases.
        last: text before the last phrase.
    """

    opening: str
    join: str
    last: str

    def describe(self, phrases: Sequence[str]) -> str:
        """Return the caption; `("sits down", "waves")` gives "a person sits down, then waves"."""
        if len(phrases) < 2:
            raise ValueError(f"phrases must be at least two, got {tuple(phrases)}")
        return f"{self.opening} {self.join.join(phrases[:-1])}{self.last}{phrases[-1]}"


WORDINGS: tuple[Wording, ...] = tuple(
    Wording(opening.format(subject), join, last)
    for subject in ("a person", "someone", "somebody")
    for opening, join, last in (
        ("{}", ", then ", ", then "),
        ("{}", " and then ", " and then "),
        ("{}", ", then ", " and after that "),
        ("{}", ", next ", ", finally "),
        ("first {}", ", then ", ", then "),
    )
)


def describe_in_order(
    phrases: Sequence[str], rng: np.random.Generator
) -> tuple[str, tuple[str, ...]]:
    """Return a caption of `phrases` in a wording drawn from `WORDINGS`, and its permutations.

    The permutations are captions in the same wording with the phrases in every other order: n! - 1
    of them for n different phrases. They differ from the caption and from one another. A single
    phrase gets a `class_caption` and no permutations.
    """
    if len(phrases) == 1:
        return class_caption(phrases[0]), ()
    wording = WORDINGS[rng.integers(len(WORDINGS))]
    caption = wording.describe(phrases)
    others = dict.fromkeys(wording.describe(order) for order in itertools.permutations(phrases))
    others.pop(caption)
    return caption, tuple(others)


def class_caption(phrase: str) -> str:
    """Return the caption of a class with one action: "a person " and the phrase."""
    return f"a person {phrase}"
