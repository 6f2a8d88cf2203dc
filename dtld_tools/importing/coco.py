"""A COCO JSON in, its images and annotations out, checked.

Invariant: every annotation is of an image and a category of its file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

import msgspec
import orjson

from dtld_tools.errors import DatasetError
from dtld_tools.importing.imported import is_plain, refuse_names
from dtld_tools.labels.documents import short
from dtld_tools.types import Box, Split
from schemas.strict import load_json

#: What folders of a split are called: valid by Roboflow, val2017 by COCO.
SPLIT_NAMES: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"train(ing)?(20[0-9]{2})?", re.IGNORECASE),
    "val": re.compile(r"val(id(ation)?)?(20[0-9]{2})?", re.IGNORECASE),
    "test": re.compile(r"test(ing)?(20[0-9]{2})?", re.IGNORECASE),
}

MAX_NUMBER = 1e15  # beyond any coordinate; keeps box arithmetic finite
EXPECTED = {"bbox": "[x, y, w, h], 4 finite numbers of pixels", "iscrowd": "0 or 1"}

_Id = Annotated[int, msgspec.Meta(ge=-(2**63) + 1, le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Number = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_Bbox = Annotated[list[_Number], msgspec.Meta(max_length=4)]


class CocoCategory(msgspec.Struct, gc=False):
    """A class of the file."""

    id: _Id
    name: str


class CocoImage(msgspec.Struct, gc=False):
    """An image of the file."""

    id: _Id | str
    file_name: str
    width: _Side
    height: _Side

    @property
    def size_wh(self) -> tuple[int, int]:
        """Pixels."""
        return self.width, self.height


class CocoAnnotation(msgspec.Struct, gc=False):
    """An annotation of the file; ``corners`` are in files of ours, where bbox misses them by the last bit.

    Its polygons are read only where it has no ``bbox``: as ``corners``.
    """

    image_id: _Id | str
    category_id: _Id
    id: _Id | None = None
    bbox: _Bbox | None = None
    iscrowd: Literal[0, 1] | None = None
    corners: Any = None


class _Document(msgspec.Struct, gc=False):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]
    licenses: Any = None


class _Outline(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Outlines(msgspec.Struct, gc=False):
    annotations: list[_Outline]


@dataclass(frozen=True, slots=True)
class Coco:
    """A COCO file, every reference in it checked: classes count from 0 in the order of the categories' ids."""

    names: tuple[str, ...]
    class_of: dict[int, int]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]


def read_coco(path: Path) -> Coco:
    """A COCO file. Raises DatasetError that names the place."""
    document = _read(path)
    categories = sorted(document.categories, key=attrgetter("id"))
    _refuse_repeated(f"{path}: categories", [category.id for category in document.categories])
    _refuse_repeated(f"{path}: images", [image.id for image in document.images])
    names = tuple(category.name for category in categories)
    refuse_names(names, f"{path}: categories")
    class_of = {category.id: number for number, category in enumerate(categories)}
    listed = f"one of {short(list(class_of))}"
    _refuse_strangers(path, document, "image_id", {image.id for image in document.images}, "the id of an image there")
    _refuse_strangers(path, document, "category_id", set(class_of), listed)
    return Coco(names, class_of, document.images, document.annotations)


def _read(path: Path) -> _Document:
    """The file at msgspec's speed: what is not used of it is skipped, not built."""
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        if b"\0" in text or not (text.isascii() or text.decode()):
            load_json(text)  # refuses it by name
        document = msgspec.json.decode(text, type=_Document)
        for index, annotation in enumerate(document.annotations):
            if annotation.bbox and len(annotation.bbox) < 4:
                raise msgspec.ValidationError(f"Expected `list` - at `$.annotations[{index}].bbox`")
        _refuse_repeated_keys(text, document)
        if any(not annotation.bbox for annotation in document.annotations):
            outlines = msgspec.json.decode(text, type=_Outlines).annotations
            for annotation, outline in zip(document.annotations, outlines, strict=True):
                if not annotation.bbox:
                    annotation.corners = _around(orjson.loads(bytes(outline.segmentation)))
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected a COCO JSON file") from error
    except msgspec.ValidationError as error:
        raise _wrong(path, text, error) from error
    except (ValueError, RecursionError) as error:  # ValueError: also what msgspec, orjson and schemas.strict raise
        raise DatasetError(f"{path}: {error}; expected a whole COCO JSON file") from error
    return document


def _refuse_repeated_keys(text: bytes, document: _Document) -> None:
    """Raise StrictError for a key that an object has twice, of which one would be lost without a word.

    To find out takes longer than to read the file: only where a key stands more often than there are objects for it.
    """
    images, annotations, categories = len(document.images), len(document.annotations), len(document.categories)
    licenses = document.licenses if isinstance(document.licenses, list) else []
    at_most: dict[str, int] = dict.fromkeys(("images", "annotations", "categories"), 1)
    at_most |= dict.fromkeys(("file_name", "width", "height"), images)
    at_most |= dict.fromkeys(("image_id", "category_id"), annotations) | {"name": categories + len(licenses)}
    at_most["id"] = images + categories + len(licenses)
    for key in ("id", "bbox", "iscrowd", "corners"):
        there = sum(getattr(annotation, key) is not None for annotation in document.annotations)
        at_most[key] = at_most.get(key, 0) + there
    if any(text.count(b'"%b"' % key.encode()) > count for key, count in at_most.items()):
        load_json(text)


