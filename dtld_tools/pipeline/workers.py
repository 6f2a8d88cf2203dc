"""``map`` over frames: in this process, in worker processes, or on a Ray cluster; results come in order.

Invariant: no more than a few items are under way, so memory stays flat in the number of items; and when a map has
ended, however it did, no worker works on.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from operator import attrgetter
from queue import SimpleQueue
from typing import Any, Literal

import cv2
import numpy as np

from dtld_tools.errors import DtldError, UsageError
from schemas.cluster import ClusterError, joined

AHEAD = 4  # items under way per worker

#: ``map_items(work, items)``: ``work(item)`` for each item, in order. Raises what ``work`` raises, and DtldError if a
#: worker dies. What is given to processes must be picklable.
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


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

    @contextmanager
    def started(self, used: Any = None, name_of: Callable[[Any], str] = attrgetter("frame.frame")) -> Iterator[Map]:
        """A `Map` to be used once. Processes start at once and import where ``used`` stands while the caller plans.

        ``name_of(item)`` is what the error calls the item of a worker that died; its frame's path otherwise.
        """
        if self.kind == "ray":
            yield lambda work, items: _map_on_ray(work, items, self.workers, self.ray_address)
        elif self.workers == 1:
            yield _map_here
        else:
            workers: list[_Worker] = []
            try:
                for _ in range(self.workers):
                    with _no_interrupt():
                        workers.append(_start(used))
                yield lambda work, items: _map_in_processes(work, items, workers, name_of)
            finally:
                _stop(workers)


def be_one_core() -> None:
    """Let OpenCV start no threads, and the allocator keep the memory of one frame for the next."""
    cv2.setNumThreads(1)
    # glibc gives arrays back to the kernel that are larger than any it has freed before (up to 32 MiB). Taken anew for
    # each frame, as 2,000 pages to be zeroed, they would cost a fifth of its time. Elsewhere this does nothing.
    np.empty(2**25 - 2**16, np.uint8)


def _map_here(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    be_one_core()  # one worker is one core, as in a process of its own
    return map(work, items)


# --- processes -------------------------------------------------------------------------------------------
# A pipe to each worker and no thread in this process. The standard library's ProcessPoolExecutor takes the same
# processor time if it is given chunks of items, but it does not say which item a killed worker had, and its workers
# outlive a killed parent.


@dataclass(slots=True)
class _Worker:
    """A process, its pipe, and what it was given and has not answered yet: the number of the item and its frame."""

    process: BaseProcess
    pipe: Connection
    given: deque[tuple[int, str]] = field(default_factory=deque)


def _start(used: Any) -> _Worker:
    # Spawned, not forked: OpenCV's and the progress bar's threads do not survive a fork.
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, used), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, pipe)


def _stop(workers: list[_Worker]) -> None:
    """End all, also in the middle of a frame: what has its name is complete."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.pipe.close()


def _map_in_processes(
    work: Callable[[Any], Any], items: Iterable[Any], workers: list[_Worker], name_of: Callable[[Any], str]
) -> Iterator[Any]:
    answers: dict[int, _Answer] = {}
    taken = given_back = 0
    try:
        for worker in workers:
            _send(worker, work)
        for taken, item in enumerate(items, 1):
            worker = min(workers, key=lambda worker: len(worker.given))
            worker.given.append((taken - 1, name_of(item)))
            _send(worker, item)
            while taken - given_back >= AHEAD * len(workers):
                _receive(workers, answers)
                while given_back in answers:
                    yield answers.pop(given_back).value()
                    given_back += 1
        while given_back < taken:
            if given_back not in answers:
                _receive(workers, answers)
                continue
            yield answers.pop(given_back).value()
            given_back += 1
    finally:
        _stop(workers)


def _send(worker: _Worker, message: Any) -> None:
    # A worker that was killed is reported after the answers that it sent before have been read.
    with suppress(ConnectionError):
        worker.pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _receive(workers: list[_Worker], answers: dict[int, _Answer]) -> None:
    """Wait for an answer, and take all that are there. Raises DtldError for a worker that is dead."""
    busy = [worker for worker in workers if worker.given]
    answering = wait([worker.pipe for worker in busy])
    for worker in (worker for worker in busy if worker.pipe in answering):
        number, frame = worker.given.popleft()
        try:
            answers[number] = pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise DtldError(
                f"{frame}: the worker process that had this frame was killed (out of memory?); "
                "run the same command again to continue, with fewer --workers"
            ) from error


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of an item: a result, or an error with its traceback in the worker."""

    result: Any = None
    error: Exception | None = None
    place: str = ""

    def value(self) -> Any:
        if self.error is not None:
            raise self.error from RuntimeError(f"in a worker process:\n{self.place}")
        return self.result


def _serve(pipe: Connection, used: Any) -> None:
    """What a worker process does: answer items, in their order, until it is killed or its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    be_one_core()
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, messages), daemon=True).start()
    work = pickle.loads(messages.get())
    while True:
        try:
            answer = _Answer(work(pickle.loads(messages.get())))
        except Exception as error:
            answer = _Answer(error=error, place=traceback.format_exc())
        with suppress(ConnectionError):  # _listen ends this process
            pipe.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


def _listen(pipe: Connection, messages: SimpleQueue[bytes]) -> None:
    """Take messages at once, so that two full pipes never wait for each other; end with the parent."""
    with suppress(EOFError, OSError):
        while True:
            messages.put(pipe.recv_bytes())
    os._exit(1)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while a process is started: it would die in its imports, with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first process starts it, and it lets SIGINT through again (CPython 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a started process inherits the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- Ray -------------------------------------------------------------------------------------------------


def _map_on_ray(work: Callable[[Any], Any], items: Iterable[Any], workers: int, address: str | None) -> Iterator[Any]:
    try:
        with joined(address, workers) as ray:
            cores = workers if address is None else int(ray.cluster_resources().get("CPU", 1))
            yield from _map_over(ray, work, items, AHEAD * cores)
    except ClusterError as error:
        raise UsageError(str(error)) from error


def _map_over(ray: Any, work: Callable[[Any], Any], items: Iterable[Any], most: int) -> Iterator[Any]:
    """Map over a cluster that has been joined, ``most`` items under way."""
    under_way: deque = deque()
    try:
        task = ray.remote(num_cpus=1)(_on_ray)
        shared = ray.put(work)
        for item in items:
            under_way.append(task.remote(shared, item))
            if len(under_way) >= most:
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


def _on_ray(work: Callable[[Any], Any], item: Any) -> Any:
    be_one_core()
    return work(item)
