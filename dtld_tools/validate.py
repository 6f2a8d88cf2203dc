"""A dataset folder in, its defects out: proves a dataset from its files alone.

Labels are derived again from frames.jsonl and the windows and must be equal to the byte; every image is
decoded; every light must be where the lines say, once; no sequence may be in two splits; the sums must add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dtld_tools import dataset
from dtld_tools.errors import DatasetError, ImageError
from dtld_tools.images import read_image
from dtld_tools.tally import Tally
from dtld_tools.tile import image_size, targets_in
from dtld_tools.types import SPLITS, FrameRecord, ImageRecord, Split, Target


def validate(root: Path, *, workers: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Counts and ``defects``, a list of one line each; a sound dataset has none. Raises DatasetError.

    Only a folder that cannot be read as a dataset at all raises.
    """
    unfinished = (root / dataset.UNFINISHED).exists()
    if unfinished and not (root / "report.json").exists():
        raise DatasetError(f"{root}: is unfinished; run the command that was making it again to continue")
    class_names = dataset.read_class_names(root)
    report = dataset.read_report(root)
    defects: list[str] = []
    if unfinished:
        defects.append(f"{dataset.UNFINISHED}: the dataset is unfinished; run the command that made it again")

    frames: dict[str, FrameRecord] = {}
    for frame in dataset.read_frames(root):
        if frame.frame in frames:
            defects.append(f"frames.jsonl: {frame.frame}: stands twice")
        frames[frame.frame] = frame
    images = list(dataset.read_images(root))

    defects += _leaks(frames.values())
    defects += _unplaced_lights(frames, images)
    defects += _class_numbers(frames.values(), class_names)
    with ThreadPoolExecutor(workers) as pool:  # OpenCV decodes outside the interpreter's lock
        checked = pool.map(lambda image: list(_image_defects(root, image, frames)), images)
        bar = tqdm(checked, total=len(images), unit="image", desc="validate", disable=True if quiet else None)
        defects += [defect for found in bar for defect in found]
    defects += _unlisted_files(root, images)
    defects += _wrong_sums(report, class_names, frames, images)
    return {
        "dataset": str(root),
        "frames": len(frames),
        "images": len(images),
        "targets": sum(len(image.targets) for image in images if image.augmentation is None),
        "defects": defects,
    }


def _leaks(frames: Any) -> Iterator[str]:
    splits: dict[Any, Split] = {}
    reported = set()
    for frame in frames:
        first = splits.setdefault(frame.sequence, frame.split)
        if first != frame.split and frame.sequence not in reported:
            reported.add(frame.sequence)
            yield f"frames.jsonl: {frame.sequence}: the sequence is in {first} and in {frame.split}"


def _unplaced_lights(frames: dict[str, FrameRecord], images: list[ImageRecord]) -> Iterator[str]:
    """Each light once: in lights and a target of some original, or in dropped and a target of none."""
    shown: dict[str, set] = {}
    names = set()
    for image in images:
        shown.setdefault(image.frame, set()).update(image.targets)
        if image.name in names:
            yield f"manifest.jsonl: {image.name}: stands twice"
        names.add(image.name)
    for frame in frames.values():
        listed = [light.light_id for light in (*frame.lights, *frame.dropped)]
        for light_id in sorted({i for i in listed if listed.count(i) > 1}, key=str):
            yield f"frames.jsonl: {frame.frame}: light {light_id} stands twice"
        targets = shown.get(frame.frame, set())
        for light in frame.lights:
            if light.light_id not in targets:
                yield f"frames.jsonl: {frame.frame}: light {light.light_id} is in no image, expected in one or dropped"
        for dropped in frame.dropped:
            if dropped.light_id in targets:
                yield f"frames.jsonl: {frame.frame}: light {dropped.light_id} is dropped, but a target of an image"


def _class_numbers(frames: Any, class_names: tuple[str, ...]) -> Iterator[str]:
    for frame in frames:
        for light in frame.lights:
            if light.class_id >= len(class_names):
                yield (
                    f"frames.jsonl: {frame.frame}: light {light.light_id}: got class {light.class_id}, "
                    f"expected 0 to {len(class_names) - 1}"
                )