def _refuse_strangers(path: Path, document: _Document, key: str, known: Collection[int | str], expected: str) -> None:
    """Raise DatasetError for an annotation that refers to nothing in its file."""
    if not {getattr(annotation, key) for annotation in document.annotations} - set(known):
        return
    for index, annotation in enumerate(document.annotations):
        if (got := getattr(annotation, key)) not in known:
            place = f"{path}: annotations[{index}].{key}"
            raise DatasetError(f"{place}: got {short(got)}, expected {expected} (annotation {annotation.id})")


def box_of(annotation: CocoAnnotation) -> Box | None:
    """The corners of an annotation's box, else the box around its polygons; None where it has neither."""
    bbox, corners = annotation.bbox, annotation.corners
    if not bbox:
        return corners if isinstance(corners, Box) else None
    if corners is not None and _are_four_numbers(corners):
        box = Box(*corners)
        if [box.x1, box.y1, box.width, box.height] == bbox:  # else somebody changed bbox, which is what counts
            return box
    return Box.from_xywh(*bbox)


def folders_of(path: PurePosixPath) -> tuple[tuple[str, ...], int]:
    """The folders of an image, below one called images where none of them is, and which of them is the last such.

    >>> folders_of(PurePosixPath("a/images/val/1.jpg")), folders_of(PurePosixPath("val/1.jpg"))
    ((('a', 'images', 'val'), 1), (('images', 'val'), 0))
    """
    folders = path.parts[:-1]
    folders = folders if "images" in folders else ("images", *folders)
    return folders, len(folders) - 1 - folders[::-1].index("images")


def split_of(folders: Sequence[str], at: int) -> tuple[Split | None, int]:
    """The split that a folder after ``images`` (at ``at``) is called, or else before it, and where its images end."""
    for index in (*range(at + 1, len(folders)), *range(at - 1, -1, -1)):
        for split, pattern in SPLIT_NAMES.items():
            if pattern.fullmatch(folders[index]):
                return split, max(index, at)
    return None, at


def path_of(image: CocoImage, where: str) -> PurePosixPath:
    """An image's path below ROOT. Raises DatasetError for one that leaves it."""
    path = PurePosixPath(image.file_name.replace("\\", "/"))
    if not is_plain(path) or PureWindowsPath(image.file_name).drive:
        raise DatasetError(
            f"{where}file_name: got {image.file_name[:200]!r}, expected a relative path without '..', with the "
            "image's ending"
        )
    return path


def _around(segmentation: Any) -> Box | None:
    """The box around the points of COCO's polygons [[x, y, x, y, ...], ...]; a run-length mask has none."""
    polygons = segmentation if isinstance(segmentation, list) else []
    points = list(chain.from_iterable(polygon for polygon in polygons if isinstance(polygon, list)))
    if not points or len(points) % 2 or not all(map(_is_number, points)):
        return None
    xs, ys = points[::2], points[1::2]
    return Box(min(xs), min(ys), max(xs), max(ys))


def _are_four_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 4 and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _refuse_repeated(where: str, ids: Sequence[int | str]) -> None:
    if len(set(ids)) < len(ids):
        number = Counter(ids).most_common(1)[0][0]
        index = len(ids) - 1 - ids[::-1].index(number)
        raise DatasetError(f"{where}[{index}].id: got {number!r} a second time, expected each id once")


def _wrong(path: Path, text: bytes, error: msgspec.ValidationError) -> DatasetError:
    """What msgspec found, with the value that it is about."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as worse:  # behind the place that msgspec has come to
        return DatasetError(f"{path}: {worse}; expected a whole COCO JSON file")
    reason, _, place = str(error).replace("`", "").partition(" - at $")
    key = next((key for key in EXPECTED if f".{key}" in place), "")
    if key:
        place = place.partition(f".{key}")[0] + f".{key}"  # not a number in it alone
    for part in re.findall(r"\w+", place):
        content = content[int(part)] if isinstance(content, list) else content[part]
    place = place.lstrip(".")
    if missing := re.fullmatch("Object missing required field (.+)", reason):
        where = ".".join(filter(None, (place, missing[1])))
        return DatasetError(f"{path}: {where}: is missing, expected it as in COCO's instances files")
    expected = EXPECTED.get(key, reason.removeprefix("Expected ").partition(", got")[0].replace("array", "list"))
    return DatasetError(f"{path}: {f'{place}: ' if place else ''}got {short(content)}, expected {expected}")
