"""Running out of memory in a run as one line, with the batch to try."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kd.config import TrainConfig
from kd.ultra.memory import enough_memory


@contextlib.contextmanager
def room_for(config: TrainConfig) -> Iterator[None]:
    """While a run trains or scores: having no memory left becomes RunError. What it has written stays."""
    out = Path(config.out).resolve()
    with enough_memory(out, config.batch, config.imgsz, lambda: _advice(config, out)):
        yield


def _advice(config: TrainConfig, out: Path) -> str:
    """What to do: the batch of a run stays what it is, for its twins have the same."""
    gpus = len((config.device or "").split(","))
    fewer = config.batch // 2 // gpus * gpus
    ways = [f"--batch {fewer}"] if fewer else ["a smaller --imgsz"]
    if gpus == 1 and config.device != "cpu":
        ways.append("--batch auto")
    advice = f"try {', or '.join(ways)}"
    if not (out / "weights" / "last.pt").exists():
        return advice
    return f"{advice} with --overwrite, or go on from the last whole epoch by --resume, once more memory is free"
