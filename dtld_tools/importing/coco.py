"""A COCO JSON in, its images and annotations out, checked; or all of it as frames (`import_coco`).

Invariant: every annotation is a light of its image, or stands there as dropped with its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import msgspec

from dtld_tools.errors import DatasetError
from dtld_tools.importing.imported import Classes, Crowd, Imported, Sequences, is_plain, refuse_names
from dtld_tools.labels.documents import short
from dtld_tools.types import Box, Dropped, Frame, Light, Split, numbered
from schemas.strict import StrictError, read_json

#: What folders of a split are called: valid by Roboflow, val2017 by COCO.
SPLIT_NAMES: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"train(ing)?(20[0-9]{2})?", re.IGNORECASE),
    "val": re.compile(r"val(id(ation)?)?(20[0-9]{2})?", re.IGNORECASE),
    "test": re.compile(r"test(ing)?(20[0-9]{2})?", re.IGNORECASE),
}

_Id = Annotated[int, msgspec.Meta(ge=-(2**63) + 1, le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Number = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]  # beyond any coordinate; keeps box arithmetic finite


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
    """An annotation of the file; ``corners`` are in files of ours, where bbox misses them by the last bit."""

    image_id: _Id | str
    category_id: _Id
    id: _Id | None = None
    bbox: list[_Number] | None = None
    segmentation: Any = None
    iscrowd: bool | int | None = None
    corners: Any = None


class _Document(msgspec.Struct, gc=False):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


@dataclass(frozen=True, slots=True)
class Coco:
    """A COCO file, every reference in it checked: classes count from 0 in the order of the categories' ids."""

    names: tuple[str, ...]
    class_of: dict[int, int]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]


def read_coco(path: Path) -> Coco:
    """A COCO file. Raises DatasetError that names the place."""
    try:
        content = read_json(path)
        document = msgspec.convert(content, _Document)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected a COCO JSON file") from error
    except StrictError as error:
        raise DatasetError(f"{path}: {error}; expected a whole COCO JSON file") from error
    except msgspec.ValidationError as error:
        raise _wrong(path, content, error) from error
    categories = sorted(document.categories, key=attrgetter("id"))
    _refuse_repeated(f"{path}: categories", [category.id for category in document.categories])
    _refuse_repeated(f"{path}: images", [image.id for image in document.images])
    names = tuple(category.name for category in categories)
    refuse_names(names, f"{path}: categories")
    class_of = {category.id: number for number, category in enumerate(categories)}
    known = {image.id for image in document.images}
    for index, annotation in enumerate(document.annotations):
        place = f"{path}: annotations[{index}] (id {annotation.id})"
        if annotation.image_id not in known:
            raise DatasetError(
                f"{place}.image_id: got {annotation.image_id!r}, expected the id of an image of the file"
            )
        if annotation.category_id not in class_of:
            listed = short(sorted(class_of))
            raise DatasetError(f"{place}.category_id: got {annotation.category_id}, expected one of {listed}")
        if annotation.iscrowd not in (0, 1, None):
            raise DatasetError(f"{place}.iscrowd: got {annotation.iscrowd}, expected 0 or 1")
        if annotation.bbox and len(annotation.bbox) != 4:
            raise DatasetError(f"{place}.bbox: got {short(annotation.bbox)}, expected [x, y, w, h] in pixels")
    return Coco(names, class_of, document.images, document.annotations)


def box_of(annotation: CocoAnnotation) -> Box | None:
    """The corners of an annotation's box, else the box around its polygons; None where it has neither."""
    bbox, corners = annotation.bbox, annotation.corners
    if not bbox:
        return _around(annotation.segmentation)
    if corners is not None and isinstance(corners, list) and len(corners) == 4 and _are_numbers(corners):
        box = Box(*corners)
        if [box.x1, box.y1, box.width, box.height] == bbox:  # else somebody changed bbox, which is what counts
            return box
    return Box.from_xywh(*bbox)


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


# --- as frames -------------------------------------------------------------------------------------------


