"""A full disk as an error of one line: which file could not be written, and what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from kd.errors import RunError
from kd.files import write_all

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# torch's messages where it cannot write an archive; "unexpected pos 576 vs 534" follows a write that was cut short.
TORCHS = ("PytorchStreamWriter", "unexpected pos", "iostream error")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """While ``path`` is written: what the system and torch raise on a full disk becomes RunError that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            known, reason = error.errno in FULL, error.strerror
        else:
            known, reason = any(text in str(error) for text in TORCHS), "a write that was cut short"
        if not known:
            raise
        free = shutil.disk_usage(path.parent).free / 1e6 if path.parent.exists() else 0.0
        raise RunError(
            f"{path}: got '{reason}' when it was written, expected room on its disk, where {free:.0f} MB are free: "
            f"make room, then --resume, or begin again where no checkpoint was kept"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file of a run, whole or not at all. Raises RunError where the disk is full."""
    with writing(path):
        write_all({path: text})
