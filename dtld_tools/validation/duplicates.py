"""A YOLO dataset in, near-identical images across its splits out: the leak that no label shows.

Files of the same bytes are always found. Else images are compared by a perceptual hash of 64 bits (pHash); two images
are near duplicates if at most ``distance`` bits differ. The search is exact. Only pairs in different splits count, each
image with its nearest in the other. Neither the depth in bits nor an Orientation in the file makes a difference.

Left out of the comparison by hashes: images of hardly any detail such as sky, whose hash says nothing. Left out at all:
the changed copies of a dataset of dtld, whose originals are compared. Tiles are compared within one window: where a
frame is nearly another, so are the tiles at the same place.
"""

from __future__ import annotations

import glob
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import imagesize
import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from dtld_tools.dataset.data_yaml import read_data_yaml
from dtld_tools.dataset.names import image_path
from dtld_tools.dataset.reading import read_lines
from dtld_tools.dataset.records import image_from_json
from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.files import UNFINISHED
from dtld_tools.pixels.images import MAX_PIXELS, SIGNATURES, decode_bayer
from dtld_tools.pixels.orientation import read_orientation
from dtld_tools.threads import map_in_order
from dtld_tools.types import SPLITS, Split
from schemas.lists import ListError, read_list

# Of 64 bits. Shifted and noisy neighbours differ by 0 to 6, the nearest tiles of two of `dtld sample`'s streets by 10.
DISTANCE = 6
THUMB_PX = 32  # what pHash makes of an image before its cosine transform
LEAST_DETAIL = 2.0  # grey levels; street scenes have 5 to 20, sky below 1.5
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_TURN = Image.Transpose
#: Orientation -> from pixels as stored to as shown, and back: which of the two a decoder gives differs.
TURNS: dict[int, tuple[Image.Transpose, ...]] = {
    2: (_TURN.FLIP_LEFT_RIGHT,),
    3: (_TURN.ROTATE_180,),
    4: (_TURN.FLIP_TOP_BOTTOM,),
    5: (_TURN.TRANSPOSE,),
    6: (_TURN.ROTATE_270, _TURN.ROTATE_90),
    7: (_TURN.TRANSVERSE,),
    8: (_TURN.ROTATE_90, _TURN.ROTATE_270),
}
ROWS, COLUMNS = 8, 2**14  # of a block of pairs: 1 MiB, which stays in the processor's cache


class Compared(NamedTuple):
    """An image to compare with those of the same ``group`` in other splits; its path, below the root if it can be."""

    name: str
    split: Split
    group: str = ""


