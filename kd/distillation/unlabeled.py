"""Images without labels, which only the distillation terms see: checked before a run, drawn in every step.

In: a folder of images at any depth. Out: batches [B, 3, H, W] in 0..1, augmented as Ultralytics augments labelled
images once mosaic is closed: `scale`, `translate`, `hsv_*`, `fliplr` and the like, but nothing that mixes images.
Invariant: the order follows from seed and epoch, and neither drawing nor augmenting moves the random numbers that the
labelled images are drawn with, so they are the same in a run with and without.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from ultralytics.data.augment import Format, v8_transforms
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils.instance import Instances
from ultralytics.utils.patches import imread

from kd.errors import DataError
from kd.ultra import session
from kd.ultra.data import image_files
from kd.ultra.depth import require_8_bit
from kd.ultra.overlap import also_in, named

MIXING = ("mosaic", "mixup", "cutmix", "copy_paste")  # what makes one image of several


def check_unlabeled(folder: str | Path, data: dict[str, Any]) -> dict[str, Any]:
    """``{images, sha256}`` of a folder of unlabelled images; the hash is over their names and sizes, in sorted order.

    ``data`` is the view of `kd.ultra.data.resolve_data`. Raises DataError for a folder without images, for images of
    more than 8 bits, for some that cannot be read, or are in the val or test split too (the same file, or the same
    bytes).
    """
    where = f"--unlabeled {folder}"
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{where}: no such folder, expected one with images at any depth")
    files = image_files([folder])
    if not files:
        raise DataError(f"{where}: got no images, expected .jpg, .png or the like at any depth")
    require_8_bit(where, files)
    with session.silence():
        unreadable = [file for file in files if not _is_image(file)]
    if unreadable:
        raise DataError(f"{where}: got {_count(unreadable, folder)} that cannot be read, expected images: remove them")
    leaked = also_in([*image_files(data["val"]), *image_files(data["test"])], files)
    if leaked:
        raise DataError(
            f"{where}: got {_count(leaked, folder)} that the val or test split has too, expected others: a student "
            f"must not be scored on what it was trained on"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
    return {"images": len(files), "sha256": digest.hexdigest()}


def _is_image(file: Path) -> bool:
    """Whether header and checksums are in order, and no side is below 10 px: what Ultralytics asks of labelled ones."""
    try:
        with Image.open(file) as image:
            image.verify()
            return min(image.size) >= 10
    except Exception:  # whatever a damaged file makes of a decoder
        return False


def _count(files: Sequence[Path], folder: Path) -> str:
    return f"{len(files)} image{'' if len(files) == 1 else 's'} ({named(files, folder)})"


class Unlabeled:
    """The images of a folder, drawn in an order that is shuffled anew for every epoch and for every pass over them."""

    def __init__(self, folder: str | Path, labelled: Any, args: Any) -> None:
        """``labelled`` is Ultralytics' training dataset, ``args`` its training arguments (augmentation, workers)."""
        images = _Images(image_files([Path(folder)]), labelled, args)
        workers = args.workers
        self._order = _Order(len(images))
        self._drawn: Iterator[Tensor | str] | None = None
        self._loader = DataLoader(
            images,
            batch_size=None,  # one by one: the last batch of an epoch may be smaller
            sampler=self._order,
            num_workers=workers,
            prefetch_factor=2 * args.batch // workers + 1 if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # a loader without its own would draw from torch's
        )

    def begin(self, *seeds: int) -> None:
        """Start an epoch: ``seeds`` decide order and augmentation of what is drawn from here."""
        self._order.seeds, self._drawn = seeds, None

    def draw(self, like: Tensor) -> Tensor:
        """The next images [B, 3, H, W] in 0..1, as many and as large as ``like``, on its device.

        Raises DataError for an image that has become unreadable since the run began.
        """
        if self._drawn is None:
            self._drawn = iter(self._loader)
        drawn = [next(self._drawn) for _ in like]
        for lost in (image for image in drawn if isinstance(image, str)):
            raise DataError(f"{lost}: got no readable image, expected it as it was when the run began")
        images = torch.stack(drawn).to(like.device).to(like.dtype) / 255
        if images.shape == like.shape:
            return images
        return F.interpolate(images, size=like.shape[2:], mode="bilinear", align_corners=False)  # multi_scale


class _Order(Sampler):
    """Endless pairs of an image's index and the seed of its augmentation: every image once, then all again."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.seeds: tuple[int, ...] = (0,)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng(self.seeds)
        while True:
            for index in rng.permutation(self.images).tolist():
                yield index, int(rng.integers(2**32))


class _Images(Dataset):
    """Augmented images [3, H, W], uint8, RGB, by index and seed; the path of one that cannot be read."""

    def __init__(self, files: Sequence[Path], labelled: Any, args: Any) -> None:
        unmixed = copy(args)
        vars(unmixed).update(dict.fromkeys(MIXING, 0.0))
        self.files, self.size_px, self.flag = files, args.imgsz, labelled.cv2_flag
        self.squares = isinstance(labelled, RTDETRDataset)  # which are stretched, not padded
        self.transforms = v8_transforms(labelled, args.imgsz, unmixed)
        self.transforms.append(Format(bgr=args.bgr))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> Tensor | str:
        index, seed = key
        image = imread(self.files[index], flags=self.flag)
        if image is None:
            return str(self.files[index])  # an error raised in a worker would come with its traceback as text
        scale = self.size_px / max(image.shape[:2])
        width, height = (min(round(side * scale), self.size_px) or 1 for side in image.shape[1::-1])
        if self.squares:
            width = height = self.size_px
        image = cv2.resize(image, (width, height)).reshape(height, width, -1)
        nothing = Instances(np.zeros((0, 4), np.float32), np.zeros((0, 1000, 2), np.float32))
        labels = {"img": image, "cls": np.zeros((0, 1), np.float32), "instances": nothing}
        with _seeded(seed):
            return self.transforms(labels)["img"]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let Python and numpy draw from a seed inside, and go on outside as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode normalise by their batch and leave their running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
