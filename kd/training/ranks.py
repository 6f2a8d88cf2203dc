"""Several GPUs: what kd adds where Ultralytics trains in a process per GPU (a rank, under torch's DDP).

In: a trainer whose device names several GPUs; Ultralytics pickles its class and arguments and starts torchrun on them.
Out: the run's folder as one process would leave it, or an error of ours, wherever it was raised.
Invariant: rank 0 alone writes checkpoints, sidecar and results; the ranks start from one student and one set of
adapters, and see different images; no rank outlives the process that the user started, however that one ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from ultralytics.utils import LOGGER, RANK

from kd.errors import DistillationError, KdError, RunError

LAUNCHER = "KD_LAUNCHER"  # in a rank's environment: the file that the process that the user started has locked
POLL_S = 1.0


def require_alone() -> None:
    """Raise RunError in a process that torchrun started: every one of them would check, make and delete the run."""
    if RANK != -1:
        raise RunError(
            f"RANK: got {RANK} in the environment, expected a process that torchrun did not start: kd starts one per "
            f"GPU of --device 0,1 itself, on one machine; Ultralytics trains on no more than one"
        )


@contextlib.contextmanager
def launching(trainer: Any) -> Iterator[None]:
    """In the process that the user started, while Ultralytics starts the others and waits for them.

    Raises DistillationError with the text of the KdError that stopped a rank.
    """
    # Ultralytics deletes the folder first, with config.json, unless it resumes; the ranks look at args.resume instead.
    trainer.resume = True
    verbose = os.environ.get("YOLO_VERBOSE")
    file, lock = tempfile.mkstemp(prefix="kd-launcher-")
    os.close(file)
    os.environ |= {"YOLO_VERBOSE": str(LOGGER.isEnabledFor(logging.INFO)), LAUNCHER: lock}
    try:
        with FileLock(lock):
            yield
    except subprocess.CalledProcessError as error:
        report = _report(trainer)
        if not report.exists():
            raise
        raise DistillationError(report.read_text(encoding="utf-8")) from error
    finally:
        _report(trainer).unlink(missing_ok=True)
        del os.environ["YOLO_VERBOSE"], os.environ[LAUNCHER]
        Path(lock).unlink(missing_ok=True)
        if verbose is not None:
            os.environ["YOLO_VERBOSE"] = verbose


@contextlib.contextmanager
def ranked(trainer: Any) -> Iterator[None]:
    """In a rank: keep stdout, which it shares with the user's process, clean, and report what stops it."""
    if RANK == -1:
        yield
        return
    end_with(os.environ[LAUNCHER])
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except KdError as error:
            _report(trainer).write_text(str(error), encoding="utf-8")
            raise


def end_with(lock: str) -> None:
    """End this process within a second or so of the one that has locked a file: the system frees what the dead held."""

    def watch() -> None:
        FileLock(lock).acquire(poll_interval=POLL_S)
        os._exit(1)  # checkpoints are replaced as a whole, so this is safe at any moment

    threading.Thread(target=watch, daemon=True).start()


def _report(trainer: Any) -> Path:
    return trainer.save_dir / "error.txt.partial"
