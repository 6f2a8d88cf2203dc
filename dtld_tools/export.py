"""A dataset in, one COCO JSON out (`to_coco`); a COCO JSON in, YOLO label files out (`to_yolo`).

Boxes are the unrounded targets that the label files are written from (`dtld_tools.tile.targets_in`), never their
text, so a dataset's own COCO JSON gives its label files back to the byte. What has its name is complete.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

import orjson

from dtld_tools import dataset
from dtld_tools.consistency import read_classes, read_consistent
from dtld_tools.errors import DatasetError
from dtld_tools.geometry import clip_boxes
from dtld_tools.outputs import refuse_inputs, whole_file
from dtld_tools.tile import image_size, targets_in
from dtld_tools.types import SPLITS, Box, ImageRecord, Split, Target
from schemas.strict import StrictError, read_json

FIRST_ID = 1  # of categories: 0 is the background elsewhere; of annotations: COCOeval takes 0 for "no match"
EDGE_PX = 1e-6  # a box of ours may leave its image by a rounding of the scale; that is no reason to clip it


def to_coco(root: Path, out: Path, splits: Sequence[Split] = SPLITS) -> dict[str, Any]:
    """Write the images of some splits, augmented copies included, as COCO JSON; returns how many there are.

    ``file_name`` is relative to the dataset's folder (``images/train/a.jpg``), which is the image root for a loader.
    Category ids count from 1, as in COCO itself: class 0 of data.yaml is category 1, and Ultralytics'
    ``convert_coco(cls91to80=False)`` takes the 1 off again. Images also say their city, route, sequence and frame,
    annotations the id of their light. Memory does not grow with the dataset. Raises DatasetError.
    """
    if (root / dataset.UNFINISHED).exists():
        raise DatasetError(f"{root}: is unfinished; run the command that was making it again to continue")
    names = read_classes(root)
    if not out.parent.is_dir():
        raise DatasetError(f"{out.parent}: no such folder, expected one to write {out.name} into; make it first")
    refuse_inputs(out, dataset.files_of(root))
    info = {"description": f"{root.resolve().name}, a dataset of dtld", "splits": list(splits)}
    categories = [{"id": FIRST_ID + index, "name": name} for index, name in enumerate(names)]
    images = annotations = 0
    # COCO wants all images before or after all annotations: these wait in a second file, not in memory.
    with whole_file(out) as path, path.open("wb") as stream, TemporaryFile(dir=out.parent) as waiting:
        stream.write(b'{"info":' + orjson.dumps(info) + b',"licenses":[],"categories":' + orjson.dumps(categories))
        stream.write(b',"images":[')
        for image, targets in _images_with_targets(root, splits):
            stream.write(b",\n" if images else b"\n")
            stream.write(orjson.dumps(_coco_image(FIRST_ID + images, image)))
            for target in targets:
                waiting.write(b",\n" if annotations else b"\n")
                waiting.write(orjson.dumps(_coco_annotation(FIRST_ID + annotations, FIRST_ID + images, target)))
                annotations += 1
            images += 1
        stream.write(b'\n],"annotations":[')
        waiting.seek(0)
        shutil.copyfileobj(waiting, stream)
        stream.write(b"\n]}\n")
    return {"out": str(out), "images": images, "annotations": annotations, "categories": list(names)}


def to_yolo(path: Path, out: Path) -> dict[str, Any]:
    """Write the boxes of a COCO JSON as YOLO label files and a data.yaml; returns how many there are.

    ``images/train/a.jpg`` has its labels in OUT/labels/train/a.txt, and an image whose folder is no split in
    OUT/labels/<stem>.txt. Classes count from 0 in the order of the categories' ids; data.yaml names them, and the
    splits that occur. Boxes are clipped to their image; crowds and boxes without area in the image are left out and
    counted. OUT may hold images, but neither labels nor a data.yaml. Raises DatasetError.
    """
    coco = _read_coco(path)
    for name in ("labels", "data.yaml"):
        if (out / name).exists():
            raise DatasetError(f"{out / name}: is there already, expected a folder without; choose another --out")
    document = {split: f"images/{split}" for split in SPLITS if any(image.split == split for image in coco.images)}
    document |= {"names": dict(enumerate(coco.names))}
    new = not out.exists()
    staging = out / f".labels.{os.getpid()}.tmp"
    try:
        staging.mkdir(parents=True)
        for image in coco.images:
            label = staging / image.label
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(dataset.label_text(image.targets, image.size_wh), encoding="utf-8")
        (staging / "data.yaml").write_text(dataset.yaml_text(document), encoding="utf-8")
        if coco.images:
            (staging / "labels").replace(out / "labels")
        (staging / "data.yaml").replace(out / "data.yaml")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if new:
            with suppress(OSError):
                out.rmdir()
        raise
    staging.rmdir()
    return {
        "out": str(out),
        "images": len(coco.images),
        "annotations": sum(len(image.targets) for image in coco.images),
        "categories": list(coco.names),
        "left_out": dict(coco.left_out),
    }


# --- dataset -> COCO -------------------------------------------------------------------------------------


def _images_with_targets(root: Path, splits: Sequence[Split]) -> Iterator[tuple[ImageRecord, list[Target]]]:
    """The images in the manifest's order with their targets in image pixels, in the order of their label lines."""
    for frame, images in read_consistent(root):
        for image in images:
            if image.split in splits:
                lights = [light for light in frame.lights if light.light_id in image.targets]
                yield image, targets_in(image.window, image.scale, lights)


