"""The images or whole frames of a split with their truth, and what is known of their lights.

In: the view of a data.yaml. Out: frames; a plain image is a frame with one view, itself.
Invariant: the truth of plain images is what Ultralytics reads; frames.jsonl adds cities, attributes and distances.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kd.errors import DataError
from kd.scoring.detection_metrics import box_iou
from kd.scoring.frames import Frame, View, read_frames, require_names_of_report
from kd.ultra.labels import objects_of

SAME_IOU = 0.9  # of a label with the visible part of its light, both of which are rounded


def whole_frames(content: Mapping[str, Any], split: str, images: Sequence[Path]) -> list[Frame]:
    """The frames that dtld cut the images from. Raises DataError where it did not."""
    frames = read_frames(content["path"], split, images, len(content["names"]))
    require_names_of_report(content["path"], content["names"])
    return frames


def plain_images(
    content: Mapping[str, Any], split: str, images: Sequence[Path], single_cls: bool, tell: Callable[[str], None]
) -> list[Frame]:
    """The images, with what is known of their objects where dtld made them; ``tell`` gets a line where that fails."""
    known = _known(content, split, images, tell)
    return [_plain(image, content, single_cls, known.get(image)) for image in images]


def _known(
    content: Mapping[str, Any], split: str, images: Sequence[Path], tell: Callable[[str], None]
) -> dict[Path, tuple[Frame, View]]:
    """The frame behind each image, and the window; of copies that augmentation made there is none."""
    if not (content["path"] / "frames.jsonl").is_file():
        return {}
    try:
        frames = whole_frames(content, split, images)
    except DataError as error:
        tell(f"{error}; so cities and attributes are left out")
        return {}
    return {view.image: (frame, view) for frame in frames for view in frame.views}


def _plain(image: Path, content: Mapping[str, Any], single_cls: bool, known: tuple[Frame, View] | None) -> Frame:
    class_ids, boxes, (width, height) = objects_of(image, content, single_cls)
    name = Path(os.path.relpath(image, content["path"])).as_posix()  # elsewhere, too: folders share file names
    views = (View(image, (0, 0, width, height), 1.0),)
    plain = Frame(name, "", (width, height), boxes, class_ids, np.ones(len(boxes), bool), views)
    if known is None:
        return plain
    frame, view = known
    x1, y1, x2, y2 = view.window_xyxy
    visible = (frame.boxes_xyxy.clip((x1, y1) * 2, (x2, y2) * 2) - (x1, y1) * 2) * view.scale
    iou = np.where(frame.counted, box_iou(boxes, visible), 0)  # [N, M]
    light = np.where(iou.max(1, initial=0) >= SAME_IOU, iou.argmax(1) if iou.shape[1] else 0, -1)
    return replace(
        plain,
        city=frame.city,
        attributes=tuple(frame.attributes[i] if i >= 0 else {} for i in light),
        distances_m=np.append(frame.distances_m, np.nan)[light],
    )
