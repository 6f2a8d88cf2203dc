"""Parsed labels in, sources out: which frames there are, where they lie, their size, split and classes.

No pixel is read, only image headers. Every light of a selected frame is in its line, or goes with a skipped
frame that is named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Protocol

from dtld_tools.dataset.consistency import read_consistent
from dtld_tools.dataset.names import image_name, image_path
from dtld_tools.errors import DatasetError, ImageError, UsageError
from dtld_tools.geometry import clip_boxes
from dtld_tools.labels.locate import candidates, locate
from dtld_tools.labels.parse import Labels, path_below_root
from dtld_tools.pixels.images import Header, read_header
from dtld_tools.pixels.orientation import UPRIGHT
from dtld_tools.threads import map_in_order
from dtld_tools.types import Box, Dropped, Frame, FrameRecord, Light, SequenceId, Split, Target

LONGEST_NAME_BYTES = 255 - len("_x99999_y99999_a99.jpeg")  # file systems take 255


@dataclass(frozen=True, slots=True)
class Source:
    """A frame that was found: its file, its line with all lights that have a class and an area, its disparity image."""

    path: Path
    frame: FrameRecord
    disparity: Path | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame that is in the labels but not in the dataset, and how many lights go with it."""

    frame: str
    reason: str
    lights: int


@dataclass(frozen=True, slots=True)
class Found:
    """What `find_sources` found: the sources, anew at each call; what is left out; notes."""

    sources: Callable[[], Iterator[Source]]
    skipped: list[Skipped]
    notes: list[str]


def select(labels: Labels, cities: Sequence[str], limit: int | None) -> tuple[Frame, ...]:
    """The frames of some cities (all if none is named), at most the first ``limit``. Raises UsageError."""
    frames = labels.frames
    if cities:
        known = sorted({frame.sequence.city for frame in frames})
        if unknown := sorted(set(cities) - set(known)):
            raise DatasetError(f"--cities: no frames of {', '.join(unknown)}, expected some of {', '.join(known)}")
        frames = tuple(frame for frame in frames if frame.sequence.city in cities)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit: got {limit}, expected 1 or more frames")
    return frames[:limit]


class Classes(Protocol):
    """Which class a light has: `Rules` for DTLD's attributes, those that the source names for an import."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes 0, 1, ..."""

    def class_of(self, light: Light) -> int | None:
        """The light's class number; None for one that is dropped."""

    def attributes_of(self, light: Light) -> dict[str, str] | None:
        """What the labels say of the light beside its class and its place."""


def find_sources(
    frames: Sequence[Frame],
    root: Path,
    classes: Classes,
    assign: Callable[[Mapping[SequenceId, int]], Mapping[SequenceId, Split]],
    *,
    strict: bool,
    follow_symlinks: bool,
    shown: bool = False,
    with_disparity: bool = False,
) -> Found:
    """Find the frames' files, read their sizes, assign classes and splits: ``assign`` has those of all sequences.

    ``shown``: an image that is to be turned is taken as it is then, as trainers do, in place of being left out.
    ``with_disparity`` also finds their disparity images, of which some may be missing, but not all.

    The sources come as a function that gives them anew each time, so that they need not all be held. Raises
    DatasetError if none is found, ImageError at the first frame that is left out if ``strict``.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: is no folder, expected the folder at which the paths of the labels begin")

    def look_at(frame: Frame) -> tuple[Path, Header, Path | None] | str:
        path = locate(frame.image_path, root, follow_symlinks=follow_symlinks)
        if path is None:
            return "missing"
        if len(os.fsencode(image_name(frame.image_path, frame.sequence, None, ".jpeg"))) > LONGEST_NAME_BYTES:
            return f"unreadable: its name is too long: those of its images may have {LONGEST_NAME_BYTES} bytes"
        try:
            header = read_header(path, shown=shown)
        except ImageError as error:
            if strict:
                raise
            return f"unreadable: {str(error).removeprefix(f'{path}: ')}"
        if frame.size_wh in (None, header.size_wh):
            return path, header, _disparity_of(frame, root, strict, follow_symlinks) if with_disparity else None
        (got, its), (expected, labelled) = header.size_wh, frame.size_wh
        turned = "" if header.orientation == UPRIGHT else f" as Orientation {header.orientation} shows it"
        return f"unreadable: got {got} x {its} pixels{turned}, expected {expected} x {labelled} as its labels say"

    found: list[tuple[Frame, str, Header, Path | None]] = []
    skipped: list[Skipped] = []
    headers: dict[Header, Header] = {}  # one for all frames, as a rule
    # Waits for the disk, not for the processor; a task for each frame would cost as much as its answer.
    batches = [frames[start : start + 32] for start in range(0, len(frames), 32)]
    answers = map_in_order(lambda batch: [look_at(frame) for frame in batch], batches, 8)
    for frame, seen in zip(frames, chain.from_iterable(answers), strict=True):
        if not isinstance(seen, str):
            name = seen[0].relative_to(root).as_posix()
            name = frame.image_path if name == frame.image_path else name
            found.append((frame, name, headers.setdefault(seen[1], seen[1]), seen[2]))
            continue
        tried = " and ".join(str(path) for path in candidates(frame.image_path, root))
        if strict:
            reason = f"no such file, tried {tried}" if seen == "missing" else seen
            raise ImageError(f"{frame.image_path}: {reason}; leave out --strict to skip it")
        skipped.append(Skipped(frame.image_path, seen, len(frame.lights) + len(frame.dropped)))
    if not found:
        first = skipped[0]
        tried = " and ".join(str(path) for path in candidates(first.frame, root))
        raise DatasetError(
            f"{root}: none of {len(frames)} frames can be read ({first.frame}: {first.reason}; tried {tried}); "
            "expected --root to be the folder at which the paths of the labels begin, as City/Route/Sequence/..."
        )
    blind = [frame for frame, _, _, disparity in found if with_disparity and disparity is None]
    if len(blind) == len(found):
        raise DatasetError(
            f"{root}: none of {len(found)} frames has its disparity image ({_tried(blind[0].disparity_path, root)}); "
            "expected DTLD's archives of disparity images beside the frames, or no --disparity"
        )
    splits = assign(Counter(frame.sequence for frame, *_ in found))

    here = root.absolute()  # a worker on another machine stands elsewhere

    def sources() -> Iterator[Source]:
        for frame, name, header, disparity in found:
            record = frame_record(frame, header.size_wh, splits[frame.sequence], classes, name)
            yield Source(here / name, record, disparity and disparity.absolute())

    notes = _notes(found)
    if blind:
        notes.append(
            f"{len(blind)} frames have no disparity image, such as {blind[0].image_path} "
            f"({_tried(blind[0].disparity_path, root)}): their lights have no distance"
        )
    return Found(sources, skipped, notes)


def _disparity_of(frame: Frame, root: Path, strict: bool, follow_symlinks: bool) -> Path | None:
    """The file of a frame's disparity image. Raises LabelError, and ImageError for a missing one if ``strict``."""
    written = frame.disparity_path
    name = written and path_below_root(written, f"{frame.image_path}: disparity_image_path")
    path = locate(name, root, follow_symlinks=follow_symlinks) if name else None
    if path is None and strict:
        raise ImageError(
            f"{frame.image_path}: no disparity image ({_tried(written, root)}); leave out --strict to go on without "
            "its distances"
        )
    return path


