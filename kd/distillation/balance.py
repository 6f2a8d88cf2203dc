"""Weights that nobody has to choose: each term's gradient as a share of the task loss's, on the first batches.

In: the task loss, the unweighted terms and the features that the student's head reads, of a step. Out: a weight per
term.
Invariant: measuring leaves no gradient behind, and the weights depend on nothing but the samples, which the sidecar of
a run keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, distributed

BATCHES = 16  # measured for each term; an odd one out does not move the median of so many
SCALE = 1024.0  # keeps half-precision gradients away from 0; a power of two, so float32 ones lose nothing


def gradient_norm(loss: Tensor, features: Sequence[Tensor]) -> float:
    """The Euclidean norm of d loss / d features over all elements of all levels; 0 where loss knows none of them.

    A level's gradient counts what reaches it through coarser levels made from it, too.
    """
    if not loss.requires_grad:
        return 0.0
    parts = torch.autograd.grad(loss.float() * SCALE, features, retain_graph=True, allow_unused=True)
    squares = [part.float().square().sum() for part in parts if part is not None]
    return math.sqrt(float(torch.stack(squares).sum())) / SCALE if squares else 0.0


class Balance:
    """Sets the weight of every term such that its gradient is ``ratio`` times the task loss's.

    A batch gives a sample: ratio * |d task| / |d term|, both gradients with respect to the features that the head
    reads, all levels together. The weight is the median of the samples so far, and final after 16 of them; a batch at
    which a term has no gradient (no boxes), or one that is not finite, gives none for it.
    """

    def __init__(self, ratio: float, names: Iterable[str]) -> None:
        """``names`` are the terms'."""
        self.ratio = ratio
        self.samples: dict[str, list[float]] = {name: [] for name in names}

    @property
    def settled(self) -> bool:
        """Whether every weight is final."""
        return all(len(samples) >= BATCHES for samples in self.samples.values())

    def measure(self, task: Tensor, terms: Mapping[str, Tensor], features: Sequence[Tensor]) -> None:
        """Take samples of a step for the terms whose weight is not final.

        ``task`` and ``terms`` are scalars of one scale (both per image), ``features`` [B, C, H, W] with a graph.
        """
        names = [name for name in terms if len(self.samples[name]) < BATCHES]
        norms = [gradient_norm(scalar, features) for scalar in (task, *(terms[name] for name in names))]
        whole, *parts = _over_ranks(norms, task.device)
        for name, norm in zip(names, parts, strict=True):
            weight = self.ratio * whole / norm if norm else 0.0
            if math.isfinite(weight) and weight > 0:
                self.samples[name].append(weight)

    def weights(self) -> dict[str, float]:
        """The weight of each term; 0 for one that has had no gradient yet.

        >>> balance = Balance(0.1, ["fgfi", "cwd"])
        >>> balance.samples["fgfi"] += [0.1, 0.7, 0.2]
        >>> balance.weights()
        {'fgfi': 0.2, 'cwd': 0.0}
        """
        return medians(self.samples)


def _over_ranks(norms: list[float], device: torch.device) -> list[float]:
    """Norms over the batches of all ranks, where there are several: each takes the same samples from them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return norms
    squares = torch.tensor(norms, dtype=torch.float64, device=device).square()
    distributed.all_reduce(squares)
    return squares.sqrt().tolist()


def medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each term's samples, 0 without any."""
    return {name: median(values) if values else 0.0 for name, values in samples.items()}
