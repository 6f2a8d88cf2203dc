"""Memory for steps: what a step takes of a GPU, and what running out of it is as an error of one line.

In: work to do on a device. Out: its peak in bytes, or RunError that says what to do.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from kd.errors import RunError

# What torch says where there is no memory left, and as Ultralytics has it (engine/trainer.py) CUDA's libraries.
SIGNS = (
    "out of memory", "allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR",
    "unable to find an engine",
)  # fmt: skip


def ran_out(error: BaseException) -> bool:
    """Whether an error means that there was no memory left.

    >>> ran_out(RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")), ran_out(RuntimeError("no kernel"))
    (True, False)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


@contextlib.contextmanager
def enough_memory(where: object, batch: int, imgsz: int, advice: Callable[[], str]) -> Iterator[None]:
    """While there are batches of so many images of ``imgsz`` px: having no memory left for them becomes RunError.

    ``advice`` gives the end of its message, what to do.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise RunError(
            f"{where}: got out of memory at batch {batch} of {imgsz} px images, expected room for them: {advice()}"
        ) from error


def fewer(batch: int, gpus: int = 1) -> str:
    """What to try where a batch has no room: half of it, a multiple of the number of GPUs.

    >>> fewer(16), fewer(1)
    ('try --batch 8', 'try a smaller --imgsz')
    """
    half = batch // 2 // gpus * gpus
    return f"try --batch {half}" if half else "try a smaller --imgsz"


class Meter(Protocol):
    """What tells how much memory work takes of a device."""

    def available(self) -> int:
        """Bytes that this process can have in all."""

    def peak(self, work: Callable[[], object]) -> int | None:
        """Bytes that this process has at most while it works, None where that is more than there are."""


@dataclass(frozen=True)
class CudaMeter:
    """Of a GPU: what torch reserves, for that is what others cannot have."""

    device: torch.device

    def available(self) -> int:
        """Bytes that are free or torch's already; CUDA itself has had its part by then."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def peak(self, work: Callable[[], object]) -> int | None:
        """Bytes reserved at most while it works."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            work()
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            return None
        return torch.cuda.max_memory_reserved(self.device)


def meter_of(device: torch.device) -> Meter | None:
    """A meter for a device; None for a CPU, whose memory all programs share, and others than CUDA's."""
    return CudaMeter(device) if device.type == "cuda" else None


def resident_mib(key: str) -> float:
    """Resident memory of this process now (VmRSS) or at most so far (VmHWM); 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10
