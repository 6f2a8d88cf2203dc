"""Labels softened by a teacher's detections: what they change in the student's own loss.

In: the student's training output, a batch with the teacher's rows, and what the assigner of the student's own loss has
made of it. Out: one scalar, the loss by the teacher less that by the labels.
Invariant: no teacher runs, nothing is assigned a second time, and where the teacher is silent the labels count alone.

- A cell that is assigned to an object which the teacher has found too learns the teacher's box, and in place of the one
  class of the label the teacher's scores, each times how well the cell fits: Ultralytics' own target of the label.
- A cell inside a detection that no label names is a negative only as far as the teacher's scores leave room for it: a
  label that is missing teaches little.

By a weight w the loss is (1 - w) times the labels' and w times the teacher's, so w is a share. Soft targets are those
of Hinton, Vinyals and Dean (2015), stored ones those of Shen and Xing (FKD, ECCV 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy

from kd.distillation.outputs import student_branches
from kd.distillation.rows import ROWS
from kd.methods.batch import CONFIDENT

SAME_IOU = 0.5  # a detection that overlaps a label as much is of the same object


class Assignment(NamedTuple):
    """What Ultralytics' assigner was asked and what it said, of G objects and A cells in each of B images.

    ``points`` [A, 2] the cells' centres in pixels; ``objects_xyxy`` [B, G, 4] in pixels, ``there`` [B, G, 1] 0 for
    padding; ``targets`` [B, A, K] the scores to learn, ``assigned`` [B, A] whether a cell has an object, ``of`` [B, A]
    which one.
    """

    points: Tensor
    objects_xyxy: Tensor
    there: Tensor
    targets: Tensor
    assigned: Tensor
    of: Tensor


class Rows(NamedTuple):
    """A teacher's detections: ``boxes_xyxy`` [B, N, 4] in pixels, ``scores`` [B, N, K] in 0..1; 0 for padding."""

    boxes_xyxy: Tensor
    scores: Tensor


def rows_of(batch: Mapping[str, Any]) -> Rows:
    """A teacher's detections in the images of a batch."""
    height, width = batch["img"].shape[2:]
    packed = pad_sequence(list(batch[ROWS]), batch_first=True).to(batch["img"].device)  # [B, N, 4 + K]
    return Rows(xywh2xyxy(packed[..., :4]) * packed.new_tensor([width, height] * 2), packed[..., 4:])


class SoftLabels:
    """The term of a batch, from what the assigners of the student's own criterion were last seen to do."""

    def __init__(self) -> None:
        self._seen: dict[int, Assignment] = {}

    def watch(self, task: Any) -> None:
        """See what the assigners of a criterion do from now on."""
        for criterion, _ in _branches(task):
            criterion.assigner.register_forward_hook(self._see)

    def _see(self, assigner: torch.nn.Module, asked: tuple[Tensor, ...], said: tuple[Tensor, ...]) -> None:
        (_, _, points, _, objects, there), (_, _, targets, assigned, of) = asked, said
        self._seen[id(assigner)] = Assignment(points, objects, there, targets, assigned, of.long())

    def __call__(self, task: Any, preds: Any, batch: Mapping[str, Any]) -> Tensor:
        """The term per image, as Ultralytics' own loss items are; float32."""
        rows = rows_of(batch)
        branches = zip(_branches(task), student_branches(preds), strict=True)
        terms = [
            share * difference(criterion, branch, self._seen.pop(id(criterion.assigner)), rows)
            for (criterion, share), branch in branches
        ]
        return torch.stack(terms).sum()


def _branches(task: Any) -> list[tuple[Any, float]]:
    """The criteria of a head's branches with their shares, in the order of `student_branches`."""
    return [(task.one2many, task.o2m), (task.one2one, task.o2o)] if hasattr(task, "one2many") else [(task, 1.0)]


