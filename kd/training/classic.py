"""What a run of a classic YOLOv5 starts from, and what of kd does not go with one.

In: the name or file of a student, a configuration. Out: its model yaml and weights, or a refusal.
Invariant: an option that would do nothing, or something else than it says, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kd.config import TrainConfig, priors_without_fgfi
from kd.distillation.links import compares_heads
from kd.errors import DistillationError, UsageError
from kd.methods.facts import BUILT_IN, ON_FEATURES, either
from kd.methods.fgfi_config import Priors
from kd.ultra import classic, session

SETTINGS = ("box", "cls", "dfl", "cls_pw", "quantize", "compile")  # settings of the loss and layers that it has not


def starting_point(source: str, pretrained: Any, priors: Priors | None) -> tuple[Mapping[str, Any], nn.Module | None]:
    """The model yaml and, of a checkpoint, the weights that Ultralytics' trainer builds the student from.

    ``source`` is what its argument ``model`` says and ``pretrained`` that one: as usual, False drops a checkpoint's
    weights, and a file gives others. ``priors`` are the anchors in place of the yaml's.
    """
    weights = classic.ClassicYOLO(source).model if source.lower().endswith(".pt") else None
    layout = weights.yaml if weights else classic.read_architecture(source)
    if priors:
        layout = classic.with_anchors(layout, dict(priors).values())
    if isinstance(pretrained, str):
        return layout, classic.ClassicYOLO(pretrained).model
    return layout, None if pretrained is False else weights


def fit_anchors(student: classic.Model, dataset: Any, config: TrainConfig) -> None:
    """Give the student anchors that fit the training boxes, where its own reach too few of them, and say so.

    They stay where they were asked for, and where a teacher's head has the same: its rows, or its outputs, mean nothing
    with others.
    """
    if config.fgfi.priors:
        return
    head, sides = student.model[-1], classic.sides_px(dataset.labels, config.imgsz)
    found = classic.better(sides, head.sizes_px)
    if found is None:
        return
    if config.inherit or compares_heads(config):
        session.LOGGER.info(
            f"kd: the teacher's anchors stay, though others would reach more of the {len(sides)} boxes: --priors"
        )
    else:
        head.set_anchors(found)
        session.LOGGER.info(f"kd: anchors fitted to {len(sides)} boxes: {head.priors}")


def require_for_classic(config: TrainConfig, student: nn.Module) -> None:
    """Raise DistillationError or UsageError for what a classic student or teacher of this run cannot do."""
    anchored = isinstance(student, classic.Model)
    require_methods(config, anchored)
    if config.fgfi.priors:
        _require_priors(config, student if anchored else None)
    weights = dict(config.settings).get("pretrained")
    if isinstance(weights, str) and classic.is_classic(weights) != anchored:
        kinds = ("an anchor-free model", "a classic YOLOv5")
        raise UsageError(
            f"--set pretrained: got {weights}, {kinds[not anchored]}, expected {kinds[anchored]} as {config.student} is"
        )
    for key in (key for key, value in config.settings if anchored and key in SETTINGS and value):
        raise UsageError(f"--set {key}: got it with {config.student}, expected it with anchor-free models alone")


def _require_priors(config: TrainConfig, student: classic.Model | None) -> None:
    """Raise UsageError for `--priors` that cannot be the anchors of this student; they are no one's of an anchor-free.

    For such a one they are fgfi's alone.
    """
    if student is None:
        if config.distils and "fgfi" not in dict(config.methods):
            raise priors_without_fgfi(config.methods)
        return
    strides, counts = [int(s) for s in student.stride], {len(sizes) for _, sizes in config.fgfi.priors}
    if [stride for stride, _ in config.fgfi.priors] != strides or len(counts) > 1:
        got = ", ".join(f"{len(sizes)} at stride {stride}" for stride, sizes in config.fgfi.priors)
        raise UsageError(
            f"--priors: got {got}, expected equally many at each stride of {config.student}: "
            f"{', '.join(map(str, strides))}"
        )


def require_methods(config: TrainConfig, anchored: bool) -> None:
    """Raise DistillationError for a method that does not go with the heads; ``anchored`` is the student's."""
    for name in (name for name, _ in config.methods if config.distils):
        if anchored and name == BUILT_IN:
            raise DistillationError(
                f"{config.student}: {name}: got a student with an anchor-based head, expected one of Ultralytics', "
                f"or a method of kd, such as {ON_FEATURES[0]}"
            )
        if name == BUILT_IN and any(map(classic.is_classic, config.teachers)):
            raise DistillationError(
                f"{config.teachers[0]}: {name}: got a classic YOLOv5, expected a teacher that Ultralytics loads, or a "
                f"method on features: {either(ON_FEATURES)}"
            )
