"""Box and window arithmetic in pixels; the only user of shapely. No I/O.

Boxes go in and come out as `Box`; a box without area never comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from dtld_tools.types import Box, Window


def clip_boxes(boxes: Sequence[Box], window: Box | Window) -> list[Box | None]:
    """Intersect each box with a window, in the boxes' own coordinates; None where no area is left.

    >>> clip_boxes([Box(-5, 2, 5, 8), Box(20, 0, 30, 9)], Window(0, 0, 10, 10))
    [Box(x1=0.0, y1=2.0, x2=5.0, y2=8.0), None]
    """
    if not boxes:
        return []
    if isinstance(window, Window):
        window = Box.from_xywh(*window)
    corners = np.asarray(boxes, dtype=np.float64)  # [N, 4]
    solid = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])  # [N]
    clipped = np.full_like(corners, np.nan)
    clipped[solid] = shapely.bounds(shapely.clip_by_rect(shapely.box(*corners[solid].T), *window))
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])  # NaN compares false
    return [Box(*row) if keep else None for row, keep in zip(clipped.tolist(), has_area, strict=True)]


def to_image(box: Box, window: Window, scale: float) -> Box:
    """Frame pixels to the pixels of the image that shows ``window`` at ``scale``.

    >>> to_image(Box(110, 60, 120, 90), Window(100, 50, 64, 64), 0.5)
    Box(x1=5.0, y1=5.0, x2=10.0, y2=20.0)
    """
    return Box(
        (box.x1 - window.x) * scale,
        (box.y1 - window.y) * scale,
        (box.x2 - window.x) * scale,
        (box.y2 - window.y) * scale,
    )