def difference(criterion: Any, preds: Mapping[str, Any], seen: Assignment, rows: Rows) -> Tensor:
    """What a teacher's rows change in Ultralytics' detection loss of one branch; 0 where there are none."""
    logits = preds["scores"].permute(0, 2, 1)  # [B, A, K]
    same = bbox_iou(seen.objects_xyxy[:, :, None], rows.boxes_xyxy[:, None], xywh=False)[..., 0] * seen.there
    total = seen.targets.sum().clamp(min=1)  # what Ultralytics divides by
    changes = -unnamed(logits, seen, same, rows)  # [., K]
    boxes = logits.new_zeros((), dtype=torch.float32)
    if same.shape[1] and same.shape[2]:  # G and N
        cells = common(seen, same)
        change = taught_scores(seen, cells, rows) - seen.targets[cells.image, cells.index]
        # Cross-entropy is linear in its target: less one target's is the product of logits and the targets' difference.
        changes = torch.cat((changes, -change * logits[cells.image, cells.index].float()))
        boxes = box_change(criterion, preds, seen, cells, rows)
    if criterion.class_weights is not None:
        changes = changes * criterion.class_weights.flatten()
    return (criterion.hyp.cls * changes.sum() + boxes) / total


def unnamed(logits: Tensor, seen: Assignment, same: Tensor, rows: Rows) -> Tensor:
    """The part of the negatives' loss that a teacher's scores take out, [cells, K].

    Of cells without an object whose centre lies inside a row of which the teacher is confident and which no label
    names, given the overlaps ``same`` [B, G, N] of labels and rows.
    """
    lone = rows.scores.amax(2) > CONFIDENT
    if same.shape[1]:
        lone &= same.amax(1) < SAME_IOU
    image, row = lone.nonzero(as_tuple=True)
    x1, y1, x2, y2 = rows.boxes_xyxy[image, row, :, None].unbind(1)  # [R, 1] each
    x, y = seen.points.unbind(1)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2) & ~seen.assigned[image]  # [R, A]
    which, index = inside.nonzero(as_tuple=True)
    places, cell = torch.unique(image[which] * inside.shape[1] + index, return_inverse=True)
    scores = rows.scores[image, row][which]
    highest = scores.new_zeros(len(places), scores.shape[1])
    highest = highest.scatter_reduce(0, cell[:, None].expand_as(scores), scores, "amax")
    return highest * F.softplus(logits.flatten(0, 1)[places].float())


class Common(NamedTuple):
    """M cells of objects that the teacher has found too: of which image, which cell, object and row, each [M]."""

    image: Tensor
    index: Tensor
    object: Tensor
    row: Tensor


def common(seen: Assignment, same: Tensor) -> Common:
    """The assigned cells whose object a row overlaps by IoU 0.5 or more, ``same`` [B, G, N], with its nearest row."""
    overlap, row = same.max(2)  # [B, G]
    image, index = (seen.assigned & (overlap >= SAME_IOU).gather(1, seen.of)).nonzero(as_tuple=True)
    objects = seen.of[image, index]
    return Common(image, index, objects, row[image, objects])


def taught_scores(seen: Assignment, cells: Common, rows: Rows) -> Tensor:
    """The scores to learn in the teacher's words, [M, K]: how well a cell fits its object, times the teacher's."""
    return seen.targets[cells.image, cells.index].sum(1, keepdim=True) * rows.scores[cells.image, cells.row]


def box_change(criterion: Any, preds: Mapping[str, Any], seen: Assignment, cells: Common, rows: Rows) -> Tensor:
    """The loss of boxes by the teacher's less that by the labels', by Ultralytics' own function, not yet divided."""
    shapes = [features.shape[2:].numel() for features in preds["feats"]]
    strides = criterion.stride.to(seen.points.device).repeat_interleave(seen.of.new_tensor(shapes))[cells.index, None]
    points = seen.points[cells.index] / strides
    distances = preds["boxes"].permute(0, 2, 1)[cells.image, cells.index]  # [M, 4 * reg_max]
    decoded = criterion.bbox_decode(points, distances[None])[0]
    to_learn = (rows.boxes_xyxy[cells.image, cells.row], seen.objects_xyxy[cells.image, cells.object])
    weights = seen.targets[cells.image, cells.index]
    # It sums over cells by the weights of their scores, so all are there twice: for the teacher, and against labels.
    overlap, sides = criterion.bbox_loss(
        torch.cat((distances, distances)),
        torch.cat((decoded, decoded)),
        torch.cat((points, points)),
        torch.cat(to_learn) / torch.cat((strides, strides)),
        torch.cat((weights, -weights)),
        1.0,
        weights.new_ones(2 * len(weights), dtype=torch.bool),
        seen.points.new_tensor(preds["feats"][0].shape[2:]) * criterion.stride[0],  # height, width
        torch.cat((strides, strides)),
    )
    return criterion.hyp.box * overlap + criterion.hyp.dfl * sides
