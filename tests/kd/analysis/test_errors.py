"""Errors by kind: planted mistakes are found as what they are, and an independent oracle agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra kd")

from kd.analysis.errors import IGNORED, KINDS, MISSED, RIGHT, costs, explain
from kd.scoring.detection_metrics import Detections, average_precision
from kd.scoring.frames import Frame
from tests.kd.analysis.planted import detector, make_frames

KIND_OF = {
    "drop": MISSED,
    "shift": "localisation",
    "swap": "classification",
    "duplicate": "duplicate",
    "background": "background",
}


def counts(frames, found):
    verdicts = [explain(d, f) for d, f in zip(found, frames, strict=True)]
    kinds = np.concatenate([verdict.kinds for verdict in verdicts])
    rows = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    return {**rows, MISSED: sum(int(v.missed.sum()) for v in verdicts), "right": int((kinds == RIGHT).sum())}, verdicts


def test_planted_mistakes_are_reported_as_exactly_those(tmp_path):
    frames = make_frames(tmp_path)
    planted = {"drop": 3, "shift": 4, "swap": 5, "both": 2, "duplicate": 6, "background": 7}
    found, _ = counts(frames, detector(frames, planted))
    assert found == {
        "classification": 5,
        "localisation": 4,
        "both": 2,
        "duplicate": 6,
        "background": 7,
        MISSED: 3 + 2,  # nothing that can be mended is on a light of "both"
        "right": 80 - 3 - 4 - 5 - 2,
    }


@pytest.mark.parametrize("mistake", KIND_OF)
def test_a_mistake_alone_costs_all_that_perfect_detections_are_better_by(tmp_path, mistake):
    frames = make_frames(tmp_path, 3)
    found, perfect = detector(frames, {mistake: 6}), detector(frames, {})
    scored = costs(frames, found, counts(frames, found)[1])
    truth = np.concatenate([frame.class_ids for frame in frames])

    def ap(detections, verdicts):
        right = np.concatenate([verdict.kinds for verdict in verdicts]) == RIGHT
        return average_precision(right, *(np.concatenate([getattr(d, k) for d in detections]) for k in KEYS), truth)

    gain = ap(perfect, counts(frames, perfect)[1]) - ap(found, counts(frames, found)[1])
    assert gain > 0.01 or mistake == "duplicate"  # those are less sure than all that is right: they cost nothing
    assert scored == pytest.approx({kind: gain if kind == KIND_OF[mistake] else 0 for kind in (*KINDS, MISSED)})


KEYS = ("confidences", "class_ids")


def test_of_two_boxes_that_could_be_mended_for_one_light_the_surer_one_is():
    """Or the false alarm between them would come first."""
    light = Frame("f", "", (100, 100), np.array([[0, 0, 10, 10.0]]), np.array([0]), np.array([True]), ())
    boxes = np.array([[0, 4, 10, 14], [50, 50, 60, 60], [0, 5, 10, 15.0]])
    found = Detections(boxes, np.array([0.9, 0.85, 0.8]), np.array([0, 0, 0]))
    assert costs([light], [found], [explain(found, light)])["localisation"] == pytest.approx(0.995)


def test_a_box_beside_a_light_that_is_found_is_taken_away_not_mended():
    """It would be another one's second hit, and make up for the light that is missed."""
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]])
    frame = Frame("f", "", (100, 100), boxes, np.array([0, 0]), np.array([True, True]), ())
    found = Detections(np.array([[0, 4, 10, 14], [0, 0, 10, 10.0]]), np.array([0.9, 0.8]), np.array([0, 0]))
    half, worse = (average_precision(*rows, np.zeros(2, int)) for rows in (
        (np.array([True]), np.array([0.8]), np.array([0])),
        (np.array([False, True]), np.array([0.9, 0.8]), np.array([0, 0])),
    ))  # fmt: skip
    assert half - worse > 0.1
    assert costs([frame], [found], [explain(found, frame)])["localisation"] == pytest.approx(half - worse)


