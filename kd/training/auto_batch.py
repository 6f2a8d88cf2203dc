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
from dataclasses import replace
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch

from kd.config import BATCH_SHARE, GRID_PX, NUMBERS, TrainConfig
from kd.errors import RunError
from kd.files import write_all
from kd.inheritance.weights import checkpoint
from kd.training.build import build_trainer, translated
from kd.training.step import one_step
from kd.training.trainer import Trainer
from kd.ultra import classic, memory, models, session

FIRST = (1, 2, 4, 8)  # batches that the line is drawn through
#: Settings that measuring goes without: images are read here and now, and square ones, at their largest, take the most.
LEFT_OUT = frozenset({"rect", "multi_scale", "workers", "cache"})


def size_batch(
    config: TrainConfig, model: str, device: torch.device, tell: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    """The batch that fills the share ``config.batch_auto`` of the memory, and the account of it for run.json.

    On a CPU it is the one that ``config`` has, and ``tell`` gets a line that says so. ``model`` is what Ultralytics
    builds the student from. Raises RunError where there is no room for a single image.
    """
    meter, share = memory.meter_of(device), config.batch_auto or BATCH_SHARE
    if meter is None:
        tell(f"--batch auto: got {device.type}, expected a GPU, whose memory it measures: it keeps {config.batch}")
        return config.batch, {"share": share, "memory_bytes": None, "measured": []}
    available = meter.available()
    budget = int(share * available)
    try:
        tried = translated(lambda: _measure(config, model, meter, budget), Path(config.out).resolve())
    finally:
        gc.collect()  # a trainer is a circle
        torch.cuda.empty_cache()
        torch.set_num_threads(session.TORCH_THREADS)
    fitting = [batch for batch, peak in tried if peak is not None and peak <= budget]
    if not fitting:
        raise RunError(
            f"--batch auto: got {_gb(tried[0][1])} for one image of {config.imgsz} px, expected at most {_gb(budget)} "
            f"of the {_gb(available)} that are free: choose a smaller --imgsz, student or teacher, or a share above "
            f"auto:{share:g}"
        )
    return max(fitting), {"share": share, "memory_bytes": available, "measured": [list(pair) for pair in tried]}


def largest(peak: Callable[[int], int | None], budget: int, most: int) -> list[tuple[int, int | None]]:
    """Batches with their peaks in bytes, as tried; the largest one within the budget is the answer.

    A line through small batches says how many images there is room for; that number, rounded down, is tried, then
    lower ones until one fits. ``peak`` gives None where memory runs out.

    >>> largest(lambda batch: 100 + 10 * batch, budget=510, most=1000)
    [(1, 110), (2, 120), (4, 140), (8, 180), (40, 500)]
    """
    tried: list[tuple[int, int | None]] = []
    fitting: list[tuple[int, int]] = []

    def fits(batch: int) -> bool:
        bytes_taken = peak(batch)
        tried.append((batch, bytes_taken))
        if bytes_taken is None or bytes_taken > budget:
            return False
        fitting.append((batch, bytes_taken))
        return True

    for batch in FIRST:
        if batch > most or not fits(batch):
            most = min(most, batch - 1)
            break
    if len(fitting) < 2:
        return tried
    slope, base = linear_regression(*zip(*fitting, strict=True))
    batch = rounded(min(most, int((budget - base) / slope)) if slope > 0 else most)
    while batch > fitting[-1][0] and not fits(batch):
        batch = rounded(batch - 1)
    return tried


def rounded(number: int) -> int:
    """A number of images with no more than three binary digits before its zeros: at most a fifth is lost.

    >>> [rounded(number) for number in (3, 7, 9, 13, 31, 33, 100)]
    [3, 7, 8, 12, 28, 32, 96]
    """
    unit = 2 ** max(0, number.bit_length() - 3)
    return number // unit * unit


def write_untrained(config: TrainConfig, path: Path) -> None:
    """Write the checkpoint that a run would begin with: it takes the memory of a trained one."""
    with tempfile.TemporaryDirectory(prefix="kd-batch-") as scratch, session.silence():
        source = models.load_model(config.student).overrides["model"]
        trainer = build_trainer(replace(config, device="cpu", batch_auto=None), source, Path(scratch))
        trainer.setup_model()
        trainer.set_model_attributes()
    with classic.official_names():
        write_all({path: checkpoint(trainer.model, config.imgsz)})


class Steps:
    """Training steps of any batch size, on the images with the most objects."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.dataset = trainer, trainer.train_loader.dataset
        labels = self.dataset.labels
        self._order = sorted(range(len(labels)), key=lambda index: -len(labels[index]["cls"]))

    def __call__(self, batch: int) -> None:
        """Two steps: the optimizer's state comes with the first one."""
        images = self.trainer.train_loader.collate_fn([self.dataset[index] for index in self._order[:batch]])
        for _ in range(2):
            one_step(self.trainer, images)


def _measure(config: TrainConfig, model: str, meter: memory.Meter, budget: int) -> list[tuple[int, int | None]]:
    with tempfile.TemporaryDirectory(prefix="kd-batch-") as scratch, session.silence():
        steps = Steps(_trainer(config, model, Path(scratch)))
        most = min(len(steps.dataset), NUMBERS["batch"][1])
        return largest(lambda batch: meter.peak(lambda: steps(batch)), budget, most)


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
