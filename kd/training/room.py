"""Running out of memory in a run as one line, with the batch to try."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from kd.config import TrainConfig
from kd.training import ranks
from kd.ultra.memory import enough_memory, fewer


@contextlib.contextmanager
def room_for(config: TrainConfig) -> Iterator[None]:
    """While a run trains or scores: having no memory left becomes RunError. What it has written stays."""
    out = Path(config.out).resolve()
    with enough_memory(out, config.batch, config.imgsz, lambda: _advice(config, out)):
        yield


def _advice(config: TrainConfig, out: Path) -> str:
    """What to do: the batch of a run stays what it is, for its twins have the same."""
    parts = max(ranks.world_size(), len((config.device or "").split(",")))
    advice = fewer(config.batch, parts)
    if parts == 1 and torch.cuda.is_available() and config.device not in ("cpu", "mps"):
        advice += ", or --batch auto"
    if not (out / "weights" / "last.pt").exists():
        return advice
    return (
        f"{advice}, anew with --overwrite; or free some, and --resume goes on with this batch from the last whole epoch"
    )
