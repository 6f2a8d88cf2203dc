"""A frame's source in, its images and label files on disk and its lines out: what a worker process does.

Invariant: an image that has its name is complete and has its label file, so a second run makes only what is missing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dtld_tools.dataset.names import image_file, label_file
from dtld_tools.dataset.records import frame_to_json, image_to_json, label_text
from dtld_tools.dataset.tally import Tally
from dtld_tools.errors import ImageError
from dtld_tools.files import UNFINISHED, write, write_atomically
from dtld_tools.pixels.augment import apply_recipe
from dtld_tools.pixels.disparity import DISPARITY_PX, Stereo
from dtld_tools.pixels.images import (
    crop,
    encode_image,
    paint_over,
    read_disparity,
    read_encoded,
    read_image,
    refuse_turned,
)
from dtld_tools.planning.plan import FramePlan, Job
from dtld_tools.planning.tile import image_size, targets_in
from dtld_tools.types import Dropped, FrameRecord, ImageRecord, Target


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a frame: its lines of frames.jsonl and manifest.jsonl and their counts, or why it failed.

    ``verbatim`` says that its source is a finished dataset, in which nothing may fail; ``blind`` why its disparity
    image gives no distances.
    """

    frame: str
    lights: int
    frame_line: bytes = b""
    image_lines: bytes = b""
    tally: Tally | None = None
    failure: str | None = None
    verbatim: bool = False
    blind: str | None = None


@dataclass(frozen=True, slots=True)
class Render:
    """Plan one frame and make the images and labels of it that are not there yet.

    A frame that cannot be read leaves nothing behind.
    """

    cut: Callable[[Any], FramePlan]
    out: str

    def __call__(self, source: Any) -> Made:
        """Runs in a worker process; raises OSError where the disk does not take a file."""
        plan = self.cut(source)
        frame, images = plan.frame, tuple(plan.images)
        made = partial(Made, frame.frame, len(frame.lights) + len(frame.dropped))
        try:
            for job in plan.jobs:
                self._render(job, frame)
        except ImageError as error:
            for path in (path for image in images for path in self._paths(image)):
                with suppress(FileNotFoundError):
                    os.unlink(path)
            return made(failure=str(error), verbatim=plan.jobs[0].verbatim)
        blind = None
        if plan.disparity and plan.stereo:
            try:
                frame = _measured(frame, _read_disparity(plan.disparity, frame.width), plan.stereo)
            except ImageError as error:
                blind = str(error)
        tally = Tally()
        tally.add(frame, images)
        return made(
            _line(frame_to_json(frame)),
            b"".join(_line(image_to_json(image)) for image in images),
            tally,
            blind=blind,
        )

    def _render(self, job: Job, frame: FrameRecord) -> None:
        pixels = None
        for image in job.images:
            path, label_path = self._paths(image)
            is_there = os.path.exists(path)
            if is_there and os.path.exists(label_path) and not _is_older(path, job.source):
                continue
            size_wh = image_size(image.window, image.scale)
            seen = targets_in(image.window, image.scale, frame.lights)
            targets = [target for target in seen if target.light_id in image.targets]
            if job.verbatim and image.augmentation is None:
                data: bytes | memoryview = _read_bytes(job.source)
            else:
                if pixels is None:
                    pixels = _read_source(job, frame)
                data = _encode(image, pixels, job, frame, targets)
            # The label goes first: an image that has its name has its label. Half a label without its image is made
            # anew, so it needs a second name only where the image is there already.
            scratch, text = f"{self.out}/{UNFINISHED}", label_text(targets, size_wh).encode()
            write_atomically(label_path, text, scratch) if is_there else write(label_path, text)
            write_atomically(path, data, scratch)

    def _paths(self, image: ImageRecord) -> tuple[str, str]:
        # Plain strings: paths as objects would cost half a millisecond a frame.
        return f"{self.out}/{image_file(image)}", f"{self.out}/{label_file(image)}"


def _encode(
    image: ImageRecord, pixels: np.ndarray, job: Job, frame: FrameRecord, targets: Sequence[Target]
) -> bytes | memoryview:
    """The file of an image; a whole frame that stays as it is keeps its bytes where the format is the same."""
    suffix = os.path.splitext(image.name)[1]
    is_whole = image.window == (0, 0, frame.width, frame.height) and image.scale == 1
    if is_whole and not (image.masked or image.augmentation) and (data := read_encoded(job.source, suffix)):
        return data
    size_wh = image_size(image.window, image.scale)
    part = pixels if job.verbatim else crop(pixels, *image.window, size_wh)
    if image.masked and not job.verbatim:
        part = paint_over(part, _masked(image, frame), [target.box for target in targets])
    if image.augmentation is not None:
        part = apply_recipe(part, image.augmentation)
    return encode_image(part, suffix)


def _read_disparity(path: Path, width_px: int) -> np.ndarray:
    """A frame's disparity image; one of another width might be a part of it, or count other pixels."""
    disparity = read_disparity(path)
    if disparity.shape[1] not in (DISPARITY_PX, width_px / 2):
        raise ImageError(
            f"{path}: got a width of {disparity.shape[1]} pixels, expected {DISPARITY_PX}, "
            f"or half its frame's {width_px}"
        )
    return disparity


def _measured(frame: FrameRecord, disparity: np.ndarray, stereo: Stereo) -> FrameRecord:
    """The frame with the distance of each light that has a box, as far as the disparity image knows it."""
    lights: list[Target | Dropped] = [*frame.lights, *frame.dropped]
    boxes = [light.box for light in lights if light.box is not None]
    distances = iter(stereo.distances(disparity, boxes, frame.width))
    return replace(
        frame,
        lights=tuple(replace(light, distance_m=next(distances)) for light in frame.lights),
        dropped=tuple(
            light if light.box is None else replace(light, distance_m=next(distances)) for light in frame.dropped
        ),
    )


def _is_older(path: str, source: Path) -> bool:
    """Whether the source was written, or put where it is, after the image was made: maybe another frame of its size."""
    with suppress(OSError):  # a source that is gone is reported when it is read
        status = os.stat(source)
        return os.stat(path).st_mtime_ns < max(status.st_mtime_ns, status.st_ctime_ns)
    return False


def _masked(image: ImageRecord, frame: FrameRecord) -> list[Any]:
    """The slivers' boxes in image pixels; a sliver may be in no other image, and so stand among the dropped."""
    dropped = [Target(0, d.box, d.light_id) for d in frame.dropped if d.box is not None]
    seen = targets_in(image.window, image.scale, (*frame.lights, *dropped))
    return [target.box for target in seen if target.light_id in image.masked]


def _read_source(job: Job, frame: FrameRecord) -> np.ndarray:
    pixels = read_image(job.source, shown=job.shown)
    height, width = pixels.shape[:2]
    if not job.verbatim and (width, height) != (frame.width, frame.height):
        raise ImageError(f"{job.source}: decoded to {width} x {height} pixels, expected {frame.width} x {frame.height}")
    return pixels


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; the dataset is damaged, see dtld validate") from error
    refuse_turned(path, io.BytesIO(data))
    return data


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
