"""What boxes are to each other; torch only."""

from __future__ import annotations

from torch import Tensor


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU: IoU - (hull - union) / hull (Rezatofighi et al., CVPR 2019).

    ``a``, ``b`` [..., 4] x1 y1 x2 y2 in any unit, of shapes that go together. Returns [...] in -1..1; boxes without
    area, or with sides below 0, give no NaN.

    >>> import torch
    >>> giou(torch.tensor([0.0, 0, 2, 2]), torch.tensor([[0.0, 0, 2, 1], [3, 0, 4, 2]]))
    tensor([ 0.5000, -0.2500])
    """

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (low_a, high_a), (low_b, high_b) = a.split(2, -1), b.split(2, -1)
    inter = area(low_a.maximum(low_b), high_a.minimum(high_b))
    hull = area(low_a.minimum(low_b), high_a.maximum(high_b)).clamp(min=1e-9)
    union = (area(low_a, high_a) + area(low_b, high_b) - inter).clamp(min=1e-9)
    return inter / union - (hull - union) / hull
