"""Training images as exported files take them: what a file is checked on, calibrated on and judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox

from kd.errors import DataError
from kd.scoring.evaluate import channels_of, images_of, require_known_classes, require_same_channels
from kd.scoring.predict import read_image
from kd.ultra.data import resolve_data, spread


@dataclass(frozen=True)
class Images:
    """Images from files, each read when its turn comes: arrays [1, 3, imgsz, imgsz], RGB as float32 in 0..1.

    They are padded to squares. A ``title`` is that of a progress bar.
    """

    paths: list[Path]
    imgsz: int
    title: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        resize = LetterBox((self.imgsz, self.imgsz), auto=False)
        for path in tqdm(self.paths, self.title, unit="image", leave=False, disable=None if self.title else True):
            picture = resize(image=read_image(path))[..., ::-1].transpose(2, 0, 1)
            yield np.ascontiguousarray(picture[None], np.float32) / np.float32(255)


def training_images(yolo: YOLO, data: str | Path, most: int, otherwise: str = "") -> list[Path]:
    """At most ``most`` training images of a data.yaml, evenly picked.

    Raises ModelError where its classes or channels are not the model's, and DataError where it has no training images
    or others than of three channels; ``otherwise`` stands at the end of that.
    """
    content = resolve_data(data, "train")
    if not content.get("train"):
        raise DataError(f"{data}: train: got none, expected training images{otherwise}")
    require_known_classes(yolo, content["names"], data)
    require_same_channels(yolo, content["channels"], data)
    if channels_of(yolo) != 3:
        raise DataError(f"{data}: got images of {channels_of(yolo)} channels, expected 3{otherwise}")
    return spread(images_of(content, data, "train"), most)
