"""A YOLO dataset in, near-identical images across its splits out: the leak that no label shows.

Images are compared by a perceptual hash of 64 bits (pHash), as they are shown: raw 16-bit frames decoded, EXIF's turn
carried out. Two are near duplicates if at most ``distance`` bits differ. The search is exact. Only pairs in different
splits count, each image with its nearest in the other. Files of the same bytes are always found.

Left out: images of hardly any detail such as sky, whose hash says nothing, and the changed copies of a dataset of
dtld, whose originals are compared. Tiles are compared within one window: where a frame is nearly another, so are
the tiles at the same place.
"""

from __future__ import annotations

import glob
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dtld_tools import dataset
from dtld_tools.errors import DatasetError, ImageError, UsageError
from dtld_tools.images import read_image
from dtld_tools.lenient import read_data_yaml, read_lines
from dtld_tools.threads import map_in_order
from dtld_tools.types import SPLITS, Split
from schemas.lists import ListError, read_list

# Of 64 bits. Shifted and noisy neighbours differ by 0 to 6, the nearest tiles of two of `dtld sample`'s streets by 10.
DISTANCE = 6
THUMB_PX = 32  # what pHash makes of an image before its cosine transform
LEAST_DETAIL = 2.0  # grey levels; street scenes have 5 to 20, sky below 1.5
NOTHING = "nothing was compared"
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ROWS, COLUMNS = 8, 2**14  # of a block of pairs: 1 MiB, which stays in the processor's cache


class Compared(NamedTuple):
    """An image to compare with those of the same ``group`` in other splits; its path, below the root if it can be."""

    name: str
    split: Split
    group: str = ""


def find_near_duplicates(
    root: Path, *, distance: int = DISTANCE, workers: int = 1, quiet: bool = True
) -> dict[str, Any]:
    """``near_duplicates`` [{a, b, splits, distance}], images ``compared`` and left out as ``plain``, and ``defects``.

    The defects are the images that cannot be read, and that no two images could be compared, which proves nothing.
    Works on any YOLO dataset with a data.yaml. Raises DatasetError, and UsageError without the package imagehash.
    """
    check_options(distance)
    images = list(_own_images(root) if is_own(root) else _foreign_images(root))
    hashes = np.zeros(len(images), np.uint64)
    usable = np.zeros(len(images), bool)
    plain, defects = 0, []
    hash_of = _hasher()
    bar = tqdm(
        map_in_order(hash_of, (root / image.name for image in images), workers),
        total=len(images),
        unit="image",
        desc="hash",
        disable=True if quiet else None,
    )
    for index, found in enumerate(bar):
        if isinstance(found, str):
            defects.append(f"{images[index].name}: {found}")
        elif found is None:
            plain += 1
        else:
            hashes[index], usable[index] = found, True
    pairs = list(_pairs(images, hashes, usable, distance))
    known = {(images[a].split, b) for a, b, _ in pairs}
    pairs += [pair for pair in _identical(root, images) if (images[pair[0]].split, pair[1]) not in known]
    if not pairs and len({images[index].split for index in np.flatnonzero(usable)}) < 2:
        defects.append(
            f"{NOTHING}: got {int(usable.sum())} images to compare in all splits and {plain} plain ones, "
            "expected some in two splits at least"
        )
    return {
        "compared": int(usable.sum()),
        "plain": plain,
        "defects": defects,
        "near_duplicates": [
            {
                "a": images[a].name,
                "b": images[b].name,
                "splits": [images[a].split, images[b].split],
                "distance": bits,
            }
            for a, b, bits in pairs
        ],
    }


def check_options(distance: int) -> None:
    """Raises UsageError if near duplicates cannot be looked for: before hours of other work."""
    if not 0 <= distance <= 16:
        raise UsageError(f"--distance: got {distance}, expected 0 to 16 of 64 bits")
    _hasher()


# --- which images ------------------------------------------------------------------------------------------


def is_own(root: Path) -> bool:
    """Whether a folder claims to be a dataset of dtld."""
    return any((root / name).exists() for name in ("frames.jsonl", "manifest.jsonl", dataset.UNFINISHED))


def _own_images(root: Path) -> Iterator[Compared]:
    for _, line in read_lines(root / "manifest.jsonl", "manifest", []):  # a line that is wrong is `validate`'s to tell
        image = dataset.image_from_json(line)
        if image.augmentation is None:
            group = sys.intern(" ".join(map(str, (*image.window, image.scale))))
            yield Compared(_name(dataset.image_path(root, image), root), sys.intern(image.split), group)


def _foreign_images(root: Path) -> list[Compared]:
    """The images of a data.yaml, whose entries are folders, lists of paths in a file, or several of them."""
    document, found = read_data_yaml(root / "data.yaml"), []
    base = root
    if isinstance(document.get("path"), str):
        base = next((p for p in (root / document["path"], Path(document["path"])) if p.is_dir()), root)
    for split in SPLITS:
        entries = document.get(split) or (document.get("validation") if split == "val" else None) or []
        entries = [entries] if isinstance(entries, str) else entries
        if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
            raise DatasetError(f"{root / 'data.yaml'}: {split}: got {entries!r}, expected a path or a list of paths")
        for entry in entries:
            found += [Compared(_name(path, root), split) for path in _images_below(base, entry, root)]
    if len({image.split for image in found}) < 2:
        raise DatasetError(f"{root / 'data.yaml'}: got images in fewer than two splits, expected some to compare")
    return found


