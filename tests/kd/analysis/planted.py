"""Frames with known lights, and detectors made from the truth by known mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kd.scoring.detection_metrics import Detections
from kd.scoring.frames import Frame, View

NAMES = {0: "red", 1: "green"}
SIZE = (320, 160)
ASIDE, AWAY = np.array([6, 0, 6, 0]), np.array([40, 0, 40, 0])  # the first leaves an IoU of 1 / 3
MISTAKES = ("drop", "shift", "swap", "both", "duplicate", "background")


def make_frames(folder: Path, count: int = 10) -> list[Frame]:
    """Frames of eight lights of 12 x 24 px each, 80 px apart, half of them red; one picture for all of them."""
    image = folder / "frame.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8)).save(image)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(20, 320, 80), (20, 100)))
    boxes = np.stack([x, y, x + 12, y + 24], 1).astype(float)
    class_ids, every = np.arange(8) % 2, np.ones(8, bool)
    views = (View(image, (0, 0, *SIZE), 1.0),)
    return [Frame(f"frame{i:02d}", "", SIZE, boxes, class_ids, every, views) for i in range(count)]


def detector(frames: list[Frame], mistakes: dict[str, int], confidence: float = 0.8) -> list[Detections]:
    """Perfect detections, with mistakes on one light each, the first of them on the first frame's lights.

    The confidence of a mistake is 0.9, of a duplicate 0.5.
    """
    todo = [name for name in MISTAKES for _ in range(mistakes.get(name, 0))]
    found = []
    for frame in frames:
        rows: list[tuple[np.ndarray, float, int]] = []
        for box, class_id in zip(frame.boxes_xyxy, frame.class_ids.tolist(), strict=True):
            what = todo.pop(0) if todo else "none"
            row = (box, confidence, class_id)
            if what == "shift":
                row = (box + ASIDE, 0.9, class_id)
            elif what == "swap":
                row = (box, 0.9, 1 - class_id)
            elif what == "both":
                row = (box + ASIDE, 0.9, 1 - class_id)
            if what != "drop":
                rows.append(row)
            if what == "duplicate":
                rows.append((box, 0.5, class_id))
            elif what == "background":
                rows.append((box + AWAY, 0.9, class_id))
        rows.sort(key=lambda row: -row[1])
        boxes = np.array([box for box, _, _ in rows], float).reshape(-1, 4)
        found.append(Detections(boxes, np.array([c for _, c, _ in rows]), np.array([k for _, _, k in rows], int)))
    assert not todo
    return found
