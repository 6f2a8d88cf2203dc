"""The distillation terms around the student's own criterion, and the checks that they can do their work.

In: the student's training output, a batch of Ultralytics' loader, teachers. Out: the loss items, the terms appended.
Invariant: a term is logged as it is weighted and scheduled, the student's own loss is that of its labelled batch
whatever is beside it, and the guard stops a run whose terms do nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.config import GRID_PX, TrainConfig, require_side
from kd.distillation.balance import BATCHES, Balance
from kd.distillation.teacher import (
    Teacher,
    match_levels,
    matching_classes,
    probe_levels,
    require_comparable,
    require_equal_grids,
)
from kd.distillation.unlabeled import Unlabeled
from kd.errors import DistillationError
from kd.methods.adapters import Adapters
from kd.methods.losses import METHODS, Batch, Prediction
from kd.ultra import session

PATIENCE = 20  # steps that a term may be zero or not finite


@dataclass(frozen=True)
class Tutor:
    """A teacher of this student, with the adapters towards it and its ``share`` in all that is taught, 0..1.

    ``levels`` are the shared ones: the student's stride -> the teacher's, each in pixels of the images it sees.
    """

    teacher: Teacher
    adapters: Adapters
    levels: Mapping[int, int]
    share: float


class Distillation:
    """The student's criterion with the distillation terms appended; a plain object, as Ultralytics' own are.

    A term is weighted, logged as it is, and multiplied by the batch size where Ultralytics does so with its own
    items, so that a weight means the same for every batch size.
    """

    def __init__(self, model: nn.Module, tutors: Sequence[Tutor], config: TrainConfig) -> None:
        """``model`` is the bare student; its own criterion is made at the first step, when class weights are set."""
        self.model, self.tutors, self.config = model, tutors, config
        self.adapters = nn.ModuleList(tutor.adapters for tutor in tutors)
        self.task: Any = None
        self.factor = 1.0  # the schedule's, set before every step; at 0 the teacher does not run
        self.balance = Balance(config.balance, (name for name, _ in config.methods)) if config.balance else None
        self.unlabeled: Unlabeled | None = None  # images that the terms see beside each batch
        self._steps = 0
        self._off: dict[str, Tensor] = {}  # method -> consecutive steps with boxes at which it was zero or not finite

    def __deepcopy__(self, memo: dict) -> None:
        """Leave the criterion out of every copy of the student."""

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss items times batch size [T + 1], and the detached items by name, `kd_loss` last.

        Terms are multiplied by the schedule's factor. Where that is 0 they are 0 and nothing is computed for them.
        Raises DistillationError when a term was exactly zero or not finite for 20 steps with boxes and a factor.
        """
        if self.task is None:
            self.task = self.model.init_criterion()
        loss, items = self.task(preds, batch)
        if self.factor:
            terms = self._terms(preds, batch, loss)
            if len(batch["bboxes"]):
                self._guard(terms, loss)
            terms = {name: self.factor * value for name, value in terms.items()}
        else:
            terms = {name: loss.new_zeros(()) for name, _ in self.config.methods}
        total = torch.stack(list(terms.values())).sum()
        items = {**items, "kd_loss": total.detach()}
        if len(terms) > 1:
            items |= {f"kd_{name}_loss": term.detach() for name, term in terms.items()}
        return torch.cat((loss.reshape(-1), (total * len(batch["img"])).reshape(1))), items

    def _terms(self, preds: Any, batch: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
        """The weighted terms of a batch, and of as many unlabelled images where there are some, without schedule."""
        parts, images = [preds], len(batch["img"])
        if self.unlabeled:
            extra = self.unlabeled.draw(batch["img"])
            with statistics_kept(self.model):
                parts.append(self.model(extra))
            preds, batch = joined(*parts), {**batch, "img": torch.cat((batch["img"], extra))}
        lessons = self.lessons(self.inputs(preds, batch))
        terms = {name: term(name, lessons, self.config) for name, _ in self.config.methods}
        weights = dict(self.config.methods)
        if self.balance:
            if not self.balance.settled:
                read = [features for part in parts for features in student_branches(part)[0]["feats"]]
                self._measure(loss.sum() / images, terms, read)
            weights = self.balance.weights()
        return {name: weights[name] * value for name, value in terms.items()}

    def _measure(self, task: Tensor, terms: dict[str, Tensor], read: list[Tensor]) -> None:
        """Take a step's samples for the weights, and say so when they are final."""
        if not read[0].requires_grad:
            raise DistillationError(
                "--balance: got a student whose features do not learn, expected fewer frozen layers: lower --freeze"
            )
        self.balance.measure(task, terms, read)
        if self.balance.settled:
            session.LOGGER.info(f"kd: weights from {BATCHES} batches: {named_weights(self.balance.weights())}")

    def inputs(self, preds: Any, batch: dict[str, Tensor]) -> list[Batch]:
        """What the methods look at per teacher, from the student's training output and Ultralytics' batch.

        A teacher's levels whose cells are others than the student's are resized to the student's.
        """
        images = batch["img"]
        branches = student_branches(preds)
        own = [int(stride) for stride in self.model.stride]
        student = dict(zip(own, branches[0]["feats"], strict=True))  # dual heads: the branch that trains the neck
        height, width = images.shape[2:]
        centre, side = (batch["bboxes"].to(images.device) * images.new_tensor([width, height] * 2)).split(2, 1)
        boxes_xyxy = torch.cat((centre - side / 2, centre + side / 2), 1)
        inputs = []
        for tutor in self.tutors:
            features, heads = tutor.teacher(images)
            said = [
                {s: Prediction(*(resized(m, student[s]) for m in head[t])) for s, t in tutor.levels.items()}
                for head in heads
            ]
            inputs.append(
                Batch(
                    student={s: student[s] for s in tutor.levels},
                    teacher={s: resized(features[t], student[s]) for s, t in tutor.levels.items()},
                    adapters=tutor.adapters.layers(),
                    boxes_xyxy=boxes_xyxy,
                    image_index=batch["batch_idx"].to(images.device).reshape(-1).long(),
                    student_heads=[dict(zip(own, by_level(branch), strict=True)) for branch in branches if said],
                    teacher_heads=said,
                    classes=matching_classes(self.model.names, tutor.teacher.names) if said else None,
                )
            )
        return inputs

    def lessons(self, inputs: list[Batch]) -> list[tuple[float, Batch]]:
        """The batch of each teacher, with its share: all images by its weight, or those that it is surest of."""
        if not self.config.chooses:
            return [(tutor.share, batch) for tutor, batch in zip(self.tutors, inputs, strict=True)]
        surest = torch.stack([batch.image_scores for batch in inputs]).argmax(0)  # [B], the first one of equals
        images = [(surest == i).nonzero()[:, 0] for i in range(len(inputs))]
        return [(len(i) / len(surest), batch.select(i)) for i, batch in zip(images, inputs, strict=True)]

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


def term(method: str, lessons: list[tuple[float, Batch]], config: TrainConfig) -> Tensor:
    """A method's unweighted term over all lessons, each by its share; one without images is left out."""
    return torch.stack([share * METHODS[method](batch, config) for share, batch in lessons if share]).sum()


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps [B, C, H, W] on the cells of ``like``, bilinearly; as they are where these are theirs."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps.float(), like.shape[2:], mode="bilinear")


def load_tutors(config: TrainConfig, student: nn.Module, names: dict[int, str], device: torch.device) -> list[Tutor]:
    """The teachers, with heads where these are looked at; refused unless they compare with the bare ``student``.

    ``names`` are the classes that the student has, or will have when it is trained. Each teacher's adapters start as
    they would if it were alone.
    """
    methods = {name for name, _ in config.methods}
    ratio = (config.teacher_imgsz or config.imgsz) / config.imgsz
    own = probe_levels(student)
    tutors = []
    for spec, share in zip(config.teachers, config.shares, strict=True):
        teacher = Teacher(spec, device, speaks=config.looks_at_heads or config.chooses, ratio=ratio)
        if config.teacher_imgsz:
            require_side("teacher-imgsz", config.teacher_imgsz, max(GRID_PX, *teacher.levels))
        require_comparable(teacher, methods, names, student.model[-1].reg_max)
        levels = match_levels(own, teacher.levels, spec, ratio)
        if config.looks_at_heads:
            require_equal_grids(config, own, teacher.levels, spec)
        channels = {s: (own[s], teacher.levels[t]) for s, t in levels.items()}
        tutors.append(Tutor(teacher, Adapters(channels, config).to(device), levels, share))
    return tutors


def student_branches(preds: Any) -> list[dict[str, Any]]:
    """A detector's training output per branch of its head, the one-to-many branch, which trains the neck, first."""
    preds = preds[1] if isinstance(preds, tuple) else preds
    return [preds["one2many"], preds["one2one"]] if "one2many" in preds else [preds]


def joined(first: Any, second: Any) -> Any:
    """Two training outputs of one model as that of both batches in a row.

    >>> joined({"feats": [torch.zeros(1, 2)]}, {"feats": [torch.ones(1, 2)]})
    {'feats': [tensor([[0., 0.],
            [1., 1.]])]}
    """
    if isinstance(first, Mapping):
        return {key: joined(value, second[key]) for key, value in first.items()}
    if isinstance(first, list | tuple):
        return [joined(*pair) for pair in zip(first, second, strict=True)]
    return torch.cat((first, second))


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch norms in training mode normalise by their batch, but keep it out of their running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def named_weights(weights: Mapping[str, float]) -> str:
    """Weights as they are reported.

    >>> named_weights({"fgfi": 0.012345, "cwd": 1})
    'fgfi 0.01234, cwd 1'
    """
    return ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())


