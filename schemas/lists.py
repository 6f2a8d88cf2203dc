"""Lists of images, one path a line, as a data.yaml may name them: one reading for both tools, that of Ultralytics.

In: a text file. Out: the images that it names.
Invariant: a line is an image that is there, or an error; nothing is left out without a word. Ultralytics 8.4 reads the
same paths, but drops without a word a line with a trailing blank, one that ends otherwise, and an image that is gone.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

MAX_BYTES = 2**29  # the 9 million images of Open Images make 400 MB


class ListError(ValueError):
    """A file is no list of images; the message is one line and does not name the file."""


def read_list(path: Path, suffixes: Collection[str], *, may_be_gone: bool = False) -> list[Path]:
    """The images that a list names, in its order. UTF-8, with or without a byte order mark; blank lines mean nothing.

    A path that starts with ``./`` is taken from the list's folder, any other relative one from the working directory.
    ``suffixes`` are those of images, in small letters and without the dot. Raises ListError, also for an image that is
    gone unless it ``may_be_gone``, and OSError where the list cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ListError(f"got more than {MAX_BYTES >> 20} MiB, expected a text file of one image path a line")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListError(f"byte {error.start}: got what is no UTF-8, expected one image path a line") from error
    images, lost = [], []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        if line.rpartition(".")[2].lower() not in suffixes:
            raise ListError(f"line {number}: got {_short(line)}, expected the path of an image, such as ./images/a.jpg")
        images.append(path.parent / line[2:] if line.startswith("./") else Path(line))
        if not may_be_gone and not os.path.isfile(images[-1]):
            lost.append(f"line {number}: got {_short(line)}")
    if lost:
        raise ListError(
            f"{lost[0]}, which is not there ({len(lost)} of {len(images)} images are not), expected images that are: "
            f"a path that starts with ./ is taken from the list's folder, any other relative one from where you are"
        )
    return images


def _short(line: str) -> str:
    text = repr(line)
    return text if len(text) <= 120 else f"{text[:117]}..."
