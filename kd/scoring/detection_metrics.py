"""Average precision with lights that do not count: COCO's matching, Ultralytics' curves.

In: detections and truth of each frame. Out: a dict of metrics, each a share of 1. numpy alone, but for the curves.
Invariant: where every light counts, the figures are those of Ultralytics' validator on the same boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ultralytics.utils.metrics import ap_per_class, smooth

from kd.scoring.frames import Frame

IOUS = np.linspace(0.5, 0.95, 10)
# Bounds of a light's shorter side in frame pixels, [from, below). COCO's smallest bin, 32 x 32, would hold most lights.
SIZES = {"<8": (0, 8), "8-16": (8, 16), "16-32": (16, 32), ">=32": (32, np.inf)}


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Boxes [N, 4] as x1 y1 x2 y2, confidences [N] and class numbers [N]."""

    boxes_xyxy: np.ndarray
    confidences: np.ndarray
    class_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.confidences)

    def __getitem__(self, index: Any) -> Detections:
        return Detections(self.boxes_xyxy[index], self.confidences[index], self.class_ids[index])


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Detections of a frame, judged at each of `IOUS`: ``right`` [N, 10], ``ignored`` [N, 10], the others wrong.

    ``confidences`` [N] and ``class_ids`` [N] are theirs, ``truth_ids`` [M] the classes of the lights that count.
    """

    confidences: np.ndarray
    class_ids: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    truth_ids: np.ndarray


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The IoU of boxes [N, 4] and [M, 4], x1 y1 x2 y2: [N, M]; 0 where neither has an area.

    >>> box_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2]])).round(2).tolist()
    [[0.33]]
    """
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])  # [N, M, 2]
    shared = sides.clip(0).prod(2)
    areas = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None]
    return shared / np.maximum(areas - shared, 1e-9)


def judge(found: Detections, frame: Frame, size: tuple[float, float] = (0, np.inf)) -> Outcome:
    """Match a frame's detections with its lights, each to one of its class, as COCO does.

    The most confident chooses first, at each IoU for itself: of the lights that count the one it fits best, then of
    those that do not. With ``size`` (bounds of the shorter side), lights of other sizes do not count either, and
    a detection of another size that fits no light is ignored.
    """
    found = found[np.argsort(-found.confidences, kind="stable")]
    counted = frame.counted & _of_size(frame.boxes_xyxy, size)
    partners = match(found, frame, counted)
    right, ignored = np.append(counted, False)[partners], np.append(~counted, False)[partners]
    ignored |= ~right & ~_of_size(found.boxes_xyxy, size)[:, None]
    return Outcome(found.confidences, found.class_ids, right, ignored, frame.class_ids[counted])


def match(found: Detections, frame: Frame, counted: np.ndarray) -> np.ndarray:
    """The light that each detection is matched with at each of `IOUS`, -1 for none: [N, 10].

    ``found`` is in falling confidence; ``counted`` [M] says which lights count. See `judge`.
    """
    partners = np.full((len(found), len(IOUS)), -1)
    for class_id in np.unique(frame.class_ids):
        mine, theirs = (np.flatnonzero(ids == class_id) for ids in (found.class_ids, frame.class_ids))
        chosen = _match(box_iou(found.boxes_xyxy[mine], frame.boxes_xyxy[theirs]), counted[theirs])
        partners[mine] = np.append(theirs, -1)[chosen]
    return partners


def average_precision(
    right: np.ndarray, confidences: np.ndarray, class_ids: np.ndarray, truth_ids: np.ndarray
) -> float:
    """The mean over the classes that are there of AP at one IoU, of detections [N] right or wrong; 0 without truth.

    Ultralytics' own, as everywhere here.
    """
    if not len(truth_ids):
        return 0.0
    return float(ap_per_class(right[:, None], confidences, class_ids, truth_ids)[5][:, 0].mean())


def scores(outcomes: Sequence[Outcome], names: Mapping[int, str]) -> dict[str, Any]:
    """``{instances, map50, map50_95, precision, recall, confidence, per_class}``; None for what is not there.

    Precision and recall are those at ``confidence``, where the mean F1 over the classes is greatest, IoU 0.5. The
    curves, and with them AP, are Ultralytics' own, of the detections that are not ignored.
    """
    right, ignored = (np.concatenate([getattr(o, key) for o in outcomes]) for key in ("right", "ignored"))
    confidences, class_ids, truth_ids = (
        np.concatenate([getattr(o, key) for o in outcomes]) for key in ("confidences", "class_ids", "truth_ids")
    )
    ap, first = [], None
    for threshold in range(len(IOUS)):
        kept = ~ignored[:, threshold]
        curves = ap_per_class(right[kept, threshold, None], confidences[kept], class_ids[kept], truth_ids)
        first = first or curves
        ap.append(curves[5][:, 0])
    _, _, precision, recall, _, _, there, _, _, f1_curve, x, _ = first
    ap = np.array(ap)  # [10, classes that are there]
    some = len(there) > 0
    row = {int(class_id): i for i, class_id in enumerate(there)}
    return {
        "instances": len(truth_ids),
        "map50": float(ap[0].mean()) if some else None,
        "map50_95": float(ap.mean()) if some else None,
        "precision": float(precision.mean()) if some else None,
        "recall": float(recall.mean()) if some else None,
        "confidence": float(x[smooth(f1_curve.mean(0), 0.1).argmax()]) if some else None,
        "per_class": {
            name: {
                "map50": float(ap[0, row[class_id]]) if class_id in row else None,
                "map50_95": float(ap[:, row[class_id]].mean()) if class_id in row else None,
            }
            for class_id, name in names.items()
        },
    }


def recall_at(outcomes: Sequence[Outcome], confidence: float) -> float | None:
    """The share of the lights that count that is found, at IoU 0.5, by detections of at least this confidence."""
    lights = sum(len(outcome.truth_ids) for outcome in outcomes)
    hits = sum(int((o.right[:, 0] & (o.confidences >= confidence)).sum()) for o in outcomes)
    return hits / lights if lights else None


def _match(iou: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The lights, -1 for none, [N, 10] of detections in falling confidence, of their IoU [N, M] with the lights."""
    chosen = np.full((len(iou), len(IOUS)), -1)
    free = np.ones((len(IOUS), len(counted)), bool)
    for i in np.flatnonzero((iou >= IOUS[0]).any(1)):
        # A light that counts goes before any that does not: IoU is at most 1.
        value = np.where(free & (iou[i] >= IOUS[:, None]), iou[i] + 2 * counted, 0)  # [10, M]
        best = value.argmax(1)
        hit = np.flatnonzero(value.max(1))
        free[hit, best[hit]] = False
        chosen[i, hit] = best[hit]
    return chosen


def _of_size(boxes_xyxy: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).min(1, initial=np.inf)
    return (size[0] <= sides) & (sides < size[1])
