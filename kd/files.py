"""Files written whole or not at all, and never over what they are made from.

In: contents by path. Out: all of the files, or none of them and an OSError that names the one that failed.
Invariant: a reader sees the old file or the new one, and a full disk leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from kd.errors import UsageError

PREFIX, SUFFIX = ".kd-", ".partial"
_NUMBERS = itertools.count()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, renamed to ``path`` once the block is done; a failed one leaves nothing.

    The name is of this process and block alone, so two processes may write one file: the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PREFIX}{os.getpid()}-{next(_NUMBERS)}{SUFFIX}")  # as long for a name of any length
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill, renamed to ``path`` once the block is done; a failed one leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PREFIX}{os.getpid()}-{next(_NUMBERS)}{SUFFIX}")
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rmdir()  # an empty one, or an OSError
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_all(contents: dict[Path, bytes | str]) -> None:
    """Write files together: all of them under partial names, then each is renamed; text as UTF-8.

    Raises OSError, which names the file that could not be written.
    """
    path = None
    try:
        with contextlib.ExitStack() as files:
            for path, content in reversed(contents.items()):  # the stack renames the last one first
                partial = files.enter_context(whole_file(path))
                partial.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:  # what fails while writing knows no name, or that of the partial
        raise OSError(error.errno, error.strerror, str(error.filename2 or path)) from error


def remove_partials(folder: Path) -> None:
    """Remove what killed processes have left of files that they were writing in ``folder``."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sha256(path: Path) -> str:
    """The file's SHA-256 as hex digits."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def require_no_input(option: str, outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise UsageError where an output is an input, by whatever name it goes."""
    taken = [path for path in inputs if path.exists()]
    for path in outputs:
        if path.exists() and any(map(path.samefile, taken)):
            raise UsageError(f"{option}: got {path}, which is read here, expected another file: choose another name")


def require_writable(option: str, path: Path) -> None:
    """Raise UsageError where no file could be written at ``path``: before the work of which it shall be the result."""
    if path.is_dir():
        raise UsageError(f"{option}: got {path}, a folder, expected a file")
    nearest = next(place for place in path.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(
            f"{option}: got {path}, but {nearest} takes no files ({error.strerror}), expected a folder that does"
        ) from error


def require_new_folder(option: str, path: Path) -> None:
    """Raise UsageError where no folder could be made at ``path``, or one with files is there."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{option}: got {path}, which is there already, expected a new folder: choose another name")
    require_writable(option, path / "file")
