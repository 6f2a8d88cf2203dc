"""The names of a dataset's images: in them stands where an image comes from. No I/O."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from dtld_tools.types import SequenceId, Window

COPY_NAME = re.compile(r"(.+)_a[1-9][0-9]*(\.[a-z]+)")  # a changed copy's: its original's with _a1, _a2, ...


def image_name(frame: str, sequence: SequenceId, window: Window | None, suffix: str) -> str:
    """``<City>_<Route>_<Sequence>_<stem>[_x<X>_y<Y>].<suffix>``; of ``suffix`` only its ending counts."""
    stem = PurePosixPath(frame).stem
    place = "" if window is None else f"_x{window.x}_y{window.y}"
    return f"{'_'.join(sequence)}_{stem}{place}.{suffix.rpartition('.')[2]}"
