"""A dataset in, its images with their targets out: what every format is written from.

Boxes are the unrounded targets that the label files are written from (`dtld_tools.planning.tile.targets_in`), never
their text. Memory holds one frame at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtld_tools.dataset.consistency import read_classes, read_consistent
from dtld_tools.dataset.names import files_of, image_path
from dtld_tools.errors import DatasetError
from dtld_tools.files import UNFINISHED, refuse_inputs
from dtld_tools.planning.tile import image_size, targets_in
from dtld_tools.types import ImageRecord, Split, Target


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image with its targets in image pixels, in the order of their label lines, and their lights in the frame."""

    image: ImageRecord
    size_wh: tuple[int, int]
    targets: Sequence[Target]
    lights: Sequence[Target]


def class_names(root: Path, out: Path, *, folder: bool = True) -> tuple[str, ...]:
    """The classes of a finished dataset, of which OUT is no part; no ``folder`` lies in it. Raises DatasetError."""
    if (root / UNFINISHED).exists():
        raise DatasetError(f"{root}: is unfinished; run the command that was making it again to continue")
    names = read_classes(root)
    refuse_inputs(out, [root] if folder else files_of(root))
    return names


def labelled_images(root: Path, splits: Sequence[Split]) -> Iterator[Labelled]:
    """The images of some splits, copies included, in the manifest's order. Raises DatasetError."""
    for frame, images in read_consistent(root):
        for image in images:
            if image.split in splits:
                lights = [light for light in frame.lights if light.light_id in image.targets]
                targets = targets_in(image.window, image.scale, lights)
                yield Labelled(image, image_size(image.window, image.scale), targets, lights)


def image_bytes(root: Path, image: ImageRecord) -> bytes:
    """An image's file as it is. Raises DatasetError."""
    path = image_path(root, image)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}, expected an image; see dtld validate") from error
