"""What a threshold buys and costs: precision and recall over confidence, and false alarms for a given recall.

In: every detection's confidence, class and verdict. Out: curves and rows of plain figures.
Invariant: at the working threshold the curves have the figures that the rest of the page has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.analysis.errors import RIGHT, Verdict
from kd.analysis.lights import Lights
from kd.scoring.detection_metrics import Detections

STEPS = np.round(np.arange(0.01, 1.0, 0.01), 2)
GOALS = (0.8, 0.9, 0.95, 0.99)


def curves(
    found: Sequence[Detections], verdicts: Sequence[Verdict], lights: Lights, names: Mapping[int, str]
) -> dict[str, dict[str, list[float | None]]]:
    """Per class precision and recall at each of `STEPS`, None where there is no detection or no light."""
    confidences, class_ids, kinds = _joined(found, verdicts)
    rows = {}
    for class_id, name in names.items():
        mine, count = class_ids == class_id, int((lights.class_ids == class_id).sum())
        right, wrong = (
            _at_least(confidences[mine & which], STEPS) for which in (kinds == RIGHT, kinds >= 0)
        )  # [99] each
        rows[name] = {
            "precision": [r / (r + w) if r + w else None for r, w in zip(right.tolist(), wrong.tolist(), strict=True)],
            "recall": [r / count if count else None for r in right.tolist()],
        }
    return rows


def goals(
    found: Sequence[Detections], verdicts: Sequence[Verdict], lights: Lights, wanted: np.ndarray
) -> list[dict[str, Any]]:
    """For each of `GOALS` the highest threshold with that recall of the ``wanted`` lights [K], and what it costs.

    Rows of ``{recall, confidence, false_alarms_per_frame, most}``; false alarms are wrong detections of any class.
    Where no threshold reaches the recall both are None; ``most`` is the greatest recall that there is.
    """
    surest = confidence_of(found, verdicts, lights)[wanted]
    surest = -np.sort(-surest)
    confidences, _, kinds = _joined(found, verdicts)
    wrong = confidences[kinds >= 0]
    rows = []
    for goal in GOALS:
        needed = math.ceil(goal * len(surest) - 1e-9)
        reached = needed > 0 and surest[needed - 1] > 0
        threshold = float(surest[needed - 1]) if reached else None
        alarms = int((wrong >= threshold).sum()) / len(found) if threshold is not None else None
        most = float((surest > 0).mean()) if len(surest) else None
        rows.append({"recall": goal, "confidence": threshold, "false_alarms_per_frame": alarms, "most": most})
    return rows


def confidence_of(found: Sequence[Detections], verdicts: Sequence[Verdict], lights: Lights) -> np.ndarray:
    """The confidence with which each light is found, 0 for one that is not: [K]."""
    by_frame = []
    for detections, verdict in zip(found, verdicts, strict=True):
        sure = np.zeros(len(verdict.found))
        right = verdict.kinds == RIGHT
        sure[verdict.lights[right]] = detections.confidences[right]
        by_frame.append(sure)
    pairs = zip(lights.frames, lights.places, strict=True)
    return np.array([by_frame[frame][place] for frame, place in pairs], float)


def _joined(found: Sequence[Detections], verdicts: Sequence[Verdict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.concatenate([detections.confidences for detections in found]),
        np.concatenate([detections.class_ids for detections in found]),
        np.concatenate([verdict.kinds for verdict in verdicts]),
    )


def _at_least(confidences: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many confidences are at least each threshold."""
    return len(confidences) - np.searchsorted(np.sort(confidences), thresholds, side="left")
