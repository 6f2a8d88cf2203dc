"""The images that inheritance is computed on: evenly spaced ones of those that are trained on, letterboxed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.utils.patches import imread

from kd.errors import DataError
from kd.ultra.data import spread
from kd.ultra.depth import require_8_bit

MEGAPIXELS = 8  # held at once, whatever the number of images: what an inheritance needs of memory grows with them


def training_images(data: str | Path, files: Sequence[Path], imgsz: int, most: int) -> Tensor:
    """Images [N, 3, imgsz, imgsz] in 0..1, ``most`` at most and fewer large ones, every second one mirrored.

    ``files`` are those of ``data`` that are trained on.
    Raises DataError for images that cannot be read or are not of 8 bits.
    """
    files = spread(files, min(most, max(8, int(MEGAPIXELS * 1e6 / imgsz**2))))
    require_8_bit(str(data), files)
    letterbox = LetterBox((imgsz, imgsz), auto=False, scaleup=True)
    images = []
    for i, file in enumerate(files):
        image = imread(str(file))
        if image is None:
            raise DataError(f"{file}: got no image, expected one that OpenCV reads")
        image = letterbox(image=image)[..., ::-1]
        images.append(image[:, ::-1] if i % 2 else image)
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()).float() / 255
