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

# Width and height in pixels of YOLOv5's anchors (models/yolov5s.yaml of ultralytics/yolov5), by stride.
YOLOV5_PRIORS: dict[int, tuple[tuple[float, float], ...]] = {
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}


def anchor_priors(
    stride: int, priors: Mapping[int, Sequence[tuple[float, float]]] = YOLOV5_PRIORS
) -> tuple[tuple[float, float], ...]:
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
    priors: Mapping[int, Sequence[tuple[float, float]]] = YOLOV5_PRIORS,
) -> list[Tensor]:
    """Mark the cells whose anchors overlap some ground-truth box nearly as well as any anchor does.

    A cell is marked where an anchor centred on it has IoU > ``threshold`` * (the best IoU of that box), the best
    being over all cells and anchors of the level, or over all levels when ``assigned`` (FGFI; Wang et al., CVPR
    2019, section 3.1).

    ``boxes_xyxy`` [N, 4] in pixels, possibly beyond the image; ``image_index`` [N] the image of the batch that a box
    belongs to; ``images`` the batch size B; ``priors`` the anchors by stride, see `anchor_priors`. Returns a boolean
    [B, H, W] per grid; a box without area marks nothing.
    """
    levels = [_overlaps(boxes_xyxy, grid, anchor_priors(grid.stride, priors)) for grid in grids]
    best = torch.stack([_best_iou(*level) for level in levels])  # [L, N]
    if assigned:
        best = best.amax(0, keepdim=True).expand_as(best)
    above = (_above(*level, threshold * iou) for level, iou in zip(levels, best, strict=True))
    return [_by_image(marked, image_index, images) for marked in above]


def foreground(boxes_xyxy: Tensor, image_index: Tensor, images: int, grid: Grid) -> Tensor:
    """Mark the cells of one level whose centre lies in a box, and the cell that holds a box's centre.

    So every box has a cell on every level, however small it is. ``boxes_xyxy`` [N, 4] in pixels, ``image_index`` [N],
    ``images`` the batch size B. Returns a boolean [B, H, W].
    """

    def covered(axis: int, cells: int) -> Tensor:
        """The columns (axis 0) or rows (axis 1) of each box, [N, cells]."""
        low, high = (boxes_xyxy[:, axis::2] / grid.stride).unbind(1)  # in cells
        middle = ((low + high) / 2).floor()
        first = (low - 0.5).ceil().minimum(middle).clamp(0, cells - 1)
        last = (high - 0.5).floor().maximum(middle).clamp(0, cells - 1)
        cell = torch.arange(cells, device=boxes_xyxy.device)
        return (first[:, None] <= cell) & (cell <= last[:, None])

    marked = covered(1, grid.height)[:, :, None] & covered(0, grid.width)[:, None]  # [N, H, W]
    return _by_image(marked, image_index, images)


def _overlaps(boxes: Tensor, grid: Grid, anchors: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """How far N boxes overlap the K anchors of each column, [N, K, W], and row, [N, K, H]; both areas' sum [N, K]."""
    sizes = boxes.new_tensor(anchors)  # [K, 2] width, height

    def along(axis: int, cells: int) -> Tensor:
        centre = (torch.arange(cells, device=boxes.device, dtype=boxes.dtype) + 0.5) * grid.stride
        half = sizes[:, axis, None] / 2  # [K, 1]
        low = boxes[:, axis, None, None].maximum(centre - half)
        high = boxes[:, axis + 2, None, None].minimum(centre + half)
        return (high - low).clamp(min=0)

    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return along(0, grid.width), along(1, grid.height), sides.prod(1, keepdim=True) + sizes.prod(1)


def _best_iou(x: Tensor, y: Tensor, areas: Tensor) -> Tensor:
    """The best IoU of each box over all cells and anchors, [N]: the longest overlaps in both directions meet."""
    inter = x.amax(2) * y.amax(2)  # [N, K]
    return (inter / (areas - inter)).amax(1)


def _above(x: Tensor, y: Tensor, areas: Tensor, iou: Tensor) -> Tensor:
    """Cells [N, H, W] where some anchor's IoU with box n exceeds ``iou`` [N]; none where that is 0 by underflow.

    IoU = inter / (areas - inter) > t is inter > t * areas / (1 + t).
    """
    least = iou[:, None] * areas / (1 + iou[:, None])  # [N, K] square pixels
    least = least.where(iou[:, None] > 0, math.inf)[..., None, None]
    marked = torch.zeros(len(x), y.shape[2], x.shape[2], dtype=torch.bool, device=x.device)
    for k in range(areas.shape[1]):  # all anchors at once take more time and memory
        marked |= y[:, k, :, None] * x[:, k, None] > least[:, k]
    return marked


def _by_image(marked: Tensor, image_index: Tensor, images: int) -> Tensor:
    """The cells of each image that some box of it marks, [B, H, W], from each box's, [N, H, W]."""
    counts = torch.zeros(images, *marked.shape[1:], dtype=torch.int32, device=marked.device)
    return counts.index_add_(0, image_index, marked.int()) > 0
