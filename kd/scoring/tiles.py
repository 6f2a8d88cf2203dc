"""Frames cut into tiles in memory, and a detector that looks at them in batches.

In: pictures of frames. Out: detections per tile, in its pixels.
Invariant: windows and padding are those of `dtld tile`, boxes those that Ultralytics' validator scores.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend

from kd.config import NUMBERS
from kd.errors import UsageError
from kd.scoring.detection_metrics import Detections
from kd.scoring.frames import View
from kd.ultra.exported import Exported
from kd.ultra.session import silence

PAD_GREY = 114  # around a frame smaller than a tile, as dtld tile and Ultralytics have it


@dataclass(frozen=True, slots=True)
class Grid:
    """Square windows at native resolution that cover a frame and overlap by at least a share of their side."""

    tile_px: int = 640
    overlap: float = 0.2

    def __post_init__(self) -> None:
        least, most = NUMBERS["imgsz"]
        if not least <= self.tile_px <= most:
            raise UsageError(f"--tile-size: got {self.tile_px}, expected {least} to {most} pixels")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"--overlap: got {self.overlap}, expected a share from 0 to 0.9")

    def views(self, size_wh: tuple[int, int], image: Path) -> tuple[View, ...]:
        """The windows of a frame, row by row, evenly spaced, the last ones flush with its edges.

        >>> [view.window_xyxy[:2] for view in Grid().views((2048, 1024), Path("a.jpg"))][:5]
        [(0, 0), (469, 0), (939, 0), (1408, 0), (0, 384)]
        """
        width, height = size_wh
        xs, ys = (self._offsets(length) for length in size_wh)
        ends = [(x, y, min(x + self.tile_px, width), min(y + self.tile_px, height)) for y in ys for x in xs]
        return tuple(View(image, window, 1.0) for window in ends)

    def cut(self, picture: np.ndarray, view: View) -> np.ndarray:
        """A tile [tile, tile, 3] of a picture; what lies beyond its right and lower edge is grey."""
        x1, y1, x2, y2 = view.window_xyxy
        right, below = self.tile_px - (x2 - x1), self.tile_px - (y2 - y1)
        part = picture[y1:y2, x1:x2]
        if not right and not below:
            return part
        return cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(PAD_GREY,) * 3)

    def _offsets(self, length: int) -> list[int]:
        if length <= self.tile_px:
            return [0]
        stride = max(1, math.floor(self.tile_px * (1 - self.overlap) + 1e-9))
        count = math.ceil((length - self.tile_px) / stride) + 1
        return [round(i * (length - self.tile_px) / (count - 1)) for i in range(count)]


class TileDetector:
    """A model over square tiles [S, S, 3] in BGR, at most ``batch`` at once, seen at ``imgsz`` pixels.

    Preparing and choosing boxes is the validator's: its defaults but for the confidence, and every class of a box that
    reaches it.
    """

    def __init__(self, yolo: YOLO, *, imgsz: int, conf: float, batch: int, device: torch.device) -> None:
        whole = isinstance(yolo, Exported) and not yolo.card.is_dynamic  # made for one image at a time
        self.imgsz, self.batch, self.device = imgsz, 1 if whole else batch, device
        with silence(), tempfile.TemporaryDirectory(prefix="kd-predict-") as scratch:
            self._model = AutoBackend(yolo.model, device=device, verbose=False, end2end=False).eval()
            args = {"task": yolo.task, "imgsz": imgsz, "conf": conf, "plots": False}
            self._validator = yolo.task_map[yolo.task]["validator"](save_dir=Path(scratch), args=args)
        self._validator.end2end = getattr(self._model, "end2end", False)

    @torch.inference_mode()
    def __call__(self, tiles: Sequence[np.ndarray]) -> list[Detections]:
        """What it finds in each tile, the surest first."""
        found: list[Detections] = []
        with silence():  # around all of them: entering it clears the cache of every logger
            for some in (tiles[i : i + self.batch] for i in range(0, len(tiles), self.batch)):
                side = some[0].shape[0]
                if side != self.imgsz:
                    some = [cv2.resize(tile, (self.imgsz,) * 2, interpolation=cv2.INTER_LINEAR) for tile in some]
                pixels = cv2.dnn.blobFromImages(some, swapRB=True, ddepth=cv2.CV_8U)  # a quarter of float32, to a GPU
                images = torch.from_numpy(pixels).to(self.device) / 255
                found += self._choose(self._model(images), side)
        return found

    def _choose(self, predictions: object, side: int) -> Iterator[Detections]:
        for chosen in self._validator.postprocess(predictions):
            boxes, confidences, classes = (chosen[key].float().cpu().numpy() for key in ("bboxes", "conf", "cls"))
            boxes = (boxes / np.float32(self.imgsz / side)).clip(0, side)
            yield Detections(boxes, confidences, classes.astype(int))