def _images_below(base: Path, entry: str, root: Path) -> Iterator[Path]:
    # Roboflow writes ../train/images and means train/images; Ultralytics takes it so, too.
    place = next((p for p in (base / entry, base / entry.removeprefix("../")) if p.exists()), None)
    if place is None:
        raise DatasetError(f"{root / 'data.yaml'}: got {entry}, which is not below {base}; expected images there")
    if place.is_dir():  # as Ultralytics looks: links to folders are followed, hidden files are none
        found = map(Path, glob.glob(f"{glob.escape(str(place))}/**/*.*", recursive=True))
        yield from sorted(path for path in found if path.suffix.lower() in SUFFIXES)
        return
    try:
        yield from read_list(place, [suffix[1:] for suffix in SUFFIXES])
    except (OSError, ListError) as error:
        raise DatasetError(f"{place}: {error}") from error


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


# --- hashes ------------------------------------------------------------------------------------------------


def _hasher() -> Any:
    """``path`` -> its hash as an integer, None for a plain image, or why it cannot be read."""
    try:
        import imagehash  # with scipy and PyWavelets it takes 150 MB, so it is an extra
    except ModuleNotFoundError as error:
        raise UsageError("--near-duplicates: imagehash is not installed; pip install 'dtld-kd[duplicates]'") from error

    def hash_of(path: Path) -> int | str | None:
        try:
            thumb = _thumb(path)
        # ImportError: Ultralytics, where it is loaded too, has Pillow look for a HEIF reader.
        except (OSError, ValueError, SyntaxError, ImportError, ImageError, Image.DecompressionBombError) as error:
            return f"cannot be decoded ({' '.join(str(error).split())})"
        if detail(np.asarray(thumb, np.float32)) < LEAST_DETAIL:
            return None
        return int.from_bytes(np.packbits(imagehash.phash(thumb).hash).tobytes(), "big")

    return hash_of


def _thumb(path: Path) -> Image.Image:
    """What pHash looks at: THUMB_PX x THUMB_PX grey levels of the image as it is shown."""
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would clip 12 bits at 255
            grey = Image.fromarray(cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY))
        elif image.mode in ("F", "I"):
            grey = Image.fromarray(_stretched(np.asarray(image, np.float64)))
        else:
            # A JPEG is decoded at 1/2 to 1/8 of its size, no smaller than 64 px: pHash looks at 32 x 32 pixels.
            image.draft("L", (2 * THUMB_PX, 2 * THUMB_PX))
            grey = ImageOps.exif_transpose(image).convert("L")
        return grey.resize((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)


def _stretched(levels: np.ndarray) -> np.ndarray:
    """HxW levels of any range as uint8 of the whole range: a float TIFF does not say what its white is."""
    levels = np.nan_to_num(levels, posinf=0.0, neginf=0.0)
    low, high = levels.min(initial=0), levels.max(initial=0)
    return np.uint8((levels - low) / (high - low or 1) * 255)


def detail(thumb: np.ndarray) -> float:
    """The mean absolute second difference of HxW grey levels: 0 for an even surface and for an even gradient."""
    return float(sum(np.abs(np.diff(thumb, 2, axis)).mean() for axis in (0, 1)) / 2)


# --- pairs -------------------------------------------------------------------------------------------------


def _pairs(
    images: Sequence[Compared], hashes: np.ndarray, usable: np.ndarray, distance: int
) -> Iterator[tuple[int, int, int]]:
    """Indices (a, b) and bits: for each image of the later split its nearest of the earlier one, if near enough."""
    members: dict[tuple[str, Split], list[int]] = {}
    for index in np.flatnonzero(usable):
        members.setdefault((images[index].group, images[index].split), []).append(int(index))
    groups = sorted({group for group, _ in members})
    for first, second in combinations(SPLITS, 2):
        for group in groups:
            ours, theirs = members.get((group, second), []), members.get((group, first), [])
            if ours and theirs:
                at, bits = nearest(hashes[ours], hashes[theirs])
                for row in np.flatnonzero(bits <= distance):
                    yield theirs[at[row]], ours[row], int(bits[row])


def _identical(root: Path, images: Sequence[Compared]) -> Iterator[tuple[int, int, int]]:
    """Indices (a, b) and 0 bits of files with the same bytes: each of a later split with the first of each earlier one.

    Only files whose size occurs in two splits are read.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        try:
            by_size[(root / image.name).stat().st_size].append(index)
        except OSError:  # told of as an image that cannot be read
            continue
    first: dict[tuple[bytes, Split], int] = {}
    for members in by_size.values():
        if len({images[index].split for index in members}) < 2:
            continue
        for index in sorted(members, key=lambda index: (SPLITS.index(images[index].split), index)):
            with (root / images[index].name).open("rb") as stream:
                digest = hashlib.sha256(stream.read()).digest()
            for split in SPLITS[: SPLITS.index(images[index].split)]:
                if (digest, split) in first:
                    yield first[digest, split], index, 0
            first.setdefault((digest, images[index].split), index)


def nearest(queries: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For N uint64 hashes the index [N] of the nearest of M others, the first of equals, and the differing bits [N].

    All pairs are compared, in blocks: exact for any distance and however alike the images are, and less work than
    hashing them. Bands of bits (pigeonhole) are quicker only for evenly spread hashes, which those of streets are not.
    """
    at, best = np.zeros(len(queries), np.int64), np.full(len(queries), 255, np.uint8)
    for start in range(0, len(queries), ROWS):
        rows = slice(start, start + ROWS)
        for first in range(0, len(others), COLUMNS):
            bits = np.bitwise_count(queries[rows, None] ^ others[None, first : first + COLUMNS])  # [ROWS, COLUMNS]
            column = bits.argmin(1)
            found = bits[np.arange(len(bits)), column]
            better = found < best[rows]
            at[rows][better], best[rows][better] = column[better] + first, found[better]
    return at, best