def _coco_image(number: int, image: ImageRecord) -> dict[str, Any]:
    width, height = image_size(image.window, image.scale)
    return {
        "id": number,
        "file_name": f"images/{image.split}/{image.name}",
        "width": width,
        "height": height,
        **image.sequence._asdict(),
        "frame": image.frame,
    }


def _coco_annotation(number: int, image_number: int, target: Target) -> dict[str, Any]:
    box = target.box
    bbox = [box.x1, box.y1, box.width, box.height]
    annotation = {
        "id": number,
        "image_id": image_number,
        "category_id": FIRST_ID + target.class_id,
        "bbox": bbox,
        "area": box.area,
        "iscrowd": 0,
        "segmentation": [],
        "light": target.light_id,
    }
    if Box.from_xywh(*bbox) != box:  # x + (x2 - x) misses x2 by its last bit, which can turn a label's last digit
        annotation["corners"] = list(box)
    return annotation


# --- COCO -> labels --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of a COCO file: where its labels go below OUT, and what they say."""

    label: str
    split: str | None
    size_wh: tuple[int, int]
    targets: list[Target]


@dataclass(frozen=True, slots=True)
class _Coco:
    names: tuple[str, ...]
    images: list[_Image]
    left_out: Counter[str]


def _read_coco(path: Path) -> _Coco:
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

    images: dict[int | str, _Image] = {}
    labels: dict[str, str] = {}
    for item, place in _items(document, "images", path):
        number = _field(item, "id", (int, str), place)
        if number in images:
            raise DatasetError(f"{place}id: got {number!r} a second time, expected each id once")
        label, split = _label_of(_field(item, "file_name", str, place), place)
        if label in labels:
            raise DatasetError(
                f"{place}file_name: its labels would be {label}, as those of {labels[label]}; rename one"
            )
        labels[label] = item["file_name"]
        size_wh = _side(item, "width", place), _side(item, "height", place)
        images[number] = _Image(label, split, size_wh, [])

    left_out: Counter[str] = Counter()
    for item, place in _items(document, "annotations", path):
        image = images.get(_field(item, "image_id", (int, str), place))
        if image is None:
            raise DatasetError(f"{place}image_id: got {item['image_id']!r}, expected the id of an image of the file")
        category = _field(item, "category_id", int, place)
        if category not in class_of:
            raise DatasetError(f"{place}category_id: got {category}, expected one of {str(sorted(names))[:100]}")
        box = _inside(_box_of(item, place), image.size_wh)
        if item.get("iscrowd"):
            left_out["crowd"] += 1  # a region of many objects, which a label line cannot say
        elif box is None:
            left_out["without_area"] += 1
        else:
            image.targets.append(Target(class_of[category], box, len(image.targets)))
    return _Coco(tuple(names[number] for number in class_of), list(images.values()), left_out)


def _label_of(file_name: str, place: str) -> tuple[str, str | None]:
    """Where the labels of an image go below OUT, and its split if its folder is one."""
    name = PurePosixPath(file_name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.stem or "\0" in file_name:
        raise DatasetError(f"{place}file_name: got {file_name!r}, expected a relative path without '..'")
    split = name.parent.name if name.parent.name in SPLITS else None
    return "/".join(("labels", *([split] if split else []), f"{name.stem}.txt")), split


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


def _four_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )
