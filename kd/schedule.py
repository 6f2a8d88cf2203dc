"""How much the distillation terms count in the course of a run: pure functions of the progress, by name.

In: epochs done and planned, steps done. Out: a factor that multiplies every term; a schedule's is in 0..1.
Invariant: standard library only; the factor depends on the progress alone, so a resumed run continues its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

WARM_UP = 0.1  # share of the epochs over which `warmup` rises, but no less than one epoch


@dataclass(frozen=True)
class Progress:
    """Where a run stands before a step.

    ``done`` epochs of ``epochs``, in fractions by steps: 2.5 is the middle of the third epoch. ``closing`` the number
    of last epochs in which Ultralytics trains without mosaic (`close_mosaic`).
    """

    done: float
    epochs: int
    closing: int = 0


def warmup(progress: Progress) -> float:
    """0 -> 1 in a line over the first tenth of the epochs, over one epoch at least, by steps; then 1.

    >>> [warmup(Progress(done, 40)) for done in (0, 1, 4, 39)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(progress.done / max(WARM_UP * progress.epochs, 1), 1.0)


def cosine(progress: Progress) -> float:
    """1 -> 0 along half a cosine over the run, by steps.

    >>> [round(cosine(Progress(done, 30)), 3) for done in (0, 10, 15, 20)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return (1 + math.cos(math.pi * min(progress.done / progress.epochs, 1))) / 2


def first_half(progress: Progress) -> float:
    """1 in the first half of the epochs, then 0.

    >>> [first_half(Progress(done, 5)) for done in (0, 2.4, 2.5, 4)]
    [1.0, 1.0, 0.0, 0.0]
    """
    return float(progress.done < progress.epochs / 2)


def no_closing(progress: Progress) -> float:
    """1, but 0 in the last epochs, those without mosaic; as mmrazor's recipes end without distillation.

    >>> [no_closing(Progress(done, 30, closing=10)) for done in (0, 19.9, 20, 29)]
    [1.0, 1.0, 0.0, 0.0]
    """
    return float(progress.done < progress.epochs - progress.closing)


SCHEDULES: dict[str, Callable[[Progress], float]] = {
    "constant": lambda progress: 1.0,
    "warmup": warmup,
    "cosine": cosine,
    "first-half": first_half,
    "no-closing": no_closing,
}


def factor(schedules: Iterable[str], progress: Progress) -> float:
    """The product of the schedules' factors; 1 without any.

    >>> factor(["warmup", "cosine"], Progress(0.5, 1))
    0.25
    """
    return math.prod(SCHEDULES[name](progress) for name in schedules)


def turn(every: int, step: int) -> int:
    """``every`` at the first of so many steps and 0 at the others, so that the mean over steps is 1.

    >>> [turn(3, step) for step in range(5)]
    [3, 0, 0, 3, 0]
    """
    return 0 if step % every else every