def import_coco(path: Path, sequence_of: Sequences, crowd: Crowd) -> Imported:
    """The images of a COCO file as frames, in the split that a folder of theirs is called. Raises DatasetError.

    A light's id is its annotation's; where that has none, its place in the list.
    """
    coco = read_coco(path)
    classes = Classes(coco.names)
    attributes = classes.attributes()
    of_image: dict[int | str, list[tuple[int, CocoAnnotation]]] = {image.id: [] for image in coco.images}
    for index, annotation in enumerate(coco.annotations):
        number = index if annotation.id is None else annotation.id
        of_image[annotation.image_id].append((number, annotation))
    frames: dict[str, Frame] = {}
    splits: dict[str, tuple[Split]] = {}
    treated: Counter[str] = Counter()
    for index, image in enumerate(coco.images):
        name = path_of(image, f"{path}: images[{index}].")
        if (text := name.as_posix()) in frames:
            raise DatasetError(f"{path}: images[{index}].file_name: got {text} a second time, expected it once")
        own = of_image[image.id]
        lights: list[Light] = []
        dropped: list[Dropped] = []
        for light_id, (_, annotation) in zip(numbered([number for number, _ in own]), own, strict=True):
            box, class_id = box_of(annotation), coco.class_of[annotation.category_id]
            if annotation.iscrowd and crowd == "drop":
                dropped.append(Dropped(light_id, "crowd", class_id, box))
            elif box is None:
                dropped.append(Dropped(light_id, "no_box", class_id))
            else:
                treated["crowds"] += bool(annotation.iscrowd)
                treated["polygons"] += not annotation.bbox
                lights.append(Light(box, attributes[class_id], light_id, ""))
        frames[text] = Frame(text, sequence_of(text), None, tuple(lights), tuple(dropped), image.size_wh)
        folders = name.parts[:-1] if "images" in name.parts[:-1] else ("images", *name.parts[:-1])
        split, _ = split_of(folders, max(at for at, folder in enumerate(folders) if folder == "images"))
        if split:
            splits[text] = (split,)
    if not frames:
        raise DatasetError(f"{path}: images: got none, expected at least one")
    if coco.annotations and not any(frame.lights for frame in frames.values()):
        raise DatasetError(
            f"{path}: annotations: got {len(coco.annotations)} crowds or annotations without a box and no other, "
            "expected some; pass --crowd keep to take crowds as objects"
        )
    notes = []
    if treated["polygons"]:
        notes.append(f"{treated['polygons']} annotations have no bbox: theirs are the boxes around their polygons")
    if treated["crowds"]:
        notes.append(f"{treated['crowds']} crowds are taken as objects (--crowd keep)")
    if splits and len(splits) < len(frames):
        notes.append(
            f"{len(frames) - len(splits)} images lie in no folder called train, val or test: all are split anew"
        )
        splits = {}
    return Imported("coco", classes, tuple(frames[name] for name in sorted(frames)), splits, tuple(notes))


def _around(segmentation: Any) -> Box | None:
    """The box around the points of COCO's polygons [[x, y, x, y, ...], ...]; a run-length mask has none."""
    polygons = segmentation if isinstance(segmentation, list) else []
    points = list(chain.from_iterable(polygon for polygon in polygons if isinstance(polygon, list)))
    if not points or len(points) % 2 or not _are_numbers(points):
        return None
    xs, ys = points[::2], points[1::2]
    return Box(min(xs), min(ys), max(xs), max(ys))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) <= 1e15 for value in values)


def _refuse_repeated(where: str, ids: Sequence[int | str]) -> None:
    if len(set(ids)) < len(ids):
        number, times = Counter(ids).most_common(1)[0]
        raise DatasetError(f"{where}: got the id {number!r} {times} times, expected each once")


def _wrong(path: Path, content: Any, error: msgspec.ValidationError) -> DatasetError:
    """What msgspec found, with the value that it is about."""
    reason, _, place = str(error).replace("`", "").partition(" - at $")
    for part in re.findall(r"\w+", place):
        content = content[int(part)] if isinstance(content, list) else content[part]
    reason = reason[0].lower() + reason[1:]
    return DatasetError(
        f"{path}: {place.lstrip('.') or 'the file'}: got {short(content)}, {reason}, as in COCO's files"
    )
