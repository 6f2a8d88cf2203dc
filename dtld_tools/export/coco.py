"""A COCO JSON in, its images with their boxes out, each with the place of its labels.

Invariant: every box of the file is a target of its image, or counted as left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dtld_tools.errors import DatasetError
from dtld_tools.geometry import clip_boxes
from dtld_tools.importing import coco
from dtld_tools.importing.imported import Crowd
from dtld_tools.types import Box, Split, Target

EDGE_PX = 1e-6  # a box of ours may leave its image by a rounding of the scale; that is no reason to clip it


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of a COCO file: where it and its labels go below OUT, and what they say.

    ``entry`` is the folder that data.yaml names for its split. ``has_place`` says that the file names a folder
    ``images``; else it is ``images/<file_name>``.
    """

    file_name: str
    path: str
    label: str
    label_root: str
    split: Split | None
    entry: str
    has_place: bool
    size_wh: tuple[int, int]
    targets: list[Target]


@dataclass(frozen=True, slots=True)
class Coco:
    """A COCO file: class names in the order of the categories' ids, images, and boxes left out by reason."""

    names: tuple[str, ...]
    images: list[CocoImage]
    left_out: Counter[str]


def read_coco(path: Path, crowd: Crowd = "drop") -> Coco:
    """A COCO file, checked key by key. Raises DatasetError that names the place."""
    document = coco.read_coco(path)
    images: dict[int | str, CocoImage] = {}
    labels: dict[str, str] = {}
    for index, item in enumerate(document.images):
        place = f"{path}: images[{index}]."
        image = _image(item, place)
        if image.label in labels:
            raise DatasetError(
                f"{place}file_name: its labels would be {image.label}, as those of {labels[image.label]}; rename one"
            )
        labels[image.label] = image.file_name
        images[item.id] = image

    left_out: Counter[str] = Counter()
    for annotation in document.annotations:
        owner, box = images[annotation.image_id], coco.box_of(annotation)
        inside = box and _inside(box, owner.size_wh)
        if annotation.iscrowd and crowd == "drop":
            left_out["crowd"] += 1  # a region of many objects, which a label line cannot say
        elif box is None:
            left_out["without_box"] += 1
        elif inside is None:
            left_out["without_area"] += 1
        else:
            owner.targets.append(Target(document.class_of[annotation.category_id], inside, len(owner.targets)))
    if left_out["crowd"] and not any(image.targets for image in images.values()):
        raise DatasetError(
            f"{path}: annotations: got {left_out['crowd']} crowds and no other box in an image, expected some; "
            "pass --crowd keep to take crowds as objects"
        )
    return Coco(document.names, list(images.values()), left_out)


def _image(item: coco.CocoImage, place: str) -> CocoImage:
    name = coco.path_of(item, place)
    folders, at = coco.folders_of(name)
    split, last = coco.split_of(folders, at)
    return CocoImage(
        file_name=item.file_name,
        path="/".join((*folders, name.name)),
        label="/".join((*folders[:at], "labels", *folders[at + 1 :], f"{name.stem}.txt")),
        label_root="/".join((*folders[:at], "labels")),
        split=split,
        entry="/".join(folders[: last + 1]),
        has_place="images" in name.parts[:-1],
        size_wh=item.size_wh,
        targets=[],
    )


def _inside(box: Box, size_wh: tuple[int, int]) -> Box | None:
    """The box clipped to its image; None without area there."""
    width, height = size_wh
    (clipped,) = clip_boxes([box], Box(0, 0, width, height))
    over = max(-box.x1, -box.y1, box.x2 - width, box.y2 - height)
    return box if clipped is not None and over <= EDGE_PX else clipped
