"""One writer per folder: a lock that a process holds from its first check to its last file.

In: the folder of a run, a sweep, or of anything else that a process fills. Out: a context manager, or RunError.
Invariant: the system frees the lock with its holder, however that ended; a stopped process (SIGSTOP) keeps it. A folder
that was not there, and in which nothing has been left, is gone afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kd.errors import RunError

LOCK = ".lock"
WAIT_S = 5.0  # the processes of a killed run or sweep end within moments


@contextlib.contextmanager
def hold(folder: Path, what: str | None = None) -> Iterator[None]:
    """Keep every other process out of ``folder``, which is made for it; not to be entered twice by one process.

    ``what`` begins the error's message in place of "FOLDER: another process is writing this run". Raises RunError
    when another process has it, or it is no folder.
    """
    folder = folder.resolve()
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        lock = _acquire(folder, what or f"{folder}: another process is writing this run")
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            for place in missing:
                place.rmdir()


def _acquire(folder: Path, taken: str) -> FileLock:
    lock = FileLock(folder / LOCK, timeout=WAIT_S)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(f"{folder}: got a file, expected a folder: choose another --out") from error
        try:
            lock.acquire()
        except FileNotFoundError:  # the one before has left nothing, and removed it after our mkdir
            continue
        except Timeout as error:
            raise RunError(f"{taken}; wait for it or choose another --out") from error
        if (folder / LOCK).exists():
            return lock
        lock.release()  # the one before has removed the file between our opening and locking it
