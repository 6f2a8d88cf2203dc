"""Where the runs of a sweep are carried out: by processes of this machine, or over the nodes of a Ray cluster.

In: the words of a `kd train` and the file of its log. Out: its exit code, once it has ended.
Invariant: a run is the same process in both, and none outlives the sweep, however that ended: the process above it
holds the other end of its standard input.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kd.errors import RunError, UsageError
from schemas.cluster import ClusterError, joined

POLL_S = 0.2
LATE_S = 60.0  # a file that another node has written may not be seen before: NFS remembers what was not there
#: The command `kd` in a process that ends with the one that has started it.
KD = ("-c", "from kd.sweeps.executors import follow_parent; follow_parent(); import cli; cli.kd()")


class LostError(Exception):
    """The node that a run was on, or the process there that watched over it, is gone, and so is the run."""


class Run(Protocol):
    """A run under way."""

    def poll(self) -> int | None:
        """The exit code, None before the end. Raises LostError; RunError where it could not be started."""

    def stop(self) -> None:
        """Let it end, without waiting for that."""

    def wait(self) -> None:
        """Return when it has ended."""


class Executor(Protocol):
    """What carries out runs."""

    @property
    def at_once(self) -> float:
        """How many may be under way."""

    def room(self) -> int:
        """How many are at work at a time."""

    def start(self, words: Sequence[str], log: Path, result: Path) -> Run:
        """Start a `kd train` that makes the file ``result``; its output goes to ``log``, a file that is there."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what a run takes of it.

    Without an ``address`` one is started on this machine; ``gpus`` None: as many as the runs' devices name.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"--ray-cpus: got {self.cpus}, expected 1 or more")
        if self.gpus is not None and not (0 <= self.gpus <= 1 or self.gpus == round(self.gpus) > 0):
            raise UsageError(f"--ray-gpus: got {self.gpus:g}, expected a share of one such as 0.5, or a whole number")


def on_one_gpu(cluster: Cluster | None, at_once: int | None) -> int:
    """The most runs that may share a GPU: all that are under way here, in a cluster those of a part of one.

    >>> on_one_gpu(None, 3), on_one_gpu(Cluster(), 3), on_one_gpu(Cluster(gpus=0.5), None)
    (3, 1, 2)
    """
    if cluster is None:
        return at_once or 1
    runs = int(1 / cluster.gpus) if cluster.gpus else 1
    return max(1, min(runs, at_once or runs))


@contextmanager
def started(
    cluster: Cluster | None, at_once: int | None, devices: Collection[Any], tell: Callable[[str], None]
) -> Iterator[Executor]:
    """An executor: processes here, ``at_once`` or one at a time, or a cluster's, as many as there is room for.

    ``devices`` are what the runs' option says; ``tell`` gets a line where no node has what a run takes. Raises
    UsageError for a cluster that is none, and RunError for one that is lost.
    """
    if cluster is None:
        yield Local(at_once or 1)
        return
    try:
        # Ray prints what it has to say of lost workers on stdout, log_to_driver=False or not.
        with redirect_stdout(sys.stderr), joined(cluster.address, _cores()) as ray:
            try:
                yield _on_ray(ray, cluster, at_once, devices, tell)
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())
                raise RunError(f"Ray: {reason}: give the same command again to go on") from error
    except ClusterError as error:
        raise UsageError(str(error)) from error


# ---------------------------------------------------------------- processes


def follow_parent() -> None:
    """End this process when its standard input ends: the sweep holds the other end, and so leaves no orphans."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when the process ends by itself
            pass
        os._exit(130)  # kd train is safe against this at any moment

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Process:
    """A run in a process of this machine."""

    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        """The exit code, None before the end."""
        code = self.process.poll()
        if code is not None:
            self.stop()
        return code

    def stop(self) -> None:
        """Close the pipe to the process, which ends when it finds that closed."""
        if self.process.stdin:
            self.process.stdin.close()

    def wait(self) -> None:
        """Return when it has ended."""
        self.process.wait()


def start_process(command: Sequence[str], log: Path, threads: int | None = None) -> Process:
    """Start Python with these words, this very package found first; ``threads`` for torch, None for its own choice."""
    here = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with log.open("r+b") as file:
        return Process(
            subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment
            )
        )


@dataclass(frozen=True)
class Local:
    """Processes of this machine, which share its cores fairly."""

    at_once: int

    def room(self) -> int:
        """How many are at work at a time."""
        return self.at_once

    def start(self, words: Sequence[str], log: Path, result: Path) -> Run:
        """Start a `kd train`."""
        return start_process([*KD, *words], log, max(1, _cores() // self.at_once) if self.at_once > 1 else None)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def reason_of(log: Path, code: int) -> str:
    """Why a process ended, as one line: its error line, else its last one."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}: {lines[-1]}" if lines else ended


