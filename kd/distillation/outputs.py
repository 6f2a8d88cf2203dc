"""A detector's training output as distillation reads it: by branch of its head and by level.

Invariant: nothing is copied but where maps are resized or two outputs joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


def by_level(preds: dict[str, Any]) -> list[Prediction]:
    """A head's training output as predictions [B, C, H, W] per level; it comes with all levels' cells in a row."""
    shapes = [features.shape[2:] for features in preds["feats"]]
    parts = [preds[key].split([h * w for h, w in shapes], 2) for key in ("scores", "boxes")]
    return [Prediction(*(p.unflatten(2, shape) for p in pair)) for *pair, shape in zip(*parts, shapes, strict=True)]


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps [B, C, H, W] on the cells of ``like``, bilinearly; as they are where these are theirs."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps.float(), like.shape[2:], mode="bilinear")
