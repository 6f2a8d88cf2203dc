"""Matching and scores: hand-made cases, and pycocotools on random ones with ignored lights and sizes."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from kd.scoring.detection_metrics import IOUS, SIZES, Detections, box_iou, judge, recall_at, scores
from kd.scoring.frames import Frame

NAMES = {0: "relevant", 1: "not_relevant"}


def frame(*lights, name="f", city="Berlin"):
    """A frame of lights (box, class, counted)."""
    boxes, classes, counted = zip(*lights, strict=True) if lights else ((), (), ())
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Frame(name, city, (2048, 1024), boxes, np.array(classes, int), np.array(counted, bool), ())


def detections(*rows):
    boxes, confidences, classes = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(np.array(boxes, float).reshape(-1, 4), np.array(confidences, float), np.array(classes, int))


A, B, FAR = (0, 0, 10, 20), (30, 0, 40, 20), (90, 90, 99, 99)


def test_iou_of_boxes():
    found = box_iou(np.array([A, FAR]), np.array([A, (5, 0, 15, 20), (3, 3, 3, 3)]))
    assert found == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0]]))
    assert box_iou(np.zeros((0, 4)), np.zeros((2, 4))).shape == (0, 2)


def test_the_surest_takes_the_light_and_the_second_is_wrong():
    outcome = judge(detections((A, 0.5, 0), (A, 0.9, 0), (A, 0.95, 1), (FAR, 0.1, 0)), frame((A, 0, True)))
    assert outcome.confidences.tolist() == [0.95, 0.9, 0.5, 0.1]
    assert outcome.right[:, 0].tolist() == [False, True, False, False]
    assert not outcome.ignored.any()


def test_a_light_that_does_not_count_makes_its_detection_neither_right_nor_wrong():
    outcome = judge(detections((A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)), frame((A, 0, False), (B, 0, True)))
    assert outcome.right[:, 0].tolist() == [False, False, True]
    assert outcome.ignored[:, 0].tolist() == [True, False, False]  # a second one on the same light is wrong
    assert outcome.truth_ids.tolist() == [0]


def test_a_light_that_counts_goes_before_a_better_fit_that_does_not():
    near = (0, 0, 10, 18)
    outcome = judge(detections((A, 0.9, 0)), frame((A, 0, False), (near, 0, True)))
    assert outcome.right[0].tolist() == (IOUS <= 0.9).tolist()  # IoU 0.9: right up to there, above it ignored
    assert outcome.ignored[0].tolist() == (IOUS > 0.9).tolist()


def test_sizes_are_of_the_shorter_side_from_and_below():
    of_8 = frame(((0, 0, 8, 30), 0, True), ((50, 0, 57.9, 30), 0, True))
    counts = {name: len(judge(detections(), of_8, size).truth_ids) for name, size in SIZES.items()}
    assert counts == {"<8": 1, "8-16": 1, "16-32": 0, ">=32": 0}


def test_in_a_size_only_what_is_of_that_size_can_be_wrong():
    outcome = judge(detections((A, 0.9, 0), (FAR, 0.8, 0), ((200, 200, 240, 240), 0.7, 0)), frame(), SIZES["8-16"])
    assert outcome.ignored[:, 0].tolist() == [False, False, True]


def test_scores_of_nothing_are_none():
    none = dict.fromkeys(("map50", "map50_95", "precision", "recall", "confidence"))
    found = scores([judge(detections((A, 0.5, 0)), frame())], NAMES)
    nothing = {"map50": None, "map50_95": None}
    assert found == {"instances": 0, **none, "per_class": dict.fromkeys(NAMES.values(), nothing)}
    assert recall_at([judge(detections(), frame())], 0.5) is None
    missed = scores([judge(detections(), frame((A, 1, True)))], NAMES)
    assert (missed["instances"], missed["map50"], missed["recall"]) == (1, 0, 0)
    assert missed["per_class"]["relevant"] == nothing


def test_recall_at_a_confidence_counts_lights():
    outcomes = [judge(detections((A, 0.9, 0), (B, 0.3, 0)), frame((A, 0, True), (B, 0, True), (FAR, 1, True)))]
    assert recall_at(outcomes, 0.5) == pytest.approx(1 / 3)
    assert recall_at(outcomes, 0.1) == pytest.approx(2 / 3)


# --- pycocotools -----------------------------------------------------------------------------------------


def random_frames(seed, frame_count=80):
    """Frames of lights of all sizes, a fifth not counted, and detections: near lights, doubled, or of nothing."""
    rng, frames, found = np.random.default_rng(seed), [], []
    for number in range(frame_count):
        count = rng.integers(0, 12)
        sides = np.exp(rng.uniform(np.log(4), np.log(60), count))[:, None] * rng.uniform(1, 2, (count, 2))
        xy = rng.uniform(0, 300, sides.shape)
        boxes = np.hstack([xy, xy + sides])
        classes = rng.integers(0, 2, count)
        lights = zip(boxes, classes, rng.uniform(size=count) > 0.2, strict=True)
        frames.append(frame(*lights, name=str(number)))
        seen = np.flatnonzero(rng.uniform(size=count) < 0.8).repeat(2)
        near = boxes[seen] + rng.normal(0, 0.08, (len(seen), 4)) * np.tile(sides[seen], 2)
        of_nothing = np.hstack([start := rng.uniform(0, 300, (3, 2)), start + rng.uniform(3, 60, (3, 2))])
        class_ids = np.where(rng.uniform(size=len(seen)) < 0.9, classes[seen], 1 - classes[seen])
        every, class_ids = np.vstack([near, of_nothing]), np.append(class_ids, rng.integers(0, 2, 3))
        found.append(Detections(every, rng.uniform(0, 1, len(every)), class_ids))
    return frames, found


def cocoeval(frames, found):
    """pycocotools' (AP [10, sizes, classes], recall the same) over all sizes and each; -1 where nothing counts.

    An annotation's area is what areaRng looks at: here the shorter side, and -1 for a light that does not count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for number, (each, dets) in enumerate(zip(frames, found, strict=True)):
        for box, class_id, counted in zip(each.boxes_xyxy, each.class_ids, each.counted, strict=True):
            wh = box[2:] - box[:2]
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": int(class_id), "iscrowd": 0}
            annotations.append({**row, "bbox": [*box[:2], *wh], "area": min(wh) if counted else -1})
        for box, confidence, class_id in zip(dets.boxes_xyxy, dets.confidences, dets.class_ids, strict=True):
            row = {"image_id": number, "category_id": int(class_id), "score": confidence}
            results.append({**row, "bbox": [*box[:2], *(box[2:] - box[:2])]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(frames))],
            "annotations": annotations,
            "categories": [{"id": i} for i in NAMES],
        }
        truth.createIndex()
        answer = truth.loadRes(results)
        for row in answer.anns.values():
            row["area"] = min(row["bbox"][2:])
        evaluation = COCOeval(truth, answer, "bbox")
        evaluation.params.areaRng = [(0, 1e9), *((low, min(high, 1e9)) for low, high in SIZES.values())]
        evaluation.params.areaRngLbl = ["all", *SIZES]
        evaluation.params.maxDets = [1000]
        evaluation.evaluate()
        evaluation.accumulate()
    ap = evaluation.eval["precision"][..., 0].mean(1)  # [10, 101, classes, sizes] over the recalls
    return ap.swapaxes(1, 2), evaluation.eval["recall"][..., 0].swapaxes(1, 2)


