"""What a run of a classic YOLOv5 starts from, and what of kd does not go with one.

In: the name or file of a student, a configuration. Out: its model yaml and weights, or a refusal.
Invariant: an option that would do nothing, or something else than it says, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kd.config import TrainConfig
from kd.errors import DistillationError, UsageError
from kd.methods.facts import BUILT_IN, ON_FEATURES, ON_HEADS, SOFT_LABELS, either
from kd.ultra import classic

ANCHOR_FREE = ("box", "cls", "dfl", "cls_pw", "quantize", "compile")  # settings of the loss and layers that it has not


def starting_point(source: str, pretrained: Any) -> tuple[Mapping[str, Any], nn.Module | None]:
    """The model yaml and, of a checkpoint, the weights that Ultralytics' trainer builds the student from.

    ``source`` is what its argument ``model`` says and ``pretrained`` that one: as usual, False drops a checkpoint's
    weights, and a file gives others.
    """
    weights = classic.ClassicYOLO(source).model if source.lower().endswith(".pt") else None
    layout = weights.yaml if weights else classic.read_architecture(source)
    if isinstance(pretrained, str):
        return layout, classic.ClassicYOLO(pretrained).model
    return layout, None if pretrained is False else weights


def require_for_classic(config: TrainConfig, student: nn.Module) -> None:
    """Raise DistillationError or UsageError for what a classic student or teacher of this run cannot do."""
    anchored = isinstance(student, classic.Model)
    _require_methods(config, anchored)
    weights = dict(config.settings).get("pretrained")
    if isinstance(weights, str) and classic.is_classic(weights) != anchored:
        kinds = ("an anchor-free model", "a classic YOLOv5")
        raise UsageError(
            f"--set pretrained: got {weights}, {kinds[not anchored]}, expected {kinds[anchored]} as {config.student} is"
        )
    for key in (key for key, value in config.settings if anchored and key in ANCHOR_FREE and value):
        raise UsageError(f"--set {key}: got it with {config.student}, expected it with anchor-free models alone")


def _require_methods(config: TrainConfig, anchored: bool) -> None:
    for name in (name for name, _ in config.methods if config.distils):
        if anchored and name in (*ON_HEADS, SOFT_LABELS, BUILT_IN):
            raise DistillationError(
                f"{config.student}: {name}: got a student with an anchor-based head, expected one without anchors, or "
                f"a method on features: {either(ON_FEATURES)}"
            )
        if name == BUILT_IN and any(map(classic.is_classic, config.teachers)):
            raise DistillationError(
                f"{config.teachers[0]}: {name}: got a classic YOLOv5, expected a teacher that Ultralytics loads, or a "
                f"method on features: {either(ON_FEATURES)}"
            )
