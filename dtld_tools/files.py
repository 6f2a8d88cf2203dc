"""Files and folders that commands write: locked meanwhile, never over an input, named only when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dtld_tools.errors import DatasetError

UNFINISHED = ".unfinished"  # a folder in OUT: the lock, temporary files, and whose they are
LOCK = "lock"
IDENTITY = "identity"
WHOLE = "whole"  # a folder that is not whole yet
REPLACED = "replaced"  # the dataset that --overwrite replaces, until the new one is finished
_WRITER = f"{socket.gethostname()}-"  # several machines may write into one shared folder
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def held(out: Path, kind: str = "dataset") -> Iterator[Path]:
    """OUT/.unfinished, made and locked against any other process; removed when no identity is left in it.

    Raises DatasetError if OUT is a file or somebody else holds it.
    """
    refuse_file(out, kind)
    scratch = out / UNFINISHED
    scratch.mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DatasetError(
            f"{out}: another process is writing this {kind}; wait until it has ended, or choose another folder"
        ) from error
    try:
        yield scratch
    finally:
        lock.release()
        if not any((scratch / name).exists() for name in (IDENTITY, REPLACED)):  # finished, or nothing came of it
            shutil.rmtree(scratch, ignore_errors=True)


def refuse_file(out: Path, kind: str = "dataset") -> None:
    """Raise DatasetError if OUT, which should become a folder, is something else."""
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out}: is a file, expected a folder to write the {kind} into")


def remove_temporary(scratch: Path) -> None:
    """Delete what a killed run left half-written; call it only while the folder is held."""
    for path in scratch.glob("*.tmp"):
        path.unlink()


KEPT = "what is written is kept: make room and run the same command again"
UNWRITTEN = "nothing is written: make room and run it again"


@contextmanager
def told_when_full(out: Path, then: str = KEPT) -> Iterator[None]:
    """Raise DatasetError in place of the OSError of a full disk; ``then`` says what became of OUT."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DatasetError(f"{out}: {error.strerror}; {then}") from error
        raise


def write_atomically(path: Path | str, data: bytes | memoryview, scratch: Path | str) -> None:
    """Write a file of a folder that is `held`: into its ``scratch``, then renamed. Elsewhere: `whole_file`."""
    temporary = f"{scratch}/{_WRITER}{os.getpid()}.tmp"
    write(temporary, data)
    os.replace(temporary, path)


def write(path: Path | str, data: bytes | memoryview) -> None:
    """Write a file in place: a full disk leaves half of it."""
    with open(path, "wb") as stream:
        stream.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, with its ending, for a file that gets its own name when it is whole.

    For one that lies anywhere, such as a picture, written at once or piece by piece.
    Raises DatasetError if ``path`` cannot be a file, or the disk is full.
    """
    if not path.parent.is_dir():
        raise DatasetError(f"{path.parent}: No such file or directory, expected a folder to write {path.name} into")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder, expected the name of a file to write")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with told_when_full(path, UNWRITTEN):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside OUT that gets its name when it is whole; nothing is left of it otherwise.

    What a killed run left there goes first. Raises DatasetError if OUT is a file or holds something, another process
    is writing it, or the disk is full.
    """
    refuse_file(out, "export")
    place = out.resolve()
    if place.is_mount():  # what is made beside it cannot get its name
        raise DatasetError(f"{out}: is where a file system is mounted, expected a folder in it, such as {out}/export")
    if not place.parent.is_dir():
        raise DatasetError(f"{out.parent}: no such folder, expected one to write {out.name} into; make it first")
    if place.is_dir() and any(place.iterdir()):
        raise DatasetError(f"{out}: holds files, expected a new or an empty folder; choose another --out")
    beside = place.with_name(f".{place.name}.tmp")
    try:
        with told_when_full(out, UNWRITTEN), held(beside, "export") as scratch:
            temporary = scratch / WHOLE
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir()
            yield temporary
            temporary.replace(place)
    finally:
        with suppress(OSError):  # another process holds it
            beside.rmdir()


def refuse_inputs(out: Path, inputs: Iterable[Path | None], *, inside: bool = True, option: str = "--out") -> None:
    """Raise DatasetError if OUT is an input or holds one, or lies in one unless not ``inside``.

    Links are followed, hard links too: what counts is what would be overwritten or deleted.
    """
    place = out.resolve()
    for given in inputs:
        if given is None:
            continue
        path = given.resolve()
        if place == path or (out.exists() and given.exists() and out.samefile(given)):
            relation = "is the input"
        elif path.is_relative_to(place):
            relation = "holds the input"
        elif inside and place.is_relative_to(path):
            relation = "lies in the input"
        else:
            continue
        raise DatasetError(f"{option}: {out}: {relation} {given}, expected another place to write into")