def coco_ap(right, wrong, lights):
    """AP as COCO takes it of one curve: the precision's envelope, a staircase, at 101 recalls."""
    tp, fp = np.cumsum(right), np.cumsum(wrong)
    precision = np.maximum.accumulate((tp / np.maximum(tp + fp, 1))[::-1])[::-1]
    place = np.searchsorted(tp / lights, np.linspace(0, 1, 101))
    return np.append(precision, 0)[np.minimum(place, len(precision))].mean()


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_pycocotools_with_ignored_lights_and_sizes(seed):
    """Right, wrong and ignored, at every IoU, size and class: COCO's AP and recall of them are the same numbers."""
    frames, found = random_frames(seed)
    theirs_ap, theirs_recall = cocoeval(frames, found)
    for column, size in enumerate([(0, np.inf), *SIZES.values()]):
        outcomes = [judge(dets, each, size) for dets, each in zip(found, frames, strict=True)]
        confidences = np.concatenate([o.confidences for o in outcomes])
        order = np.argsort(-confidences, kind="stable")
        class_ids, right, ignored = (
            np.concatenate([getattr(o, key) for o in outcomes])[order] for key in ("class_ids", "right", "ignored")
        )
        for class_id in NAMES:
            lights = sum(int((o.truth_ids == class_id).sum()) for o in outcomes)
            assert lights > 5
            for t in range(len(IOUS)):
                hit, out = right[class_ids == class_id, t], ignored[class_ids == class_id, t]
                assert theirs_recall[t, column, class_id] == pytest.approx(hit.sum() / lights)
                assert theirs_ap[t, column, class_id] == pytest.approx(coco_ap(hit, ~hit & ~out, lights), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_pycocotools_but_for_the_interpolation(seed):
    """Ultralytics joins the points of the curve by lines, COCO by stairs; both look at it at 101 recalls.

    So the two differ by about one step of recall, 1 / lights, times how steep the curve is: little with 100 lights.
    """
    frames, found = random_frames(seed)
    theirs, _ = cocoeval(frames, found)
    ours = scores([judge(dets, each) for dets, each in zip(found, frames, strict=True)], NAMES)
    assert 0.1 < ours["map50_95"] < ours["map50"] < 0.9
    assert ours["map50"] == pytest.approx(theirs[0, 0].mean(), abs=0.01)
    assert ours["map50_95"] == pytest.approx(theirs[:, 0].mean(), abs=0.01)
    for class_id, name in NAMES.items():
        assert ours["per_class"][name]["map50_95"] == pytest.approx(theirs[:, 0, class_id].mean(), abs=0.01)