def by_level(preds: dict[str, Any]) -> list[Prediction]:
    """A head's training output as predictions [B, C, H, W] per level; it comes with all levels' cells in a row."""
    shapes = [features.shape[2:] for features in preds["feats"]]
    parts = [preds[key].split([h * w for h, w in shapes], 2) for key in ("scores", "boxes")]
    return [Prediction(*(p.unflatten(2, shape) for p in pair)) for *pair, shape in zip(*parts, shapes, strict=True)]


def require_wired(distillation: Distillation, optimizer: torch.optim.Optimizer) -> None:
    """Raise DistillationError unless the adapters can learn and the teachers cannot.

    Each condition is one that published implementations missed while their losses went on looking plausible.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for tutor in distillation.tutors:
        _require_wired(tutor, trained)


def _require_wired(tutor: Tutor, trained: set[int]) -> None:
    teacher = list(tutor.teacher.model.parameters())
    checks = {
        "adapters outside the optimizer": all(id(p) in trained for p in tutor.adapters.parameters()),
        "frozen adapters": all(p.requires_grad for p in tutor.adapters.parameters()),
        "a teacher in the optimizer": not any(id(p) in trained for p in teacher),
        "a teacher with gradients": not any(p.requires_grad for p in teacher),
        "a teacher in training mode": not any(
            m.training
            for m in tutor.teacher.model.modules()
            if not isinstance(m, nn.SiLU)  # Ultralytics shares one activation object between all models
        ),
        "an adapter that is not finite": all(
            math.isfinite(float(p.detach().sum())) for p in tutor.adapters.parameters()
        ),
    }
    for wrong, fine in checks.items():
        if not fine:
            raise DistillationError(
                f"{tutor.teacher.spec}: distillation: got {wrong}, expected trained adapters and a frozen "
                f"teacher; please report this with your Ultralytics version"
            )
