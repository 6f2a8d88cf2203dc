"""The figures of an analysis: intervals, groups, what matters most, thresholds, pairs, and labels that look wrong."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from kd.analysis.label_errors import as_coco
from kd.analysis.lights import critical, lights_of, recall_by_group, wilson
from kd.analysis.measure import measure
from kd.analysis.pair import mcnemar
from kd.scoring.detection_metrics import Detections
from tests.kd.analysis.planted import AWAY, NAMES, detector, make_frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return make_frames(tmp_path_factory.mktemp("frames"))


def test_figures_of_planted_mistakes(frames):
    found = detector(frames, {"drop": 3, "swap": 5, "background": 7})
    row = measure(frames, [found], NAMES, 0.25).figures["models"][0]
    assert {kind: its["count"] for kind, its in row["errors"].items()} == {
        "classification": 5, "localisation": 0, "both": 0, "duplicate": 0, "background": 7, "missed": 3,
    }  # fmt: skip
    assert (row["objects"], row["found"], row["recall"]) == (80, 72, 0.9)
    assert row["precision"] == 72 / (72 + 5 + 7)
    assert row["false_alarms_per_frame"] == 1.2
    # Of the first eight lights every other one is red: two of the dropped, two of the five that are seen as another.
    assert row["critical"] | {"interval95": None} == {
        "objects": 40, "missed": 4, "share_missed": 0.1, "interval95": None, "seen_as_another_class": 2,
    }  # fmt: skip


def test_below_the_threshold_nothing_counts_but_costs_do(frames):
    row = measure(frames, [detector(frames, {"background": 7}, confidence=0.2)], NAMES, 0.25).figures["models"][0]
    assert (row["found"], row["false_alarms"]) == (0, 7)
    assert row["errors"]["missed"] == {"count": 80, "ap50_cost": pytest.approx(0)}
    assert row["errors"]["background"]["ap50_cost"] > 0.01


def test_examples_are_the_surest_and_one_of_each_frame_before_a_second(frames):
    found = detector(frames, {"background": 20})
    analysis = measure(frames, [found], NAMES, 0.25)
    worst = analysis.worst[0]["background"]
    assert [example.frame for example in worst] == [0, 1, 2, 0, 0, 0]
    assert worst[0].words == "red 0.90, nothing labelled"
    assert worst[0].box_xyxy == (60, 20, 72, 44)
    assert analysis.figures["models"][0]["worst"]["background"][0]["frame"] == "frame00"


@pytest.mark.parametrize(
    ("hits", "count", "ends"),
    [(0, 10, (0, 0.2775)), (10, 10, (0.7225, 1)), (81, 263, (0.2553, 0.3662))],  # the last one: Newcombe (1998)
)
def test_wilson(hits, count, ends):
    assert wilson(hits, count) == pytest.approx(ends, abs=1e-4)
    assert wilson(0, 0) is None


def test_mcnemar():
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 6) == mcnemar(6, 0) == 2 / 2**6


def test_each_light_is_in_one_group_of_each_grouping(frames):
    states = ["red", "red_yellow", "green", "off"] * 2
    first = replace(
        frames[0],
        city="Ulm",
        attributes=tuple({"state": state, "relevance": "relevant"} for state in states),
        distances_m=np.array([10, 25, 30, 99, 100, 200, np.nan, np.nan]),
    )
    lights = lights_of([first, *frames[1:]], NAMES)
    rows = recall_by_group(lights, np.arange(80) < 8)
    assert set(rows) == {"class", "shorter side", "place", "distance", "city", "state", "relevance"}
    for groups in rows.values():
        assert sum(row["objects"] for row in groups.values()) == 80
        assert sum(row["found"] for row in groups.values()) == 8
    assert list(rows["shorter side"]) == ["8 to 16 px"]
    assert rows["place"]["top left"]["objects"] == 20  # two of each frame
    assert {name: row["objects"] for name, row in rows["distance"].items()} == {
        "below 25 m": 1, "25 to 50 m": 2, "75 to 100 m": 1, "100 m and more": 2, "unknown": 74,
    }  # fmt: skip
    assert rows["state"]["red_yellow"]["recall"] == 1
    assert rows["city"]["unknown"]["found"] == 0


@pytest.mark.parametrize(
    ("names", "attributes", "what", "chosen"),
    [
        ({0: "red", 1: "green"}, {}, "red lights", [0]),
        ({0: "red_yellow", 1: "predicted"}, {}, "red lights", [0]),
        ({0: "not_relevant", 1: "relevant"}, {}, "relevant lights", [1]),
        ({0: "RBC", 1: "WBC"}, {}, "objects", [0, 1]),
        (
            {0: "relevant", 1: "not_relevant"},
            {0: {"state": "red"}, 1: {"state": "red"}},
            "red and relevant lights",
            [0],
        ),
        (
            {0: "a", 1: "b"},
            {0: {"state": "red_yellow", "relevance": "relevant"}, 1: {"state": "red", "relevance": "not_relevant"}},
            "red and relevant lights",
            [0],
        ),
    ],
)
def test_which_lights_matter_most(frames, names, attributes, what, chosen):
    frame = replace(frames[0], attributes=tuple(attributes.get(int(c), {}) for c in frames[0].class_ids))
    found = critical([frame], lights_of([frame], names), names)
    assert found.what == what
    assert found.chosen.tolist() == [class_id in chosen for class_id in frame.class_ids]


def test_the_threshold_for_a_recall_and_what_it_costs(frames):
    """Forty red lights, found at 0.40, 0.39, ... 0.01; false alarms in two frames, at 0.205 and 0.045."""
    found, level = [], 40
    for number, frame in enumerate(frames):
        levels = np.zeros(8)
        for i in np.flatnonzero(frame.class_ids == 0):
            levels[i] = level / 100
            level -= 1
        boxes, classes = frame.boxes_xyxy[::2], frame.class_ids[::2]
        every = Detections(boxes, levels[::2], classes)
        if number < 2:
            alarms = Detections(boxes + AWAY, np.full(4, (0.205, 0.045)[number]), classes)
            every = Detections(
                *(
                    np.concatenate([getattr(d, k) for d in (every, alarms)])
                    for k in ("boxes_xyxy", "confidences", "class_ids")
                )
            )
        found.append(every[np.argsort(-every.confidences, kind="stable")])
    row = measure(frames, [found], NAMES, 0.25).figures["models"][0]
    assert [(goal["confidence"], goal["false_alarms_per_frame"]) for goal in row["goals"]] == [
        (0.09, 0.4), (0.05, 0.4), (0.03, 0.8), (0.01, 0.8),
    ]  # fmt: skip
    red = row["curves"]["red"]
    assert red["recall"][29] == 11 / 40  # at 0.30: from 0.40 down
    assert (red["precision"][19], red["precision"][20]) == (21 / 25, 1)  # at 0.20 and 0.21
    assert row["curves"]["green"] == {"precision": [None] * 99, "recall": [0] * 99}
    dropped = measure(frames, [[d[:0] for d in found]], NAMES, 0.25).figures["models"][0]["goals"][0]
    assert dropped == {"recall": 0.8, "confidence": None, "false_alarms_per_frame": None, "most": 0}


def test_two_models_side_by_side(frames):
    first, second = detector(frames, {"drop": 3}), detector(frames, {"shift": 8, "drop": 0})
    analysis = measure(frames, [first, second], NAMES, 0.25)
    assert analysis.figures["pair"] == {
        "both": 72, "first_alone": 5, "second_alone": 0, "neither": 3, "p": 2 / 2**5,
    }  # fmt: skip
    assert [[example.words for example in examples] for examples in analysis.alone] == [
        ["red, at 0.8"] * 2 + ["green, at 0.8"] * 3, [],
    ]  # fmt: skip


def test_labels_that_models_speak_against(frames, tmp_path):
    """A label taken away and one of another class, in the first two frames."""
    spoiled = [
        replace(
            frames[0], boxes_xyxy=frames[0].boxes_xyxy[1:], class_ids=frames[0].class_ids[1:], counted=np.ones(7, bool)
        ),
        replace(frames[1], class_ids=np.array([0, 0, *frames[1].class_ids[2:]])),
    ]
    sure, unsure = detector(frames[:2], {}), detector(frames[:2], {}, confidence=0.55)
    analysis = measure(spoiled, [sure], NAMES, 0.25)
    assert [example.words for example in analysis.suspects] == ["red 0.80, no label", "green 0.80, labelled red"]
    assert measure(spoiled, [sure, unsure], NAMES, 0.25).suspected == []
    assert len(measure(spoiled, [sure, sure], NAMES, 0.25).suspected) == 2
    assert measure(frames, [sure + detector(frames[2:], {})], NAMES, 0.25).suspected == []

    pycocotools = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    file = tmp_path / "suspects.json"
    file.write_text(as_coco(spoiled, analysis.suspected, NAMES))
    with redirect_stdout(io.StringIO()):
        coco = pycocotools.COCO(str(file))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["frame00", "frame01"]
    first, second = coco.loadAnns(coco.getAnnIds())
    assert (first["bbox"], first["score"]) == ([20, 20, 12, 24], 0.8)
    assert coco.loadCats(second["category_id"])[0]["name"] == "green"
    assert [row["attributes"] for row in (first, second)] == [
        {"suspected": "no label", "label": ""},
        {"suspected": "another class", "label": "red"},
    ]


@pytest.mark.parametrize(("right", "count"), [(0.9, 0), (0.7, 1)])
def test_a_class_error_is_no_suspect_where_the_model_itself_is_surer_of_the_label(frames, right, count):
    frame = replace(frames[0], boxes_xyxy=frames[0].boxes_xyxy[:1], class_ids=np.array([0]), counted=np.array([True]))
    confidences = np.array([right, 0.8])
    order = np.argsort(-confidences)
    found = Detections(frame.boxes_xyxy[[0, 0]], confidences[order], np.array([0, 1])[order])
    assert len(measure([frame], [[found]], NAMES, 0.25).suspected) == count


def test_figures_go_to_json(frames):
    found = detector(frames, {"drop": 2, "both": 2})
    figures = measure(frames, [found, found], NAMES, 0.25).figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
