"""Labels softened by a teacher's detections, for a classic YOLOv5: what they change in its own loss.

In: the student's raw outputs, a batch with the teacher's rows. Out: one scalar, the loss by the teacher less that by
the labels.
Invariant: as `kd.distillation.soft_labels` has it, with the official matching in place of an assigner.

- A place that answers for an object which the teacher has found too learns the teacher's box. Its objectness learns how
  well it does by that box, times the teacher's highest score; its classes learn the scores as shares of that. So
  objectness times class is what a cell without anchors learns.
- A place that would answer for a detection that no label names, and answers for nothing, is a negative only as far as
  the teacher's score leaves room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh

from kd.distillation.outputs import student_branches
from kd.distillation.soft_labels import SAME_IOU, Rows, SoftLabels, rows_of
from kd.methods.batch import CONFIDENT
from kd.ultra.classic.loss import ClassicLoss, decoded, match, targets_of


class AnchoredSoftLabels(SoftLabels):
    """The term of a batch for a student with anchors."""

    def watch(self, task: Any) -> None:
        """Leave the criterion alone: matching anchors depends on no output, and is cheap to do again."""

    def __call__(self, task: ClassicLoss, preds: Any, batch: Mapping[str, Any]) -> Tensor:
        """The term per image, as the official loss items are; float32."""
        raw = [output.float() for output in student_branches(preds)[0]["raw"]]
        labels = targets_of(batch).to(raw[0])
        lesson = taught(labels, rows_of(batch), *batch["img"].shape[2:])
        anchors = task.head.anchors.to(raw[0])
        levels = [change(output, lesson, sizes) for output, sizes in zip(raw, anchors, strict=True)]
        return task.weighted(levels).sum()


class Lesson(NamedTuple):
    """What a teacher's rows say of T labels, and R of them of no label; boxes are xywh as shares of the image.

    ``labels`` [T, 6] are image, number and box, ``hard`` [T, K] their classes; ``boxes`` [T, 4] and ``scores`` [T, K]
    what to learn in their place, the same where the teacher has not found an object; ``lone`` [R, 6] image, number and
    box of the other rows and ``certainty`` [R] their highest scores.
    """

    labels: Tensor
    hard: Tensor
    boxes: Tensor
    scores: Tensor
    lone: Tensor
    certainty: Tensor


def taught(labels: Tensor, rows: Rows, height: int, width: int) -> Lesson:
    """What the rows say of ``labels`` [T, 6] image, class, xywh as shares, in images of such sizes in pixels."""
    rows = Rows(*(F.pad(part, (0, 0, 0, 1)) for part in rows))  # one that says nothing, so that there is a nearest
    sides = labels.new_tensor([width, height] * 2)
    images, classes = labels[:, 0].long(), labels[:, 1].long()
    hard = F.one_hot(classes, rows.scores.shape[2]).to(labels)
    own = xywh2xyxy(labels[:, 2:]) * sides
    same = bbox_iou(own[:, None], rows.boxes_xyxy[images], xywh=False)[..., 0]  # [T, N]
    best = same.new_zeros(rows.scores.shape[:2])  # [B, N], of any label
    best = best.scatter_reduce(0, images[:, None].expand_as(same), same, "amax")
    image, row = ((rows.scores.amax(2) > CONFIDENT) & (best < SAME_IOU)).nonzero(as_tuple=True)
    boxes = xyxy2xywh(rows.boxes_xyxy) / sides
    overlap, nearest = same.max(1, keepdim=True)
    found, nearest = overlap >= SAME_IOU, nearest[:, 0]
    return Lesson(
        labels=_numbered(images, labels[:, 2:]),
        hard=hard,
        boxes=torch.where(found, boxes[images, nearest], labels[:, 2:]),
        scores=torch.where(found, rows.scores[images, nearest], hard),
        lone=_numbered(image, boxes[image, row]),
        certainty=rows.scores[image, row].amax(1),
    )


def _numbered(images: Tensor, boxes: Tensor) -> Tensor:
    """Boxes as targets [N, 6] to match, their numbers in place of classes."""
    return torch.cat((torch.stack((images, torch.arange(len(images), device=images.device)), 1).to(boxes), boxes), 1)


def change(raw: Tensor, lesson: Lesson, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a lesson changes in the box, objectness and class loss of a level, not yet weighted.

    ``raw`` [B, A, H, W, 5 + K], ``anchors`` [A, 2] in cells.
    """
    height, width = raw.shape[2:4]
    found, others = (match(targets, anchors, height, width) for targets in (lesson.labels, lesson.lone))
    xy, wh, _, logits = raw[found.place].split((2, 2, 1, raw.shape[4] - 5), 1)
    box = label = raw.sum() * 0
    by_labels, by_teacher, sure = (raw.new_zeros(raw.shape[:4]) for _ in range(3))
    at = torch.arange(sure.numel(), device=raw.device).view(sure.shape)[others.place]
    sure = sure.view(-1).scatter_reduce(0, at, lesson.certainty[others.label], "amax").view(sure.shape)
    sure[found.place] = 0
    if len(xy):
        hard, scores = lesson.hard[found.label], lesson.scores[found.label]
        corners = torch.stack((found.column, found.row), 1)
        theirs = lesson.boxes[found.label] * raw.new_tensor([width, height] * 2)
        theirs = torch.cat((theirs[:, :2] - corners, theirs[:, 2:]), 1)
        boxes = decoded(xy, wh, anchors[found.anchor])
        iou, its = (bbox_iou(boxes, to, xywh=True, CIoU=True).squeeze(1) for to in (found.boxes, theirs))
        box = (iou - its).mean()
        highest = scores.amax(1)
        by_labels[found.place] = iou.detach().clamp(min=0)
        by_teacher[found.place] = its.detach().clamp(min=0) * highest
        if logits.shape[1] > 1:
            soft = scores / highest.clamp(min=1e-9)[:, None]
            label = -((soft - hard) * logits).mean()  # cross-entropy is linear in its target
    logit = raw[..., 4]
    objectness = -((by_teacher - by_labels) * logit + sure * F.softplus(logit)).mean()
    return box, objectness, label
