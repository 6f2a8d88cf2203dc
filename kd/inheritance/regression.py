"""Ridge least squares from sums over batches, and the columns of a matrix that say most about all of them."""

from __future__ import annotations

from collections.abc import Iterable
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


def solve(parts: Iterable[tuple[Tensor, Tensor]], ridge: float) -> Fit:
    """The map from inputs [n, I] to targets [n, O] with the least squared error over all parts, each used once.

    ``ridge`` is added to the diagonal of the inputs' covariance, in units of its mean. Sums are in float64.
    """
    rows, shifts, sums = 0, None, None
    for pair in parts:
        if shifts is None:
            shifts = [values.mean(0) for values in pair]  # taken off first, or float32 loses what little varies
        a, y = (values - shift for values, shift in zip(pair, shifts, strict=True))
        found = [_gram(a), a.T @ y, a.sum(0), y.sum(0), y.square().sum(0)]
        sums = [s.double() if sums is None else sums[i] + s for i, s in enumerate(found)]
        rows += len(a)
    gram, cross, mean, target_mean, variance = (s / rows for s in sums)
    gram, cross = gram - mean[:, None] * mean, cross - mean[:, None] * target_mean
    variance = (variance - target_mean**2).clamp_min(0)
    scale = gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    damped = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.cholesky_solve(cross, torch.linalg.cholesky(damped))
    error = variance - 2 * (weight * cross).sum(0) + (weight * (gram @ weight)).sum(0)
    left = (error / variance.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
    shift, target_shift = (shift.double() for shift in shifts)
    return Fit(weight, target_shift + target_mean - (shift + mean) @ weight, left, variance)


def _gram(values: Tensor) -> Tensor:
    """``values.T @ values``: on a CPU by NumPy, which computes a half of it and mirrors that."""
    if values.device.type != "cpu":
        return values.T @ values
    array = values.numpy()
    return torch.from_numpy(array.T @ array)


def telling_columns(values: Tensor, count: int) -> np.ndarray:
    """The ``count`` columns of [n, C] that say most about all of them, in ascending order.

    Those that QR with column pivoting takes first, here by a pivoted Cholesky factorisation of the covariance.
    """
    centred = values.double() - values.double().mean(0)
    covariance = _gram(centred).cpu().numpy()
    left = covariance.diagonal().copy()  # of each column's variance, with what the chosen ones say taken off
    nothing = 1e-12 * max(left.max(), 1e-300)
    factor = np.zeros((len(left), count))
    chosen: list[int] = []
    for step in range(count):
        left[chosen] = -np.inf
        pivot = int(left.argmax())
        chosen.append(pivot)
        if left[pivot] > nothing:  # else those that were chosen give the rest exactly, and any of it will do
            said = covariance[:, pivot] - factor @ factor[pivot]
            factor[:, step] = said / np.sqrt(left[pivot])
            left -= factor[:, step] ** 2
    return np.sort(np.array(chosen))
