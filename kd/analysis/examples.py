"""The worst of each kind, to be shown: which frame, which box, and in a few words what is wrong.

In: frames, lights and verdicts. Out: examples, the worst of different frames first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd.analysis.errors import BACKGROUND, BOTH, CLASS, DUPLICATE, PLACE, Verdict
from kd.analysis.label_errors import Suspect, label_of
from kd.analysis.lights import Lights
from kd.scoring.detection_metrics import Detections, box_iou
from kd.scoring.frames import Frame

SHOWN = 6  # of each kind


@dataclass(frozen=True, slots=True)
class Example:
    """A box of a frame, x1 y1 x2 y2 in its pixels, and what there is to say about it."""

    frame: int
    box_xyxy: tuple[float, float, float, float]
    words: str

    def as_json(self, frames: Sequence[Frame]) -> dict[str, Any]:
        """``{frame, box, what}``."""
        return {"frame": frames[self.frame].name, "box": [round(v, 2) for v in self.box_xyxy], "what": self.words}


def of_lights(
    lights: Lights, chosen: np.ndarray, first: np.ndarray, words: Sequence[str], count: int = SHOWN
) -> list[Example]:
    """Of the chosen lights [K] those in ``first`` [K] before the others, then the largest; ``words`` [K] are theirs."""
    sides = (lights.boxes_xyxy[:, 2:] - lights.boxes_xyxy[:, :2]).min(1, initial=np.inf)
    order = sorted(np.flatnonzero(chosen).tolist(), key=lambda k: (not first[k], -sides[k]))
    return _frames_first((Example(int(lights.frames[k]), _box(lights.boxes_xyxy[k]), words[k]) for k in order), count)


def of_errors(
    kind: int,
    frames: Sequence[Frame],
    found: Sequence[Detections],
    verdicts: Sequence[Verdict],
    names: Mapping[int, str],
) -> list[Example]:
    """The most confident detections of a kind of error."""
    rows = [
        (float(found[f].confidences[i]), f, int(i))
        for f, verdict in enumerate(verdicts)
        for i in np.flatnonzero(verdict.kinds == kind)
    ]
    return _frames_first(
        Example(
            f, _box(found[f].boxes_xyxy[i]), _words(kind, frames[f], found[f][i : i + 1], verdicts[f].lights[i], names)
        )
        for _, f, i in sorted(rows, key=lambda row: (-row[0], row[1:]))
    )


def of_suspects(suspected: Sequence[Suspect], frames: Sequence[Frame], names: Mapping[int, str]) -> list[Example]:
    """Labels that are likely wrong."""
    examples = []
    for suspect in suspected:
        label = label_of(suspect, frames, names)
        words = f"{names[suspect.class_id]} {suspect.confidence:.2f}, " + (f"labelled {label}" if label else "no label")
        examples.append(Example(suspect.frame, suspect.box_xyxy, words))
    return examples


def _words(kind: int, frame: Frame, found: Detections, light: int, names: Mapping[int, str]) -> str:
    """What a detection says of itself, and what is there."""
    seen = f"{names[int(found.class_ids[0])]} {found.confidences[0]:.2f}"
    if kind == BACKGROUND:
        return f"{seen}, nothing labelled"
    there = names[int(frame.class_ids[light])]
    return {
        CLASS: f"{seen} on {there}",
        PLACE: f"{seen}, IoU {box_iou(found.boxes_xyxy, frame.boxes_xyxy[light, None])[0, 0]:.2f}",
        BOTH: f"{seen} near {there}",
        DUPLICATE: f"{seen}, once more",
    }[kind]


def _box(corners: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners.tolist()
    return x1, y1, x2, y2


def _frames_first(examples: Iterable[Example], count: int = SHOWN) -> list[Example]:
    """One of each frame before a second one of any: neighbours often are wrong alike."""
    seen: set[int] = set()
    first: list[Example] = []
    more: list[Example] = []
    for example in examples:
        (more if example.frame in seen else first).append(example)
        seen.add(example.frame)
    return (first + more)[:count]
