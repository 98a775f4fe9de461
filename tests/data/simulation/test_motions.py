"""The simulated person moves like a body, and the radar sees the right motion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipseq.data.simulation.body import POINTS, RCS, Person, body_points, pose, scatterers
from clipseq.data.simulation.captions import PHRASES
from clipseq.data.simulation.motions import ACTIONS
from clipseq.data.simulation.performance import RATE, perform
from clipseq.data.simulation.radar import AZIMUTH, DOPPLER, RANGE, Radar, observe

AT = {name: i for i, name in enumerate(POINTS)}
BONES = [("hip", "knee", 0.245), ("knee", "ankle", 0.246), ("shoulder", "elbow", 0.186)]


def act(name, seed=0):
    return perform(np.random.default_rng(seed), seconds=None, actions=(name,))


def maps_of(performance, radar=None):
    radar = radar or Radar()
    return observe(
        radar,
        scatterers(performance.points),
        performance.rate,
        RCS,
        int(len(performance.points) / performance.rate * radar.frame_rate),
        np.random.default_rng(0),
    )


def centroid(values, axis):
    """Return the power-weighted mean of `axis` in every frame, for a map in units of its scale."""
    weight = np.maximum(values - values.min() - 0.5, 0) ** 2
    return (axis[:, None] * weight).sum(0) / weight.sum(0)


def test_standing_upright_has_the_measures_of_the_person():
    points = body_points(pose()[None], np.array([[3.0, 1.0]]), np.zeros(1), Person(height_m=1.8))[0]
    assert points[AT["head"], 2] == pytest.approx(1.8, abs=0.15)  # the middle of the head
    for side in ("left", "right"):
        assert points[AT[f"{side}_ankle"], 2] == pytest.approx(0.07, abs=0.05)
    np.testing.assert_allclose(points[AT["pelvis"], :2], [3.0, 1.0], atol=1e-9)
    assert points[AT["left_hand"], 1] > 1.0 > points[AT["right_hand"], 1]  # facing +x, left is +y
    assert points[AT["left_toe"], 0] > points[AT["left_ankle"], 0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_bones_keep_their_length_and_stay_above_the_floor_in_any_pose(seed):
    rng = np.random.default_rng(seed)
    poses = rng.uniform(-1.5, 1.5, (4, len(pose())))
    poses[:, 5] = rng.uniform(0, 0.3, 4)  # lift
    points = body_points(poses, rng.normal(size=(4, 2)), rng.normal(size=4), Person(1.7))
    for side in ("left", "right"):
        for a, b, share in BONES:
            bone = points[:, AT[f"{side}_{a}"]] - points[:, AT[f"{side}_{b}"]]
            np.testing.assert_allclose(np.linalg.norm(bone, axis=-1), share * 1.7, rtol=1e-9)
    assert points[..., 2].min() > 0


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_moves_smoothly_like_a_body(name):
    for seed in range(3):
        points = act(name, seed).points
        speed = np.linalg.norm(np.diff(points, axis=0), axis=-1) * RATE
        assert speed.max() < 13, "m/s, a foot in a kick or a run is the fastest"
        assert points[..., 2].min() > 0
        assert points[..., 2].max() < 2.9


def test_actions_move_the_body_as_their_names_say():
    def height(name, point, when):
        return float(np.mean([act(name, s).points[when, AT[point], 2] for s in range(4)]))

    assert height("sit_down", "pelvis", -1) < 0.65 < height("sit_down", "pelvis", 0)
    assert height("stand_up", "pelvis", 0) < 0.65 < height("stand_up", "pelvis", -1)
    assert height("fall", "head", -1) < 0.6 < 1.3 < height("fall", "head", 0)
    assert height("get_up", "head", 0) < 0.6 < 1.3 < height("get_up", "head", -1)
    for seed in range(4):
        jump = act("jump", seed).points[:, [AT["left_toe"], AT["right_toe"]], 2].min(axis=1)
        assert jump.max() > jump[0] + 0.08, "both feet leave the floor"
        still = act("stand_still", seed).points
        assert np.linalg.norm(still - still[0], axis=-1).max() < 0.1
        turned = act("turn_around", seed).points
        hips = turned[:, AT["left_hip"], :2] - turned[:, AT["right_hip"], :2]
        unit = hips / np.linalg.norm(hips, axis=1, keepdims=True)
        assert unit[0] @ unit[-1] < -0.7


@pytest.mark.parametrize(
    ("name", "sign"),
    [("walk_towards", -1), ("run_towards", -1), ("walk_away", 1), ("run_away", 1)],
)
def test_the_maps_show_the_direction_of_a_walk(name, sign):
    radar = Radar()
    axes = radar.axes()
    for seed in range(4):
        maps = maps_of(act(name, seed), radar)
        way = centroid(maps[RANGE], axes[RANGE])
        assert sign * (way[-1] - way[0]) > 0.6, "metres"
        assert sign * centroid(maps[DOPPLER], axes[DOPPLER]).mean() > 0.1, "m/s"


@pytest.mark.parametrize(("name", "sign"), [("walk_left", -1), ("walk_right", 1)])
def test_left_and_right_are_those_of_the_radar(name, sign):
    axis = Radar().axes()[AZIMUTH]
    for seed in range(4):
        side = centroid(maps_of(act(name, seed))[AZIMUTH], axis)
        assert sign * (side[-3:].mean() - side[:3].mean()) > 0.08


def test_sequences_follow_from_posture_to_posture_within_the_room():
    needs = {"stand_up": {"sit_down", None}, "get_up": {"fall", None}}
    lengths = set()
    for seed in range(60):
        played = perform(np.random.default_rng(seed))
        lengths.add(len(played.actions))
        assert len(set(played.actions)) == len(played.actions)
        assert len(played.points) == pytest.approx(10 * RATE, abs=3)
        posture = None
        for name in played.actions:
            if name in needs:
                assert posture in needs[name], played.actions
            elif posture == "fall":
                pytest.fail(f"{name} while lying: {played.actions}")
            elif posture == "sit_down":
                assert name in {"wave", "stretch"}, played.actions
            if name in {"sit_down", "fall", "stand_up", "get_up"}:
                posture = name if name in {"sit_down", "fall"} else "standing"
            elif posture is None and name not in {"wave", "stretch"}:
                posture = "standing"
        ends = [0.0, *(t for span in played.spans for t in span), 10.05]
        assert ends == sorted(ends)
        assert sum(b - a for a, b in played.spans) > 8.5
        pelvis = np.hypot(*played.points[:, AT["pelvis"], :2].T)
        assert pelvis.min() > 0.7
        assert pelvis.max() < 9.2
    assert lengths == {2, 3, 4}


def test_a_whole_sequence_is_one_movement():
    for seed in range(20):
        points = perform(np.random.default_rng(seed)).points
        assert (np.linalg.norm(np.diff(points, axis=0), axis=-1) * RATE).max() < 13


def test_the_same_seed_plays_the_same():
    one, two = (perform(np.random.default_rng(4)) for _ in range(2))
    assert one.actions == two.actions
    np.testing.assert_array_equal(one.points, two.points)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (("wavee",), "actions must be among .*, got 'wavee'"),
        (("walk_away", "stand_up"), "'stand_up' must start in one of sitting, but .* standing"),
        (("fall", "wave"), "'wave' must start in one of sitting, standing, but .* in one of lying"),
        ((), "at least one action, got none"),
    ],
)
def test_an_impossible_sequence_is_refused(actions, message):
    with pytest.raises(ValueError, match=message):
        perform(np.random.default_rng(0), actions=actions)


def test_too_little_time_is_refused():
    with pytest.raises(ValueError, match="change the actions or the seconds"):
        perform(np.random.default_rng(0), seconds=1.0)


def test_every_action_has_phrases():
    assert PHRASES.keys() == ACTIONS.keys()