def find_near_duplicates(
    root: Path, *, distance: int = DISTANCE, workers: int = 1, quiet: bool = True, is_proven: bool = False
) -> dict[str, Any]:
    """``near_duplicates`` [{a, b, splits, distance, identical}], images ``compared`` and ``plain``, and ``defects``.

    ``compared`` are the images that have a hash. A defect is an image that cannot be read, unless ``is_proven`` says
    that those are reported already; another is that there was nothing to compare. Works on any YOLO dataset with a
    data.yaml.
    Raises DatasetError, and UsageError without the package imagehash.
    """
    check_options(distance)
    images = list(_own_images(root) if is_own(root) else _foreign_images(root))
    prints, defects = [], []
    bar = tqdm(
        map_in_order(_hasher(), (root / image.name for image in images), workers),
        total=len(images),
        unit="image",
        desc="hash",
        disable=True if quiet else None,
    )
    for image, found in zip(images, bar, strict=True):
        prints.append(found)
        if found.failure and not is_proven:
            defects.append(f"{image.name}: {found.failure}")
    pairs, compared = [], 0
    for first, second in combinations(SPLITS, 2):
        of_splits, count = _pairs(images, prints, first, second, distance)
        pairs += of_splits
        compared += count
    usable = sum(bool(its.hashes) for its in prints)
    plain = sum(not its.hashes and its.failure is None for its in prints)
    if not pairs and not compared:
        splits = ", ".join(sorted({image.split for image in images}, key=SPLITS.index)) or "no split"
        defects.append(
            f"near duplicates: nothing was compared: {usable} images with a hash and {plain} plain ones in {splits}, "
            "expected images of some detail at the same place in two splits"
        )
    return {
        "compared": usable,
        "plain": plain,
        "defects": defects,
        "near_duplicates": [
            {
                "a": images[pair.a].name,
                "b": images[pair.b].name,
                "splits": [images[pair.a].split, images[pair.b].split],
                "distance": pair.bits,
                "identical": pair.identical,
            }
            for pair in pairs
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
    return any((root / name).exists() for name in ("frames.jsonl", "manifest.jsonl", UNFINISHED))


def _own_images(root: Path) -> Iterator[Compared]:
    for _, line in read_lines(root / "manifest.jsonl", "manifest", []):  # a line that is wrong is `validate`'s to tell
        image = image_from_json(line)
        if image.augmentation is None:
            group = sys.intern(" ".join(map(str, (*image.window, image.scale))))
            split = SPLITS[SPLITS.index(image.split)]  # one text for all images
            yield Compared(_name(image_path(root, image), root), split, group)


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


@dataclass(frozen=True, slots=True)
class _Prints:
    """What is known of an image file: a digest of its bytes, its hashes, and why it cannot be decoded.

    A plain image has no hash. One that is to be turned has several, as not all readers turn it: as stored and as shown.
    """

    digest: bytes = b""
    hashes: frozenset[int] = frozenset()
    failure: str | None = None


def _hasher() -> Callable[[Path], _Prints]:
    """A function that reads an image file; called in threads."""
    try:
        import imagehash  # with scipy and PyWavelets it takes 150 MB, so it is an extra
    except ModuleNotFoundError as error:
        raise UsageError("--near-duplicates: imagehash is not installed; pip install 'dtld-kd[duplicates]'") from error

    def hash_of(thumb: Image.Image) -> int:
        return int.from_bytes(np.packbits(imagehash.phash(thumb).hash).tobytes(), "big")

    def prints_of(path: Path) -> _Prints:
        digest = b""
        try:
            data = path.read_bytes()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            thumb = _thumb(data)
        # ImportError: Ultralytics, where it is loaded too, has Pillow look for a HEIF reader.
        except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError, cv2.error) as error:
            return _Prints(digest, failure=f"cannot be decoded ({' '.join(str(error).split())})")
        if detail(np.asarray(thumb, np.float32)) < LEAST_DETAIL:
            return _Prints(digest)
        turned = [thumb.transpose(turn) for turn in TURNS.get(read_orientation(io.BytesIO(data)), ())]
        return _Prints(digest, frozenset(map(hash_of, (thumb, *turned))))

    return prints_of


def _thumb(data: bytes) -> Image.Image:
    """An image file in grey at 32 x 32 pixels. Raises what Pillow and OpenCV raise, and ValueError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if not (image.mode in ("I", "F") or any(";16" in str(tile.args) for tile in image.tile)):
                # A JPEG is decoded at 1/2 to 1/8 of its size, no smaller than 64 px: pHash looks at 32 x 32 pixels.
                image.draft("L", (2 * THUMB_PX, 2 * THUMB_PX))
                return _small(image.convert("L"))
    except (UnidentifiedImageError, ImportError):  # ImportError: Ultralytics, where loaded, asks for a HEIF reader
        if not data.startswith(SIGNATURES):
            raise
    # More than 8 bits: Pillow cuts grey off at 255, keeps 8 bits of colour, and knows no colour of floating point.
    width, height = imagesize.get(io.BytesIO(data), exif_rotation=False)
    if width * height > MAX_PIXELS:
        raise ValueError(f"got {width} x {height} pixels, expected at most {MAX_PIXELS}")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("neither by Pillow nor by OpenCV")
    pixels = in_8_bits(pixels)
    if pixels.ndim == 3:
        to_grey = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        code = to_grey.get(pixels.shape[2])
        pixels = pixels[..., 0] if code is None else cv2.cvtColor(pixels, code)
    return _small(Image.fromarray(np.ascontiguousarray(pixels)))


def _small(image: Image.Image) -> Image.Image:
    return image.resize((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)


def in_8_bits(pixels: np.ndarray) -> np.ndarray:
    """HxW or HxWxC of any type to uint8, so that a picture gives the same whatever it was stored in.

    A raw frame is decoded as everywhere. Else white is the least of 1, 255, 4095 and 65535 that no pixel is above.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16 and pixels.ndim == 2 and 255 < pixels.max(initial=0) <= 4095:
        return decode_bayer(pixels)
    values = np.nan_to_num(pixels.astype(np.float64), nan=0, posinf=0, neginf=0)
    values -= min(values.min(initial=0), 0)
    most = float(values.max(initial=0))
    white = next((level for level in (1, 255, 4095, 65535) if most <= level), most)
    return np.rint(values * (255 / white)).astype(np.uint8)


def detail(thumb: np.ndarray) -> float:
    """The mean absolute second difference of HxW grey levels: 0 for an even surface and for an even gradient."""
    return float(sum(np.abs(np.diff(thumb, 2, axis)).mean() for axis in (0, 1)) / 2)


# --- pairs -------------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """An image of the earlier split, one of the later, and how alike they are."""

    a: int
    b: int
    bits: int
    identical: bool


def _pairs(
    images: Sequence[Compared], prints: Sequence[_Prints], first: Split, second: Split, distance: int
) -> tuple[list[_Pair], int]:
    """For each image of the second split the first of the same bytes, or else its nearest of the same group if that is
    near enough; and how many images had any to be compared with by their hashes.
    """
    same: dict[bytes, int] = {}
    ours: dict[str, list[tuple[int, int]]] = {}  # group -> image and hash, of the second split
    theirs: dict[str, list[tuple[int, int]]] = {}
    found: dict[int, _Pair] = {}
    for index, (image, its) in enumerate(zip(images, prints, strict=True)):
        if image.split == first:
            same.setdefault(its.digest, index)
            theirs.setdefault(image.group, []).extend((index, value) for value in its.hashes)
    same.pop(b"", None)  # of files that are not there
    for index, (image, its) in enumerate(zip(images, prints, strict=True)):
        if image.split == second:
            if its.digest in same:
                found[index] = _Pair(same[its.digest], index, 0, True)
            ours.setdefault(image.group, []).extend((index, value) for value in its.hashes)
    compared = set()
    for group in ours.keys() & theirs.keys():
        if not (ours[group] and theirs[group]):
            continue
        compared |= {index for index, _ in ours[group]}
        at, bits = nearest(*(np.array([value for _, value in side[group]], np.uint64) for side in (ours, theirs)))
        for row in np.flatnonzero(bits <= distance):
            b, pair = ours[group][row][0], _Pair(theirs[group][at[row]][0], ours[group][row][0], int(bits[row]), False)
            if b not in found or pair.bits < found[b].bits:
                found[b] = pair
    return [found[index] for index in sorted(found)], len(compared)


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
