"""The names of a dataset's files: an image's name says where it comes from, and its label file lies by it. No I/O."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from dtld_tools.files import UNFINISHED
from dtld_tools.types import ImageRecord, SequenceId, Window

REPORT = "report.json"
OWN = ("images", "labels", "frames.jsonl", "manifest.jsonl", "data.yaml")  # all that a dataset is, but its report
COPY_NAME = re.compile(r"(.+)_a[1-9][0-9]*(\.[a-z]+)")  # a changed copy's: its original's with _a1, _a2, ...


def image_name(frame: str, sequence: SequenceId, window: Window | None, suffix: str) -> str:
    """``<City>_<Route>_<Sequence>_<stem>[_x<X>_y<Y>].<suffix>``; of ``suffix`` only its ending counts.

    A backslash, which readers of COCO take for a slash, becomes ``_``.
    """
    stem = PurePosixPath(frame).stem
    place = "" if window is None else f"_x{window.x}_y{window.y}"
    return f"{'_'.join(sequence)}_{stem}{place}.{suffix.rpartition('.')[2]}".replace("\\", "_")


def image_path(root: Path, image: ImageRecord) -> Path:
    """Where an image of the dataset lies."""
    return root / image_file(image)


def label_path(root: Path, image: ImageRecord) -> Path:
    """Where the image's label file lies."""
    return root / label_file(image)


def image_file(image: ImageRecord) -> str:
    """An image's place below the dataset's folder."""
    return f"images/{image.split}/{image.name}"


def label_file(image: ImageRecord) -> str:
    """Its label file's place below the dataset's folder."""
    return f"labels/{image.split}/{image.name.rpartition('.')[0]}.txt"


def files_of(root: Path) -> list[Path]:
    """All that a dataset is made of: what a file written for it must not lie in, or replace."""
    return [root / name for name in (*OWN, REPORT, UNFINISHED)]
