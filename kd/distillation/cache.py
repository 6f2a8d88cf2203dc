"""A teacher asked once: its detections on un-augmented images, as soft-labels learns from them.

In: a trained detector and image files. Out: a `TeacherCache`, and whether one that is there fits a run.
Invariant: an image is decoded and letterboxed as for validation; the teacher runs folded, in inference mode.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from ultralytics.data.augment import LetterBox
from ultralytics.utils import nms
from ultralytics.utils.ops import scale_boxes
from ultralytics.utils.patches import imread

from kd.config import SINGLE_CLASS
from kd.distillation.cache_file import Detections, TeacherCache, image_sha256, most_rows
from kd.distillation.links import matching_classes
from kd.distillation.teacher import load_detector, require_branches
from kd.errors import DistillationError
from kd.files import sha256
from kd.scoring.evaluate import require_same_channels
from kd.ultra import models, session
from kd.ultra.memory import enough_memory
from kd.ultra.overlap import named

LEAST_SCORE = 0.05  # of a detection that is kept: an object that a label names may be one of which it is not sure
SAME_IOU = 0.7  # detections of one class that overlap more are one, as in Ultralytics' validation
MEGAPIXELS = 2.5  # of a batch
READERS = 2  # threads that decode ahead

T, R = TypeVar("T"), TypeVar("R")


def ask(
    teacher: str,
    images: Sequence[Path],
    imgsz: int,
    channels: int,
    device: torch.device,
    quiet: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> TeacherCache:
    """What a teacher says about images at a longer side of ``imgsz`` pixels.

    ``tell`` gets a line of images that cannot be read, of which nothing is said. Raises ModelError or
    DistillationError for a teacher that cannot be asked.
    """
    yolo = load_detector(teacher)
    require_branches(yolo.model, teacher)
    require_same_channels(yolo, channels, teacher)
    model, stride = folded(yolo.model, device), models.grid_px(yolo)
    found: dict[Path, Detections] = {}
    read = ahead(lambda file: _read(file, imgsz, channels, stride), images)
    bar = tqdm(read, "ask the teacher", len(images), unit="image", leave=False, disable=quiet or None)
    most = max(1, int(MEGAPIXELS * 1e6 / imgsz**2))
    with enough_memory(teacher, most, imgsz, lambda: "free some, or choose a smaller image size"):
        for batch in _by_shape(bar, most):
            said = detect(model, np.stack([image.pixels for image in batch]), [image.shape for image in batch], device)
            found |= zip((image.file for image in batch), said, strict=True)
    by_image = ((image_sha256(file), found[file]) for file in images if file in found)
    cache = TeacherCache.of(sha256(Path(teacher)), imgsz, list(yolo.names.values()), by_image)
    if lost := [file for file in images if file not in found]:
        tell(f"{len(lost)} of {len(images)} training images are left out, for they cannot be read: {named(lost)}")
    return cache


def require_some(cache: TeacherCache, teacher: str) -> None:
    """Raise DistillationError where the teacher has seen nothing in any image."""
    if not len(cache.rows):
        raise DistillationError(
            f"{teacher}: teacher: got not one detection of at least {LEAST_SCORE} in {len(cache.index)} images, "
            f"expected a teacher that sees some: train it on such images"
        )


def folded(model: nn.Module, device: torch.device) -> nn.Module:
    """A detector for inference: batch norms in convolutions, and of a dual head the one-to-many branch."""
    model.model[-1].end2end = False  # folding keeps one branch, and the one-to-one gives no scores of all classes
    with session.silence():
        model = model.fuse(verbose=False).eval().requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last)


def detect(
    model: nn.Module, pixels: np.ndarray, shapes: Sequence[tuple[int, int]], device: torch.device
) -> list[Detections]:
    """A folded detector's detections on letterboxed images, uint8 BGR [B, H, W, C], whose own (height, width) are
    given.

    Overlapping ones of a class are one; of the others those of the highest scores.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2))).to(device)
    with torch.inference_mode():
        outputs = model(images.float() / 255)[0]  # [B, 4 + K, A]
        classes = outputs.shape[1] - 4
        kept, places = nms.non_max_suppression(
            outputs, LEAST_SCORE, SAME_IOU, max_det=most_rows(classes), nc=classes, return_idxs=True
        )
    return [
        _in_image(boxes[:, :4], output[4:, place.long().flatten()].T, images.shape[2:], shape)
        for boxes, place, output, shape in zip(kept, places, outputs, shapes, strict=True)
    ]


