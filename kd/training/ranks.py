"""Several processes for one training: what kd adds where Ultralytics trains in a process per GPU (a rank, under DDP).

In: a trainer whose device names several GPUs, whose class and arguments Ultralytics pickles and starts torchrun on; or
processes of `kd train` that torchrun has started itself, on one machine or several.
Out: the run's folder as one process would leave it, or an error of ours, wherever it was raised.
Invariant: rank 0 alone writes checkpoints, sidecar and results; the ranks start from one student and one set of
adapters, and see different images; no rank outlives the process that the user or torchrun started, however that ended.

Under torchrun the first process checks, holds the folder and scores, as one of its own would; rank 0 is a process below
it, since Ultralytics decides by its import whether it is a rank. The others check what they read and train. They agree
by two words in torchrun's store: the first one says what is to be done, each of the others whether it is ready.
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
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from filelock import FileLock
from ultralytics.utils import LOGGER, RANK, WORLD_SIZE
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
from ultralytics.utils.torch_utils import unset_deterministic

from kd.config import TrainConfig
from kd.environment import WORLD
from kd.errors import DistillationError, KdError, RunError, UsageError

LAUNCHER = "KD_LAUNCHER"  # in a rank's environment: the file that the process that the user started has locked
POLL_S = 1.0
CONNECT, WAIT = timedelta(minutes=1), timedelta(hours=3)  # for torchrun's store; for a rank, as long as Ultralytics
START, RESUME, NOTHING = "start", "resume", "nothing"  # what there is to do for the others
READY, TASK, REFUSED = "kd/ready/{}", "kd/task", "refused: "  # keys in the store, and how a reason begins


def leads() -> bool:
    """Whether this is the first of several processes that torchrun has started."""
    return WORLD in os.environ


def world_size() -> int:
    """The ranks that train together, 1 in a process that is alone."""
    return int(os.environ.get(WORLD, WORLD_SIZE))


def require_world(config: TrainConfig, dry_run: bool = False) -> None:
    """Raise UsageError or RunError for what processes that torchrun has started cannot do."""
    size = world_size()
    if size == 1:
        return
    if RANK == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise RunError(
            f"RANK: got {os.environ.get('RANK')} of {size} processes, expected none, or those of torchrun: torchrun "
            f"--nnodes 2 --nproc-per-node 1 ... --no-python kd train ..."
        )
    if config.batch_auto is not None:
        raise UsageError(f"--batch: got auto under torchrun, expected a multiple of {size}: it is measured on one GPU")
    if dry_run:
        raise UsageError("--dry-run: got it under torchrun, expected a process of its own")
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = len(config.device.split(",")) if config.device else 0
    if config.device != "cpu" and gpus != here:
        raise UsageError(
            f"--device: got {config.device} for {here} processes of torchrun on this machine, expected as many GPUs, "
            f"such as {','.join(map(str, range(here)))}, or cpu"
        )
    if config.batch % size:
        raise UsageError(f"--batch: got {config.batch} over {size} processes, expected a multiple of their number")
    if dict(config.settings).get("rect"):
        raise UsageError("--set rect: got it under torchrun, expected one process: several cannot have it")


# ---------------------------------------------------------------- under torchrun


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """In the first process: whatever becomes of its run, none of the others waits for it for ever."""
    if not leads():
        yield
        return
    try:
        yield
    except BaseException as error:
        _tell(TASK, f"{REFUSED}{error or type(error).__name__}")
        raise
    _tell(TASK, NOTHING)  # unless an epoch was left they are still waiting


@contextlib.contextmanager
def getting_ready() -> Iterator[None]:
    """In one of the others, while it checks what it reads: the first one waits for all of them."""
    try:
        yield
    except BaseException as error:
        _tell(READY.format(RANK), f"{REFUSED}{error or type(error).__name__}")
        raise
    _tell(READY.format(RANK), "ready")


def task() -> str:
    """In one of the others, START, RESUME or NOTHING once the first one says so. Raises RunError where it gave up."""
    word = _word(TASK, "rank 0")
    if word.startswith(REFUSED):
        raise RunError(f"rank {RANK}: got no run from rank 0 ({word.removeprefix(REFUSED)}), expected one: see there")
    return word


def train_as_first(trainer: Any) -> None:
    """In the first process: tell the others, wait for them, and train with them in a process below, which is rank 0.

    Raises RunError for one that is not ready, CalledProcessError when training failed.
    """
    file = generate_ddp_file(trainer)
    environment = {key: value for key, value in os.environ.items() if key != WORLD} | {"WORLD_SIZE": os.environ[WORLD]}
    try:
        _tell(TASK, RESUME if trainer.args.resume else START)
        for rank in range(1, world_size()):
            word = _word(READY.format(rank), f"rank {rank}")
            if word.startswith(REFUSED):
                raise RunError(f"rank {rank}: {word.removeprefix(REFUSED)}")
        subprocess.run([sys.executable, file], env=environment, check=True)
    finally:
        ddp_cleanup(trainer, file)
        unset_deterministic()


def join_on_cpu() -> None:
    """Join the others where there is no GPU, for which alone Ultralytics does it."""
    dist.init_process_group("gloo", timeout=WAIT, rank=RANK, world_size=world_size())


def _tell(key: str, word: str) -> None:
    with contextlib.suppress(RuntimeError, KeyError):  # torchrun has gone, or was never there
        _store().set(key, word)


def _word(key: str, whose: str) -> str:
    try:
        store = _store()
        store.set_timeout(WAIT)
        return store.get(key).decode()
    except RuntimeError as error:
        raise RunError(f"torchrun: got no word of {whose} ({str(error).splitlines()[0]}), expected it there") from error


def _store() -> dist.Store:
    """The store that torchrun keeps on the first machine."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=CONNECT, wait_for_workers=False)


# ---------------------------------------------------------------- a process and the ranks below it


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
    launcher = os.environ.get(LAUNCHER)  # none in a process of torchrun's but the first
    if launcher:
        end_with(launcher)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except KdError as error:
            if launcher:
                _report(trainer).write_text(str(error), encoding="utf-8")
            raise
        dist.destroy_process_group()


def end_with(lock: str) -> None:
    """End this process within a second or so of the one that has locked a file: the system frees what the dead held."""

    def watch() -> None:
        FileLock(lock).acquire(poll_interval=POLL_S)
        os._exit(1)  # checkpoints are replaced as a whole, so this is safe at any moment

    threading.Thread(target=watch, daemon=True).start()


def _report(trainer: Any) -> Path:
    return trainer.save_dir / "error.txt.partial"
