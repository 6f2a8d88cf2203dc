"""Errors by kind, after TIDE (Bolya et al., ECCV 2020), and what each kind costs in average precision.

In: frames with their truth, and detections in falling confidence. Out: a kind for every detection and missed light.
Invariant: a wrong detection has one kind; a light is found, or missed, or explained by an error of class or place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kd.scoring.detection_metrics import Detections, average_precision, box_iou, match
from kd.scoring.frames import Frame

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
CLASS, PLACE, BOTH, DUPLICATE, BACKGROUND = range(5)
KINDS = ("classification", "localisation", "both", "duplicate", "background")  # of detections, by these numbers
MISSED = "missed"
RIGHT, IGNORED = -1, -2


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What became of a frame's N detections and M lights.

    ``kinds`` [N] are `RIGHT`, `IGNORED` or a kind of error; ``lights`` [N] the light that a detection found, or that
    its error is about, -1 for none; ``found`` [M] says which lights that count were found, ``missed`` [M] which were
    neither found nor explained by an error of class or place.
    """

    kinds: np.ndarray
    lights: np.ndarray
    found: np.ndarray
    missed: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Which detections are errors: [N]."""
        return self.kinds >= 0


def explain(found: Detections, frame: Frame) -> Verdict:
    """Judge detections in falling confidence, as TIDE does, at IoU 0.5 for a hit and 0.1 for background.

    A detection that has no light of its class to itself is, the first that holds: of a wrong place (IoU from 0.1 to
    0.5 with a light of its class), of a wrong class (0.5 with a light of another), a duplicate (0.5 with a light that
    a surer one has found), background (at most 0.1 with any), or both, place and class. Lights that do not count are
    matched as in scoring, and explain nothing.
    """
    lights = match(found, frame, frame.counted)[:, 0]
    hits = np.append(frame.counted, False)[lights]
    kinds = np.where(lights < 0, BACKGROUND, np.where(hits, RIGHT, IGNORED))
    taken = np.zeros(len(frame.counted), bool)
    taken[lights[hits]] = True
    wrong, counted = np.flatnonzero(lights < 0), np.flatnonzero(frame.counted)
    if len(wrong) and len(counted):
        iou = box_iou(found.boxes_xyxy[wrong], frame.boxes_xyxy[counted])  # [W, C]
        same = found.class_ids[wrong, None] == frame.class_ids[counted]
        own, other = iou * same, iou * ~same
        best = own.max(1)
        kinds[wrong] = np.select(
            [
                (best >= BACKGROUND_IOU) & (best < FOREGROUND_IOU),
                other.max(1) >= FOREGROUND_IOU,
                best >= FOREGROUND_IOU,
                iou.max(1) > BACKGROUND_IOU,
            ],
            [PLACE, CLASS, DUPLICATE, BOTH],
            BACKGROUND,
        )
        about = [own.argmax(1), other.argmax(1), own.argmax(1), iou.argmax(1)]
        which = np.select([kinds[wrong] == kind for kind in (PLACE, CLASS, DUPLICATE, BOTH)], about, 0)
        lights[wrong] = np.where(kinds[wrong] == BACKGROUND, -1, counted[which])
    explained = np.zeros(len(frame.counted), bool)
    explained[lights[np.isin(kinds, (CLASS, PLACE))]] = True
    return Verdict(kinds, lights, taken, frame.counted & ~taken & ~explained)


def costs(frames: Sequence[Frame], found: Sequence[Detections], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """What mending all errors of a kind, and nothing else, would add to AP at IoU 0.5: ``{kind: gain}``.

    TIDE's oracles: the class or the place is put right for the surest such detection of each light that was not
    found, and others of the kind are taken away; a detection that is both, a duplicate or background is taken away;
    a missed light is no longer asked for. The gains do not add up to 1 - AP.
    """
    offsets = np.cumsum([0, *(len(frame.counted) for frame in frames)])
    kinds = _joined([verdict.kinds for verdict in verdicts])
    lights = _joined([np.where(v.lights < 0, -1, v.lights + o) for v, o in zip(verdicts, offsets, strict=False)])
    taken, missed = (_joined([getattr(v, name) for v in verdicts]).astype(bool) for name in ("found", "missed"))
    truth_ids, counted = _joined([f.class_ids for f in frames]), _joined([f.counted for f in frames]).astype(bool)
    confidences, class_ids = (_joined([getattr(d, key) for d in found]) for key in ("confidences", "class_ids"))

    def score(kept: np.ndarray, right: np.ndarray, ids: np.ndarray, truth: np.ndarray) -> float:
        return average_precision(right[kept], confidences[kept], ids[kept], truth_ids[truth])

    valid, right = kinds != IGNORED, kinds == RIGHT
    now = score(valid, right, class_ids, counted)
    gains = {}
    for kind, name in enumerate(KINDS):
        mended = np.zeros(len(kinds), bool)
        if kind in (CLASS, PLACE):
            open_ones = np.flatnonzero((kinds == kind) & ~np.append(taken, True)[lights])
            surest = open_ones[np.argsort(-confidences[open_ones], kind="stable")]
            mended[surest[np.unique(lights[surest], return_index=True)[1]]] = True
        ids = np.where(mended, np.append(truth_ids, 0)[lights], class_ids)
        gains[name] = score(valid & ((kinds != kind) | mended), right | mended, ids, counted) - now
    asked = counted & ~missed
    gains[MISSED] = (score(valid, right, class_ids, asked) if asked.any() else 1.0) - now
    return gains


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, int)
