"""What paired differences show: their mean, its 95 % interval by Student's t, the signs, and one verdict.

In: scores of runs and of their baselines by pair, as shares of 1. Out: plain figures.
Invariant: fewer than `LEAST_PAIRS` pairs prove nothing, however far their interval is from zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEAST_PAIRS = 5


@dataclass(frozen=True)
class Differences:
    """Run minus baseline over several pairs; means and difference are None without any."""

    means: dict[str, float | None]  # of the runs and of the baseline
    difference: float | None
    interval95: list[float] | None
    signs: dict[str, int]  # how many went up, down, or stayed the same
    differences: list[float]

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval is on one side of zero and the pairs are enough, or ``unproven``.

        >>> differences([(0.5, 0.4), (0.6, 0.5)]).verdict, differences([(0.5, 0.4)] * 5).verdict
        ('unproven', 'better')
        """
        if self.interval95 is None or len(self.differences) < LEAST_PAIRS:
            return "unproven"
        low, high = self.interval95
        return "better" if low > 0 else "worse" if high < 0 else "unproven"


def differences(scores: Iterable[tuple[float | None, float | None]]) -> Differences:
    """The figures of (run, baseline) pairs; a pair without both scores is not counted.

    >>> differences([(0.5, 0.25), (0.5, 0.75), (0.5, None)]).means
    {'runs': 0.5, 'baseline': 0.5}
    """
    both = [(run, baseline) for run, baseline in scores if run is not None and baseline is not None]
    found = [run - baseline for run, baseline in both]
    return Differences(
        means={name: fmean(pair[i] for pair in both) if both else None for i, name in enumerate(("runs", "baseline"))},
        difference=fmean(found) if found else None,
        interval95=interval95(found),
        signs={"up": sum(d > 0 for d in found), "down": sum(d < 0 for d in found), "same": found.count(0)},
        differences=found,
    )


def interval95(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of a mean, by Student's t; None for fewer than two values.

    >>> [round(end, 2) for end in interval95([1, 2, 3])]
    [-0.48, 4.48]
    """
    n = len(values)
    if n < 2:
        return None
    mean, reach = fmean(values), t975(n - 1) * stdev(values) / math.sqrt(n)
    return [mean - reach, mean + reach]


def t975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: what 95 % of its absolute values stay below.

    Exact by its distribution's finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)
    with t = sqrt(freedom) tan(angle), halved down to the last bit. scipy.special.stdtrit gives the same to 14 digits,
    but nothing that kd needs brings scipy, and importing it takes longer than all of a comparison.

    >>> round(t975(4), 3)
    2.776
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _t_within(angle: float, freedom: int) -> float:
    """P(|T| < t) for t = sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    power, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(odd, freedom - 1, 2):  # each term is the one before times cos^2 and (k + 1) / (k + 2)
        total += power
        power *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
    if odd:
        return (angle + math.sin(angle) * total) * 2 / math.pi
    return math.sin(angle) * total
