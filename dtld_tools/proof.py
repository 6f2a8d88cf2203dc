"""One frame's line with its images' lines in, their defects out: lines, pixels and labels of one frame.

Labels, targets and slivers are derived again, never trusted. Invariant: no line that satisfies its schema raises.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtld_tools import dataset
from dtld_tools.errors import ImageError
from dtld_tools.images import MAX_PIXELS, read_image
from dtld_tools.sources import COPY_NAME, image_name
from dtld_tools.tile import image_size, targets_in, tile_frame
from dtld_tools.types import Dropped, FrameRecord, ImageRecord, LightId, Target, Tile, TileSpec

#: Reason -> whether such a dropped light still has a class, and a box; None: it may have one.
REASONS: dict[str, tuple[bool | None, bool | None]] = {
    "degenerate": (None, False),
    "outside_frame": (None, False),
    "duplicate": (None, None),
    "rule": (False, True),
    "min_visible": (True, True),
    "min_side": (True, True),
    "max_images": (True, True),
}
TILED = ("min_visible", "min_side", "max_images")  # the reasons that tiling gives

#: Suffix -> how such a file starts and ends. Decoders may fill the rest of a truncated JPEG with grey and say nothing.
JPEG = (b"\xff\xd8\xff", b"\xff\xd9")
MARKS = {".jpg": JPEG, ".jpeg": JPEG, ".png": (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82")}


@dataclass(frozen=True, slots=True)
class Proof:
    """What every frame of a dataset is held against; ``spec`` is None where the report does not say it."""

    root: Path
    class_count: int
    spec: TileSpec | None

    def defects(self, frame: FrameRecord, images: Sequence[ImageRecord]) -> list[str]:
        """All defects of a frame and its images, one line each; called in threads."""
        place = f"frames.jsonl: {frame.frame}"
        found = [f"{place}: {text}" for text in _frame_defects(frame, self.class_count)]
        found += [f"{place}: {text}" for text in _placement_defects(frame, images)]
        tiles = _tiles(frame, self.spec) if self.spec and _has_plausible_size(frame) else None
        if tiles is not None:
            found += [f"{place}: {text}" for text in _reason_defects(frame, tiles)]
        originals = {image.name: image for image in images if image.augmentation is None}
        for image in images:
            line = [*_line_defects(image, frame), *_copy_defects(image, originals), *_window_defects(image, frame)]
            found += [f"manifest.jsonl: {image.name}: {text}" for text in line]
            if _has_plausible_scale(image):
                found += self._derived_defects(image, frame, tiles)
        return found

    def _derived_defects(self, image: ImageRecord, frame: FrameRecord, tiles: list[Tile] | None) -> Iterator[str]:
        """What follows from the frame's lights and the window: targets, slivers, pixels, label file."""
        tile = None
        if tiles is not None:
            tile = next((t for t in tiles if (t.window, t.scale) == (image.window, image.scale)), None)
            if tile is None:
                yield f"manifest.jsonl: {image.name}: got {_place(image)}, which no tile of report.json's options has"
        size_wh = image_size(image.window, image.scale)
        seen = targets_in(image.window, image.scale, _boxed(frame))
        for text in _light_defects(image, frame, [target.light_id for target in seen], tile, self.spec):
            yield f"manifest.jsonl: {image.name}: {text}"
        file = dataset.image_path(self.root, image)
        for text in _image_defects(file, size_wh):
            yield f"images/{image.split}/{image.name}: {text}"
        wanted = [target for target in seen if target.light_id in image.targets]
        file = dataset.label_path(self.root, image)
        for text in _label_defects(file, dataset.label_text(wanted, size_wh)):
            yield f"labels/{image.split}/{file.name}: {text}"


# --- a line of frames.jsonl --------------------------------------------------------------------------------


def _has_plausible_size(frame: FrameRecord) -> bool:
    return max(frame.width, frame.height) < 2**16 and frame.width * frame.height <= MAX_PIXELS


def _frame_defects(frame: FrameRecord, class_count: int) -> Iterator[str]:
    if not _has_plausible_size(frame):
        yield f"got {frame.width} x {frame.height} pixels, expected the size of an image"
    folders = frame.frame.split("/")[-4:-1]  # a city may lie one level deeper
    if folders != list(frame.sequence):
        yield f"got sequence {frame.sequence}, expected {'/'.join(folders)} as its path says"
    listed = [light.light_id for light in (*frame.lights, *frame.dropped)]
    for light_id in _repeated(listed):
        yield f"light {light_id} stands twice"
    for light in (*frame.lights, *frame.dropped):
        if light.box is not None:
            x1, y1, x2, y2 = light.box
            if not (0 <= x1 < x2 <= frame.width and 0 <= y1 < y2 <= frame.height):
                yield (
                    f"light {light.light_id}: got box {list(light.box)}, "
                    f"expected one inside {frame.width} x {frame.height} pixels"
                )
        if light.class_id is not None and light.class_id >= class_count:
            yield f"light {light.light_id}: got class {light.class_id}, expected 0 to {class_count - 1}"
    for dropped in frame.dropped:
        for name, has, value in zip(("class", "box"), REASONS[dropped.reason], _fate(dropped), strict=True):
            if has is not None and has != (value is not None):
                yield f"light {dropped.light_id}: dropped for {dropped.reason}, expected {'a' if has else 'no'} {name}"


