"""The largest batch that a GPU has memory for (`--batch auto`), by steps of the very training that is to come.

In: a configuration that asks for it, and a meter of the device's memory. Out: the batch, and what was measured.
Invariant: steps are those of a trainer of its own that is dropped afterwards: student, teachers, adapters, optimizer
and average together, on training images; the run that follows is the one that the number by itself would give.

Ultralytics' own autobatch runs a copy of the student, without the rest.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch

from kd.config import BATCH_SHARE, GRID_PX, NUMBERS, TrainConfig
from kd.errors import RunError
from kd.training.build import build_trainer, translated
from kd.training.step import one_step
from kd.training.trainer import Trainer
from kd.ultra import memory, session

FIRST = (1, 2, 4, 8)  # batches that the line is drawn through
#: Settings that are left out while it is measured: of batches of unequal shape the squares count, and images are read
#: here and now.
LEFT_OUT = frozenset({"rect", "multi_scale", "workers", "cache"})


@dataclass(frozen=True)
class Sized:
    """A batch, and how it was found: ``measured`` are batches and bytes, None where memory ran out."""

    batch: int
    share: float
    memory_bytes: int | None
    measured: list[tuple[int, int | None]]

    def to_json(self) -> dict[str, Any]:
        """The account as run.json has it."""
        return {
            "share": self.share,
            "memory_bytes": self.memory_bytes,
            "measured": [list(pair) for pair in self.measured],
        }


def size_batch(config: TrainConfig, model: str, device: torch.device, tell: Callable[[str], None]) -> Sized:
    """The batch for ``config.batch_auto`` of the memory that there is; on a CPU the one that it has, and ``tell`` says
    so.

    ``model`` is what Ultralytics builds the student from. Raises RunError where there is no room for any.
    """
    meter, share = memory.meter_of(device), config.batch_auto or BATCH_SHARE
    if meter is None:
        tell(
            f"--batch auto: got {device.type}, expected a GPU whose memory can be measured: the batch is {config.batch}"
        )
        return Sized(config.batch, share, None, [])
    available = meter.available()
    budget = int(share * available)
    try:
        measured = translated(lambda: _measure(config, model, meter, budget), Path(config.out).resolve())
    finally:
        gc.collect()  # a trainer is a circle
        torch.cuda.empty_cache()
        torch.set_num_threads(session.TORCH_THREADS)
    fits = [size for size, peak in measured if peak is not None and peak <= budget]
    if not fits:
        raise RunError(
            f"--batch auto: got {_gb(measured[0][1])} for one image of {config.imgsz} px, expected at most "
            f"{_gb(budget)} of the {_gb(available)} that are free: choose a smaller --imgsz, student or teacher"
        )
    return Sized(max(fits), share, available, measured)


def _measure(config: TrainConfig, model: str, meter: memory.Meter, budget: int) -> list[tuple[int, int | None]]:
    with tempfile.TemporaryDirectory(prefix="kd-batch-") as scratch, session.silence():
        steps = Steps(_trainer(config, model, Path(scratch)))
        most = min(len(steps.dataset), NUMBERS["batch"][1])
        return largest(lambda size: meter.peak(lambda: steps(size)), budget, most)


def largest(peak: Callable[[int], int | None], budget: int, most: int) -> list[tuple[int, int | None]]:
    """Batches with their peaks in bytes, as tried; the largest one within the budget is the answer.

    A line through small batches says how many there is room for, and that number, rounded down, is tried, then lower
    ones until one fits. ``peak`` gives None where memory runs out.

    >>> largest(lambda batch: 100 + 10 * batch, budget=510, most=1000)
    [(1, 110), (2, 120), (4, 140), (8, 180), (40, 500)]
    """
    tried: list[tuple[int, int | None]] = []
    fitting: list[tuple[int, int]] = []

    def fits(size: int) -> bool:
        found = peak(size)
        tried.append((size, found))
        if found is None or found > budget:
            return False
        fitting.append((size, found))
        return True

    for size in (size for size in FIRST if size <= most):
        if not fits(size):
            most = size - 1
            break
    if len(fitting) < 2:
        return tried
    slope, base = linear_regression(*zip(*fitting, strict=True))
    size = rounded(min(most, int((budget - base) / slope)) if slope > 0 else most)
    while size > FIRST[len(fitting) - 1] and not fits(size):
        size = rounded(size - 1)
    return tried


def rounded(number: int) -> int:
    """A number of images with its three leading binary digits: at most a fifth is lost.

    >>> [rounded(number) for number in (3, 7, 9, 13, 31, 33, 100)]
    [3, 7, 8, 12, 28, 32, 96]
    """
    unit = 2 ** max(0, number.bit_length() - 3)
    return number // unit * unit


class Steps:
    """Training steps of any batch size, on the images with the most objects."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.dataset = trainer, trainer.train_loader.dataset
        labels = self.dataset.labels
        self._order = sorted(range(len(labels)), key=lambda index: -len(labels[index]["cls"]))
        self._images: list[Any] = []  # augmented

    def __call__(self, size: int) -> None:
        """Two steps: the optimizer's state comes with the first one."""
        self._images += [self.dataset[index] for index in self._order[len(self._images) : size]]
        batch = self.trainer.train_loader.collate_fn(self._images[:size])
        self.trainer.optimizer.zero_grad()  # of a step that memory ran out in
        for _ in range(2):
            one_step(self.trainer, batch)


def _trainer(config: TrainConfig, model: str, out: Path) -> Trainer:
    """A trainer before its first step, at the largest image size that `multi_scale` may ask for."""
    settings = dict(config.settings)
    side = math.ceil(config.imgsz * (1 + settings.get("multi_scale", 0)) / GRID_PX) * GRID_PX
    kept = {key: value for key, value in settings.items() if key not in LEFT_OUT} | {"workers": 0}
    alone = replace(config, imgsz=side, batch_auto=None, settings=tuple(sorted(kept.items())))
    trainer = build_trainer(alone, model, out)
    trainer._setup_train()
    # A scaler would leave out the optimizer's first steps, and with them its state.
    trainer.scaler = torch.amp.GradScaler(trainer.device.type, enabled=False)
    trainer.epoch = 0
    trainer.run_callbacks("on_train_epoch_start")
    trainer._model_train()
    return trainer


def _gb(size: int | None) -> str:
    return "out of memory" if size is None else f"{size / 1e9:.2f} GB"
