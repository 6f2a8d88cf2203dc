"""Crops of frames, big enough to see, with the boxes of truth and models drawn around their objects.

In: a frame and boxes in its pixels. Out: a JPEG.
Invariant: a crop lies inside its frame and holds the box that it is of, whole.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kd.scoring.frames import Frame, View
from kd.scoring.predict import read_image

SIDE_PX = 288  # of a crop's longer side in the page
CONTEXT, LEAST_PX = 3.0, 32.0  # a crop's side in longer sides of its box, and at least in frame pixels
TRUTH = "#ffffff"
OF_MODEL = ("#ff8c1a", "#00b7eb")  # Okabe and Ito's orange and sky blue, as kd predict has them
CASING, PAPER = "#1a1a1a", "#727272"
THICK, THIN = 6, 3  # pixels of a line around the box that a crop is of, and around others
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Boxes [N, 4], x1 y1 x2 y2 in frame pixels, that are outlined in one colour."""

    boxes_xyxy: np.ndarray
    colour: str


def region_of(box_xyxy: Sequence[float], size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """The square around a box that is shown, moved into the frame and cut to its size.

    >>> region_of((0, 0, 10, 20), (100, 100))
    (0.0, 0.0, 60.0, 60.0)
    """
    x1, y1, x2, y2 = box_xyxy
    side = max(CONTEXT * max(x2 - x1, y2 - y1), LEAST_PX)
    w, h = (min(side, length) for length in size_wh)
    left = min(max((x1 + x2 - w) / 2, 0), size_wh[0] - w)
    top = min(max((y1 + y2 - h) / 2, 0), size_wh[1] - h)
    return float(left), float(top), float(left + w), float(top + h)


def crop(frame: Frame, box_xyxy: Sequence[float], layers: Sequence[Layer]) -> bytes:
    """A JPEG of a box with what is around it, put together of the frame's images; later layers lie on top.

    The box is outlined in thicker lines, by each layer that has it.
    """
    region = region_of(box_xyxy, frame.size_wh)
    zoom = SIDE_PX / max(region[2] - region[0], region[3] - region[1])
    width, height = (max(1, round((region[i + 2] - region[i]) * zoom)) for i in (0, 1))
    page = Image.new("RGB", (width, height), PAPER)
    for view in frame.views:
        _paste(page, view, region, zoom)
    pen = ImageDraw.Draw(page)
    lines = [(corners, layer.colour) for layer in layers for corners in layer.boxes_xyxy]
    for chosen in (True, False):  # the box itself thicker, and below: boxes that agree with it stay visible
        for corners, colour in lines:
            if np.array_equal(corners, box_xyxy) is chosen:
                _outline(pen, ((corners - np.tile(region[:2], 2)) * zoom).tolist(), colour, THICK if chosen else THIN)
    file = io.BytesIO()
    page.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _paste(page: Image.Image, view: View, region: Sequence[float], zoom: float) -> None:
    """Draw what an image shows of a region of its frame."""
    low, high = np.maximum(view.window_xyxy[:2], region[:2]), np.minimum(view.window_xyxy[2:], region[2:])
    if (low >= high).any():
        return
    picture = _picture(view.image, view.image.stat().st_mtime_ns)
    part = np.concatenate([low, high]) - np.tile(view.window_xyxy[:2], 2)
    box = tuple((part * view.scale).clip(0, np.tile(picture.size, 2)).tolist())
    start = np.floor((low - region[:2]) * zoom).astype(int)
    end = np.ceil((high - region[:2]) * zoom).astype(int)
    page.paste(picture.resize(tuple((end - start).tolist()), Image.Resampling.BICUBIC, box), tuple(start.tolist()))


@lru_cache(maxsize=8)  # a frame's tiles, for the crops that show it one after the other
def _picture(path: Path, changed_ns: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(read_image(path)[:, :, ::-1]))  # OpenCV's order is BGR


def _outline(pen: ImageDraw.ImageDraw, corners: Sequence[float], colour: str, thickness: int) -> None:
    """A line around a box from outside, with a dark edge, so that it is seen on any ground."""
    x1, y1, x2, y2 = corners
    for reach, shade in ((thickness + 1, CASING), *((reach, colour) for reach in range(thickness, 0, -1))):
        pen.rectangle((round(x1) - reach, round(y1) - reach, round(x2) + reach - 1, round(y2) + reach - 1), None, shade)