def _fate(dropped: Dropped) -> tuple[object, object]:
    return dropped.class_id, dropped.box


def _placement_defects(frame: FrameRecord, images: Sequence[ImageRecord]) -> Iterator[str]:
    """Each light once: in lights and a target of some original, or in dropped and a target of none."""
    targets = {light_id for image in images if image.augmentation is None for light_id in image.targets}
    for light in frame.lights:
        if light.light_id not in targets:
            yield f"light {light.light_id} is in no image, expected in one or dropped"
    for dropped in frame.dropped:
        if dropped.light_id in targets:
            yield f"light {dropped.light_id} is dropped, but a target of an image"


def _boxed(frame: FrameRecord) -> list[Target]:
    """All lights that a window may show, those dropped among them."""
    dropped = (Target(d.class_id or 0, d.box, d.light_id) for d in frame.dropped if d.box is not None)
    return [*frame.lights, *dropped]


def _tiles(frame: FrameRecord, spec: TileSpec) -> list[Tile]:
    """The tiles as they were planned: of the lights that reached tiling, by the options that report.json names."""
    tiled = replace(frame, dropped=tuple(dropped for dropped in frame.dropped if dropped.reason in TILED))
    lights = [light for light in _boxed(tiled) if light.box.area > 0]
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


# --- a line of manifest.jsonl ------------------------------------------------------------------------------


def _place(image: ImageRecord) -> str:
    x, y, w, h = image.window
    return f"window {w} x {h} at {x}, {y}, scale {image.scale:g}"


def _has_plausible_scale(image: ImageRecord) -> bool:
    width, height = image.window.w * image.scale, image.window.h * image.scale
    return min(width, height) > 0.5 and width * height <= MAX_PIXELS


def _line_defects(image: ImageRecord, frame: FrameRecord) -> Iterator[str]:
    if image.split != frame.split:
        yield f"is in {image.split}, expected {frame.split} as its frame"
    if image.sequence != frame.sequence:
        yield f"got sequence {image.sequence}, expected {frame.sequence}"
    for light_id in _repeated([*image.targets, *image.slivers]):
        yield f"light {light_id} stands twice"
    for light_id in sorted(set(image.masked) - set(image.slivers), key=str):
        yield f"light {light_id} is masked, but no sliver"
    if image.augmentation is None:
        names = [image_name(frame.frame, frame.sequence, image.window, image.name)]
        if image.window == (0, 0, frame.width, frame.height):
            names.append(image_name(frame.frame, frame.sequence, None, image.name))
        if image.name not in names:
            yield f"got that name, expected {names[-1]} by its frame and window"


def _copy_defects(image: ImageRecord, originals: dict[str, ImageRecord]) -> Iterator[str]:
    """A changed copy shows what its original shows; its name is the original's with _a1, _a2, ..."""
    if image.augmentation is None:
        return
    match = COPY_NAME.fullmatch(image.name)
    original = originals.get(match[1] + match[2]) if match else None
    if original is None:
        yield "is a changed copy, but its original is not among the frame's images"
    elif replace(original, name=image.name, augmentation=image.augmentation) != image:
        yield f"differs in more than its augmentation from its original {original.name}"


def _window_defects(image: ImageRecord, frame: FrameRecord) -> Iterator[str]:
    if not _has_plausible_scale(image):
        yield f"got {_place(image)}, expected the size of an image"
    x, y, w, h = image.window
    for start, length, whole in ((x, w, frame.width), (y, h, frame.height)):
        if start + length > whole and start > 0:  # only a frame smaller than its tile is padded
            yield f"got {_place(image)}, expected it inside {frame.width} x {frame.height} pixels"
            return


def _light_defects(
    image: ImageRecord, frame: FrameRecord, seen: Sequence[LightId], tile: Tile | None, spec: TileSpec | None
) -> Iterator[str]:
    """Targets and slivers together are the lights that the window shows, less those dropped before tiling.

    With the tile that the options give, each is also on its right side.
    """
    never_placed = {d.light_id for d in frame.dropped if d.reason not in TILED}
    targets, slivers, shown = set(image.targets), set(image.slivers), set(seen)
    for light_id in sorted((targets | slivers) - shown, key=str):
        yield f"light {light_id} is listed, but its window does not show it"
    for light_id in sorted(shown - targets - slivers - never_placed, key=str):
        yield f"shows light {light_id}, expected it in targets or slivers"
    if tile is None or spec is None:
        return
    for light_id in sorted(targets & tile.slivers.keys(), key=str):
        yield f"light {light_id} is a target, expected a sliver for {tile.slivers[light_id]}"
    for light_id in sorted(slivers & {target.light_id for target in tile.targets}, key=str):
        yield f"light {light_id} is a sliver, expected a target"
    if set(image.masked) != (slivers if spec.mask_partial else set()):
        yield f"got {len(image.masked)} masked lights, expected {len(slivers) if spec.mask_partial else 0}"


def _repeated(light_ids: Sequence[LightId]) -> list[LightId]:
    if len(set(light_ids)) == len(light_ids):
        return []
    return sorted({light_id for light_id in light_ids if light_ids.count(light_id) > 1}, key=str)


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
