"""Teachers: loaded, folded, frozen, tapped at their head.

In: a checkpoint and a device. Out: features and raw head outputs by stride.
Invariant: a Teacher is no Module, so no optimizer, EMA, freeze loop or checkpoint can pick its weights up; it stays in
eval mode without gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules.head import Detect, RTDETRDecoder, v10Detect
from ultralytics.nn.tasks import DetectionModel, PoseModel, RTDETRDetectionModel, SegmentationModel

from kd.config import GRID_PX
from kd.errors import DistillationError, ModelError
from kd.methods.batch import Prediction, Queries
from kd.methods.facts import HEADLESS, NEEDS_HEAD, NEEDS_QUERIES, SOFT_LABELS, either
from kd.methods.masks import Anchors
from kd.ultra import classic, models, session


def load_detector(spec: str) -> YOLO:
    """A teacher's model (`kd.ultra.models.load_model`); of one for segmentation or pose, the detector inside.

    The heads of these are detection heads with one more branch, which is left out. Raises ModelError.
    """
    yolo = models.load_model(spec, tasks=("detect", "segment", "pose"))
    if type(yolo.model) in (SegmentationModel, PoseModel):
        yolo.model.model[-1].__class__, yolo.model.__class__ = Detect, DetectionModel
        yolo.task = yolo.model.task = "detect"
    if type(yolo.model) not in (DetectionModel, RTDETRDetectionModel, classic.Model):
        raise ModelError(
            f"{spec}: teacher: got a {type(yolo.model).__name__}, expected a detector of the classes that it was "
            f"trained on: YOLO from yolov3 to yolo26, or RT-DETR"
        )
    return yolo


def require_branches(model: nn.Module, spec: str) -> None:
    """Raise DistillationError for a teacher without scores in each cell, which methods on heads read.

    Those are a classic YOLOv5's, and those of a one-to-many branch.
    """
    head = model.model[-1]
    if type(head) not in (Detect, v10Detect, classic.Detect) or head.cv2 is None:
        raise DistillationError(
            f"{spec}: teacher: got a {type(head).__name__} head without a one-to-many branch like YOLO's, expected "
            f"one for {', '.join(sorted((*NEEDS_HEAD, SOFT_LABELS)))}, --fgfi soft=true and --combine best: choose "
            f"{HEADLESS}, and the mean"
        )


def require_decoder(model: nn.Module, spec: str) -> None:
    """Raise DistillationError for a teacher that is no RT-DETR, whose queries some methods read."""
    head = model.model[-1]
    if not isinstance(head, RTDETRDecoder):
        raise DistillationError(
            f"{spec}: teacher: got a {type(head).__name__} head without queries, expected an RT-DETR for "
            f"{either(sorted(NEEDS_QUERIES))}: choose {HEADLESS}"
        )


def anchors_of(model: nn.Module) -> Anchors | None:
    """The anchors of a classic model; None of others."""
    return getattr(model.model[-1], "priors", None)


class Tap(nn.Module):
    """Stands in a head's place: gives the features that the head would read and, ``with_head``, its raw outputs.

    It holds the head's convolutions, not the head: folding a model drops a branch of a dual head, and a head in eval
    mode decodes boxes that nobody needs. One with anchors it holds, for theirs.
    """

    def __init__(self, head: nn.Module, with_head: bool) -> None:
        """Take over where the head reads from (``f``), which layer it is (``i``), its branches if ``with_head``."""
        super().__init__()
        self.f, self.i = head.f, head.i
        self.anchored = head if with_head and isinstance(head, classic.Detect) else None
        branches = [head.one2many] if with_head and not self.anchored else []
        if with_head and getattr(head, "one2one_cv2", None) is not None:
            branches.append(head.one2one)
        self.branches = nn.ModuleList(nn.ModuleList([b["cls_head"], b["box_head"]]) for b in branches)

    def forward(self, features: list[Tensor], *_: Any) -> tuple[list[Tensor], list[list[Prediction]]]:
        """The levels [B, C, H, W] as they came, and per branch and level what the head says.

        A decoder's further arguments are ignored.
        """
        if self.anchored:
            return features, [self.anchored.predictions(self.anchored.raw(features))]
        outputs = [
            [Prediction(scores(f), boxes(f)) for f, scores, boxes in zip(features, *branch, strict=True)]
            for branch in self.branches
        ]
        return features, outputs


class DecoderTap(nn.Module):
    """Stands in the place of an RT-DETR's decoder: gives the features that it reads and its last layer's queries."""

    def __init__(self, head: RTDETRDecoder) -> None:
        """Take over where the head reads from (``f``) and which layer it is (``i``)."""
        super().__init__()
        self.f, self.i, self.head = head.f, head.i, head

    def forward(self, features: list[Tensor], *_: Any) -> tuple[list[Tensor], Queries]:
        """The levels [B, C, H, W] as they came, and the queries [B, N, .]."""
        _, (boxes, logits, *_) = self.head(features)  # [1, B, N, .], of the one layer that runs to its end
        return features, Queries(logits[-1], boxes[-1])


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
    """A frozen detector that gives its neck's features; its head runs only ``with_head`` or ``with_queries``."""

    def __init__(
        self,
        spec: str,
        device: torch.device,
        with_head: bool = False,
        ratio: float = 1.0,
        with_queries: bool = False,
    ) -> None:
        """Load ``spec`` (see `load_detector`), tap, fold batch norms into convolutions, freeze, move.

        ``with_head``: keep the head's convolutions, ``with_queries``: an RT-DETR's decoder; ``ratio``: how much larger
        than given it sees images. Raises DistillationError for a head of another form than the one that is to be kept.
        """
        yolo = load_detector(spec)
        model, head = yolo.model, yolo.model.model[-1]
        if with_head:
            require_branches(model, spec)
        if with_queries:
            require_decoder(model, spec)
        self.spec, self.ratio = spec, ratio
        self.names: dict[int, str] = dict(yolo.names)
        self.reg_max: int | None = getattr(head, "reg_max", None)
        self.priors = anchors_of(model)
        model.model[-1] = DecoderTap(head) if with_queries else Tap(head, with_head)
        with session.silence():
            self.model = model.fuse(verbose=False).eval().requires_grad_(False)
        self.model.to(device, memory_format=torch.channels_last)  # a fifth less time, on a CPU too
        self.levels = probe_levels(self.model)

    def __call__(self, images: Tensor) -> tuple[dict[int, Tensor], tuple[dict[int, Prediction], ...] | Queries]:
        """Features [B, C, H, W] by stride for ``images`` [B, 3, H, W] in 0..1, and predictions by branch and stride.

        Strides are in pixels of the image that the teacher sees: ``ratio`` times as large, the sides rounded to
        multiples of its largest stride. The one-to-many branch comes first; none without ``with_head``. In the place of
        predictions come the queries [B, N, .] ``with_queries``.
        """
        with torch.inference_mode():
            features, outputs = self.model(self._resized(images))
        levels = dict(zip(self.levels, features, strict=True))
        if isinstance(outputs, Queries):
            return levels, outputs
        return levels, tuple(dict(zip(self.levels, branch, strict=True)) for branch in outputs)

    def _resized(self, images: Tensor) -> Tensor:
        step = max(GRID_PX, *self.levels)
        size = [max(math.floor(side * self.ratio / step + 0.5), 1) * step for side in images.shape[2:]]
        return images if size == list(images.shape[2:]) else F.interpolate(images, size, mode="bilinear")

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """Feature levels [B, C, H, W] by stride for ``images`` [B, 3, H, W] in 0..1."""
        return self(images)[0]
