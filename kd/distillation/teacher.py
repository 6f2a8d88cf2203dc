"""Teachers: loaded, folded, frozen and tapped at their head.

In: a checkpoint and a device. Out: features and raw predictions by stride.
Invariant: a Teacher is no Module, so no optimizer, EMA, freeze loop or checkpoint can pick its weights up; it stays in
eval mode without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules.head import Detect, v10Detect
from ultralytics.nn.tasks import DetectionModel, PoseModel, RTDETRDetectionModel, SegmentationModel

from kd.config import GRID_PX, HEAD_METHODS, TrainConfig
from kd.errors import DistillationError, ModelError
from kd.methods.losses import Prediction
from kd.ultra import models, session


def load_detector(spec: str) -> YOLO:
    """A model to learn from, see `kd.ultra.models.load_model`; of one for segmentation or pose, the detector inside.

    Heads for these are detection heads with a branch more, which is left out. Raises ModelError.
    """
    yolo = models.load_model(spec, tasks=("detect", "segment", "pose"))
    if type(yolo.model) in (SegmentationModel, PoseModel):
        yolo.model.model[-1].__class__, yolo.model.__class__ = Detect, DetectionModel
        yolo.task = yolo.model.task = "detect"
    if type(yolo.model) not in (DetectionModel, RTDETRDetectionModel):
        raise ModelError(
            f"{spec}: teacher: got a {type(yolo.model).__name__}, expected a detector of the classes that it was "
            f"trained on: YOLO from yolov3 to yolo26, or RT-DETR"
        )
    return yolo


class Tap(nn.Module):
    """Stands in a head's place: hands over the features it would have read and, where asked to, what it would say.

    It holds the head's convolutions but not the head, since folding a model drops a branch of a dual head, and a
    head in eval mode decodes boxes that nobody looks at.
    """

    def __init__(self, head: nn.Module, speaks: bool) -> None:
        """Take over where the head reads from (``f``) and which layer it is (``i``); its branches if it ``speaks``."""
        super().__init__()
        self.f, self.i = head.f, head.i
        branches = [head.one2many] if speaks else []
        if speaks and getattr(head, "one2one_cv2", None) is not None:
            branches.append(head.one2one)
        self.branches = nn.ModuleList(nn.ModuleList([b["cls_head"], b["box_head"]]) for b in branches)

    def forward(self, features: list[Tensor], *_: Any) -> tuple[list[Tensor], list[list[tuple[Tensor, Tensor]]]]:
        """The levels [B, C, H, W] as they came, and per branch and level class logits and box channels.

        A decoder's further arguments are ignored.
        """
        said = [
            [(scores(f), boxes(f)) for f, scores, boxes in zip(features, *branch, strict=True)]
            for branch in self.branches
        ]
        return features, said


def probe_levels(model: nn.Module) -> dict[int, int]:
    """Stride in pixels -> channels of each level that the model's head reads, finest first as the head has them.

    Measured by one forward pass of a blank image in eval mode, which leaves batch statistics and random state
    alone; the mode is restored. Measured rather than read, since some heads do not know their strides.
    """
    side, seen = 256, []
    weight = next(model.parameters())
    hook = model.model[-1].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, model.yaml.get("channels", 3), side, side).to(weight))
    finally:
        hook.remove()
        model.train(training)
    return {side // features.shape[-1]: features.shape[1] for features in seen}


class Teacher:
    """A frozen detector that gives its neck features; its own head runs only where its predictions are asked for."""

    def __init__(self, spec: str, device: torch.device, speaks: bool = False, ratio: float = 1.0) -> None:
        """Load ``spec`` (see `load_detector`), tap, fold batch norms into convolutions, freeze, move.

        ``speaks``: keep the head's convolutions; ``ratio``: how much larger than given it sees images. Raises
        DistillationError for a head that has none of YOLO's form.
        """
        yolo = load_detector(spec)
        model, head = yolo.model, yolo.model.model[-1]
        if speaks and (type(head) not in (Detect, v10Detect) or head.cv2 is None):
            raise DistillationError(
                f"{spec}: teacher: got a {type(head).__name__} head without a one-to-many branch like YOLO's, expected "
                f"one for {', '.join(sorted(HEAD_METHODS))}, --fgfi soft=true and --combine best: choose "
                f"fgfi, cwd or pkd, and the mean"
            )
        self.spec, self.ratio = spec, ratio
        self.names: dict[int, str] = dict(yolo.names)
        self.reg_max: int | None = getattr(head, "reg_max", None)
        model.model[-1] = Tap(head, speaks)
        with session.silence():
            self.model = model.fuse(verbose=False).eval().requires_grad_(False)
        self.model.to(device, memory_format=torch.channels_last)  # a fifth less time, on a CPU too
        self.levels = probe_levels(self.model)

    def __call__(self, images: Tensor) -> tuple[dict[int, Tensor], tuple[dict[int, Prediction], ...]]:
        """Features [B, C, H, W] by stride for ``images`` [B, 3, H, W] in 0..1, and predictions by branch and stride.

        Strides are in pixels of the image that the teacher sees: ``ratio`` times as large, the sides rounded to
        multiples of its largest stride. The one-to-many branch comes first; none without ``speaks``.
        """
        with torch.inference_mode():
            features, said = self.model(self._resized(images))
        heads = tuple(dict(zip(self.levels, (Prediction(*p) for p in branch), strict=True)) for branch in said)
        return dict(zip(self.levels, features, strict=True)), heads

    def _resized(self, images: Tensor) -> Tensor:
        step = max(GRID_PX, *self.levels)
        size = [max(math.floor(side * self.ratio / step + 0.5), 1) * step for side in images.shape[2:]]
        return images if size == list(images.shape[2:]) else F.interpolate(images, size, mode="bilinear")

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """Feature levels [B, C, H, W] by stride for ``images`` [B, 3, H, W] in 0..1."""
        return self(images)[0]


def matching_classes(student: Mapping[int, str], teacher: Mapping[int, str]) -> list[int] | None:
    """The teacher's class of the same name for each of the student's, or None where one has none.

    >>> matching_classes({0: "bus", 1: "car"}, {0: "car", 1: "van", 2: "bus"})
    [2, 0]
    """
    index = {name: i for i, name in teacher.items()}
    return [index[student[i]] for i in sorted(student)] if index.keys() >= set(student.values()) else None


def require_comparable(teacher: Teacher, methods: Collection[str], names: Mapping[int, str], reg_max: int) -> None:
    """Raise DistillationError unless the teacher's head can be compared with the student's as the methods do.

    ``names`` are the student's classes, ``reg_max`` the bins of its box distributions.
    """
    if "logits" in methods and matching_classes(names, teacher.names) is None:
        missing = [name for name in names.values() if name not in teacher.names.values()]
        raise DistillationError(
            f"{teacher.spec}: logits: got a teacher without the class {', '.join(missing[:5])}, expected each of the "
            f"student's by name: train it on this data, or choose a method that looks at no classes, such as cwd"
        )
    if "ld" in methods and not reg_max == teacher.reg_max > 1:
        raise DistillationError(
            f"{teacher.spec}: ld: got reg_max {teacher.reg_max} with the student's {reg_max}, expected the same above "
            f"1 (box distributions of equal bins): choose box, which compares the boxes themselves"
        )


def match_levels(student: Iterable[int], teacher: Iterable[int], spec: str, ratio: float = 1.0) -> dict[int, int]:
    """The teacher's stride for each of the student's at which it has a level; DistillationError when there is none.

    A teacher that sees images ``ratio`` times as large has its levels at strides / ratio of the student's pixels: at
    ratio 2 its stride 16 is the student's grid at 8 (Qi et al., Multi-Scale Aligned Distillation, CVPR 2021). The
    nearest one counts, within a factor of the square root of 2.

    >>> match_levels([8, 16, 32], [4, 8, 16, 32], "yolov8s-p2")
    {8: 8, 16: 16, 32: 32}
    >>> match_levels([8, 16, 32], [8, 16, 32], "yolov8s", ratio=2)
    {8: 16, 16: 32}
    """
    teacher = {stride: stride / ratio for stride in teacher}
    matches = {own: min(teacher, key=lambda theirs: abs(math.log(teacher[theirs] / own))) for own in student}
    matches = {own: theirs for own, theirs in matches.items() if 0.5 <= (teacher[theirs] / own) ** 2 <= 2}
    if not matches:
        raise DistillationError(
            f"{spec}: teacher: got levels at strides {', '.join(f'{s:g}' for s in teacher.values())}, expected at "
            f"least one of the student's: {', '.join(map(str, student))}"
        )
    return matches


def require_equal_grids(config: TrainConfig, own: Collection[int], theirs: Collection[int], spec: str) -> None:
    """Raise DistillationError, with sizes that fit, unless all shared levels have the same cells at every batch.

    ``own`` and ``theirs`` are the strides of the student and the teacher, in pixels of the images that each sees.
    """
    grid, step = (max(GRID_PX, *strides) for strides in (own, theirs))
    varies = any(dict(config.settings).get(key) for key in ("rect", "multi_scale"))
    side = grid if varies else math.ceil(config.imgsz / grid) * grid

    def fits(size: int) -> bool:
        try:
            matches = match_levels(own, theirs, spec, size / config.imgsz)
        except DistillationError:
            return False
        whole = side * size % (config.imgsz * step) == 0
        return whole and all(t * config.imgsz == s * size for s, t in matches.items())

    got = config.teacher_imgsz or config.imgsz
    if not fits(got):
        powers = (config.imgsz // 4, config.imgsz // 2, config.imgsz, config.imgsz * 2, config.imgsz * 4)
        sizes = " or ".join(str(size) for size in powers if fits(size))
        raise DistillationError(
            f"{spec}: --teacher-imgsz: got {got} with --imgsz {config.imgsz} and a method that compares heads, "
            f"expected equal grids of cells in both: choose {sizes or 'another --imgsz'}, or fgfi, cwd or pkd"
        )
