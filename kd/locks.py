"""One process at a time per output: a lock that the system frees with its holder, however that one ends.

In: a folder or a file that is about to be written. Out: the right to write it, or one line that says who has it.
Invariant: whoever is refused leaves everything as it was; `FOLDER/.lock`, or `.NAME.lock` beside a file NAME, is there
while the work goes on and after a kill, where it means nothing, and never after an end.

A stopped process (SIGSTOP) keeps its lock, for it may wake up; forked children, such as loaders, do not have it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kd.errors import RunError

LOCK = ".lock"
WAIT_S = 3.0  # what belongs to a killed run or sweep ends within moments


@contextlib.contextmanager
def hold(folder: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a folder, made when it is missing and removed again when nothing has come into it.

    Raises RunError when another process has it for longer than ``wait_s`` seconds, or when it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: got a file, expected a folder or a new name: choose another --out")
    with _made(folder), _locked(folder / LOCK, folder, wait_s):
        yield


@contextlib.contextmanager
def hold_file(file: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a file that is to be written, by a lock beside it; raises as `hold` does. Its folder is made as there."""
    if file.is_dir():
        raise RunError(f"{file}: got a folder, expected a file or a new name: choose another --out")
    with _made(file.parent), _locked(file.with_name(f".{file.name}{LOCK}"), file, wait_s):
        yield


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; at the end remove those of them that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not empty, or removed by whoever else found it empty
                path.rmdir()


@contextlib.contextmanager
def _locked(path: Path, where: Path, wait_s: float) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise RunError(
            f"{where}: got {_holder(path)} at work there, expected none: wait for it or stop it (a paused one may go "
            f"on), or choose another --out"
        ) from error
    try:
        with contextlib.suppress(OSError):  # a full disk; the lock holds without its holder's name
            path.write_text(f"{os.getpid()} {socket.gethostname()} {time.time():.0f}\n", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: whoever opened this file sees that it has lost its name
        lock.release()


def _holder(path: Path) -> str:
    """Whoever wrote a lock file: ``process 4711 on host since 2026-11-28 03:12``, or ``another process``."""
    try:
        number, host, started = path.read_text(encoding="utf-8").split()
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(int(started)))
        return f"process {int(number)} on {host} since {since}"
    except (OSError, ValueError, OverflowError):
        return "another process"
