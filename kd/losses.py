"""Distillation terms: pure functions of tensors.

In: features of student and teacher, adapters' weights, ground-truth boxes. Out: a scalar per method, unweighted.
Invariant: a term is float32 under autocast, finite and differentiable for any batch (no boxes: 0 with zero
gradients), and no gradient reaches the teacher; torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.config import TrainConfig
from kd.masks import YOLOV5_PRIORS, Grid, imitation_masks


@dataclass(frozen=True)
class Batch:
    """What a method may look at; the dicts are keyed by stride and hold the levels that both networks have.

    ``student`` [B, Cs, H, W] and ``teacher`` [B, Ct, H, W] features; ``weight`` [Ct, Cs, k, k] and ``bias`` [Ct] of
    the adapters; ``boxes_xyxy`` [N, 4] in pixels of the network's input, ``image_index`` [N] in 0..B-1.
    """

    student: Mapping[int, Tensor]
    teacher: Mapping[int, Tensor]
    weight: Mapping[int, Tensor]
    bias: Mapping[int, Tensor]
    boxes_xyxy: Tensor
    image_index: Tensor


def imitation(student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Squared distance between adapted student and teacher features, over the masked cells of one level.

    1 / (2 N_p) * sum over masked cells of sum over channels (adapter(s) - t)^2, N_p the number of masked cells in
    the batch (FGFI; Wang et al., CVPR 2019, equations 2 and 3); 0 without any.

    ``student`` [B, Cs, H, W], ``teacher`` [B, Ct, H, W], ``mask`` boolean [B, H, W], ``weight`` [Ct, Cs, k, k],
    ``bias`` [Ct]. Returns a float32 scalar. A 1x1 adapter projects only the cells it is asked for, which is the
    same and cheap where the mask is sparse; a 3x3 one runs over the whole level.
    """
    with torch.autocast(student.device.type, enabled=False):
        if weight.shape[2:] == (1, 1):
            cells = student.permute(0, 2, 3, 1)[mask].float()  # [N_p, Cs]
            adapted = F.linear(cells, weight[:, :, 0, 0].float(), bias.float())  # [N_p, Ct]
        else:
            dense = F.conv2d(student.float(), weight.float(), bias.float(), padding=weight.shape[-1] // 2)
            adapted = dense.permute(0, 2, 3, 1)[mask]
        target = teacher.detach().permute(0, 2, 3, 1)[mask].float()
        return (adapted - target).square().sum() / (2 * max(len(adapted), 1))


def fgfi_masks(batch: Batch, config: TrainConfig) -> list[Tensor]:
    """The cells near ground truth that `fgfi` imitates: a boolean [B, H, W] per shared level."""
    return imitation_masks(
        batch.boxes_xyxy,
        batch.image_index,
        len(next(iter(batch.student.values()))),
        [Grid(stride, *features.shape[2:]) for stride, features in batch.student.items()],
        threshold=config.fgfi.threshold,
        assigned=config.fgfi.assigned,
        priors=dict(config.fgfi.priors) if config.fgfi.priors else YOLOV5_PRIORS,
    )


def fgfi(batch: Batch, config: TrainConfig) -> Tensor:
    """Fine-grained feature imitation: `imitation` on the cells near ground truth, summed over the shared levels."""
    masks = fgfi_masks(batch, config)
    terms = [
        imitation(batch.student[s], batch.teacher[s], mask, batch.weight[s], batch.bias[s])
        for s, mask in zip(batch.student, masks, strict=True)
    ]
    return torch.stack(terms).sum()


METHODS: dict[str, Callable[[Batch, TrainConfig], Tensor]] = {"fgfi": fgfi}
