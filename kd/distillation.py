"""The distillation terms around the student's own criterion, and the checks that they can do their work.

In: the student's training output and a batch of Ultralytics' loader. Out: the loss items, the terms appended.
Invariant: a term is logged as it is weighted, and the guard stops a run whose terms do nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kd.adapters import Adapters
from kd.config import TrainConfig
from kd.errors import DistillationError
from kd.losses import HEAD_METHODS, METHODS, Batch, Prediction
from kd.teacher import Teacher, matching_classes, require_comparable

PATIENCE = 20  # steps that a term may be zero or not finite


class Distillation:
    """The student's criterion with the distillation terms appended; a plain object, as Ultralytics' own are.

    A term is weighted, logged as it is, and multiplied by the batch size where Ultralytics does so with its own
    items, so that a weight means the same for every batch size.
    """

    def __init__(self, model: nn.Module, teacher: Teacher, adapters: Adapters, config: TrainConfig) -> None:
        """``model`` is the bare student; its own criterion is made at the first step, when class weights are set."""
        self.model, self.teacher, self.adapters, self.config = model, teacher, adapters, config
        self.task: Any = None
        self._steps = 0
        self._off: dict[str, Tensor] = {}  # method -> consecutive steps with boxes at which it was zero or not finite

    def __deepcopy__(self, memo: dict) -> None:
        """Leave the criterion out of every copy of the student."""

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss items times batch size [T + 1], and the detached items by name, `kd_loss` last.

        Raises DistillationError when a term was exactly zero or not finite for 20 steps with boxes.
        """
        if self.task is None:
            self.task = self.model.init_criterion()
        loss, items = self.task(preds, batch)
        inputs = self.inputs(preds, batch)
        terms = {name: weight * METHODS[name](inputs, self.config) for name, weight in self.config.methods}
        if len(inputs.boxes_xyxy):
            self._guard(terms, loss)
        total = torch.stack(list(terms.values())).sum()
        items = {**items, "kd_loss": total.detach()}
        if len(terms) > 1:
            items |= {f"kd_{name}_loss": term.detach() for name, term in terms.items()}
        return torch.cat((loss.reshape(-1), (total * len(batch["img"])).reshape(1))), items

    def inputs(self, preds: Any, batch: dict[str, Tensor]) -> Batch:
        """What the methods look at, from the student's training output and the batch of Ultralytics' loader."""
        images = batch["img"]
        preds = preds[1] if isinstance(preds, tuple) else preds
        branches = [preds["one2many"], preds["one2one"]] if "one2many" in preds else [preds]
        strides = self.adapters.strides
        own = [int(stride) for stride in self.model.stride]
        student = dict(zip(own, branches[0]["feats"], strict=True))  # dual heads: the branch that trains the neck
        teacher, teacher_heads = self.teacher(images)
        height, width = images.shape[2:]
        centre, side = (batch["bboxes"].to(images.device) * images.new_tensor([width, height] * 2)).split(2, 1)
        return Batch(
            student={stride: student[stride] for stride in strides},
            teacher={stride: teacher[stride] for stride in strides},
            adapters=self.adapters.layers(),
            boxes_xyxy=torch.cat((centre - side / 2, centre + side / 2), 1),
            image_index=batch["batch_idx"].to(images.device).reshape(-1).long(),
            student_heads=[dict(zip(own, by_level(branch), strict=True)) for branch in branches if teacher_heads],
            teacher_heads=teacher_heads,
            classes=matching_classes(self.model.names, self.teacher.names) if teacher_heads else None,
        )

    def _guard(self, terms: dict[str, Tensor], loss: Tensor) -> None:
        """Count steps at which a term does nothing; the student's own divergence is Ultralytics' to recover from."""
        healthy = loss.detach().isfinite().all()
        for name, term in terms.items():
            off = (term.detach() == 0) | (~term.detach().isfinite() & healthy)
            self._off[name] = (self._off.get(name, torch.zeros((), device=term.device)) + 1) * off
        self._steps += 1
        if self._steps % PATIENCE:
            return  # looking at the counters waits for the device
        for name, count in self._off.items():
            if count >= PATIENCE:
                raise DistillationError(
                    f"{name}: got {float(terms[name].detach()):g} for {int(count)} steps on batches with boxes, "
                    f"expected a finite term above 0: lower its weight or the learning rate, or check the teacher"
                )

    def adopt(self, model: nn.Module) -> None:
        """Take the criterion that Ultralytics put on the model instead of this one inside."""
        if model.criterion is not self:
            self.task, model.criterion = model.criterion, self

    def update(self) -> None:
        """Pass the end of an epoch on to a dual head's schedule."""
        if hasattr(self.task, "update"):
            self.task.update()

    @property
    def updates(self) -> int:
        """The epochs that a dual head's schedule has seen."""
        return self.task.updates

    @updates.setter
    def updates(self, value: int) -> None:
        self.task.updates = value


def load_teacher(config: TrainConfig, student: nn.Module, names: dict[int, str], device: torch.device) -> Teacher:
    """The teacher, with its head where a method looks at it; refused unless it compares with the bare ``student``.

    ``names`` are the classes that the student has, or will have when it is trained.
    """
    methods = {name for name, _ in config.methods}
    teacher = Teacher(config.teachers[0], device, speaks=bool(methods & HEAD_METHODS))
    require_comparable(teacher, methods, names, student.model[-1].reg_max)
    return teacher


def by_level(preds: dict[str, Any]) -> list[Prediction]:
    """A head's training output as predictions [B, C, H, W] per level; it comes with all levels' cells in a row."""
    shapes = [features.shape[2:] for features in preds["feats"]]
    parts = [preds[key].split([h * w for h, w in shapes], 2) for key in ("scores", "boxes")]
    return [Prediction(*(p.unflatten(2, shape) for p in pair)) for *pair, shape in zip(*parts, shapes, strict=True)]


def require_wired(distillation: Distillation, optimizer: torch.optim.Optimizer) -> None:
    """Raise DistillationError unless the adapters can learn and the teacher cannot.

    Each condition is one that published implementations missed while their losses went on looking plausible.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    teacher = list(distillation.teacher.model.parameters())
    checks = {
        "adapters outside the optimizer": all(id(p) in trained for p in distillation.adapters.parameters()),
        "frozen adapters": all(p.requires_grad for p in distillation.adapters.parameters()),
        "a teacher in the optimizer": not any(id(p) in trained for p in teacher),
        "a teacher with gradients": not any(p.requires_grad for p in teacher),
        "a teacher in training mode": not any(
            m.training
            for m in distillation.teacher.model.modules()
            if not isinstance(m, nn.SiLU)  # Ultralytics shares one activation object between all models
        ),
        "an adapter that is not finite": all(
            math.isfinite(float(p.detach().sum())) for p in distillation.adapters.parameters()
        ),
    }
    for wrong, fine in checks.items():
        if not fine:
            raise DistillationError(
                f"{distillation.teacher.spec}: distillation: got {wrong}, expected trained adapters and a frozen "
                f"teacher; please report this with your Ultralytics version"
            )
