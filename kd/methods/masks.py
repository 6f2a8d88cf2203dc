"""Where the student imitates: anchor priors, the mask of cells near ground-truth boxes, and of those inside them.

In: boxes in pixels and the grids of the feature levels. Out: one boolean mask [B, H, W] per level.
Invariant: the masks equal a loop over every box, anchor and cell (up to rounding at the threshold itself); torch only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Anchors by stride: (width, height) in pixels.
Anchors = Mapping[int, Sequence[tuple[float, float]]]

# Width and height in pixels of YOLOv5's anchors (models/yolov5s.yaml of ultralytics/yolov5), by stride.
YOLOV5_PRIORS: dict[int, tuple[tuple[float, float], ...]] = {
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}


def anchor_priors(stride: int, priors: Anchors = YOLOV5_PRIORS) -> tuple[tuple[float, float], ...]:
    """The anchor sizes (width, height) in pixels for a level of this stride.

    ``priors`` by stride, YOLOv5's for 8, 16, 32 unless given. Another stride takes those of the nearest, scaled by
    the strides' ratio: with YOLOv5's, a P2 level (stride 4) has stride 8's halved, a P6 level (64) stride 32's
    doubled, which keeps an anchor's size in cells.

    >>> anchor_priors(4), anchor_priors(16, {8: [(4, 9)]})
    (((5.0, 6.5), (8.0, 15.0), (16.5, 11.5)), ((8.0, 18.0),))
    """
    nearest = min(priors, key=lambda known: abs(math.log2(stride / known)))
    if nearest == stride:
        return tuple(priors[nearest])
    return tuple((w * stride / nearest, h * stride / nearest) for w, h in priors[nearest])


@dataclass(frozen=True)
class Grid:
    """One feature level: stride in pixels per cell, height and width in cells."""

    stride: int
    height: int
    width: int


def imitation_masks(
    boxes_xyxy: Tensor,
    image_index: Tensor,
    images: int,
    grids: Sequence[Grid],
    *,
    threshold: float = 0.5,
    assigned: bool = False,
    priors: Anchors = YOLOV5_PRIORS,
) -> list[Tensor]:
    """Mark the cells whose anchors overlap some ground-truth box nearly as well as any anchor does.

    A cell is marked where an anchor centred on it has IoU > ``threshold`` * (the best IoU of that box), the best
    being over all cells and anchors of the level, or over all levels when ``assigned`` (FGFI; Wang et al., CVPR
    2019, section 3.1).

    ``boxes_xyxy`` [N, 4] in pixels, possibly beyond the image; ``image_index`` [N] the image of the batch that a box
    belongs to; ``images`` the batch size B; ``priors`` the anchors by stride, see `anchor_priors`. Returns a boolean
    [B, H, W] per grid; a box without area marks nothing.

    Overlap is separable, inter = x(column) * y(row), and IoU > t is inter > t (A_box + A_anchor) / (1 + t). In a row,
    then, the marked columns are those whose x exceeds a limit, and x being a trapezoid they are one interval: its
    ends follow from the box, and neither IoU nor overlap is ever computed per cell.
    """
    levels = [_Level(boxes_xyxy, grid, anchor_priors(grid.stride, priors)) for grid in grids]
    best = torch.stack([level.best_iou() for level in levels])  # [L, N]
    if assigned:
        best = best.amax(0, keepdim=True).expand_as(best)
    return [level.mark(threshold * best[i], image_index, images) for i, level in enumerate(levels)]


def foreground(boxes_xyxy: Tensor, image_index: Tensor, images: int, grid: Grid) -> Tensor:
    """Mark the cells of one level whose centre lies in a box, and the cell that holds a box's centre.

    So every box has a cell on every level, however small it is. ``boxes_xyxy`` [N, 4] in pixels, ``image_index`` [N],
    ``images`` the batch size B. Returns a boolean [B, H, W].

    A box is a rectangle of cells: each adds to four corners of a map of differences, whose double cumulative sum
    counts the boxes over each cell.
    """
    last = boxes_xyxy.new_tensor([grid.width - 1, grid.height - 1])
    low, high = (boxes_xyxy / grid.stride).split(2, 1)  # [N, 2] x, y in cells
    middle = ((low + high) / 2).floor()
    first = (low - 0.5).ceil().minimum(middle).clamp(min=0).minimum(last).long()
    end = (high - 0.5).floor().maximum(middle).clamp(min=0).minimum(last).long() + 1
    edges = torch.zeros(images, grid.height + 1, grid.width + 1, dtype=torch.int32, device=boxes_xyxy.device)
    for x, y, sign in ((first, first, 1), (first, end, -1), (end, first, -1), (end, end, 1)):
        step = torch.full_like(image_index, sign, dtype=torch.int32)
        edges.index_put_((image_index, y[:, 1], x[:, 0]), step, accumulate=True)
    return edges.cumsum(1).cumsum(2)[:, :-1, :-1] > 0


class _Level:
    """Boxes [N, 4] against the K anchors of one grid's H x W cells; all lengths in pixels."""

    def __init__(self, boxes_xyxy: Tensor, grid: Grid, anchors: Sequence[tuple[float, float]]) -> None:
        self.grid = grid
        self.boxes = boxes_xyxy[:, None]  # [N, 1, 4]
        self.anchors = boxes_xyxy.new_tensor(anchors)  # [K, 2] width, height
        self.sides = (self.boxes[..., 2:] - self.boxes[..., :2]).clamp(min=0)  # [N, 1, 2]
        self.areas = self.sides.prod(-1) + self.anchors.prod(-1)  # [N, K] of box and anchor together
        self.y = self._overlap(1, grid.height)  # [N, K, H]

    def _overlap(self, axis: int, cells: int) -> Tensor:
        """Overlap of box and anchor along one axis, [N, K, cells]."""
        centre = (torch.arange(cells, device=self.boxes.device, dtype=self.boxes.dtype) + 0.5) * self.grid.stride
        half = self.anchors[:, axis, None] / 2  # [K, 1]
        low = self.boxes[..., axis, None].maximum(centre - half)
        high = self.boxes[..., axis + 2, None].minimum(centre + half)
        return (high - low).clamp(min=0)

    def best_iou(self) -> Tensor:
        """The best IoU of each box over all cells and anchors, [N]; the best overlap is the product of both axes'."""
        inter = self._overlap(0, self.grid.width).amax(2) * self.y.amax(2)  # [N, K]
        return (inter / (self.areas - inter)).amax(1)

    def mark(self, iou: Tensor, image_index: Tensor, images: int) -> Tensor:
        """Cells [B, H, W] where some anchor's IoU with box n exceeds ``iou`` [N]."""
        least = iou[:, None] * self.areas / (1 + iou[:, None])  # [N, K] square pixels
        overlaps = (self.y > 0) & (iou[:, None, None] > 0)  # IoU 0: a box out of reach, or of an area that underflows
        least_x = torch.where(overlaps, least[..., None] / self.y, math.inf)  # [N, K, H]
        reached = least_x < self.sides[..., :1].minimum(self.anchors[:, :1])  # overlap is at most the shorter of both
        n, k, row = reached.nonzero(as_tuple=True)  # [M] rows of cells in which something is marked
        reach = self.anchors[k, 0] / 2 - least_x[n, k, row]  # how far beyond the box's sides a centre may be
        low, high = self.boxes[n, 0, 0] - reach, self.boxes[n, 0, 2] + reach  # centres strictly between, in pixels
        width = self.grid.width
        first = ((low / self.grid.stride - 0.5).floor() + 1).clamp(0, width).long()
        end = (high / self.grid.stride - 0.5).ceil().clamp(0, width).long().maximum(first)
        edges = torch.zeros(images, self.grid.height, width + 1, dtype=torch.int32, device=iou.device)
        ones = torch.ones_like(first, dtype=torch.int32)
        edges.index_put_((image_index[n], row, first), ones, accumulate=True)
        edges.index_put_((image_index[n], row, end), -ones, accumulate=True)
        return edges.cumsum(2)[..., :-1] > 0