def _in_image(boxes: Tensor, scores: Tensor, seen: Sequence[int], shape: tuple[int, int]) -> Detections:
    """Boxes in pixels of the letterboxed image as shares of the image itself, with their scores."""
    boxes_xyxy = scale_boxes(tuple(seen), boxes.float().clone(), shape).cpu().numpy()
    low, high = np.split(boxes_xyxy / np.array([*shape[::-1], *shape[::-1]], np.float32), 2, axis=1)
    return Detections(np.concatenate(((low + high) / 2, high - low), axis=1), scores.float().cpu().numpy())


class _Image(NamedTuple):
    """An image letterboxed to the smallest rectangle of the stride, and its own height and width."""

    file: Path
    pixels: np.ndarray
    shape: tuple[int, int]


def _read(file: Path, imgsz: int, channels: int, stride: int) -> _Image | None:
    flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    image = imread(file, flags=flag)
    if image is None:
        return None
    return _Image(file, LetterBox((imgsz, imgsz), auto=True, stride=stride)(image=image), image.shape[:2])


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int = READERS, most: int = 64) -> Iterator[R]:
    """The results of ``work`` in order, up to ``most`` of them made ahead in threads."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _by_shape(images: Iterable[_Image | None], most: int) -> Iterator[list[_Image]]:
    """Batches of at most ``most`` images of one shape."""
    batches: dict[tuple[int, ...], list[_Image]] = defaultdict(list)
    for image in images:
        if image is None:
            continue
        batch = batches[image.pixels.shape]
        batch.append(image)
        if len(batch) == most:
            yield batches.pop(image.pixels.shape)
    yield from batches.values()


# ---------------------------------------------------------------- a run's


def require_fits(cache: TeacherCache, where: Path, teacher: str, imgsz: int, images: Sequence[Path]) -> None:
    """Raise DistillationError unless a cache is of this teacher and image size, and has all images."""
    do = "choose another --teacher-cache, or remove it: it is then made anew"
    if cache.teacher_sha256 != sha256(Path(teacher)):
        raise DistillationError(f"{where}: got the cache of another teacher than {teacher}, expected its own: {do}")
    if cache.imgsz != imgsz:
        raise DistillationError(f"{where}: got the cache of a teacher at {cache.imgsz} px, expected {imgsz} px: {do}")
    missing = [image for image in images if image_sha256(image) not in cache.index]
    if missing:
        raise DistillationError(
            f"{where}: got a cache without {len(missing)} of {len(images)} training images ({named(missing)}), "
            f"expected all: {do}"
        )


@dataclass(frozen=True)
class StudentClasses:
    """Where a student's classes stand among a teacher's.

    ``columns`` are the teacher's class for each of the student's, -1 for one that the data leave out (the setting
    `classes`). ``joined``: the student has one class, which is any of these (the setting `single_cls`).
    """

    columns: tuple[int, ...]
    joined: bool = False

    @classmethod
    def of(cls, names: Mapping[int, str], theirs: Sequence[str], view: Mapping[str, Any], where: str) -> StudentClasses:
        """Those of data with these ``names``, seen with the settings ``view``, among a teacher's classes ``theirs``.

        Raises DistillationError where the teacher lacks one.
        """
        joined = bool(view.get("single_cls"))
        if joined and list(theirs) == list(SINGLE_CLASS.values()):
            return cls((0,))
        columns = matching_classes(names, dict(enumerate(theirs)))
        if columns is None:
            missing = [name for name in names.values() if name not in theirs]
            raise DistillationError(
                f"{where}: soft-labels: got a teacher without the class {', '.join(missing[:5])}, expected each of the "
                f"student's by name: train it on this data, or choose a method that looks at no classes, such as cwd"
            )
        kept = range(len(columns)) if view.get("classes") is None else np.atleast_1d(view["classes"]).tolist()
        return cls(tuple(column if i in kept else -1 for i, column in enumerate(columns)), joined)

    def scores(self, theirs: np.ndarray) -> np.ndarray:
        """A teacher's scores and a 0, [N, T + 1], as those of the student's classes [N, K]."""
        own = theirs[:, self.columns]
        return own.max(1, keepdims=True) if self.joined else own
