"""What of kd does not go with an RT-DETR as the student.

In: a configuration and its student. Out: nothing, or a refusal.
Invariant: an option that would do nothing, or something else than it says, is refused.
"""

from __future__ import annotations

from torch import nn
from ultralytics.nn.tasks import RTDETRDetectionModel

from kd.config import TrainConfig
from kd.errors import DistillationError, UsageError
from kd.methods.facts import BUILT_IN, NEEDS_QUERIES, ON_FEATURES, ON_HEADS, SOFT_LABELS, either

# Of YOLO's loss; of rectangles, where its images are stretched to squares; of forward passes that no hook sees.
SETTINGS = ("box", "cls", "dfl", "cls_pw", "rect", "quantize", "compile")


def require_for_rtdetr(config: TrainConfig, student: nn.Module) -> None:
    """Raise DistillationError or UsageError for what a student of this run cannot do because it is an RT-DETR."""
    decodes = isinstance(student, RTDETRDetectionModel)
    require_methods(config, decodes)
    for key in (key for key, value in config.settings if decodes and key in SETTINGS and value):
        raise UsageError(f"--set {key}: got it with {config.student}, expected it with a student that is no RT-DETR")


def require_methods(config: TrainConfig, decodes: bool) -> None:
    """Raise DistillationError for a method that does not go with the student; ``decodes``: it is an RT-DETR."""
    for name in (name for name, _ in config.methods if config.distils):
        if decodes and name in {*ON_HEADS, SOFT_LABELS, BUILT_IN} - NEEDS_QUERIES:
            fitting = either((*ON_FEATURES, *sorted(NEEDS_QUERIES)))
            raise DistillationError(
                f"{config.student}: {name}: got an RT-DETR as the student, expected one with a Detect head, or another "
                f"method: {fitting}"
            )
        if name in NEEDS_QUERIES and not decodes:
            raise DistillationError(
                f"{config.student}: {name}: got a student without queries, expected an RT-DETR, or another method: "
                f"{either(ON_FEATURES)}"
            )
