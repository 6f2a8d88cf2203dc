"""What a teacher says about images, in one file that every seed, arm and student may learn from.

In: detections by the SHA-256 of their image. Out: a NumPy archive (.npz) of plain arrays, and the same back.
Invariant: a file is read without unpickling and checked whole, and nothing in it depends on where data or teacher lie.

A row is a detection: its box, and the scores of the classes that it scores highest, all as 16-bit shares of 1.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd.errors import DistillationError
from kd.files import sha256, write_all

FORMAT = 1
CLASSES = 16  # of a row, those with the highest scores; of all others the scores count as 0
IMAGE_BYTES = 2048  # of rows and hash, at most
FULL = 65535  # a share of 1


class Detections(NamedTuple):
    """Those of an image: ``boxes_xywh`` [N, 4] centre and size in 0..1 of the image, ``scores`` [N, K] in 0..1."""

    boxes_xywh: np.ndarray
    scores: np.ndarray


def most_rows(classes: int) -> int:
    """How many rows of so many classes an image has room for.

    >>> most_rows(3), most_rows(80)
    (100, 28)
    """
    return (IMAGE_BYTES - 32) // _row_bytes(classes)


def _row_bytes(classes: int) -> int:
    return 2 * (4 + 2 * min(classes, CLASSES))


@dataclass(frozen=True)
class TeacherCache:
    """The content of a cache: whose rows these are, and the rows of each image.

    ``imgsz`` is the longer image side in pixels that the teacher saw, ``names`` its classes by index, ``starts``
    [M + 1] where the rows of the M images begin, ``rows`` uint16 [N, 4 + 2C]: box, C classes, their C scores.
    """

    teacher_sha256: str
    imgsz: int
    names: tuple[str, ...]
    index: Mapping[str, int]  # SHA-256 of an image -> which one it is
    starts: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(
        cls, teacher_sha256: str, imgsz: int, names: Sequence[str], images: Iterable[tuple[str, Detections]]
    ) -> TeacherCache:
        """A cache of detections by image, the rows of each as they are given; an image that comes again counts once."""
        found = dict(images)
        rows = [_packed(detections) for detections in found.values()]
        starts = np.cumsum([0, *map(len, rows)])
        width = 4 + 2 * min(len(names), CLASSES)
        joined = np.concatenate([np.zeros((0, width), np.uint16), *rows])
        return cls(teacher_sha256, imgsz, tuple(names), {key: i for i, key in enumerate(found)}, starts, joined)

    @classmethod
    def joined(cls, parts: Sequence[TeacherCache]) -> TeacherCache:
        """Caches of one teacher at one size, of different images, as one."""
        images = ((image, part.detections(image)) for part in parts for image in part.index)
        return cls.of(parts[0].teacher_sha256, parts[0].imgsz, parts[0].names, images)

    def rows_of(self, image: str) -> range:
        """Which rows are those of the image of this SHA-256. Raises KeyError."""
        i = self.index[image]
        return range(self.starts[i], self.starts[i + 1])

    def boxes(self, rows: range) -> np.ndarray:
        """Their boxes: centre and size in 0..1 of the image, float32 [N, 4]."""
        return self.rows[rows.start : rows.stop, :4].astype(np.float32) / FULL

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """The scores of all classes of rows by their numbers [N], in 0..1, float32 [N, K + 1]; the last is 0."""
        classes, best = np.split(self.rows[rows, 4:], 2, axis=1)
        scores = np.zeros((len(rows), len(self.names) + 1), np.float32)
        scores[np.arange(len(rows))[:, None], classes] = best.astype(np.float32) / FULL
        return scores

    def detections(self, image: str) -> Detections:
        """What the teacher says of an image. Raises KeyError."""
        rows = self.rows_of(image)
        return Detections(self.boxes(rows), self.scores(np.arange(rows.start, rows.stop))[:, :-1])

    def size(self, file: Path) -> dict[str, int]:
        """How much it holds, and how many bytes the file has that it was written to."""
        return {"images": len(self.index), "rows": len(self.rows), "bytes": file.stat().st_size}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises OSError."""
        about = {"format": FORMAT, "teacher_sha256": self.teacher_sha256, "imgsz": self.imgsz, "names": self.names}
        keys = np.frombuffer(bytes.fromhex("".join(self.index)), np.uint8).reshape(-1, 32)
        file = io.BytesIO()
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez_compressed(
            file, about=text, images=keys, counts=np.diff(self.starts).astype(np.uint16), rows=self.rows
        )
        write_all({path: file.getvalue()})

    @classmethod
    def read(cls, path: Path) -> TeacherCache:
        """The content of a file. Raises DistillationError where there is none of this format, or a damaged one."""
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("no archive" if path.stat().st_size else "an empty file")
            with np.load(path, allow_pickle=False) as file:
                about, images, counts, rows = (file[name] for name in ("about", "images", "counts", "rows"))
            values = json.loads(about.tobytes())
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}")
            names, imgsz, teacher = (
                tuple(map(str, values["names"])),
                int(values["imgsz"]),
                str(values["teacher_sha256"]),
            )
            width = 4 + 2 * min(len(names), CLASSES)
            kinds = [(array.dtype.name, array.shape[1:]) for array in (images, counts, rows)]
            if kinds != [("uint8", (32,)), ("uint16", ()), ("uint16", (width,))] or not names:
                raise ValueError("arrays of other kinds")
            if (
                len(images) != len(counts)
                or counts.sum() != len(rows)
                or (rows[:, 4 : width // 2 + 2] >= len(names)).any()
            ):
                raise ValueError("arrays that contradict each other")
        except OSError as error:
            raise DistillationError(f"{path}: got {error.strerror or error}, expected a file of kd cache") from error
        except Exception as error:  # whatever a damaged file makes of zip, zlib, NumPy and JSON
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise DistillationError(
                f"{path}: got no file of kd cache ({reason}), expected one: make it anew"
            ) from error
        keys = images.tobytes().hex()
        index = {keys[i : i + 64]: i // 64 for i in range(0, len(keys), 64)}
        return cls(teacher, imgsz, names, index, np.cumsum([0, *counts]), rows)


def _packed(detections: Detections) -> np.ndarray:
    """Detections as rows, uint16 [N, 4 + 2C]."""
    boxes, scores = detections
    best = np.argsort(-scores, axis=1, kind="stable")[:, :CLASSES]  # [N, C]
    shares = np.concatenate((boxes, np.take_along_axis(scores, best, axis=1)), axis=1)
    whole = np.rint(np.clip(shares, 0, 1) * FULL)
    return np.concatenate((whole[:, :4], best, whole[:, 4:]), axis=1).astype(np.uint16)


def image_sha256(file: Path) -> str:
    """The SHA-256 of an image file, as hex digits; read once while it stays as it is."""
    stat = os.stat(file)
    return _image_sha256(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1_000_000)
def _image_sha256(file: str, size: int, changed: int) -> str:
    return sha256(Path(file))
