"""What surrounds a run in Ultralytics: its log, its settings, its callbacks, the device."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import platform
import sys
from collections.abc import Collection, Iterator
from typing import Any

import torch
import ultralytics
from ultralytics.cfg import check_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK
from ultralytics.utils.callbacks import get_default_callbacks
from ultralytics.utils.torch_utils import get_cpu_info, select_device

from kd.errors import KdError, UsageError
from kd.ultra.signals import keep_signal_stack

TORCH_THREADS = torch.get_num_threads()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LOGS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wb"}  # package -> Ultralytics' module for it


@contextlib.contextmanager
def silence(below: int = logging.ERROR) -> Iterator[None]:
    """Hold back Ultralytics' log lines below errors, or another level, and with them its progress bars.

    What runs in it may load a model in OpenVINO, so the signal stack is kept, too.
    """
    level = LOGGER.level
    LOGGER.setLevel(below)
    try:
        with keep_signal_stack():
            yield
    finally:
        LOGGER.setLevel(level)


def warn_aloud(line: str) -> None:
    """Log a warning in the middle of a run: without a terminal and with --quiet too, where others are held back."""
    with silence(below=logging.WARNING):
        LOGGER.warning(line)


@contextlib.contextmanager
def log_to_stderr(quiet: bool) -> Iterator[None]:
    """Send Ultralytics' log and progress bars to stderr; silence them when ``quiet`` or where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        with silence():
            yield
    else:
        with contextlib.redirect_stdout(sys.stderr):
            yield


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message, as ASCII and cut short."""
    text = str(error).encode("ascii", "ignore").decode().replace("ERROR", "").strip()
    return f"{type(error).__name__}: {text.splitlines()[0].strip()[:160]}" if text else type(error).__name__


def check_settings(settings: dict[str, Any]) -> None:
    """Raise UsageError unless Ultralytics takes each setting's value, by its own rules of type and range."""
    try:
        with silence():
            check_cfg({**DEFAULT_CFG_DICT, **settings})
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"--set: {text}") from error
    if str(settings.get("cache")).lower() == "disk":
        raise UsageError("--set cache: got disk, which writes a file beside every image, expected ram: --set cache=ram")


def check_logs(names: Collection[str]) -> None:
    """Raise UsageError for what a run cannot be logged to, KdError where the package is not installed."""
    for name in names:
        if name not in LOGS:
            raise UsageError(f"--log: got {name!r}, expected {', '.join(LOGS)}")
        if importlib.util.find_spec(name) is None:
            raise KdError(f"--log {name}: got no package {name}, expected it to be installed: pip install {name}")


def callbacks(names: Collection[str]) -> dict[str, list[Any]]:
    """Ultralytics' own callbacks, with those that log to the named packages; its settings stay as they are."""
    found = get_default_callbacks()
    for name in names if RANK in (-1, 0) else ():
        for event, callback in importlib.import_module(f"ultralytics.utils.callbacks.{LOGS[name]}").callbacks.items():
            found[event].append(callback)
    return found


def check_device(device: str | None) -> torch.device:
    """The device that Ultralytics finds for cpu, mps, a GPU's number, or None for the best one; else UsageError."""
    try:
        with silence():
            return select_device(device or "", verbose=False)
    except ValueError as error:
        raise UsageError(
            f"--device: got {device!r}, expected cpu, or the number of a GPU that is there: "
            f"{torch.cuda.device_count()} are"
        ) from error
    finally:
        torch.set_num_threads(TORCH_THREADS)  # choosing the CPU takes one core away


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, where the C library is GNU's, up to the peak of its use.

    A step frees and takes all activations; from the system each page of them comes anew, and zeroed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_name(device: torch.device, count: int = 1) -> str:
    """'NVIDIA H100', '2 x NVIDIA H100' or 'AMD EPYC 7B13, 2 threads': what figures were taken on."""
    names = {"cpu": f"{get_cpu_info()}, {TORCH_THREADS} threads"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else names.get(device.type, device.type)
    return f"{count} x {name}" if count > 1 else name


def versions() -> dict[str, str]:
    """What figures were made with: this package, Python, torch, Ultralytics."""
    try:
        own = importlib.metadata.version("dtld-kd")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "dtld-kd": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
    }