# ---------------------------------------------------------------- Ray


@dataclass(frozen=True)
class OnRay:
    """A Ray cluster, which queues the runs and gives each its cores and GPUs."""

    ray: Any  # the module, connected
    at_once: float
    cpus: int
    gpus: float

    def room(self) -> int:
        """How many fit on the nodes that there are now."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return int(min(self.at_once, max(1, fitting(nodes, self.cpus, self.gpus))))

    def start(self, words: Sequence[str], log: Path, result: Path) -> Run:
        """Queue a `kd train`. What is lost is not tried again by Ray, for that takes another word: --resume."""
        task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_work)
        return Task(self.ray, task.remote([*KD, *words], log, self.cpus), result)


@dataclass
class Task:
    """A run as a task of Ray."""

    ray: Any
    task: Any  # a reference to the exit code to be
    result: Path
    late: float = 0.0  # time.monotonic() when the result has to be seen

    def poll(self) -> int | None:
        """The exit code, None before the end. Raises LostError or RunError."""
        if not self.ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            code = self.ray.get(self.task)
        except self.ray.exceptions.RayTaskError as error:
            raise RunError(str(error.cause)) from error
        except self.ray.exceptions.RayError as error:
            raise LostError(" ".join(str(error).split())) from error
        if code == 0 and not self.result.exists():
            self.late = self.late or time.monotonic() + LATE_S
            return None if time.monotonic() < self.late else code
        return code

    def stop(self) -> None:
        """Take it out of the queue, or interrupt the worker, which ends the run."""
        self.ray.cancel(self.task)

    def wait(self) -> None:
        """Return when it has ended."""
        self.ray.wait([self.task])


def _work(command: Sequence[str], log: Path, cpus: int) -> int:
    """What a worker does for a run: start its process, and wait for it or for an interrupt."""
    if not log.exists():
        raise RunError(
            f"{log}: got no such file on {socket.gethostname()}, expected --out, the data and the models at the same "
            f"paths on all nodes: put them on a file system that these share"
        )
    process = start_process(command, log, cpus)
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL_S)  # Ray interrupts Python, not a system call that waits for a process
        return code
    finally:
        process.stop()
        process.wait()


def _on_ray(
    ray: Any, cluster: Cluster, at_once: int | None, devices: Iterable[Any], tell: Callable[[str], None]
) -> OnRay:
    """The executor on a cluster that has been joined. Raises UsageError where this machine is all of it, too little."""
    there = ray.cluster_resources().get("GPU", 0) > 0
    gpus = named_gpus(devices, there) if cluster.gpus is None else cluster.gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not fitting(nodes, cluster.cpus, gpus):
        wanted = f"{cluster.cpus} cores and {gpus:g} GPUs for a run"
        if cluster.address is None:
            has = f"{nodes[0].get('CPU', 0):g} cores and {nodes[0].get('GPU', 0):g} GPUs"
            raise UsageError(f"--ray-cpus, --ray-gpus: got {wanted}, expected no more than this machine has: {has}")
        tell(f"no node of the cluster has {wanted}: they wait for one that does")
    return OnRay(ray, at_once or float("inf"), cluster.cpus, gpus)


def named_gpus(devices: Iterable[Any], there: bool) -> int:
    """GPUs that a run takes, by the option `device` of all; without one it takes a GPU if any is ``there``.

    >>> named_gpus(["cpu", "0,1"], True), named_gpus([None], True), named_gpus([None], False), named_gpus(["cpu"], True)
    (2, 1, 0, 0)
    """
    counts = [
        int(there) if device is None else str(device).count(",") + 1 if str(device) not in ("cpu", "mps") else 0
        for device in devices
    ]
    return max(counts, default=0)


def fitting(nodes: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many runs fit at once on nodes with these resources.

    >>> fitting([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], 2, 0.5), fitting([{"CPU": 8.0}, {"CPU": 3.0}], 2, 0)
    (2, 5)
    """
    return sum(
        int(min(node.get("CPU", 0) / cpus, node.get("GPU", 0) / gpus if gpus else float("inf"))) for node in nodes
    )
