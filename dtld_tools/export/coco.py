"""A COCO JSON in, its images with their boxes out, checked key by key, each with the place of its labels.

Invariant: every box of the file is a target of its image, or counted as left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, TypeGuard

from dtld_tools.errors import DatasetError
from dtld_tools.geometry import clip_boxes
from dtld_tools.types import Box, Split, Target
from schemas.strict import StrictError, read_json

Crowd = Literal["keep", "drop"]
EDGE_PX = 1e-6  # a box of ours may leave its image by a rounding of the scale; that is no reason to clip it
#: What folders of a split are called: valid by Roboflow, val2017 by COCO.
SPLIT_NAMES: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"train(ing)?(20[0-9]{2})?", re.IGNORECASE),
    "val": re.compile(r"val(id(ation)?)?(20[0-9]{2})?", re.IGNORECASE),
    "test": re.compile(r"test(ing)?(20[0-9]{2})?", re.IGNORECASE),
}


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
    try:
        document = read_json(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected a COCO JSON file") from error
    except StrictError as error:
        raise DatasetError(f"{path}: {error}; expected a whole COCO JSON file") from error

    names: dict[int, str] = {}
    for category, place in _items(document, "categories", path):
        number = _field(category, "id", int, place)
        if number in names:
            raise DatasetError(f"{place}id: got {number} a second time, expected each id once")
        names[number] = _field(category, "name", str, place)
    class_of = {number: index for index, number in enumerate(sorted(names))}

    images: dict[int | str, CocoImage] = {}
    labels: dict[str, str] = {}
    for item, place in _items(document, "images", path):
        number = _field(item, "id", (int, str), place)
        if number in images:
            raise DatasetError(f"{place}id: got {number!r} a second time, expected each id once")
        image = _image(item, place)
        if image.label in labels:
            raise DatasetError(
                f"{place}file_name: its labels would be {image.label}, as those of {labels[image.label]}; rename one"
            )
        labels[image.label] = image.file_name
        images[number] = image

    left_out: Counter[str] = Counter()
    for item, place in _items(document, "annotations", path):
        owner = images.get(_field(item, "image_id", (int, str), place))
        if owner is None:
            raise DatasetError(f"{place}image_id: got {item['image_id']!r}, expected the id of an image of the file")
        category = _field(item, "category_id", int, place)
        if category not in class_of:
            raise DatasetError(f"{place}category_id: got {category}, expected one of {str(sorted(names))[:100]}")
        box = _inside(_box_of(item, place), owner.size_wh)
        if _is_crowd(item, place) and crowd == "drop":
            left_out["crowd"] += 1  # a region of many objects, which a label line cannot say
        elif box is None:
            left_out["without_area"] += 1
        else:
            owner.targets.append(Target(class_of[category], box, len(owner.targets)))
    if left_out["crowd"] and not any(image.targets for image in images.values()):
        raise DatasetError(
            f"{path}: annotations: got {left_out['crowd']} crowds and no other box in an image, expected some; "
            "pass --crowd keep to take crowds as objects"
        )
    return Coco(tuple(names[number] for number in class_of), list(images.values()), left_out)


def label_of(image: str) -> str:
    """Where a trainer of YOLO datasets looks for the labels of an image, as Ultralytics has it.

    >>> label_of("/a/images/b/images/train/c.d.jpg")
    '/a/images/b/labels/train/c.d.txt'
    """
    return "/labels/".join(image.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"


def _image(item: Any, place: str) -> CocoImage:
    file_name = _field(item, "file_name", str, place)
    name = PurePosixPath(file_name.replace("\\", "/"))
    outside = name.is_absolute() or ".." in name.parts or PureWindowsPath(file_name).drive
    if outside or not name.stem or not name.suffix or "\0" in file_name:
        raise DatasetError(
            f"{place}file_name: got {file_name[:200]!r}, expected a relative path without '..', with the image's ending"
        )
    folders = name.parts[:-1]
    has_place = "images" in folders
    folders = folders if has_place else ("images", *folders)
    at = max(index for index, folder in enumerate(folders) if folder == "images")
    split, last = _split_of(folders, at)
    return CocoImage(
        file_name=file_name,
        path="/".join((*folders, name.name)),
        label="/".join((*folders[:at], "labels", *folders[at + 1 :], f"{name.stem}.txt")),
        label_root="/".join((*folders[:at], "labels")),
        split=split,
        entry="/".join(folders[: last + 1]),
        has_place=has_place,
        size_wh=(_side(item, "width", place), _side(item, "height", place)),
        targets=[],
    )


def _split_of(folders: tuple[str, ...], at: int) -> tuple[Split | None, int]:
    """The split that a folder after ``images`` (at ``at``) is called, or else before it, and where its images end."""
    for index in (*range(at + 1, len(folders)), *range(at - 1, -1, -1)):
        for split, pattern in SPLIT_NAMES.items():
            if pattern.fullmatch(folders[index]):
                return split, max(index, at)
    return None, at


def _is_crowd(annotation: dict[str, Any], place: str) -> bool:
    value = annotation.get("iscrowd", 0)
    if value not in (0, 1, None):
        raise DatasetError(f"{place}iscrowd: got {str(value)[:100]!r}, expected 0 or 1")
    return bool(value)


def _box_of(annotation: dict[str, Any], place: str) -> Box:
    """The corners of an annotation's box, to the last bit where the file is ours."""
    bbox = _field(annotation, "bbox", list, place)
    if not _four_numbers(bbox):
        raise DatasetError(f"{place}bbox: got {str(bbox)[:100]}, expected [x, y, w, h], 4 finite numbers of pixels")
    corners = annotation.get("corners")
    if _four_numbers(corners):
        box = Box(*corners)
        if [box.x1, box.y1, box.width, box.height] == bbox:  # else somebody changed bbox, which is what counts
            return box
    return Box.from_xywh(*bbox)


def _inside(box: Box, size_wh: tuple[int, int]) -> Box | None:
    """The box clipped to its image; None without area there."""
    width, height = size_wh
    (clipped,) = clip_boxes([box], Box(0, 0, width, height))
    over = max(-box.x1, -box.y1, box.x2 - width, box.y2 - height)
    return box if clipped is not None and over <= EDGE_PX else clipped


def _items(document: Any, key: str, path: Path) -> Iterator[tuple[Any, str]]:
    """The members of one of the file's lists, each with the place that errors in it begin with."""
    for index, item in enumerate(_field(document, key, list, f"{path}: ")):
        yield item, f"{path}: {key}[{index}]."


def _field(item: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    if not isinstance(item, dict):
        raise DatasetError(f"{place.rstrip('. :')}: got {str(item)[:100]!r}, expected an object with {key!r}")
    if key not in item:
        raise DatasetError(f"{place}{key}: is missing, expected it as in COCO's instances files")
    value = item[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise DatasetError(f"{place}{key}: got {str(value)[:100]!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value


def _side(item: Any, key: str, place: str) -> int:
    value = _field(item, key, int, place)
    if value < 1:
        raise DatasetError(f"{place}{key}: got {value}, expected 1 or more pixels")
    return value


def _four_numbers(value: Any) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )
