"""One frame's line with its images' lines in, their defects out: lines, pixels and labels of one frame.

Labels, targets and slivers are derived again, never trusted. Invariant: no line that satisfies its schema raises.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtld_tools.dataset.consistency import (
    TILED,
    boxed,
    frame_defects,
    has_plausible_scale,
    has_plausible_size,
    light_defects,
    line_defects,
    place,
    placement_defects,
)
from dtld_tools.dataset.names import image_path, label_path
from dtld_tools.dataset.records import label_text
from dtld_tools.errors import ImageError
from dtld_tools.pixels.images import MARKS, read_image
from dtld_tools.planning.tile import image_size, targets_in, tile_frame
from dtld_tools.types import FrameRecord, ImageRecord, LightId, Tile, TileSpec


@dataclass(frozen=True, slots=True)
class Proof:
    """What every frame of a dataset is held against; ``spec`` is None where the report does not say it."""

    root: Path
    class_count: int
    spec: TileSpec | None

    def defects(self, frame: FrameRecord, images: Sequence[ImageRecord]) -> list[str]:
        """All defects of a frame and its images, one line each; called in threads."""
        line = f"frames.jsonl: {frame.frame}"
        found = [f"{line}: {text}" for text in frame_defects(frame, self.class_count)]
        found += [f"{line}: {text}" for text in placement_defects(frame, images)]
        tiles = _tiles(frame, self.spec) if self.spec and has_plausible_size(frame) else None
        if tiles is not None:
            found += [f"{line}: {text}" for text in _reason_defects(frame, tiles)]
        originals = {image.name: image for image in images if image.augmentation is None}
        for image in images:
            found += [f"manifest.jsonl: {image.name}: {text}" for text in line_defects(image, frame, originals)]
            if has_plausible_scale(image):
                found += self._derived_defects(image, frame, tiles)
        return found

    def _derived_defects(self, image: ImageRecord, frame: FrameRecord, tiles: list[Tile] | None) -> Iterator[str]:
        """What follows from the frame's lights and the window: targets, slivers, pixels, label file."""
        tile = None
        if tiles is not None:
            tile = next((t for t in tiles if (t.window, t.scale) == (image.window, image.scale)), None)
            if tile is None:
                yield f"manifest.jsonl: {image.name}: got {place(image)}, which no tile of report.json's options has"
        size_wh = image_size(image.window, image.scale)
        seen = targets_in(image.window, image.scale, boxed(frame))
        for text in light_defects(image, frame, [target.light_id for target in seen], tile, self.spec):
            yield f"manifest.jsonl: {image.name}: {text}"
        file = image_path(self.root, image)
        for text in _image_defects(file, size_wh):
            yield f"images/{image.split}/{image.name}: {text}"
        wanted = [target for target in seen if target.light_id in image.targets]
        file = label_path(self.root, image)
        for text in _label_defects(file, label_text(wanted, size_wh)):
            yield f"labels/{image.split}/{file.name}: {text}"


# --- what tiling made of a frame ---------------------------------------------------------------------------


def _tiles(frame: FrameRecord, spec: TileSpec) -> list[Tile]:
    """The tiles as they were planned: of the lights that reached tiling, by the options that report.json names."""
    tiled = replace(frame, dropped=tuple(dropped for dropped in frame.dropped if dropped.reason in TILED))
    lights = [light for light in boxed(tiled) if light.box.area > 0]
    return tile_frame(frame.width, frame.height, lights, spec)


def _reason_defects(frame: FrameRecord, tiles: Sequence[Tile]) -> Iterator[str]:
    """Which rule keeps a light out of every image: its size if some tile shows it well enough, else its share."""
    fates: dict[LightId, set[str]] = {}
    for tile in tiles:
        for target in tile.targets:
            fates.setdefault(target.light_id, set()).add("max_images")
        for light_id, reason in tile.slivers.items():
            fates.setdefault(light_id, set()).add(reason)
    for dropped in frame.dropped:
        if dropped.reason in TILED:
            found = fates.get(dropped.light_id, {"outside_frame"})
            reason = next((name for name in ("max_images", "min_side", "min_visible") if name in found), "another")
            if reason != dropped.reason:
                yield f"light {dropped.light_id}: dropped for {dropped.reason}, expected {reason}"


# --- the image and the label file --------------------------------------------------------------------------


def _irregular(path: Path, kind: str) -> str | None:
    """Why a path is no file of the dataset's own."""
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{getattr(error, 'strerror', None) or error}, expected {kind}"
    if stat.S_ISLNK(mode):
        return f"is a symbolic link, expected {kind} of the dataset's own"
    return None if stat.S_ISREG(mode) else f"is no file, expected {kind}"


def _image_defects(path: Path, size_wh: tuple[int, int]) -> Iterator[str]:
    if irregular := _irregular(path, "an image"):
        yield irregular
        return
    try:
        start, end = MARKS[path.suffix]
        with path.open("rb") as stream:
            head = stream.read(len(start))
            stream.seek(-min(len(end), path.stat().st_size), 2)
            tail = stream.read()
        if head != start:
            yield f"is empty or no {path.suffix[1:]} image; make the dataset again"
        elif tail != end:
            yield f"is truncated: its end is not that of a {path.suffix[1:]} image; make the dataset again"
        else:
            height, width = read_image(path).shape[:2]
            if (width, height) != size_wh:
                yield f"got {width} x {height} pixels, expected {size_wh[0]} x {size_wh[1]}"
    except ImageError as error:
        yield str(error).removeprefix(f"{path}: ")
    except OSError as error:
        yield f"{error.strerror}, expected an image"


def _label_defects(path: Path, expected: str) -> Iterator[str]:
    """The label file must be what the frame's lights give, to the byte."""
    if irregular := _irregular(path, "a label file"):
        yield irregular
        return
    try:
        data = path.read_bytes()
        if data == expected.encode():
            return
        lines, derived = data.decode().splitlines(), expected.splitlines()
    except OSError as error:
        yield f"{error.strerror}, expected a label file"
    except UnicodeDecodeError:
        yield "is no text, expected lines 'class xc yc w h'"
    else:
        differ = [n for n, (got, want) in enumerate(zip(lines, derived, strict=False), 1) if got != want]
        if len(lines) != len(derived):
            first = differ[0] if differ else min(len(lines), len(derived)) + 1
            yield f"got {len(lines)} boxes, expected {len(derived)} from frames.jsonl; they differ from line {first} on"
        elif not differ:
            yield "has other line ends, expected each line to end in a single newline"
        else:
            for number in differ:
                yield f"line {number}: {_line_difference(lines[number - 1], derived[number - 1])} from frames.jsonl"


def _line_difference(got: str, want: str) -> str:
    """What is wrong with a line of a label file.

    >>> _line_difference("1 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 0.1")
    'got class 1, expected class 0'
    """
    got_class, _, got_box = got.partition(" ")
    want_class, _, want_box = want.partition(" ")
    if got_box == want_box:
        return f"got class {got_class}, expected class {want_class}"
    try:
        xc, yc, w, h = map(float, got_box.split())
    except ValueError:
        return f"got '{got}', expected '{want}'"
    beyond = max(abs(xc - 0.5) + w / 2, abs(yc - 0.5) + h / 2) - 0.5
    outside = " which lies outside the image," if beyond > 1e-5 else ""  # more than six decimals can be off
    return f"got '{got}',{outside} expected '{want}'"
