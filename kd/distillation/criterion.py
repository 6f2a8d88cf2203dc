"""The student's loss: its own criterion, and the distillation terms appended.

In: the student's training output, a batch of Ultralytics' loader, teachers. Out: the loss items, the terms appended.
Invariant: a term is logged as it is weighted and scheduled, the student's own loss is that of its labelled images
alone, and a run whose terms do nothing is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.config import TrainConfig
from kd.distillation.balance import BATCHES, Balance, gradient_norm
from kd.distillation.links import TeacherLink, matching_classes
from kd.distillation.outputs import by_level, head_like, joined, resized, student_branches
from kd.distillation.soft_anchors import AnchoredSoftLabels
from kd.distillation.soft_labels import SoftLabels
from kd.distillation.teacher import anchors_of
from kd.distillation.unlabeled import Unlabeled, statistics_kept
from kd.errors import DistillationError
from kd.methods.batch import Batch, Queries
from kd.methods.registry import METHODS
from kd.show import named_weights
from kd.ultra import session

PATIENCE = 20  # steps that a term may be zero or not finite
LOUD = 3  # times the task's gradient: with terms above it a student learned less than without (fgfi, docs/results)


class Distillation:
    """The student's criterion with the distillation terms appended; a plain object, as Ultralytics' own are.

    A term is weighted and logged per image; the loss is multiplied by the batch size, as Ultralytics does with its
    own items, so that a weight means the same for every batch size.
    """

    def __init__(self, model: nn.Module, links: Sequence[TeacherLink], config: TrainConfig) -> None:
        """``model`` is the bare student; its own criterion is made at the first step, when class weights are set."""
        self.model, self.links, self.config = model, links, config
        self.adapters = nn.ModuleList(link.adapters for link in links)
        self.task: Any = None
        self.factor = 1.0  # the schedule's, set before every step; at 0 the teacher does not run
        self.balance = Balance(config.balance, (name for name, _ in config.methods)) if config.balance else None
        self.unlabeled: Unlabeled | None = None  # images that the terms alone see
        soft_labels = AnchoredSoftLabels if anchors_of(model) else SoftLabels
        self.soft_labels = soft_labels() if config.cached else None  # in place of links
        self._steps = 0
        self._off: dict[str, Tensor] = {}  # method -> consecutive steps with boxes at which it was zero or not finite

    def __deepcopy__(self, memo: dict) -> None:
        """Leave the criterion out of every copy of the student."""

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss items times batch size [T + 1], and the detached items by name, as `append` has them."""
        if self.task is None:
            self._take(self.model.init_criterion())
        return self.append(preds, batch, *self.task(preds, batch), scale=len(batch["img"]))

    def append(
        self, preds: Any, batch: Mapping[str, Tensor], loss: Tensor, items: dict[str, Tensor], scale: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss of a batch with the terms behind it [T + 1], and its detached items with theirs.

        ``scale`` is what the task's items are multiplied by to give its loss, and the terms likewise; ``preds`` as
        `forward` gives them. `kd_loss` comes behind the items, then each term's own where there are several. Terms are
        multiplied by the schedule's factor. Where that is 0 they are 0 and nothing is computed for them. Raises
        DistillationError when a term was exactly zero or not finite for 20 steps with boxes and a factor.
        """
        if self.factor:
            task = loss.sum() / scale
            terms = self._terms(preds, batch, task)
            if len(batch["bboxes"]):
                self._guard(terms, task)
                if self._steps == PATIENCE and not self.balance:
                    _warn_of_weight(terms, task, student_branches(preds)[0]["feats"])
            terms = {name: self.factor * value for name, value in terms.items()}
        else:
            terms = {name: loss.new_zeros(()) for name, _ in self.config.methods}
        total = torch.stack(list(terms.values())).sum()
        items = {**items, "kd_loss": total.detach()}
        if len(terms) > 1:
            items |= {f"kd_{name}_loss": term.detach() for name, term in terms.items()}
        return torch.cat((loss.reshape(-1), (total * scale).reshape(1))), items

    def forward(self, images: Tensor) -> Any:
        """The student's training output of images [B, 3, H, W] as `inputs` reads it, without any loss."""
        return self.model(images)

    def _terms(self, preds: Any, batch: Mapping[str, Tensor], task: Tensor) -> dict[str, Tensor]:
        """The weighted terms, not yet scheduled, of a batch and as many unlabelled images where there are any.

        ``task`` is the student's own loss, a scalar of the terms' scale.
        """
        if self.soft_labels:
            return {name: weight * self.soft_labels(self.task, preds, batch) for name, weight in self.config.methods}
        parts = [preds]
        if self.unlabeled:
            extra = self.unlabeled.draw(batch["img"])
            with statistics_kept(self.model):
                parts.append(self.forward(extra))
            preds, batch = joined(*parts), {**batch, "img": torch.cat((batch["img"], extra))}
        batches = self.weighted_batches(self.inputs(preds, batch))
        terms = {name: term(name, batches, self.config) for name, _ in self.config.methods}
        weights = dict(self.config.methods)
        if self.balance:
            if not self.balance.settled:
                read = [features for part in parts for features in student_branches(part)[0]["feats"]]
                self._measure(task, terms, read)
            weights = self.balance.weights()
        return {name: weights[name] * value for name, value in terms.items()}

    def _measure(self, task: Tensor, terms: dict[str, Tensor], read: list[Tensor]) -> None:
        """Take a step's samples for the weights, and log these when they are final."""
        if not read[0].requires_grad:
            raise DistillationError(
                "--balance: got a student whose features do not learn, expected fewer frozen layers: lower --freeze"
            )
        self.balance.measure(task, terms, read)
        if self.balance.settled:
            session.LOGGER.info(f"kd: weights from {BATCHES} batches: {named_weights(self.balance.weights())}")

    def inputs(self, preds: Any, batch: Mapping[str, Tensor]) -> list[Batch]:
        """The methods' view of each teacher, from the student's training output and Ultralytics' batch.

        A teacher's level with another grid of cells than the student's is resized to it.
        """
        images = batch["img"]
        branches = student_branches(preds)
        read = branches[0]["feats"]  # dual heads: by the branch that trains the neck
        own = [images.shape[3] // features.shape[3] for features in read]
        student = dict(zip(own, read, strict=True))
        height, width = images.shape[2:]
        centre, side = (batch["bboxes"].to(images.device) * images.new_tensor([width, height] * 2)).split(2, 1)
        boxes_xyxy = torch.cat((centre - side / 2, centre + side / 2), 1)
        inputs = []
        for link in self.links:
            levels, (features, outputs) = link.levels, link.teacher(images)
            heads: dict[str, Any] = {}
            if isinstance(outputs, Queries):
                heads = {"student_queries": Queries(**branches[0]["queries"]), "teacher_queries": outputs}
            elif outputs:
                head, said = self.model.model[-1], [b for b in branches if b.keys() & {"scores", "raw"}]
                heads = {
                    "student_heads": [dict(zip(own, by_level(b, head), strict=True)) for b in said],
                    "teacher_heads": [
                        {s: head_like(head[t], features[t], student[s]) for s, t in levels.items()} for head in outputs
                    ],
                }
            inputs.append(
                Batch(
                    student={s: student[s] for s in levels},
                    teacher={s: resized(features[t], student[s]) for s, t in levels.items()},
                    adapters=link.adapters.layers(),
                    boxes_xyxy=boxes_xyxy,
                    image_index=batch["batch_idx"].to(images.device).reshape(-1).long(),
                    classes=matching_classes(self.model.names, link.teacher.names),
                    priors=anchors_of(self.model),
                    **heads,
                )
            )
        return inputs

    def weighted_batches(self, inputs: list[Batch]) -> list[tuple[float, Batch]]:
        """Each teacher's batch with its share in a term: all images by its weight, or those that it scores highest."""
        if not self.config.chooses:
            return [(link.share, batch) for link, batch in zip(self.links, inputs, strict=True)]
        best = torch.stack([batch.image_scores for batch in inputs]).argmax(0)  # [B], the first one of equals
        images = [(best == i).nonzero()[:, 0] for i in range(len(inputs))]
        return [(len(i) / len(best), batch.select(i)) for i, batch in zip(images, inputs, strict=True)]

    def _guard(self, terms: dict[str, Tensor], task: Tensor) -> None:
        """Raise when a term has done nothing for long; where the student's loss diverges, Ultralytics recovers."""
        healthy = task.detach().isfinite()
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

    def _take(self, task: Any) -> None:
        """Make this the student's own criterion."""
        self.task = task
        if self.soft_labels:
            self.soft_labels.watch(task)

    def adopt(self, model: nn.Module) -> None:
        """Make this the student's criterion, around the one that resuming has given it for a dual head's schedule."""
        there = getattr(model, "criterion", None)
        if there is not None and there is not self:
            self._take(there)
        model.criterion = self

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


def term(method: str, batches: list[tuple[float, Batch]], config: TrainConfig) -> Tensor:
    """A method's unweighted term: the sum over teachers' batches by their shares, without those of share 0."""
    return torch.stack([share * METHODS[method](batch, config) for share, batch in batches if share]).sum()


def _warn_of_weight(terms: Mapping[str, Tensor], task: Tensor, features: Sequence[Tensor]) -> None:
    """Say where the terms pull harder than the task at the features that the head reads, if these learn."""
    if not features[0].requires_grad:
        return
    own = gradient_norm(task, features)
    ratio = gradient_norm(torch.stack(list(terms.values())).sum(), features) / own if own else 0.0
    if ratio > LOUD:
        session.warn_aloud(
            f"after {PATIENCE} steps the methods' gradient is {ratio:.3g} times the task's: they may drown it: "
            f"lower the weight, or choose it by --balance 0.1"
        )
