"""Labels that are likely wrong: where confident detections speak against them.

In: frames and the sure detections of one or two models. Out: suspects, the surest first, and a COCO JSON of them.
Invariant: with two models, both say the same; with one, its confidence alone stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd.analysis.errors import BACKGROUND, CLASS, FOREGROUND_IOU, RIGHT, Verdict
from kd.scoring.detection_metrics import Detections, box_iou
from kd.scoring.frames import Frame

CONFIDENT = 0.6
FIRST_ID = 1  # of COCO's images, categories and annotations, as dtld export counts them


@dataclass(frozen=True, slots=True)
class Suspect:
    """A box that models see as ``class_id``, where the label is another one, ``light`` of the frame, or none, -1.

    ``confidence`` is that of the less confident model.
    """

    frame: int
    box_xyxy: tuple[float, float, float, float]
    class_id: int
    light: int
    confidence: float


def suspects(
    frames: Sequence[Frame], found: Sequence[Sequence[Detections]], verdicts: Sequence[Sequence[Verdict]]
) -> list[Suspect]:
    """What all of one or two models say with `CONFIDENT` confidence against the labels, the surest first.

    ``found`` and ``verdicts`` are per model and frame. A box speaks against the labels if it is background, or right
    but for its class and surer than the box that finds the light, if there is one; it is the first model's. Lights
    that do not count are labels, too: no box on one is a suspect.
    """
    suspected = []
    for number, frame in enumerate(frames):
        mine, *others = [_against(model[number], its[number]) for model, its in zip(found, verdicts, strict=True)]
        boxes, lights = mine
        uncounted = box_iou(boxes.boxes_xyxy, frame.boxes_xyxy[~frame.counted]).max(1, initial=0)
        for i in range(len(boxes)):
            sure = float(boxes.confidences[i])
            for theirs, _ in others:
                same = theirs.class_ids == boxes.class_ids[i]
                same &= box_iou(boxes.boxes_xyxy[i : i + 1], theirs.boxes_xyxy)[0] >= FOREGROUND_IOU
                sure = min(sure, float(theirs.confidences[same].max(initial=0)))
            if sure >= CONFIDENT and uncounted[i] < FOREGROUND_IOU:
                box = tuple(boxes.boxes_xyxy[i].tolist())
                suspected.append(Suspect(number, box, int(boxes.class_ids[i]), int(lights[i]), sure))
    return sorted(suspected, key=lambda suspect: -suspect.confidence)


def _against(found: Detections, verdict: Verdict) -> tuple[Detections, np.ndarray]:
    """The confident detections that speak against the labels, and the lights that they are about."""
    confirmed = np.zeros(len(verdict.found) + 1)  # how surely each label is found; the last place is of no label
    right = verdict.kinds == RIGHT
    confirmed[verdict.lights[right]] = found.confidences[right]
    which = np.isin(verdict.kinds, (BACKGROUND, CLASS)) & (found.confidences >= CONFIDENT)
    which &= found.confidences > confirmed[verdict.lights]
    return found[which], verdict.lights[which]


def as_coco(frames: Sequence[Frame], suspected: Sequence[Suspect], names: Mapping[int, str]) -> str:
    """The suspects as COCO JSON, an annotation each with ``score`` and, under ``attributes``, what is suspected.

    Images are the frames with a suspect, by their names. Category ids are class numbers plus 1.
    """
    used = sorted({suspect.frame for suspect in suspected})
    ids = {number: FIRST_ID + i for i, number in enumerate(used)}
    images = []
    for number in used:
        width, height = frames[number].size_wh
        images.append({"id": ids[number], "file_name": frames[number].name, "width": width, "height": height})
    annotations = []
    for i, suspect in enumerate(suspected):
        x1, y1, x2, y2 = suspect.box_xyxy
        annotations.append(
            {
                "id": FIRST_ID + i,
                "image_id": ids[suspect.frame],
                "category_id": FIRST_ID + suspect.class_id,
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": round((x2 - x1) * (y2 - y1), 3),
                "iscrowd": 0,
                "score": round(suspect.confidence, 4),
                "attributes": {
                    "suspected": "no label" if suspect.light < 0 else "another class",
                    "label": label_of(suspect, frames, names) or "",
                },
            }
        )
    categories = [{"id": FIRST_ID + class_id, "name": name} for class_id, name in names.items()]
    content: dict[str, Any] = {"images": images, "categories": categories, "annotations": annotations}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def label_of(suspect: Suspect, frames: Sequence[Frame], names: Mapping[int, str]) -> str | None:
    """The class that the label has, None where there is no label."""
    return None if suspect.light < 0 else names[int(frames[suspect.frame].class_ids[suspect.light])]
