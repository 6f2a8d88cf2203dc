"""Where a convolution is looked at: half of the places anywhere, half where the teacher sees something.

What a detector is for lies in few places: objects cover little of an image, and chance would seldom meet small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.distillation.outputs import by_level, student_branches
from kd.methods.batch import by_cell


def seen(preds: Any, head: nn.Module) -> Tensor:
    """How sure a detector is that an object of any class is there, 0 to 1, by its finest cells [B, 1, H, W].

    ``preds`` is what its head gives in training mode.
    """
    preds = student_branches(preds)[0]
    found = zip(by_level(preds, head), preds["feats"], strict=True)
    levels = [by_cell(level.confidence(), features.shape[2])[:, None] for level, features in found]
    maps = [F.interpolate(level, levels[0].shape[2:]) for level in levels]
    return torch.stack(maps).amax(0)


def draw(seen: Tensor, size: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` different places of each image in a map of ``size`` (height, width), [B, n], as indices of it.

    A place's weight is 1, and as much again on average over all of them by how sure the teacher is there. Drawn without
    replacement by keys, after Efraimidis and Spirakis (2006).
    """
    finer = size[0] >= seen.shape[2]
    there = (F.interpolate if finer else F.adaptive_max_pool2d)(seen, tuple(size)).flatten(1).cpu()
    weights = 1 + there / there.mean().clamp_min(torch.finfo(there.dtype).tiny)
    keys = torch.rand(there.shape, generator=generator).log() / weights
    return keys.topk(min(count, keys.shape[1]), 1).indices
