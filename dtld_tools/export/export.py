"""A dataset in, one COCO JSON out (`to_coco`); a COCO JSON in, YOLO label files out (`to_yolo`).

Boxes are unrounded (`dtld_tools.export.boxes`), so a dataset's own COCO JSON gives its label files back to the byte.
What has its name is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

import orjson

from dtld_tools.dataset.data_yaml import yaml_text
from dtld_tools.dataset.records import label_text
from dtld_tools.errors import DatasetError
from dtld_tools.export.boxes import Labelled, class_names, labelled_images
from dtld_tools.export.coco import CocoImage, read_coco
from dtld_tools.files import UNWRITTEN, WHOLE, held, told_when_full, whole_file
from dtld_tools.importing.imported import Crowd
from dtld_tools.importing.yolo import IMAGE_SUFFIXES, label_of
from dtld_tools.types import SPLITS, Box, Split, Target

MOVING = "moving"  # in the scratch folder: the names that label files and data.yaml are getting in OUT
FIRST_ID = 1  # of categories: 0 is the background elsewhere; of annotations: COCOeval takes 0 for "no match"


def to_coco(root: Path, out: Path, splits: Sequence[Split] = SPLITS) -> dict[str, Any]:
    """Write the images of some splits, augmented copies included, as COCO JSON; returns how many there are.

    ``file_name`` is relative to the dataset's folder (``images/train/a.jpg``), which is the image root for a loader.
    Category ids count from 1, as in COCO itself: class 0 of data.yaml is category 1, and Ultralytics'
    ``convert_coco(cls91to80=False)`` takes the 1 off again. Images also say their city, route, sequence and frame,
    annotations the id of their light. Memory does not grow with the dataset. Raises DatasetError.
    """
    names = class_names(root, out, folder=False)
    if not out.parent.is_dir():
        raise DatasetError(f"{out.parent}: no such folder, expected one to write {out.name} into; make it first")
    info = {"description": f"{root.resolve().name}, a dataset of dtld", "splits": list(splits)}
    categories = [{"id": FIRST_ID + index, "name": name} for index, name in enumerate(names)]
    images = annotations = 0
    # COCO wants all images before or after all annotations: these wait in a second file, not in memory.
    with whole_file(out) as path, path.open("wb") as stream, TemporaryFile(dir=out.parent) as waiting:
        stream.write(b'{"info":' + orjson.dumps(info) + b',"licenses":[],"categories":' + orjson.dumps(categories))
        stream.write(b',"images":[')
        for each in labelled_images(root, splits):
            stream.write(b",\n" if images else b"\n")
            stream.write(orjson.dumps(_coco_image(FIRST_ID + images, each)))
            for target in each.targets:
                waiting.write(b",\n" if annotations else b"\n")
                waiting.write(orjson.dumps(_coco_annotation(FIRST_ID + annotations, FIRST_ID + images, target)))
                annotations += 1
            images += 1
        stream.write(b'\n],"annotations":[')
        waiting.seek(0)
        shutil.copyfileobj(waiting, stream)
        stream.write(b"\n]}\n")
    return {"out": str(out), "images": images, "annotations": annotations, "categories": list(names)}


def to_yolo(path: Path, out: Path, crowd: Crowd = "drop") -> dict[str, Any]:
    """Write the boxes of a COCO JSON as YOLO label files and a data.yaml; returns how many there are.

    The labels of ``images/train/a.jpg`` go where a trainer looks for them, OUT/labels/train/a.txt: "labels" in place of
    the path's last "images", or before the path, as the images then belong into OUT/images. data.yaml has the splits
    that folders are called, ``valid`` and ``val2017`` among them, and the classes, which count from 0 in the order of
    the categories' ids. Boxes are clipped to their image; crowds, unless kept, and boxes without area in the image are
    left out and counted. OUT may hold the images, but neither labels nor a data.yaml. Raises DatasetError.
    """
    coco = read_coco(path, crowd)
    entries = _entries(coco.images)
    roots = {image.label_root for image in coco.images}
    roots = {root for root in roots if not any(PurePosixPath(root).is_relative_to(r) for r in roots - {root})}
    document: dict[str, Any] = {split: names[0] if len(names) == 1 else names for split, names in entries.items()}
    document |= {"names": dict(enumerate(coco.names))}
    names = (*sorted(roots), "data.yaml")
    new = not out.exists()
    try:
        with told_when_full(out, UNWRITTEN), held(out, "export") as scratch:
            moving, staging = scratch / MOVING, scratch / WHOLE
            if moving.exists():  # a killed run began to
                _remove(out, moving.read_text(encoding="utf-8").splitlines())
            _remove(scratch, (MOVING, WHOLE))
            _refuse_folder(out, coco.images, entries, roots)
            staging.mkdir()
            for image in coco.images:
                label = staging / image.label
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(label_text(image.targets, image.size_wh), encoding="utf-8")
            (staging / "data.yaml").write_text(yaml_text(document), encoding="utf-8")
            moving.write_text("\n".join(names), encoding="utf-8")
            try:
                for name in names:
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    (staging / name).replace(out / name)
                loaded = _load(out, coco.images, entries)
            except BaseException:
                _remove(out, names)
                raise
    except BaseException:
        if new:
            with suppress(OSError):  # another process holds it
                out.rmdir()
        raise
    return {
        "out": str(out),
        "images": len(coco.images),
        "annotations": sum(len(image.targets) for image in coco.images),
        "categories": list(coco.names),
        "left_out": dict(coco.left_out),
        "splits": {split: sum(image.split == split for image in coco.images) for split in entries},
        "in_no_split": sum(image.split is None for image in coco.images),
        **loaded,
    }


# --- dataset -> COCO -------------------------------------------------------------------------------------


def _coco_image(number: int, each: Labelled) -> dict[str, Any]:
    image, (width, height) = each.image, each.size_wh
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


def _entries(images: Sequence[CocoImage]) -> dict[str, list[str]]:
    """Split -> its folders below OUT. Raises DatasetError if a folder of one split holds one of another."""
    entries = {split: sorted({image.entry for image in images if image.split == split}) for split in SPLITS}
    for split, folders in entries.items():
        for other, others in entries.items():
            for folder, inner in product(folders, others):
                if split != other and PurePosixPath(inner).is_relative_to(folder):
                    raise DatasetError(
                        f"file_name: got {inner} for {other}, which lies in {folder} of {split}, expected folders "
                        "apart: a trainer would take its images twice"
                    )
    return {split: folders for split, folders in entries.items() if folders}


def _refuse_folder(
    out: Path, images: Sequence[CocoImage], entries: Mapping[str, Sequence[str]], roots: Iterable[str]
) -> None:
    """Raise DatasetError if OUT has labels, or its images elsewhere than data.yaml and the labels' places say."""
    for name in (*sorted(roots or ["labels"]), "data.yaml"):
        if (out / name).exists():
            raise DatasetError(f"{out / name}: is there already, expected a folder without; choose another --out")
    for image in images:
        if not image.has_place and (out / image.file_name).exists() and not (out / image.path).exists():
            raise DatasetError(
                f"{out / image.file_name}: expected this image in {out / image.path}, where its labels are looked for "
                "in labels/; move the images"
            )
    folders = [folder for folders in entries.values() for folder in folders]
    holds_images = (out / "images").is_dir() and any((out / "images").iterdir())
    if holds_images or any((out / folder).exists() for folder in folders):
        for folder in folders:
            if not (out / folder).is_dir():
                raise DatasetError(f"{out / folder}: no such folder, expected the images that {out} holds to be there")


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Delete these files and folders below a folder, and the folders on the way to them that are empty then."""
    for name in names:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        for above in PurePosixPath(name).parents[:-1]:
            with suppress(OSError):
                (folder / above).rmdir()


def _load(out: Path, images: Sequence[CocoImage], entries: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Find every label file again as a trainer does, from its image's path, and count boxes. Raises DatasetError.

    Where OUT holds images, tells how many of the file's are missing, and how many are there that the file lacks: these
    train as images without objects.
    """
    for image in images:
        label = Path(label_of(f"{out}/{image.path}"))
        found = label.read_text(encoding="utf-8").count("\n") if label.is_file() else -1
        if found != len(image.targets):
            raise DatasetError(f"{label}: got {found} boxes when read again, expected {len(image.targets)}; try again")
    folders = [folder for folders in entries.values() for folder in folders if (out / folder).is_dir()]
    if not folders:
        return {}
    there = {path.relative_to(out).as_posix() for folder in folders for path in (out / folder).rglob("*.*")}
    there = {name for name in there if name.lower().endswith(IMAGE_SUFFIXES) and "/." not in f"/{name}"}
    listed = {image.path for image in images if image.split}
    return {"missing_images": len(listed - there), "unlisted_images": len(there - listed)}
