"""A dataset in, folders for Apple's Create ML out: <split>/ with its images and an annotations.json.

Create ML wants an image and its entry in one folder. A box is its centre and its size in pixels, unrounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from dtld_tools.export.boxes import Labelled, class_names, image_bytes, labelled_images
from dtld_tools.files import whole_folder
from dtld_tools.types import SPLITS, Split


def to_createml(root: Path, out: Path, splits: Sequence[Split] = SPLITS) -> dict[str, Any]:
    """Write the images of some splits with their boxes for Create ML into a new folder; returns how many there are.

    Raises DatasetError.
    """
    names = class_names(root, out)
    images: Counter[Split] = Counter()
    boxes = 0
    with whole_folder(out) as folder, ExitStack() as opened:
        streams = {}
        for split in splits:
            (folder / split).mkdir()
            streams[split] = opened.enter_context((folder / split / "annotations.json").open("wb"))
            streams[split].write(b"[")
        for each in labelled_images(root, splits):
            split = each.image.split
            (folder / split / each.image.name).write_bytes(image_bytes(root, each.image))
            streams[split].write((b",\n" if images[split] else b"\n") + orjson.dumps(_entry(each, names)))
            images[split] += 1
            boxes += len(each.targets)
        for stream in streams.values():
            stream.write(b"\n]\n")
    return {"out": str(out), "images": images.total(), "annotations": boxes, "categories": list(names)}


def _entry(each: Labelled, names: Sequence[str]) -> dict[str, Any]:
    annotations = [
        {
            "label": names[class_id],
            "coordinates": {
                "x": (box.x1 + box.x2) / 2,
                "y": (box.y1 + box.y2) / 2,
                "width": box.width,
                "height": box.height,
            },
        }
        for class_id, box in ((target.class_id, target.box) for target in each.targets)
    ]
    return {"image": each.image.name, "annotations": annotations}
