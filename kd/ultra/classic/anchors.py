"""Anchors that fit the boxes of a dataset, where those of COCO do not (the official repository's autoanchor).

In: sides of boxes in pixels of the training image. Out: anchors by level, the small ones first.
Invariant: the same boxes give the same anchors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd.ultra.classic.loss import MOST_RATIO

ENOUGH = 0.98  # of the boxes within reach, from which anchors stay as they are
LEAST_PX = 2  # smaller boxes are not fitted to
ROUNDS = 30  # of k-means; it has settled long before

Sides = NDArray[np.float64]  # [N, 2] width, height


def sides_px(labels: Iterable[Mapping[str, Any]], imgsz: int) -> Sides:
    """The sides of all boxes of Ultralytics' labels when the longer side of each image is ``imgsz``."""
    found = [
        one["bboxes"][:, 2:] * imgsz * np.array(one["shape"][::-1]) / max(one["shape"])  # shape is height, width
        for one in labels
    ]
    sides = np.concatenate(found) if found else np.zeros((0, 2))
    return sides[(sides >= LEAST_PX).all(1)].astype(np.float64)


def reach(sides: Sides, anchors: Sides) -> float:
    """The share of boxes that some anchor answers for (best possible recall); 1 without any.

    >>> reach(np.array([[8, 8], [100, 20]]), np.array([[10, 10]]))
    0.5
    """
    ratio = sides[:, None] / anchors  # [N, K, 2]
    fits = np.maximum(ratio, 1 / ratio).max(2) < MOST_RATIO
    return float(fits.any(1).mean()) if len(sides) else 1.0


def fitted(sides: Sides, count: int) -> Sides:
    """So many anchors by k-means over the logarithms of the sides, sorted by area: reach is by ratio, too.

    ``sides`` has at least as many different rows. The first centres lie evenly among the boxes sorted by area.
    """
    points = np.log(np.unique(sides, axis=0))
    points = points[np.argsort(points.sum(1), kind="stable")]
    centres = points[np.linspace(0, len(points) - 1, count).round().astype(int)]
    weights = np.log(sides)
    for _ in range(ROUNDS):
        nearest = ((weights[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack(
            [weights[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)]
        )
    return np.exp(centres[np.argsort(centres.sum(1), kind="stable")])


def better(sides: Sides, anchors: Sides) -> Sides | None:
    """Anchors that reach more boxes, where these reach less than 98 % of them; None where they may stay."""
    known = reach(sides, anchors)
    if known >= ENOUGH or len(np.unique(sides, axis=0)) < len(anchors):
        return None
    found = fitted(sides, len(anchors))
    return found if reach(sides, found) > known else None