def _tried(disparity_path: str, root: Path) -> str:
    if not disparity_path:
        return "its labels name none"
    tried = candidates(path_below_root(disparity_path, "disparity_image_path"), root)
    return f"tried {' and '.join(map(str, tried))}"


def _notes(found: Sequence[tuple[Frame, str, Header, Path | None]]) -> list[str]:
    """A line each on frames that lie under another ending than their labels say, and on those that are turned."""
    notes = []
    others = [(frame, name) for frame, name, *_ in found if not name.endswith(PurePosixPath(frame.image_path).name)]
    if others:
        frame, name = others[0]
        notes.append(
            f"{len(others)} frames have another ending than in the labels, such as {name} for {frame.image_path}"
        )
    turned = [name for _, name, header, _ in found if header.orientation != UPRIGHT]
    if turned:
        notes.append(f"{len(turned)} images are turned as their Orientation says, such as {turned[0]}")
    return notes


def frame_record(frame: Frame, size_wh: tuple[int, int], split: Split, classes: Classes, name: str) -> FrameRecord:
    """Clip a frame's lights to the frame and give them classes; what is left over has a reason."""
    width, height = size_wh
    lights: list[Target] = []
    whole = Box(0, 0, width, height)
    dropped = [replace(each, box=each.box and clip_boxes([each.box], whole)[0]) for each in frame.dropped]
    boxes = [light.box for light in frame.lights]
    if frame.in_shares:
        boxes = [Box(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in boxes]
    clipped = clip_boxes(boxes, whole)
    for index, (light, box) in enumerate(zip(frame.lights, clipped, strict=True)):
        class_id, attributes = classes.class_of(light), classes.attributes_of(light)
        if _repeats(light, frame.lights[:index]):
            dropped.append(Dropped(light.unique_id, "duplicate", class_id, box, attributes))
        elif light.box.area <= 0:
            dropped.append(Dropped(light.unique_id, "degenerate", class_id, None, attributes))
        elif box is None:
            dropped.append(Dropped(light.unique_id, "outside_frame", class_id, None, attributes))
        elif class_id is None:
            dropped.append(Dropped(light.unique_id, "rule", None, box, attributes))
        else:
            lights.append(Target(class_id, box, light.unique_id, attributes))
    return FrameRecord(name, frame.sequence, split, width, height, tuple(lights), tuple(dropped))


def dataset_sources(root: Path) -> Iterator[Source]:
    """The frames of a full-frame dataset on disk. Raises DatasetError for a tiled, augmented or inconsistent one."""
    for frame, images in read_consistent(root):
        for image in images:
            whole = image_name(image.frame, image.sequence, None, image.name)
            if image.augmentation is not None or image.name != whole:
                raise DatasetError(f"{root}: {image.name} is a tile or a copy, expected a dataset of dtld convert")
            yield Source(image_path(root.absolute(), image), frame)


def _repeats(light: Light, earlier: Sequence[Light]) -> bool:
    """Whether the light stands a second time with the same number, box and attributes."""
    number, repetition, _ = str(light.unique_id).partition("#")
    return bool(repetition) and any(
        str(other.unique_id).partition("#")[0] == number
        and (other.box, other.attributes) == (light.box, light.attributes)
        for other in earlier
    )
