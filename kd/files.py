"""Files written whole or not at all, and never over what they are made from.

In: contents by path. Out: all of the files, or none of them and an OSError that names the one that failed.
Invariant: a reader sees the old file or the new one, and a full disk leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from kd.errors import UsageError


def write_all(contents: Mapping[Path, bytes | str]) -> None:
    """Write files together: each aside first, then all under their names; text as UTF-8. Raises OSError."""
    partials = {path: path.with_name(f".{os.getpid()}.{i}.partial") for i, path in enumerate(contents)}
    path = None
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partials[path].write_bytes(content.encode() if isinstance(content, str) else content)
        for path, partial in partials.items():
            partial.replace(path)
    except OSError as error:  # what fails while writing knows no name, or that of the partial
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


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
