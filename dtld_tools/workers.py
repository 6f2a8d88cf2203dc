"""``map`` over frames: in this process, in worker processes, or on a Ray cluster; results come in order.

Invariant: no more than a few items are under way, so memory stays flat in the number of items.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

import cv2

from dtld_tools.errors import DtldError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items under way per worker


@dataclass(frozen=True, slots=True)
class Executor:
    """Where the work is done: this process for one worker, else processes, or a Ray cluster.

    Ray without an address is started on this machine with ``workers`` cores.
    """

    workers: int = 1
    kind: Literal["local", "ray"] = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers: got {self.workers}, expected 1 or more")
        if self.ray_address is not None and self.kind != "ray":
            raise UsageError("--ray-address: is for --executor ray, which is not given")

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], scratch: Path) -> Iterator[Result]:
        """``work(item)`` for each item, in order; both must be picklable unless ``workers`` is 1.

        ``scratch`` is an existing folder for notes. Raises what ``work`` raises, and DtldError if a worker dies.
        """
        if self.kind == "ray":
            return _map_on_ray(work, items, self.workers, self.ray_address)
        if self.workers == 1:
            cv2.setNumThreads(1)  # one worker is one core, as in a process of its own
            return map(work, items)
        return _map_in_processes(work, items, self.workers, scratch)


# --- processes -------------------------------------------------------------------------------------------


def _map_in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, scratch: Path
) -> Iterator[Result]:
    _remove_notes(scratch)  # of a killed run
    # Spawned, not forked: OpenCV's and the progress bar's threads do not survive a fork.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(scratch,)) as pool:
        under_way: deque = deque()
        try:
            for item in items:
                with _no_interrupt():
                    under_way.append(pool.submit(_noted, work, item))
                if len(under_way) >= AHEAD * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            pool.shutdown(wait=True, cancel_futures=True)  # the other workers take their notes away
            frames = [note.read_text().rstrip() for note in sorted(scratch.glob("*.at"))]
            raise DtldError(
                f"{', '.join(filter(None, frames)) or 'a worker'}: the worker process that had this frame was killed "
                "(out of memory?); run the same command again to continue, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            _remove_notes(scratch)


def _remove_notes(scratch: Path) -> None:
    for note in scratch.glob("*.at"):
        note.unlink()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while a process may be started: it would die in its imports, with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a started process inherits the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_NOTE_BYTES = 512
_note: tuple[Path, int] | None = None  # in a worker: the file that says which item it has, and its descriptor


def _noted(work: Callable[[Any], Any], item: Any) -> Any:
    """Leave a note while an item is worked on: what is left of a killed worker."""
    _write_note(item.frame.frame)
    try:
        return work(item)
    finally:
        _write_note("")


def _write_note(text: str) -> None:
    # One file all along: to make and delete one for each item would slow all others down (ext4 avoids their inodes).
    if _note is not None:
        os.pwrite(_note[1], text.encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES), 0)


def _start_worker(scratch: Path) -> None:
    global _note
    path = scratch / f"{os.getpid()}.at"
    _note = path, os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _end_cleanly)  # the pool ends its other workers so, when one was killed
    cv2.setNumThreads(1)
    # A worker holds both ends of the pipe it waits on, so it would never notice that its parent was killed.
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_cleanly(number: int, frame: FrameType | None) -> None:
    _write_note("")
    os._exit(128 + number)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


# --- Ray -------------------------------------------------------------------------------------------------


def _map_on_ray(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, address: str | None
) -> Iterator[Result]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use over the network unless told not to
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("--executor ray: Ray is not installed; pip install 'dtld-kd[ray]'") from error
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
        else:
            ray.init(address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--ray-address: {address}: {reason}; expected a running cluster, such as auto") from error
    under_way: deque = deque()
    try:
        task = ray.remote(num_cpus=1)(_on_ray)
        shared = ray.put(work)
        cores = workers if address is None else int(ray.cluster_resources().get("CPU", 1))
        for item in items:
            under_way.append(task.remote(shared, item))
            if len(under_way) >= AHEAD * cores:
                yield ray.get(under_way.popleft())
        while under_way:
            yield ray.get(under_way.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise DtldError(f"Ray: {reason}; run the same command again to continue") from error
    finally:
        for result in under_way:
            ray.cancel(result)
        ray.wait(list(under_way), num_returns=len(under_way)) if under_way else None  # nobody writes after us
        ray.shutdown()


def _on_ray(work: Callable[[Any], Any], item: Any) -> Any:
    cv2.setNumThreads(1)
    return work(item)
