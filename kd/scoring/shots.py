"""Frames to look at, from image files, folders and videos, one at a time.

In: paths. Out: named pictures in the order of time, where a folder or a video is one sequence.
Invariant: one frame is in memory at a time, whatever the number of files and the length of a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kd.errors import DataError, UsageError
from kd.scoring.predict import expand, read_image
from kd.ultra.depth import require_8_bit

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A frame: ``picture`` [H, W, 3] in BGR, and the folder or video whose frames follow each other in time.

    ``name`` is what its results are called: that of its file without the ending, or a video's with the frame's number.
    """

    name: str
    file_name: str
    sequence: Path
    picture: np.ndarray

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.shape[1], self.picture.shape[0]


def find_files(given: Sequence[str | Path], limit: int | None = None) -> list[Path]:
    """Images and videos: files as they are, folders as their images in sorted order, or the first ``limit`` of them.

    Raises DataError for what is not there or has more than 8 bits, UsageError where two would have one name.
    """
    files = expand(given, limit)
    named: dict[str, Path] = {}
    for file in files:
        if (other := named.setdefault(file.stem, file)) is not file:
            raise UsageError(f"{other} and {file}: got two frames for one name, {file.stem}, expected one: give one")
    images = [file for file in files if not is_video(file)]
    require_8_bit(str(images[0].parent) if images else "", images)
    return files


def is_video(file: Path) -> bool:
    """Whether a file is read as a video, by its name."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def count_shots(files: Sequence[Path]) -> int | None:
    """How many frames there are, as the videos say it, for a progress bar; None where one does not."""
    counts = [_length(_opened(file)) if is_video(file) else 1 for file in files]
    return sum(counts) if all(counts) else None


def read_shots(files: Sequence[Path], tell: Callable[[str], None]) -> Iterator[Shot]:
    """The frames of images and videos; ``tell`` gets a line of a video that ends too early. Raises DataError."""
    for file in files:
        if is_video(file):
            yield from _frames_of(file, tell)
        else:
            yield Shot(file.stem, file.name, file.parent, read_image(file))


def _frames_of(file: Path, tell: Callable[[str], None]) -> Iterator[Shot]:
    video, number = _opened(file), 0
    expected = _length(video)
    while True:
        there, picture = video.read()
        if not there:
            break
        number += 1
        name = f"{file.stem}_{number:06d}"
        yield Shot(name, name, file, picture)
    if not number:
        raise DataError(f"{file}: got a video without a frame that OpenCV can decode, expected one: convert it")
    if number < expected:
        tell(f"{file}: got {number} frames that OpenCV can decode, expected {expected}, as the video says it has")


def _opened(file: Path) -> cv2.VideoCapture:
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # gives the level before
    try:
        video = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not video.isOpened():
        raise DataError(f"{file}: got no video that OpenCV can read, expected one such as .mp4: convert it")
    return video


def _length(video: cv2.VideoCapture) -> int:
    """Frames of a video by its header; 0 where it names none."""
    return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