def test_a_light_that_does_not_count_explains_nothing_and_costs_nothing():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]])
    frame = Frame("f", "", (100, 100), boxes, np.array([0, 0]), np.array([True, False]), ())
    found = Detections(boxes[[1, 0, 1]], np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]))
    verdict = explain(found, frame)
    assert verdict.kinds.tolist() == [IGNORED, RIGHT, KINDS.index("background")]
    assert (verdict.found.tolist(), verdict.missed.tolist()) == ([True, False], [False, False])


def test_nothing_found_and_nothing_there():
    nothing = Detections(np.empty((0, 4)), np.empty(0), np.empty(0, int))
    empty = Frame.unlabelled("f", (10, 10), ())
    assert explain(nothing, empty).kinds.tolist() == []
    light = Frame("f", "", (10, 10), np.array([[0, 0, 5, 5.0]]), np.array([0]), np.array([True]), ())
    assert explain(nothing, light).missed.tolist() == [True]
    some = Detections(np.array([[0, 0, 5, 5.0]]), np.array([0.5]), np.array([0]))
    assert explain(some, empty).kinds.tolist() == [KINDS.index("background")]


# --- TIDE's definitions once more, in plain loops -----------------------------------------------------------


def iou_of(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def oracle(found, frame):
    """Kinds of detections by name, and which lights are missed."""
    lights = list(zip(frame.boxes_xyxy.tolist(), frame.class_ids.tolist(), strict=True))
    detections = list(zip(found.boxes_xyxy.tolist(), found.class_ids.tolist(), strict=True))
    taken, kinds, mendable = set(), [None] * len(detections), set()
    for i, (box, class_id) in enumerate(detections):
        free = [(iou_of(box, light), -j) for j, (light, its) in enumerate(lights) if its == class_id and j not in taken]
        if free and max(free)[0] >= 0.5:
            taken.add(-max(free)[1])
            kinds[i] = "right"
    for i, (box, class_id) in enumerate(detections):
        if kinds[i]:
            continue
        own = max(
            ((iou_of(box, light), -j) for j, (light, its) in enumerate(lights) if its == class_id), default=(0, 1)
        )
        other = max(
            ((iou_of(box, light), -j) for j, (light, its) in enumerate(lights) if its != class_id), default=(0, 1)
        )
        if 0.1 <= own[0] < 0.5:
            kinds[i] = "localisation"
            mendable.add(-own[1])
        elif other[0] >= 0.5:
            kinds[i] = "classification"
            mendable.add(-other[1])
        elif own[0] >= 0.5:
            kinds[i] = "duplicate"
        else:
            kinds[i] = "both" if max(own[0], other[0]) > 0.1 else "background"
    return kinds, [j not in taken and j not in mendable for j in range(len(lights))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_independent_oracle_agrees(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (rng.integers(0, 7), 2))
    boxes = np.hstack([corners, corners + rng.integers(8, 20, corners.shape)]).astype(float)
    frame = Frame("f", "", (60, 60), boxes, rng.integers(0, 2, len(boxes)), np.ones(len(boxes), bool), ())
    n = int(rng.integers(0, 12))
    near = boxes[rng.integers(0, len(boxes), n)] if len(boxes) else np.tile([0, 0, 10, 10.0], (n, 1))
    moved = near + rng.integers(-8, 9, (n, 2))[:, [0, 1, 0, 1]]
    found = Detections(moved, -np.sort(-rng.random(n)), rng.integers(0, 2, n))
    verdict, (kinds, missed) = explain(found, frame), oracle(found, frame)
    names = ["right" if kind == RIGHT else KINDS[kind] for kind in verdict.kinds]
    assert names == kinds
    assert verdict.missed.tolist() == missed
    assert verdict.found.sum() == (verdict.kinds == RIGHT).sum()
    assert not (verdict.found & verdict.missed).any()
    if len(boxes):
        assert all(gain >= -1e-9 for gain in costs([frame], [found], [verdict]).values())
