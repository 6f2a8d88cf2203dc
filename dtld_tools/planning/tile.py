"""A frame's size and lights in, tiles with clipped targets out: windows and the keep rule. No pixels, no I/O.

Invariant: a light that a window shows is there as a target or as a sliver, never silently left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dtld_tools.geometry import clip_boxes, to_image
from dtld_tools.types import LightId, Target, Tile, TileSpec, Window


def windows(width: int, height: int, spec: TileSpec) -> list[Window]:
    """The windows of a frame, row by row, in frame pixels.

    >>> [w.x for w in windows(2048, 1024, TileSpec())][:4]
    [0, 469, 939, 1408]
    >>> windows(2048, 1024, TileSpec(layout="halves"))
    [Window(x=0, y=0, w=1024, h=1024), Window(x=1024, y=0, w=1024, h=1024)]
    """
    if spec.layout == "frame":
        return [Window(0, 0, width, height)]
    if spec.layout == "halves":
        side, least_overlap = min(width, height), 0.0
    else:
        side, least_overlap = spec.size_px, spec.overlap
    xs, ys = (_offsets(length, side, least_overlap) for length in (width, height))
    return [Window(x, y, side, side) for y in ys for x in xs]


def tile_frame(width: int, height: int, lights: Sequence[Target], spec: TileSpec) -> list[Tile]:
    """Cut a frame's lights (frame pixels, inside the frame) into the tiles of ``spec``."""
    return [_tile(window, lights, spec) for window in windows(width, height, spec)]


def image_size(window: Window, scale: float) -> tuple[int, int]:
    """Width and height in pixels of the image that shows ``window`` at ``scale``."""
    return round(window.w * scale), round(window.h * scale)


def targets_in(window: Window, scale: float, lights: Sequence[Target]) -> list[Target]:
    """The lights that a window shows, clipped, in image pixels: the one way from frame to image coordinates."""
    clipped = clip_boxes([light.box for light in lights], window)
    return [
        Target(light.class_id, to_image(box, window, scale), light.light_id)
        for light, box in zip(lights, clipped, strict=True)
        if box is not None
    ]


def _tile(window: Window, lights: Sequence[Target], spec: TileSpec) -> Tile:
    scale = spec.size_px / window.w if spec.layout == "halves" else 1.0
    areas = {light.light_id: light.box.area for light in lights}
    targets: list[Target] = []
    slivers: dict[LightId, str] = {}
    for target in targets_in(window, scale, lights):
        visible = target.box.area / scale**2 / areas[target.light_id]
        if visible < spec.min_visible - 1e-9:  # a box wholly inside must not fail by rounding
            slivers[target.light_id] = "min_visible"
        elif min(target.box.width, target.box.height) < spec.min_side_px - 1e-9:
            slivers[target.light_id] = "min_side"
        else:
            targets.append(target)
    return Tile(window, scale, tuple(targets), slivers)


def _offsets(length: int, side: int, least_overlap: float) -> list[int]:
    """Evenly spaced, rounded starts that cover ``length``; the last window ends flush with the edge."""
    if length <= side:
        return [0]
    stride = max(1, math.floor(side * (1 - least_overlap) + 1e-9))
    count = math.ceil((length - side) / stride) + 1
    return [round(index * (length - side) / (count - 1)) for index in range(count)]
