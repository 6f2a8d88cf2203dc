"""The loss of classic YOLOv5 (ultralytics/yolov5, releases 6.x and 7.0): CIoU, objectness, class.

In: raw outputs of the anchor-based head and Ultralytics' batch. Out: the weighted items times the batch size.
Invariant: an anchor answers for a box when no side differs by more than a factor of 4, in the box's cell and in the two
neighbours nearest to its centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.utils.metrics import bbox_iou

BOX, OBJECTNESS, CLASS = 0.05, 1.0, 0.5  # gains for 3 levels, 640 px, 80 classes
BALANCE = {3: (4.0, 1.0, 0.4)}  # of the levels' objectness, finest first
BALANCE_OF_MORE = (4.0, 1.0, 0.25, 0.06, 0.02)
MOST_RATIO = 4.0  # between the sides of a box and its anchor


class Matches(NamedTuple):
    """The M places of one level that answer for a box: ``image``, ``anchor``, ``row`` and ``column`` [M], the box's
    class ``label`` [M], and ``boxes`` [M, 4], xywh in cells from the place's corner.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    label: Tensor
    boxes: Tensor

    @property
    def place(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The index into a level's outputs [B, A, H, W, ...]."""
        return self.image, self.anchor, self.row, self.column


def match(targets: Tensor, anchors: Tensor, height: int, width: int) -> Matches:
    """Where a level learns which box; a place may answer for several.

    ``targets`` [T, 6] image, class, xywh as shares of the image; ``anchors`` [A, 2] in cells.
    """
    targets = targets * targets.new_tensor([1, 1, width, height, width, height])
    ratio = targets[:, 4:] / anchors[:, None]  # [A, T, 2]
    anchor, target = (ratio.maximum(1 / ratio).amax(2) < MOST_RATIO).nonzero(as_tuple=True)
    targets = targets[target]  # [P, 6]
    centre = targets[:, 2:4]
    from_end = centre.new_tensor([width, height]) - centre
    before, after = ((side % 1 < 0.5) & (side > 1) for side in (centre, from_end))  # [P, 2] in x, y
    near = torch.cat((torch.ones_like(before[:, :1]), before, after), 1).T  # [5, P] own cell, left, above, right, below
    step = centre.new_tensor([[0, 0], [-0.5, 0], [0, -0.5], [0.5, 0], [0, 0.5]])
    neighbour, pair = near.nonzero(as_tuple=True)
    targets, centre = targets[pair], centre[pair]  # [M, ...]
    cell = (centre + step[neighbour]).long()
    column, row = cell[:, 0].clamp(0, width - 1), cell[:, 1].clamp(0, height - 1)
    boxes = torch.cat((centre - torch.stack((column, row), 1), targets[:, 4:]), 1)
    return Matches(targets[:, 0].long(), anchor[pair], row, column, targets[:, 1].long(), boxes)


def targets_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The objects of Ultralytics' batch as rows [T, 6]: image, class, xywh as shares of the image."""
    return torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)


def decoded(xy: Tensor, wh: Tensor, anchors: Tensor) -> Tensor:
    """The boxes [M, 4] of raw outputs [M, 2] each, xywh in cells from the place's corner; ``anchors`` [M, 2]."""
    return torch.cat((2 * xy.sigmoid() - 0.5, (2 * wh.sigmoid()).square() * anchors), 1)


class ClassicLoss:
    """The criterion, as Ultralytics calls it: a plain object."""

    def __init__(self, model: nn.Module) -> None:
        """Take the classic model's head, and of its ``args`` the image size that the gain of objectness depends on."""
        self.head = model.model[-1]
        levels, classes = self.head.nl, self.head.nc
        imgsz = model.args["imgsz"] if isinstance(model.args, Mapping) else model.args.imgsz
        share = 3 / levels
        self.gains = BOX * share, OBJECTNESS * share * (imgsz / 640) ** 2, CLASS * share * classes / 80
        self.balance = BALANCE.get(levels, BALANCE_OF_MORE[:levels])

    def __call__(self, preds: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Box, objectness and class loss [3] times the batch size, and the detached items by name."""
        preds = preds[1] if isinstance(preds, tuple) else preds
        raw = [output.float() for output in preds["raw"]]
        targets = targets_of(batch).to(raw[0])
        anchors = self.head.anchors.to(raw[0])
        levels = [self._level(output, targets, sizes) for output, sizes in zip(raw, anchors, strict=True)]
        items = self.weighted(levels)
        names = ("box_loss", "obj_loss", "cls_loss")
        return items * len(raw[0]), dict(zip(names, items.detach(), strict=True))

    def weighted(self, levels: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Box, objectness and class loss [3], from those of each level."""
        box, objectness, label = (torch.stack(parts) for parts in zip(*levels, strict=True))
        objectness = objectness * objectness.new_tensor(self.balance)
        parts = (box.sum(), objectness.sum(), label.sum())
        return torch.stack([gain * part for gain, part in zip(self.gains, parts, strict=True)])

    def _level(self, raw: Tensor, targets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean 1 - CIoU, objectness and class loss of one level, not yet weighted; 0 for what has no box."""
        found = match(targets, anchors, *raw.shape[2:4])
        aim = torch.zeros_like(raw[..., 4])
        xy, wh, _, scores = raw[found.place].split((2, 2, 1, self.head.nc), 1)
        box = label = raw.sum() * 0
        if len(xy):
            boxes = decoded(xy, wh, anchors[found.anchor])
            iou = bbox_iou(boxes, found.boxes, xywh=True, CIoU=True).squeeze(1)  # [M]
            box = (1 - iou).mean()
            aim[found.place] = iou.detach().clamp(min=0)  # how well a place does is how sure it shall be
            if self.head.nc > 1:
                label = F.binary_cross_entropy_with_logits(scores, F.one_hot(found.label, self.head.nc).to(scores))
        return box, F.binary_cross_entropy_with_logits(raw[..., 4], aim), label
