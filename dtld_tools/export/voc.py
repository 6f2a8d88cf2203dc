"""A dataset in, a folder of Pascal VOC out: JPEGImages/, Annotations/*.xml, ImageSets/Main/<split>.txt, labelmap.txt.

VOC counts pixels from 1 and takes both corners in, in whole numbers: our half-open [x1, x2) from 0 becomes xmin =
x1 + 1 and xmax = x2, each rounded to the nearest. The whole of an image is 1 to its width, and who takes 1 off the
first corner alone, as detectron2 does, has our box again. (datumaro does by `coordinate_mode="voc-one-based"` alone.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree

from dtld_tools.errors import DatasetError
from dtld_tools.export.boxes import Labelled, class_names, image_bytes, labelled_images
from dtld_tools.files import whole_folder
from dtld_tools.geometry import clip_boxes
from dtld_tools.types import SPLITS, Box, Split


def to_voc(root: Path, out: Path, splits: Sequence[Split] = SPLITS) -> dict[str, Any]:
    """Write the images of some splits with their boxes as Pascal VOC into a new folder; returns how many there are.

    ``OUT`` is what VOC calls VOCdevkit/VOC2007. An object is ``truncated`` where its image does not show all of its
    light. Raises DatasetError, also for class names that labelmap.txt cannot hold.
    """
    names = class_names(root, out)
    for name in names:
        if ":" in name or name.startswith("#"):
            raise DatasetError(
                f"{root}: got the class {name!r}, expected one without ':' and no '#' in front, as labelmap.txt has "
                "other uses for both; rename it where the dataset is from"
            )
    stems: dict[Split, list[str]] = {split: [] for split in splits}
    boxes = 0
    with whole_folder(out) as folder:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for each in labelled_images(root, splits):
            image, stem = each.image, PurePath(each.image.name).stem
            (folder / "JPEGImages" / image.name).write_bytes(image_bytes(root, image))
            tree = ElementTree.ElementTree(_annotation(each, names))
            ElementTree.indent(tree, "\t")
            tree.write(folder / "Annotations" / f"{stem}.xml", encoding="utf-8")
            stems[image.split].append(f"{stem}\n")
            boxes += len(each.targets)
        for split, listed in stems.items():
            (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(listed), encoding="utf-8")
        # What CVAT and datumaro know classes other than VOC's twenty by: name, colour, parts, actions.
        (folder / "labelmap.txt").write_text("".join(f"{name}:::\n" for name in names), encoding="utf-8")
    images = sum(map(len, stems.values()))
    return {"out": str(out), "images": images, "annotations": boxes, "categories": list(names)}


def corners(box: Box, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax of VOC; at least one pixel, inside the image.

    >>> corners(Box(0, 0, 640, 480), (640, 480)), corners(Box(10.4, 20.6, 12.4, 20.9), (640, 480))
    ((1, 1, 640, 480), (11, 22, 12, 22))
    """
    low = [min(round(start), length - 1) for start, length in zip(box[:2], size_wh, strict=True)]
    high = [max(round(end), start + 1) for end, start in zip(box[2:], low, strict=True)]
    return low[0] + 1, low[1] + 1, high[0], high[1]


def _annotation(each: Labelled, names: Sequence[str]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _add(root, {"folder": "JPEGImages", "filename": each.image.name})
    _add(ElementTree.SubElement(root, "source"), {"database": "dtld", "image": each.image.frame})
    width, height = each.size_wh
    _add(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _add(root, {"segmented": 0})
    whole = clip_boxes([light.box for light in each.lights], each.image.window)
    for target, light, shown in zip(each.targets, each.lights, whole, strict=True):
        entry = ElementTree.SubElement(root, "object")
        is_cut = int(shown != light.box)
        _add(entry, {"name": names[target.class_id], "pose": "Unspecified", "truncated": is_cut, "difficult": 0})
        places = zip(("xmin", "ymin", "xmax", "ymax"), corners(target.box, each.size_wh), strict=True)
        _add(ElementTree.SubElement(entry, "bndbox"), dict(places))
    return root


def _add(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)
