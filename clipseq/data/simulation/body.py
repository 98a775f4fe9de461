"""A kinematic person: 20 body points from joint angles, and point scatterers on them.

In the body frame, x points forward, y to the left, and z up; the floor is z = 0. Angles are in
radians, and zero for a person who stands with hanging arms. The points are those of the
`uiprmd_points` recordings, so the radar treats simulated and recorded people in the same way.
"""

from collections.abc import Mapping

import attrs
import numpy as np
from jaxtyping import Float

POINTS = (
    "head", "neck", "chest", "pelvis",
    "left_shoulder", "left_elbow", "left_wrist", "left_hand",
    "left_hip", "left_knee", "left_ankle", "left_toe",
    "right_shoulder", "right_elbow", "right_wrist", "right_hand",
    "right_hip", "right_knee", "right_ankle", "right_toe",
)  # fmt: skip

# (points whose mean is the scatterer, radar cross-section in m^2): about 0.7 m^2 for the
# whole person, most of it from the trunk.
_PARTS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("head",), 0.04),
    (("neck", "chest"), 0.10),
    (("chest",), 0.14),
    (("chest", "pelvis"), 0.12),
    (("pelvis",), 0.08),
    *(
        (tuple(f"{side}_{name}" for name in names), rcs)
        for side in ("left", "right")
        for names, rcs in (
            (("shoulder",), 0.020),
            (("shoulder", "elbow"), 0.016),
            (("elbow", "wrist"), 0.012),
            (("hand",), 0.010),
            (("hip", "knee"), 0.030),
            (("knee", "ankle"), 0.022),
            (("ankle", "toe"), 0.012),
        )
    ),
)

RCS: Float[np.ndarray, " S"] = np.array([rcs for _, rcs in _PARTS])
"""Radar cross-section of each scatterer in m^2."""

_ON_POINTS = np.zeros((len(_PARTS), len(POINTS)))
for _row, (_names, _) in zip(_ON_POINTS, _PARTS, strict=True):
    _row[[POINTS.index(name) for name in _names]] = 1 / len(_names)


def scatterers(points: Float[np.ndarray, "F 20 3"]) -> Float[np.ndarray, "F S 3"]:
    """Return the positions of the 19 scatterers of a body, from its `POINTS`."""
    return _ON_POINTS @ points


ANGLES = (
    # trunk: forward lean, lean to the left, turn of the shoulders against the hips to the left
    "lean", "side", "twist",
    # whole body about its feet: forward (pi/2: lying face down), to the left; height of a jump
    "pitch", "roll", "lift",
    # 1: the feet stay in place and the pelvis moves; 0: the pelvis follows the path
    "planted",
    # legs: thigh forward, thigh outward, knee bent
    "left_hip", "left_spread", "left_knee", "right_hip", "right_spread", "right_knee",
    # arms: upper arm forward, outward; elbow bent; forearm outward
    "left_arm", "left_raise", "left_elbow", "left_swing",
    "right_arm", "right_raise", "right_elbow", "right_swing",
)  # fmt: skip
"""Names of the columns of a pose."""

COLUMN: Mapping[str, int] = {name: i for i, name in enumerate(ANGLES)}


def pose(**angles: float) -> Float[np.ndarray, " A"]:
    """Return a pose with the given angles; the others are zero, except `planted`, which is 1."""
    values = np.zeros(len(ANGLES))
    values[COLUMN["planted"]] = 1.0
    for name, angle in angles.items():
        values[COLUMN[name]] = angle
    return values


@attrs.frozen
class Person:
    """Measurements of a body.

    Attributes:
        height_m: height in m.
        girth: factor on the widths and on the amplitude of the echo.
    """

    height_m: float = 1.72
    girth: float = 1.0


# Segment lengths as fractions of the height (Drillis and Contini 1964, as in Winter,
# Biomechanics and Motor Control of Human Movement, 4th ed., fig. 4.1), rounded.
_THIGH, _SHANK, _FOOT, _ANKLE = 0.245, 0.246, 0.11, 0.039
_TRUNK, _NECK, _HEAD, _CHEST = 0.288, 0.03, 0.13, 0.19
_HALF_HIPS, _HALF_SHOULDERS = 0.06, 0.125
_UPPER_ARM, _FOREARM, _HAND = 0.186, 0.146, 0.07


