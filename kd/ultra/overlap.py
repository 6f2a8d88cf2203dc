"""Images that two splits share, by place or by content: a student must not be scored on what it was trained on.

In: lists of images. Out: those of one that are in the other too.
Invariant: what is byte for byte the same is found whatever its name; only files of like sizes are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.errors import DataError
from kd.files import sha256
from kd.ultra.data import image_files, size_of

SAMPLE_BYTES = 4096  # read first: raw images are all of one size, and hardly two begin and end alike
NAMED = 3  # files that an error names


def shared_images(view: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The training images that another split has too, by that split; ``view`` is from `kd.ultra.data.resolve_data`."""
    train = image_files(view["train"])
    found = {split: also_in(image_files(view[split]), train) for split in ("val", "test")}
    return {split: images for split, images in found.items() if images}


def require_apart(file: str | Path, view: Mapping[str, Any], allow_overlap: bool) -> dict[str, int]:
    """How many training images are in val and in test too; none of both is an empty dict. Raises DataError for any."""
    shared = shared_images(view)
    if shared and not allow_overlap:
        listed = " and ".join(
            f"{len(images)} that {split} has too ({named(images)})" for split, images in shared.items()
        )
        raise DataError(
            f"{file}: train: got {listed}, expected others: a student must not be scored on what it was trained on; "
            f"split the data anew, or go on by --allow-overlap"
        )
    return {split: len(images) for split, images in shared.items()}


def also_in(scored: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    """The ``files`` that are one of the ``scored`` images, by resolved path or by content."""
    by_size: dict[int | None, list[Path]] = defaultdict(list)
    for path in scored:
        by_size[size_of(path)].append(path)
    by_size.pop(None, None)
    places = {path.resolve() for path in scored}
    samples: dict[int | None, dict[bytes, list[Path]]] = {}
    hashes: dict[Path, str] = {}

    def whole(path: Path) -> str:
        if path not in hashes:
            hashes[path] = sha256(path)
        return hashes[path]

    def known(file: Path) -> bool:
        size = size_of(file)
        if size not in by_size or file.resolve() in places:
            return size in by_size
        if size not in samples:
            samples[size] = defaultdict(list)
            for path in by_size[size]:
                samples[size][_sample(path, size)].append(path)
        alike = samples[size].get(_sample(file, size), ())
        return any(whole(path) == whole(file) for path in alike)

    return [file for file in files if known(file)]


def named(files: Sequence[Path], folder: Path | None = None) -> str:
    """The first few files, by name or as seen from a folder, for an error."""
    names = [str(file.relative_to(folder)) if folder else file.name for file in files[:NAMED]]
    return f"{', '.join(names)}{', ...' if len(files) > NAMED else ''}"


def _sample(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
        file.seek(max(0, size - SAMPLE_BYTES))
        return head + file.read(SAMPLE_BYTES)
