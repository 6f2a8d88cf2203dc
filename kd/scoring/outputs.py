"""Detections on files: YOLO labels with confidences, COCO results, pictures with boxes.

In: frames with their detections, one at a time. Out: a folder or a file each.
Invariant: what is written appears whole once all frames are done, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
from PIL import Image

from kd.files import whole_file, whole_folder
from kd.scoring.detection_metrics import Detections
from kd.scoring.predict import Detection, colours_of, draw_detections
from kd.scoring.shots import Shot

FIRST_ID = 1  # of COCO's images and categories, as dtld export counts them
JPEG_QUALITY = 95

Write = Callable[[Shot, Detections], None]
Writer = AbstractContextManager[Write]


@contextmanager
def labels(folder: Path) -> Iterator[Write]:
    """A YOLO label file per frame: ``class xc yc w h confidence`` as shares of the frame; empty where nothing is."""
    with whole_folder(folder) as partial:

        def write(shot: Shot, found: Detections) -> None:
            (partial / f"{shot.name}.txt").write_text("".join(_label_lines(shot, found)), encoding="utf-8")

        yield write


def _label_lines(shot: Shot, found: Detections) -> Iterator[str]:
    width, height = shot.size_wh
    for (x1, y1, x2, y2), confidence, class_id in _rows(found):
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        yield f"{class_id} {' '.join(f'{value:.6f}' for value in (*box, confidence))}\n"


@contextmanager
def coco_results(file: Path, names: Mapping[int, str]) -> Iterator[Write]:
    """COCO results as pycocotools' ``loadRes`` takes them, and beside them the images and categories of their ids.

    Images are numbered from 1 in the order of the frames, categories are class numbers plus 1, as dtld export has it.
    """
    with ExitStack() as files:
        results, images = (
            files.enter_context(files.enter_context(whole_file(path)).open("w", encoding="utf-8"))
            for path in (file, images_file(file))
        )
        number = count = 0

        def put(stream: Any, first: bool, value: dict[str, Any]) -> None:
            stream.write(("" if first else ",\n") + json.dumps(value))

        def write(shot: Shot, found: Detections) -> None:
            nonlocal number, count
            width, height = shot.size_wh
            number += 1
            image = {"id": number, "file_name": shot.file_name, "width": width, "height": height}
            put(images, number == FIRST_ID, image)
            for (x1, y1, x2, y2), confidence, class_id in _rows(found):
                box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
                row = {"image_id": number, "category_id": FIRST_ID + class_id, "bbox": box, "score": confidence}
                put(results, not count, row)
                count += 1

        results.write("[")
        images.write('{"images": [')
        yield write
        results.write("]\n")
        categories = [{"id": FIRST_ID + class_id, "name": name} for class_id, name in names.items()]
        images.write(f'], "categories": {json.dumps(categories)}, "annotations": []}}\n')


def images_file(file: Path) -> Path:
    """Where the images behind COCO results are listed: ``found.json`` -> ``found.images.json``."""
    return file.with_suffix(f".images{file.suffix}")


@contextmanager
def pictures(out: Path, names: Mapping[int, str]) -> Iterator[Write]:
    """The frames with their boxes: ``out`` itself for one frame (.png), else a folder of JPEGs."""
    colours = colours_of(names.values())

    def drawn(shot: Shot, found: Detections) -> Image.Image:
        page = Image.fromarray(cv2.cvtColor(shot.picture, cv2.COLOR_BGR2RGB))
        boxes = [Detection(tuple(box), names[class_id], confidence) for box, confidence, class_id in _rows(found)]
        draw_detections(page, boxes, 1.0, min(max(page.width, 640), 1280) / 640, colours)
        return page

    with whole_file(out) if is_picture(out) else whole_folder(out) as partial:

        def write(shot: Shot, found: Detections) -> None:
            if is_picture(out):
                drawn(shot, found).save(partial, format="PNG")
            else:
                drawn(shot, found).save(partial / f"{shot.name}.jpg", quality=JPEG_QUALITY)

        yield write


def is_picture(out: Path) -> bool:
    """Whether ``--out`` names one picture, not a folder of some."""
    return out.suffix.lower() == ".png"


def _rows(found: Detections) -> Iterator[tuple[list[float], float, int]]:
    return zip(found.boxes_xyxy.tolist(), found.confidences.tolist(), found.class_ids.tolist(), strict=True)
