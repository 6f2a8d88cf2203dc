"""A detector's training output as distillation reads it: by branch of its head and by level.

Invariant: nothing is copied but where maps are resized or two outputs joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.methods.batch import Prediction


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


def by_level(preds: dict[str, Any], head: nn.Module) -> list[Prediction]:
    """The training output of a branch of ``head`` as predictions per level; it comes with all levels' cells in a row.

    One of a head with anchors comes by level.
    """
    if "raw" in preds:
        return head.predictions(preds["raw"])
    shapes = [features.shape[2:] for features in preds["feats"]]
    parts = [preds[key].split([h * w for h, w in shapes], 2) for key in ("scores", "boxes")]
    return [Prediction(*(p.unflatten(2, shape) for p in pair)) for *pair, shape in zip(*parts, shapes, strict=True)]


def head_like(head: Prediction, features: Tensor, like: Tensor) -> Prediction:
    """A head's prediction on the cells of ``like``; ``features`` are those that it was made from."""
    anchors = head.scores.shape[2] // features.shape[2]
    return head.each(lambda maps: resized(maps, like, anchors))


def resized(maps: Tensor, like: Tensor, anchors: int = 1) -> Tensor:
    """Maps [B, C, A H, W] of A ``anchors`` on the cells of ``like``, bilinearly; as they are where these are theirs."""
    cells = maps.unflatten(2, (anchors, -1)).flatten(1, 2)  # [B, C A, H, W]
    if cells.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(cells.float(), like.shape[2:], mode="bilinear").unflatten(1, (-1, anchors)).flatten(2, 3)