def _image_defects(root: Path, image: ImageRecord, frames: dict[str, FrameRecord]) -> Iterator[str]:
    where = f"{image.split}/{image.name}"
    frame = frames.get(image.frame)
    if frame is None:
        yield f"manifest.jsonl: {image.name}: its frame {image.frame} is not in frames.jsonl"
        return
    if image.split != frame.split:
        yield f"manifest.jsonl: {image.name}: is in {image.split}, expected {frame.split} as its frame"
    if image.sequence != frame.sequence:
        yield f"manifest.jsonl: {image.name}: got sequence {image.sequence}, expected {frame.sequence}"
    size_wh = image_size(image.window, image.scale)
    try:
        height, width = read_image(dataset.image_path(root, image)).shape[:2]
        if (width, height) != size_wh:
            yield f"images/{where}: got {width} x {height} pixels, expected {size_wh[0]} x {size_wh[1]}"
    except ImageError as error:
        yield str(error).removeprefix(f"{root}/")

    boxes = [Target(d.class_id or 0, d.box, d.light_id) for d in frame.dropped if d.box is not None]
    seen = targets_in(image.window, image.scale, (*frame.lights, *boxes))
    wanted = [target for target in seen if target.light_id in image.targets]
    yield from _lights_defects(image, {target.light_id for target in seen}, frame)
    yield from _label_defects(dataset.label_path(root, image), where, dataset.label_text(wanted, size_wh))


def _lights_defects(image: ImageRecord, seen: set, frame: FrameRecord) -> Iterator[str]:
    """Targets and slivers together are the lights that the window shows, less those dropped before tiling."""
    never_placed = {d.light_id for d in frame.dropped if d.reason in ("rule", "duplicate")}
    listed = {*image.targets, *image.slivers}
    for light_id in sorted(listed - seen, key=str):
        yield f"manifest.jsonl: {image.name}: light {light_id} is listed, but its window does not show it"
    for light_id in sorted(seen - listed - never_placed, key=str):
        yield f"manifest.jsonl: {image.name}: shows light {light_id}, expected it in targets or slivers"


def _label_defects(path: Path, where: str, expected: str) -> Iterator[str]:
    where = f"labels/{Path(where).with_suffix('.txt')}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        yield f"{where}: {error.strerror}, expected a label file"
        return
    except UnicodeDecodeError:
        yield f"{where}: is no text, expected lines 'class xc yc w h'"
        return
    derived = expected.splitlines()
    if len(lines) != len(derived):
        yield f"{where}: got {len(lines)} boxes, expected {len(derived)} from frames.jsonl"
    for number, (got, want) in enumerate(zip(lines, derived, strict=False), 1):
        if got != want:
            yield f"{where}: line {number}: got '{got}', expected '{want}' from frames.jsonl"


def _unlisted_files(root: Path, images: list[ImageRecord]) -> Iterator[str]:
    listed = {dataset.image_path(root, image) for image in images}
    listed |= {dataset.label_path(root, image) for image in images}
    for kind in ("images", "labels"):
        for split in SPLITS:
            for path in sorted((root / kind / split).glob("*")):
                if path not in listed:
                    yield f"{path.relative_to(root)}: is not in manifest.jsonl"


def _wrong_sums(
    report: dict, class_names: tuple[str, ...], frames: dict[str, FrameRecord], images: list[ImageRecord]
) -> Iterator[str]:
    by_frame: dict[str, list[ImageRecord]] = {}
    for image in images:
        by_frame.setdefault(image.frame, []).append(image)
    tally = Tally(class_names)
    for name, frame in frames.items():
        tally.add(frame, by_frame.get(name, ()))
    try:
        skipped = sum(skip["lights"] for skip in report["frames_skipped"])
    except (KeyError, TypeError) as error:
        raise DatasetError("report.json: got no frames_skipped, expected the report of dtld") from error
    for key, value in tally.counts(skipped).items():
        if report.get(key) != value:
            yield f"report.json: {key}: got {report.get(key)}, expected {value} as counted again"
