"""Whether a teacher is worth learning from: it and the student's start, scored on the same validation images.

In: a TrainConfig with teachers. Out: a Worth for each, or a refusal with the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ultralytics import YOLO

from kd.config import SINGLE_CLASS, TrainConfig
from kd.distillation.teacher import load_detector
from kd.errors import DistillationError
from kd.scoring.evaluate import channels_of, require_same_channels, score
from kd.ultra.data import resolve_data, spread, write_data
from kd.ultra.labels import usable_images

WORTH_IMAGES = 100  # validation images that a teacher is scored on
LEAST_MAP50 = 0.05  # below this a teacher has learned next to nothing about the data


@dataclass(frozen=True)
class Worth:
    """What a teacher and the student's starting point score on the same validation images; None: not comparable.

    ``weak``: learned from only because --allow-weak-teacher was given.
    """

    images: int
    teacher_map50: float | None
    student_map50: float | None
    weak: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as run.json has them."""
        return asdict(self)


def check_worth(config: TrainConfig, allow_weak: bool) -> list[Worth]:
    """Score teachers, and the student they start from, on up to 100 validation images before any training.

    Teachers are scored at the image size that they see. A student with fresh weights or other classes starts at zero
    by nature and is not scored; with the setting `single_cls` a teacher of the data's own classes is scored as well.
    Raises DistillationError, with the figures, for a teacher of other classes than the data, near zero, or below the
    student's start; ``allow_weak`` lets it pass.
    """
    return _worths(config, config.teachers, allow_weak)


def check_source(config: TrainConfig, allow_weak: bool) -> Worth:
    """Score the teacher that weights are inherited from, as `check_worth` does.

    One of other classes than the data is not scored and passes: what it knows of features is inherited all the same.
    """
    if not (allow_weak or config.inherit.lower().endswith(".pt")):
        raise DistillationError(
            f"{config.inherit}: inherit: got an architecture, whose weights are random, expected a trained detector "
            f"(.pt), or --allow-weak-teacher for a control"
        )
    return _worths(replace(config, teacher_imgsz=None), [config.inherit], allow_weak, other_classes=True)[0]


def _worths(config: TrainConfig, teachers: Sequence[str], allow_weak: bool, other_classes: bool = False) -> list[Worth]:
    content = resolve_data(config.data)
    single_cls = bool(config.view.get("single_cls"))
    images = spread(usable_images(content, "val", single_cls), WORTH_IMAGES)
    own = list(content["names"].values())
    names = list(SINGLE_CLASS.values()) if single_cls else own
    with tempfile.TemporaryDirectory(prefix="kd-worth-") as scratch:
        subset = write_data(Path(scratch), content, images)

        def map50(yolo: YOLO, imgsz: int) -> float:
            options = {"imgsz": imgsz, "batch": config.batch, "device": config.one_device, **config.view}
            return score(yolo, subset, split="val", quiet=True, **options)["map50"] or 0.0

        found = []
        for teacher in teachers:
            yolo = load_detector(teacher)
            require_same_channels(yolo, content["channels"], config.data)
            known = list(yolo.names.values()) in (names, own)
            found.append(map50(yolo, config.seen_imgsz) if known else None)
        for teacher in (teacher for teacher, share in zip(teachers, found, strict=True) if share is None):
            if not allow_weak and not other_classes:
                raise _other_classes(teacher, names, config.data)
        start = None
        if config.student.lower().endswith(".pt"):
            yolo = load_detector(config.student)
            if channels_of(yolo) == content["channels"] and list(yolo.names.values()) == names:
                start = map50(yolo, config.imgsz)
    least = max(LEAST_MAP50, start or 0)
    weak = [not other_classes if share is None else share < least for share in found]
    worths = [Worth(len(images), share, start, weak=one) for share, one in zip(found, weak, strict=True)]
    for teacher, worth in zip(teachers, worths, strict=True):
        if worth.weak and not allow_weak:
            raise _too_weak(teacher, worth, config.data)
    return worths


def _other_classes(teacher: str, names: Sequence[str], data: str) -> DistillationError:
    got = list(load_detector(teacher).names.values())
    return DistillationError(
        f"{teacher}: teacher: got {len(got)} classes ({', '.join(got[:3])}, ...), expected those of {data}: "
        f"{', '.join(names[:10])}; train it on this data, give it by --inherit if it is of the student's family, or "
        f"pass --allow-weak-teacher to learn from its features alone"
    )


def _too_weak(teacher: str, worth: Worth, data: str) -> DistillationError:
    least = f"at least {LEAST_MAP50}"
    if worth.teacher_map50 >= LEAST_MAP50:
        least = f"no less than the student's starting point {worth.student_map50:.3f}"
    return DistillationError(
        f"{teacher}: teacher: got mAP50 {worth.teacher_map50:.3f} on {worth.images} validation images of {data}, "
        f"expected {least}; train a better one, or pass --allow-weak-teacher"
    )
