"""Ridge least squares from sums over batches, and the columns of a matrix that say most about all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """Weights [I, O] and offsets [O] of a linear map, and the share of the targets' variance that it leaves [O]."""

    weight: Tensor
    offset: Tensor
    left: Tensor
    variance: Tensor


def solve(inputs: list[Tensor], targets: list[Tensor], ridge: float) -> Fit:
    """The map from inputs [n, I] to targets [n, O] with the least squared error over all batches.

    ``ridge`` is added to the diagonal of the inputs' covariance, in units of its mean. Sums are in float64.
    """
    rows = sum(map(len, inputs))
    mean, target_mean = (sum(part.double().sum(0) for part in parts) / rows for parts in (inputs, targets))
    gram, cross, variance = 0.0, 0.0, 0.0
    for a, y in zip(inputs, targets, strict=True):
        a, y = a - mean.float(), y - target_mean.float()  # first, or float32 loses what little varies
        gram, cross, variance = (
            gram + (a.T @ a).double(),
            cross + (a.T @ y).double(),
            variance + y.double().square().sum(0),
        )
    gram, cross, variance = gram / rows, cross / rows, variance / rows
    scale = gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    damped = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.cholesky_solve(cross, torch.linalg.cholesky(damped))
    error = variance - 2 * (weight * cross).sum(0) + (weight * (gram @ weight)).sum(0)
    left = torch.where(variance > 0, error.clamp_min(0) / variance.clamp_min(1e-12), 0)
    return Fit(weight, target_mean - mean @ weight, left, variance)


def telling_columns(values: Tensor, count: int) -> np.ndarray:
    """The ``count`` columns of [n, C] that say most about all of them, in ascending order.

    Those that QR with column pivoting takes first, here by a pivoted Cholesky factorisation of the covariance.
    """
    centred = values.double() - values.double().mean(0)
    rest = (centred.T @ centred).cpu().numpy()
    chosen: list[int] = []
    left = rest.diagonal().copy()
    for _ in range(count):
        left[chosen] = -np.inf
        pivot = int(left.argmax())
        chosen.append(pivot)
        if left[pivot] <= 1e-12 * max(rest.diagonal().max(), 1e-300):
            continue  # the rest is told by those that there are: any of them
        column = rest[:, pivot] / np.sqrt(rest[pivot, pivot])
        rest = rest - np.outer(column, column)
        left = rest.diagonal().copy()
    return np.sort(np.array(chosen))
