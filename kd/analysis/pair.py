"""Two models on the same lights: what one finds that the other does not.

In: which lights each finds. Out: counts and an exact test of them.
"""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np


def side_by_side(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """``{both, first_alone, second_alone, neither, p}`` of the lights [K] that two models find.

    ``p`` is McNemar's exact two-sided one, of no difference in recall. It takes lights for independent, which those of
    one frame or sequence are not: take it for the least doubt that there is.
    """
    alone, other = int((first & ~second).sum()), int((second & ~first).sum())
    return {
        "both": int((first & second).sum()),
        "first_alone": alone,
        "second_alone": other,
        "neither": int((~first & ~second).sum()),
        "p": mcnemar(alone, other),
    }


def mcnemar(first_alone: int, second_alone: int) -> float:
    """The exact two-sided p of McNemar's test: that of as uneven a split, or more so, of coin tosses.

    >>> mcnemar(1, 9), mcnemar(0, 0)
    (0.021484375, 1.0)
    """
    tosses = first_alone + second_alone
    tail = sum(comb(tosses, k) for k in range(min(first_alone, second_alone) + 1))
    return min(1.0, 2 * tail / 2**tosses)
