"""Labels in, anchor priors out: K widths and heights per stride, clustered over the targets of all tiles.

The boxes are those that `dtld prepare` would make targets with the same options of tiling. The same labels and
options give the same priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dtld_tools.errors import ImageError, LabelError, UsageError
from dtld_tools.labels.collapse import Rules
from dtld_tools.labels.locate import locate
from dtld_tools.labels.parse import Labels
from dtld_tools.labels.stats import DTLD_FRAME_WH
from dtld_tools.pixels.images import image_size
from dtld_tools.planning.sources import frame_record
from dtld_tools.planning.tile import tile_frame
from dtld_tools.types import Frame, TileSpec

STRIDES = (8, 16, 32)
# Width and height in pixels of YOLOv5's anchors (models/yolov5s.yaml of ultralytics/yolov5): what kd takes by default.
YOLOV5 = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
ATTEMPTS = 10  # of k-means, from different starts; the best is kept


def inspect_anchors(labels: Labels, rules: Rules, root: Path | None, spec: TileSpec, per_stride: int) -> dict[str, Any]:
    """The keys ``anchors`` {stride: [[w, h], ...]} in tile pixels and ``anchor_fit``, ready for JSON.

    Frame sizes are read below ``root``; without it, or without the image, a frame is 2048x1024. ``anchor_fit`` has
    the number of targets, and the mean best IoU of these priors and of YOLOv5's with them. Raises LabelError.
    """
    sizes_wh = target_sizes(labels, rules, root, spec)
    anchors = fit_anchors(sizes_wh, per_stride)
    fit = {
        "targets": len(sizes_wh),
        "mean_best_iou": round(mean_best_iou(sizes_wh, [wh for level in anchors.values() for wh in level]), 4),
        "mean_best_iou_yolov5": round(mean_best_iou(sizes_wh, YOLOV5), 4),
    }
    return {"anchors": {str(stride): level for stride, level in anchors.items()}, "anchor_fit": fit}


def target_sizes(labels: Labels, rules: Rules, root: Path | None, spec: TileSpec) -> np.ndarray:
    """Width and height in tile pixels of every target of every tile, [N, 2]; dropped lights are in none."""
    sizes: list[tuple[float, float]] = []
    for frame in labels.frames:
        width, height = _frame_size(frame, root)
        record = frame_record(frame, (width, height), "train", rules, frame.image_path)
        for tile in tile_frame(width, height, record.lights, spec) if record.lights else ():
            sizes += [(target.box.width, target.box.height) for target in tile.targets]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def fit_anchors(sizes_wh: np.ndarray, per_stride: int) -> dict[int, list[list[float]]]:
    """K priors per stride: 3K clusters by area, the smallest K for stride 8, as YOLOv5's autoanchor lays them out.

    ``sizes_wh`` [N, 2] in pixels. Raises LabelError if fewer than 3K of them differ.
    """
    if per_stride < 1:
        raise UsageError(f"--anchors: got {per_stride}, expected 1 or more priors per stride")
    # Clusters in log width and height: the IoU of two concentric boxes depends on the ratios of their sides alone,
    # so equal distances there are equal losses of IoU for small and large boxes. In pixels, also divided by their
    # deviation as YOLOv5 has it, the few large boxes would take most of the clusters.
    logs = np.log(sizes_wh).astype(np.float32)
    clusters, different = per_stride * len(STRIDES), len(np.unique(logs, axis=0))
    if different < clusters:
        raise LabelError(
            f"--anchors {per_stride}: got targets of {different} different sizes, expected {clusters} or more, "
            f"{per_stride} for each of the strides {', '.join(map(str, STRIDES))}; lower it or give more labels"
        )
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 300, 1e-6)
    cluster_of = np.empty((len(logs), 1), np.int32)  # is written to; the start is drawn
    _, _, centres = cv2.kmeans(logs, clusters, cluster_of, stop, ATTEMPTS, cv2.KMEANS_PP_CENTERS)
    priors = np.exp(centres.astype(np.float64))  # [3K, 2]
    by_area = priors[priors.prod(1).argsort(kind="stable")].round(2).tolist()
    return {stride: by_area[i * per_stride : (i + 1) * per_stride] for i, stride in enumerate(STRIDES)}


def mean_best_iou(sizes_wh: np.ndarray, priors: Sequence[Sequence[float]]) -> float:
    """The IoU of each size [N, 2] with the concentric prior that fits it best, on average.

    >>> mean_best_iou(np.array([[10.0, 20.0], [8.0, 10.0]]), [(10, 20), (4, 10)])
    0.75
    """
    best = np.zeros(len(sizes_wh))
    for prior in np.asarray(priors, dtype=np.float64):
        inter = np.minimum(sizes_wh, prior).prod(1)
        best = np.maximum(best, inter / (sizes_wh.prod(1) + prior.prod() - inter))
    return float(best.mean())


def _frame_size(frame: Frame, root: Path | None) -> tuple[int, int]:
    path = locate(frame.image_path, root, follow_symlinks=True) if root else None
    try:
        return image_size(path) if path else DTLD_FRAME_WH
    except ImageError:
        return DTLD_FRAME_WH  # inspect counts it among the problems