def body_points(
    poses: Float[np.ndarray, "F A"],
    path: Float[np.ndarray, "F 2"],
    heading: Float[np.ndarray, " F"],
    person: Person,
) -> Float[np.ndarray, "F 20 3"]:
    """Return the points of the body in the room, in m.

    Args:
        poses: one row of `ANGLES` per frame.
        path: position on the floor of the feet, or of the pelvis where the feet are not planted.
        heading: direction that the person faces, as an angle from the x axis to the left.
        person: measurements of the body.
    """
    a = {name: poses[:, i] for name, i in COLUMN.items()}
    h = person.height_m
    zero = np.zeros(len(poses))

    def vector(x, y, z):
        return np.stack(np.broadcast_arrays(x, y, z), axis=-1)

    points: dict[str, np.ndarray] = {"pelvis": vector(zero, zero, zero)}

    # The trunk's frame R = Ry(lean) Rx(-side) Rz(twist), with axes forward, left and up.
    cl, sl, cs, ss = np.cos(a["lean"]), np.sin(a["lean"]), np.cos(a["side"]), np.sin(a["side"])

    def in_trunk(x, y, z):
        y, z = cs * y + ss * z, -ss * y + cs * z
        return vector(cl * x + sl * z, y, -sl * x + cl * z)

    up = in_trunk(zero, zero, zero + 1)
    forward = in_trunk(np.cos(a["twist"]), np.sin(a["twist"]), zero)
    left = in_trunk(-np.sin(a["twist"]), np.cos(a["twist"]), zero)
    points["chest"] = _CHEST * h * up
    points["neck"] = (_TRUNK + _NECK) * h * up
    points["head"] = (_TRUNK + _HEAD) * h * up + 0.02 * h * forward

    for name, sign in (("left", 1.0), ("right", -1.0)):
        shoulder = _TRUNK * h * up + sign * _HALF_SHOULDERS * h * person.girth * left

        def along_arm(flexed, raised, sign=sign):
            return (
                (-np.cos(flexed) * np.cos(raised))[:, None] * up
                + (np.sin(flexed) * np.cos(raised))[:, None] * forward
                + (sign * np.sin(raised))[:, None] * left
            )

        arm, raised = a[f"{name}_arm"], a[f"{name}_raise"]
        forearm = along_arm(arm + a[f"{name}_elbow"], raised + a[f"{name}_swing"])
        elbow = shoulder + _UPPER_ARM * h * along_arm(arm, raised)
        points[f"{name}_shoulder"], points[f"{name}_elbow"] = shoulder, elbow
        points[f"{name}_wrist"] = elbow + _FOREARM * h * forearm
        points[f"{name}_hand"] = elbow + (_FOREARM + _HAND) * h * forearm

        thigh, shin = a[f"{name}_hip"], a[f"{name}_hip"] - a[f"{name}_knee"]
        out, in_plane = sign * np.sin(a[f"{name}_spread"]), np.cos(a[f"{name}_spread"])
        # The foot lies flat until the shin tilts further than an ankle bends.
        sole = shin - np.clip(shin, -0.6, 0.6)
        hip = vector(zero, sign * _HALF_HIPS * h * person.girth, zero)
        knee = hip + _THIGH * h * vector(np.sin(thigh) * in_plane, out, -np.cos(thigh) * in_plane)
        ankle = knee + _SHANK * h * vector(np.sin(shin) * in_plane, out, -np.cos(shin) * in_plane)
        points[f"{name}_hip"], points[f"{name}_knee"] = hip, knee
        points[f"{name}_ankle"] = ankle
        points[f"{name}_toe"] = ankle + h * vector(
            _FOOT * np.cos(sole), 0.2 * _FOOT * sign, _FOOT * np.sin(sole)
        )

    body = np.stack([points[name] for name in POINTS], axis=1)  # (F, 20, 3)

    # Tip over: pitch about y, then roll about x.
    c, s = np.cos(a["pitch"])[:, None], np.sin(a["pitch"])[:, None]
    x, y, z = np.moveaxis(body, -1, 0)
    x, z = c * x + s * z, -s * x + c * z
    c, s = np.cos(a["roll"])[:, None], np.sin(a["roll"])[:, None]
    y, z = c * y + s * z, -s * y + c * z

    # Stand on the floor: the lowest points carry the body. The minimum is soft, so that the weight
    # passes from foot to foot without a jolt that would flash in the Doppler map.
    soft = 0.015
    lowest = z.min(axis=1, keepdims=True)
    lowest = lowest - soft * np.log(np.exp(-(z - lowest) / soft).sum(axis=1, keepdims=True))
    z = z - lowest + _ANKLE * h + a["lift"][:, None]

    ankles = [POINTS.index("left_ankle"), POINTS.index("right_ankle")]
    planted = a["planted"][:, None]
    x = x - planted * x[:, ankles].mean(axis=1, keepdims=True)
    y = y - planted * y[:, ankles].mean(axis=1, keepdims=True)
    c, s = np.cos(heading)[:, None], np.sin(heading)[:, None]
    return np.stack([path[:, :1] + c * x - s * y, path[:, 1:] + s * x + c * y, z], axis=-1)
