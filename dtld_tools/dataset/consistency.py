"""Lines of a dataset in, what contradicts itself in them out; no pixel and no label file is read.

`dtld validate` tells all of it, the stages refuse the first (`read_consistent`): what a stage believes ends in pixels
and label files, where nobody finds it again. Invariant: no line that satisfies its schema raises anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from dtld_tools.dataset.data_yaml import read_class_names
from dtld_tools.dataset.names import COPY_NAME, image_name
from dtld_tools.dataset.reading import read_frames_with_images, read_report
from dtld_tools.errors import DatasetError
from dtld_tools.pixels.images import MAX_PIXELS
from dtld_tools.types import (
    FOREIGN_ROUTE,
    Box,
    Dropped,
    FrameRecord,
    ImageRecord,
    LightId,
    SequenceId,
    Split,
    Target,
    Tile,
    TileSpec,
    Window,
)

#: Reason -> whether such a dropped light still has a class, and a box; None: it may have one.
REASONS: dict[str, tuple[bool | None, bool | None]] = {
    "degenerate": (None, False),
    "outside_frame": (None, False),
    "duplicate": (None, None),
    "rule": (False, True),
    "crowd": (True, None),
    "no_box": (True, False),
    "min_visible": (True, True),
    "min_side": (True, True),
    "max_images": (True, True),
}
TILED = ("min_visible", "min_side", "max_images")  # the reasons that tiling gives

# --- for the stages ----------------------------------------------------------------------------------------


def read_classes(root: Path) -> tuple[str, ...]:
    """The names of the classes 0, 1, ..., on which data.yaml and report.json agree. Raises DatasetError."""
    names, report = read_class_names(root), read_sound_report(root)
    if names != tuple(report["classes"]):
        raise DatasetError(
            f"{root / 'data.yaml'}: names: got {', '.join(names)}, expected {', '.join(report['classes'])} "
            "in this order, as in report.json; undo what was changed, or make the dataset again"
        )
    return names


def read_sound_report(root: Path) -> dict[str, Any]:
    """report.json. Raises DatasetError if there is none or it contradicts itself."""
    defects: list[str] = []
    report, is_valid = read_report(root, defects)
    if is_valid:
        defects += (f"report.json: {text}" for text in report_defects(report))
    if defects:
        raise DatasetError(f"{root}: {defects[0]}; the dataset is unfinished or damaged, see dtld validate")
    return report


def read_consistent(root: Path) -> Iterator[tuple[FrameRecord, tuple[ImageRecord, ...]]]:
    """`read_frames_with_images`, each held against itself, the others and the classes. Raises DatasetError."""
    class_count = len(read_classes(root))
    names: set[str] = set()
    splits: dict[SequenceId, Split] = {}
    imageless = None
    for frame, images in read_frames_with_images(root):
        first = splits.setdefault(frame.sequence, frame.split)
        whole = chain(
            ["stands twice"] if frame.frame in names else (),
            [] if first == frame.split else [f"its sequence is in {first} and in {frame.split}, expected in one"],
            frame_defects(frame, class_count),
        )
        for text in whole:
            raise _contradiction(root / "frames.jsonl", frame.frame, text)
        for text in placement_defects(frame, images):
            imageless = imageless or _contradiction(root / "frames.jsonl", frame.frame, text)
            if images:  # else lines are in another order, which the reader reports at the end
                raise imageless
        names.add(frame.frame)
        boxes = boxed(frame)
        originals = {image.name: image for image in images if image.augmentation is None}
        for image in images:
            shown = [light.light_id for light in boxes if _shows(image.window, light.box)]
            for text in chain(line_defects(image, frame, originals), light_defects(image, frame, shown)):
                raise _contradiction(root / "manifest.jsonl", image.name, text)
        yield frame, images
    if imageless:
        raise imageless


def _contradiction(path: Path, place: str, text: str) -> DatasetError:
    return DatasetError(f"{path}: {place}: {text}; see dtld validate")


def _shows(window: Window, box: Box) -> bool:
    """Whether a box with area, inside the frame, has area inside the window (`geometry.clip_boxes`)."""
    x, y, w, h = window
    return box.x1 < x + w and x < box.x2 and box.y1 < y + h and y < box.y2


# --- report.json -------------------------------------------------------------------------------------------


def report_defects(report: Mapping[str, Any]) -> Iterator[str]:
    """What a report that satisfies its schema says in two ways."""
    made_with, names = report["configuration"], list(report["classes"])
    if report["seed"] != made_with["seed"]:
        yield f"seed: got {report['seed']}, expected {made_with['seed']} as in configuration"
    # Only convert and prepare have rules or an import; the names there are those of the numbers in frames.jsonl.
    for key in ("rules", "import"):
        listed = made_with.get(key, {}).get("classes", names)
        if names != listed:
            yield f"classes: got {names}, expected {listed} in this order, as in configuration.{key}"


# --- a line of frames.jsonl --------------------------------------------------------------------------------


def has_plausible_size(frame: FrameRecord) -> bool:
    """Whether an image may be as large as the line says."""
    return max(frame.width, frame.height) < 2**16 and frame.width * frame.height <= MAX_PIXELS


def frame_defects(frame: FrameRecord, class_count: int) -> Iterator[str]:
    """What is wrong with a line of frames.jsonl by itself: size, path, ids, boxes, classes."""
    if not has_plausible_size(frame):
        yield f"got {frame.width} x {frame.height} pixels, expected the size of an image"
    if "\0" in frame.frame:
        yield "got NUL in its path, expected the path of a file"
    folders = frame.frame.split("/")[-4:-1]  # a city may lie one level deeper
    if folders != list(frame.sequence) and frame.sequence.route != FOREIGN_ROUTE:
        yield f"got sequence {frame.sequence}, expected {'/'.join(folders)} as its path says"
    lights: list[Target | Dropped] = [*frame.lights, *frame.dropped]
    for light_id in _repeated([light.light_id for light in lights]):
        yield f"light {light_id} stands twice"
    for light in lights:
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
        has_class, has_box = REASONS[dropped.reason]
        for name, has, value in (("class", has_class, dropped.class_id), ("box", has_box, dropped.box)):
            if has is not None and has != (value is not None):
                yield f"light {dropped.light_id}: dropped for {dropped.reason}, expected {'a' if has else 'no'} {name}"


def placement_defects(frame: FrameRecord, images: Sequence[ImageRecord]) -> Iterator[str]:
    """Each light once: in lights and a target of some original, or in dropped and a target of none."""
    targets = {light_id for image in images if image.augmentation is None for light_id in image.targets}
    for light in frame.lights:
        if light.light_id not in targets:
            yield f"light {light.light_id} is in no image, expected in one or dropped"
    for dropped in frame.dropped:
        if dropped.light_id in targets:
            yield f"light {dropped.light_id} is dropped, but a target of an image"


def boxed(frame: FrameRecord) -> list[Target]:
    """All lights that a window may show, those dropped among them."""
    dropped = (Target(d.class_id or 0, d.box, d.light_id) for d in frame.dropped if d.box is not None)
    return [*frame.lights, *dropped]


# --- a line of manifest.jsonl ------------------------------------------------------------------------------


def place(image: ImageRecord) -> str:
    """Where an image lies in its frame, in words."""
    x, y, w, h = image.window
    return f"window {w} x {h} at {x}, {y}, scale {image.scale:g}"


def has_plausible_scale(image: ImageRecord) -> bool:
    """Whether window and scale give an image of a size that there may be."""
    width, height = image.window.w * image.scale, image.window.h * image.scale
    return min(width, height) > 0.5 and width * height <= MAX_PIXELS


def line_defects(image: ImageRecord, frame: FrameRecord, originals: Mapping[str, ImageRecord]) -> Iterator[str]:
    """What is wrong with the line of an image among the ``originals`` of its frame."""
    yield from _own_defects(image, frame)
    yield from _copy_defects(image, originals)
    yield from _window_defects(image, frame)


def _own_defects(image: ImageRecord, frame: FrameRecord) -> Iterator[str]:
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


def _copy_defects(image: ImageRecord, originals: Mapping[str, ImageRecord]) -> Iterator[str]:
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
    if not has_plausible_scale(image):
        yield f"got {place(image)}, expected the size of an image"
    x, y, w, h = image.window
    for start, length, whole in ((x, w, frame.width), (y, h, frame.height)):
        if start + length > whole and start > 0:  # only a frame smaller than its tile is padded
            yield f"got {place(image)}, expected it inside {frame.width} x {frame.height} pixels"
            return


def light_defects(
    image: ImageRecord,
    frame: FrameRecord,
    seen: Sequence[LightId],
    tile: Tile | None = None,
    spec: TileSpec | None = None,
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
