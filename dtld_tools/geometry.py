"""Box and window arithmetic in pixels; the only user of shapely. No I/O.

Boxes go in and come out as `Box`; a box without area never comes out.
"""

from __future__ import annotations

from collections.abc import Iterable

import shapely

from dtld_tools.types import Box, Window


def clip_boxes(boxes: Iterable[Box], window: Box | Window) -> list[Box | None]:
    """Intersect each box with a window, in the boxes' own coordinates; None where no area is left.

    >>> clip_boxes([Box(-5, 2, 5, 8), Box(20, 0, 30, 9), Box(1, 1, 2, 2)], Window(0, 0, 10, 10))
    [Box(x1=0.0, y1=2.0, x2=5.0, y2=8.0), None, Box(x1=1, y1=1, x2=2, y2=2)]
    """
    left, top, right, bottom = Box.from_xywh(*window) if isinstance(window, Window) else window
    clipped: list[Box | None] = []
    for box in boxes:
        x1, y1, x2, y2 = box
        # Nearly every box lies wholly inside or outside, which four comparisons tell 20 times faster than shapely.
        if x1 >= x2 or y1 >= y2 or x2 <= left or x1 >= right or y2 <= top or y1 >= bottom:
            clipped.append(None)
        elif left <= x1 and x2 <= right and top <= y1 and y2 <= bottom:
            clipped.append(box)
        else:
            part = Box(*shapely.clip_by_rect(shapely.box(*box), left, top, right, bottom).bounds)
            clipped.append(part if part.x1 < part.x2 and part.y1 < part.y2 else None)  # an empty part is NaN
    return clipped


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
