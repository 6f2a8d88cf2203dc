"""Methods that compare whole feature levels, the student's carried into the teacher's channels by adapters.

Invariant: a formula is float32 under autocast, 0 where both agree, and no gradient reaches the teacher; torch only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.config import TrainConfig
from kd.methods.adapters import project
from kd.methods.batch import Batch, Method


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """How differently two maps spread each channel over the cells: T^2 / (B C) * sum of KL(teacher || student).

    Each channel of each image becomes a distribution by a softmax over its cells at temperature T (CWD; Shu et al.,
    ICCV 2021). T = 1 as the method's detection configurations in mmrazor have it; the paper's 4 is for segmentation.

    ``student``, ``teacher`` [B, C, H, W]. Returns a float32 scalar.
    """
    log_s = (student.float().flatten(2) / temperature).log_softmax(2)  # [B, C, H * W]
    log_t = (teacher.detach().float().flatten(2) / temperature).log_softmax(2)
    return (log_t.exp() * (log_t - log_s)).sum(2).mean() * temperature**2


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of features with zero mean and unit variance: 1 - r, the mean over channels.

    A channel is normalised over batch and cells, so r is its Pearson correlation between student and teacher, and
    neither scale nor offset of the features matter (PKD; Cao et al., NeurIPS 2022).

    ``student``, ``teacher`` [B, C, H, W]. Returns a float32 scalar in 0..2; a constant channel counts as all 0.
    """

    def normalised(features: Tensor) -> Tensor:
        centred = features - features.mean((0, 2, 3), keepdim=True)
        return centred * (centred.square().mean((0, 2, 3), keepdim=True) + 1e-6).rsqrt()

    return F.mse_loss(normalised(student.float()), normalised(teacher.detach().float())) / 2


def score_weighted(student: Tensor, teacher: Tensor, score: Tensor) -> Tensor:
    """Mean squared difference over channels and cells, each cell counting as much as the teacher's class score.

    sum(score * (s - t)^2) / (C * sum(score)), as Ultralytics 8.4 distils (`DistillationModel.loss_sl2`).

    ``student``, ``teacher`` [B, C, H, W], ``score`` [B, H, W] in 0..1. Returns a float32 scalar.
    """
    squares = (student.float() - teacher.detach().float()).square().sum(1)  # [B, H, W]
    score = score.detach().float()
    return (squares * score).sum() / (score.sum() * student.shape[1] + 1e-9)


def cwd(batch: Batch, config: TrainConfig) -> Tensor:
    """Channel-wise distillation: `channel_divergence` of the adapted features, summed over the shared levels."""
    return _over_levels(batch, "cwd", lambda student, stride: channel_divergence(student, batch.teacher[stride]))


def pkd(batch: Batch, config: TrainConfig) -> Tensor:
    """Pearson distillation: `pearson_distance` of the adapted features, summed over the shared levels."""
    return _over_levels(batch, "pkd", lambda student, stride: pearson_distance(student, batch.teacher[stride]))


def score_l2(batch: Batch, config: TrainConfig) -> Tensor:
    """Ultralytics' built-in term: `score_weighted` of the adapted features, summed over the shared levels."""
    return _over_levels(
        batch, "score-l2", lambda student, stride: score_weighted(student, batch.teacher[stride], batch.score(stride))
    )


def _over_levels(batch: Batch, method: str, formula: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The sum over the shared levels of a formula of the student's features, adapted, and the stride."""
    layers = batch.adapters[method]
    return torch.stack([formula(project(features, layers[s]), s) for s, features in batch.student.items()]).sum()


METHODS: dict[str, Method] = {"cwd": cwd, "pkd": pkd, "score-l2": score_l2}
