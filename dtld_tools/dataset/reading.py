"""The lines and the report of a dataset on disk in, checked values out.

A stage stops at the first line that is wrong; `dtld validate` gives a list that takes them all, so that none hides
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import fastjsonschema

import schemas
from dtld_tools.dataset.names import REPORT
from dtld_tools.dataset.records import frame_from_json, image_from_json
from dtld_tools.errors import DatasetError
from dtld_tools.types import FrameRecord, ImageRecord
from schemas import strict
from schemas.strict import StrictError

IMPORTS = " (dtld convert imports what others made)"


def read_frames(root: Path) -> Iterator[FrameRecord]:
    """The lines of frames.jsonl in order, each checked against its schema. Raises DatasetError."""
    return (frame_from_json(line) for _, line in read_lines(root / "frames.jsonl", "frame"))


def read_images(root: Path) -> Iterator[ImageRecord]:
    """The lines of manifest.jsonl in order, each checked against its schema. Raises DatasetError."""
    return (image_from_json(line) for _, line in read_lines(root / "manifest.jsonl", "manifest"))


def read_frames_with_images(root: Path) -> Iterator[tuple[FrameRecord, tuple[ImageRecord, ...]]]:
    """Each frame with its images; both files are in the order of the frames, so one frame is held at a time.

    Raises DatasetError if the manifest names a frame that frames.jsonl does not have, or in another order.
    """
    by_frame = groupby(read_images(root), key=lambda image: image.frame)
    name, images = next(by_frame, (None, iter(())))
    for frame in read_frames(root):
        own: tuple[ImageRecord, ...] = ()
        if name == frame.frame:
            own = tuple(images)
            name, images = next(by_frame, (None, iter(())))
        yield frame, own
    for image in images:  # of a frame that never came
        where = f"{root / 'manifest.jsonl'}: {image.name}"
        raise DatasetError(f"{where}: its frame is not in frames.jsonl or not in its order")


def read_lines(path: Path, schema: str, defects: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The byte offset and the object of each line that satisfies its schema.

    The first other line raises DatasetError; with ``defects``, each becomes one of them. So does a missing file.
    """
    check, offset = _validator(schema), 0
    where: Path | str = path
    subject, hint = "line", IMPORTS
    if defects is not None:
        where, subject, hint = path.name, "the line", " (--near-duplicates alone works on any YOLO dataset)"
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    found = check(strict.load_json(line))
                except (StrictError, fastjsonschema.JsonSchemaValueException) as error:
                    reason = str(error).replace("data", subject, 1)
                    defect = f"{where}: line {number}: {reason}; make the dataset again"
                    if defects is None:
                        raise DatasetError(defect) from error
                    defects.append(defect)
                else:
                    yield offset, found
                offset += len(line)
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}; expected a dataset made by dtld convert, tile or prepare{hint}"
        ) from error


def read_report(root: Path, defects: list[str]) -> tuple[dict[str, Any], bool]:
    """report.json, empty where there is none, and whether it satisfies its schema; if not, ``defects`` says why."""
    report: Any = {}
    try:
        report = strict.read_json(root / REPORT)
        _validator("report")(report)
    except OSError as error:
        defects.append(f"{REPORT}: {error.strerror}, expected the report of dtld{IMPORTS}")
    except StrictError as error:
        defects.append(f"{REPORT}: {error}; expected the report of dtld")
    except fastjsonschema.JsonSchemaValueException as error:
        defects.append(f"{REPORT}: {str(error).replace('data', 'the report', 1)}")
    else:
        return report, True
    return report if isinstance(report, dict) else {}, False


@lru_cache
def _validator(schema: str) -> Callable[[Any], Any]:
    """A function that raises JsonSchemaValueException unless its argument satisfies a schema of schemas/."""
    return fastjsonschema.compile(schemas.load(schema), use_default=False)
