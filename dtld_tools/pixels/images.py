"""Image files in, HxWx3 uint8 BGR arrays out, and back: the only opener of images.

A 16-bit single-channel image is a raw DTLD frame and is demosaiced by the official recipe, bit for bit;
every other image is colour (or grey) already and is only read. Pixels come as they are stored, which is how boxes
count them: a file whose Orientation says that they are to be turned is an error, whatever its format.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import imagesize
import numpy as np

from dtld_tools.errors import ImageError
from dtld_tools.pixels.orientation import UPRIGHT, read_orientation
from dtld_tools.types import Box

JPEG_QUALITY = 95
PAD_GREY = 114  # Ultralytics' letterbox colour
MAX_PIXELS = 2**27  # 64 DTLD frames; a header that claims more is refused before anything is allocated
#: How files of these kinds begin, TIFF's first: OpenCV reads others, but whether it turns them is not known here.
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG", b"\xff\xd8\xff")

#: Suffix -> how such a file starts and ends. Decoders may fill the rest of a truncated JPEG with grey and say nothing.
JPEG = (b"\xff\xd8\xff", b"\xff\xd9")
MARKS = {".jpg": JPEG, ".jpeg": JPEG, ".png": (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82")}
MAX_RAW = 4095  # of a raw frame: 12 bits
PNG_DEPTH = 24  # the byte that says how many bits a sample has
#: Orientation -> HxWxC pixels as stored to pixels as shown; of 5 to 8, width and height change places.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}

# Unreadable frames are reported by name; OpenCV's own lines on stderr would only hide that.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Header(NamedTuple):
    """What the header of an image file says: its size in pixels, and how the stored pixels are to be turned."""

    size_wh: tuple[int, int]
    orientation: int = UPRIGHT


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the header alone. Raises ImageError."""
    return read_header(path).size_wh


def read_header(path: Path, *, shown: bool = False) -> Header:
    """Size and Orientation from the header alone; the size as ``shown``, or as stored of one that is not to be turned.

    Raises ImageError.
    """
    # imagesize, not Pillow: 0.03 ms a file in place of 1 ms, which 40,979 frames wait for before the first pixel.
    width = height = -1
    orientation = UPRIGHT
    try:
        with path.open("rb") as stream:
            if stream.read(4).startswith(SIGNATURES):
                width, height = imagesize.get(stream, exif_rotation=False)
                orientation = _orientation(path, stream, shown, behind_pixels=False)
    except OSError:
        pass  # `_unreadable` says why
    if width == height == -1:
        raise ImageError(f"{path}: {_unreadable(path)}; expected a TIFF, PNG or JPEG image")
    if not (width > 0 < height and width * height <= MAX_PIXELS):
        raise ImageError(f"{path}: got {width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    return Header((height, width) if orientation >= 5 else (width, height), orientation)


def refuse_turned(path: Path, stream: BinaryIO, *, behind_pixels: bool = True) -> None:
    """Raises ImageError for an image whose Orientation is not 1; see `read_orientation`."""
    orientation = read_orientation(stream, behind_pixels=behind_pixels)
    if orientation != UPRIGHT:
        raise ImageError(
            f"{path}: got Orientation {orientation}, expected 1 or none, as boxes count pixels as they are stored; "
            "rewrite the file without the tag if its boxes do so (exiftool -Orientation= FILE)"
        )


def _orientation(path: Path, stream: BinaryIO, shown: bool, *, behind_pixels: bool = True) -> int:
    """The Orientation of a PNG or JPEG that is taken as ``shown``; else UPRIGHT. Raises ImageError for any other."""
    stream.seek(0)
    if not shown or stream.read(4) in SIGNATURES[:4]:  # OpenCV turns some TIFF files by itself
        refuse_turned(path, stream, behind_pixels=behind_pixels)
        return UPRIGHT
    orientation = read_orientation(stream, behind_pixels=behind_pixels)
    return orientation if orientation in TURNS else UPRIGHT


def read_image(path: Path, *, shown: bool = False) -> np.ndarray:
    """Read an image as HxWx3 uint8 BGR; raw Bayer frames are demosaiced. Raises ImageError.

    One that is to be turned is an error; taken as ``shown``, as trainers take it, it is turned. One of more than 12
    bits is no raw frame then, but a thermal image, say.
    """
    image, orientation = _read(path, shown)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if orientation != UPRIGHT:
        image = np.ascontiguousarray(TURNS[orientation](image))
    if image.dtype == np.uint16 and channels == 1:
        if shown and image.max(initial=0) > MAX_RAW:
            raise ImageError(
                f"{path}: got values up to {image.max()}, expected 8 bits, or a raw Bayer frame of 12; "
                "scale grey of 16 bits to 8"
            )
        return decode_bayer(image)
    if image.dtype == np.uint8 and channels == 3:
        return image
    if image.dtype == np.uint8 and channels in (1, 4):
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR)
    raise ImageError(
        f"{path}: got {image.dtype} with {channels} channels, expected 8-bit colour or a 16-bit raw Bayer frame"
    )


def read_disparity(path: Path) -> np.ndarray:
    """Read a disparity image as it is stored, HxW uint16 (`dtld_tools.pixels.disparity`). Raises ImageError."""
    image, _ = _read(path, shown=False)
    if image.dtype != np.uint16 or image.ndim != 2:
        raise ImageError(f"{path}: got {image.dtype} in {image.ndim} dimensions, expected a 16-bit disparity image")
    return image


def _read(path: Path, shown: bool) -> tuple[np.ndarray, int]:
    """The stored pixels and how to turn them. Raises ImageError."""
    read_header(path, shown=shown)  # a header that claims 2^31 pixels must not get to the decoder
    try:
        image, orientation = _decode(path, shown)
    except (OSError, cv2.error) as error:
        reason = " ".join(str(error).split())
        raise ImageError(f"{path}: {reason}; expected a TIFF, PNG or JPEG image") from error
    if image is None:
        raise ImageError(f"{path}: {_unreadable(path)}; expected a whole TIFF, PNG or JPEG image; copy it again")
    return image, orientation


def _decode(path: Path, shown: bool) -> tuple[np.ndarray | None, int]:
    """The stored pixels and how to turn them.

    imread takes a third of imdecode's time for a raw TIFF, but lets truncated JPEGs pass, their rest grey.
    """
    with path.open("rb") as stream:
        is_tiff = stream.read(4) in SIGNATURES[:2]
    if is_tiff:
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED), UPRIGHT
    data = np.fromfile(path, np.uint8)
    orientation = _orientation(path, io.BytesIO(data.data), shown)
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED), orientation


def read_encoded(path: Path, suffix: str) -> bytes | None:
    """The bytes of an upright 8-bit image file that has the format of ``suffix`` already, else None.

    What stands behind the end of the image is left out: phones put more pictures there. Raises ImageError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; expected a {suffix[1:]} image") from error
    start, end = MARKS[suffix]
    place = data.rfind(end)
    if not data.startswith(start) or place < 0 or (suffix == ".png" and data[PNG_DEPTH] > 8):
        return None
    return data[: place + len(end)] if read_orientation(io.BytesIO(data)) == UPRIGHT else None


def decode_bayer(raw: np.ndarray) -> np.ndarray:
    """HxW uint16 with 12 bits of Bayer data to HxWx3 uint8 BGR, as DTLD's official parser does it.

    Demosaic first, shift second: shifting first differs by 1 in places.
    """
    # Memory that is given back and taken anew costs more than the demosaicing itself, so each thread keeps its own.
    colour = _scratch.colour = cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR, dst=getattr(_scratch, "colour", None))
    if raw.max(initial=0) > MAX_RAW:  # the official recipe wraps around
        return np.right_shift(colour, 4).astype(np.uint8)
    # x >> 4 in one pass: x / 16 - 15 / 32 is nearest to the whole number below x / 16, and exact in float32.
    return cv2.convertScaleAbs(colour, alpha=1 / 16, beta=-15 / 32)


_scratch = threading.local()


def crop(image: np.ndarray, x: int, y: int, w: int, h: int, size_wh: tuple[int, int]) -> np.ndarray:
    """The window of an image, resized to ``size_wh``; what lies beyond the right and lower edge is grey."""
    part = image[y : y + h, x : x + w]
    below, right = h - part.shape[0], w - part.shape[1]
    if below or right:
        part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(PAD_GREY,) * 3)
    if size_wh != (w, h):
        shrinking = size_wh[0] < w
        part = cv2.resize(part, size_wh, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return part


def paint_over(image: np.ndarray, hidden: Sequence[Box], shown: Sequence[Box]) -> np.ndarray:
    """A copy with every pixel grey that some ``hidden`` box touches and no ``shown`` box does; boxes in pixels."""
    mask = np.zeros(image.shape[:2], bool)
    for boxes, value in ((hidden, True), (shown, False)):
        for x1, y1, x2, y2 in boxes:
            mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = value
    image = image.copy()
    image[mask] = PAD_GREY
    return image


def encode_image(image: np.ndarray, suffix: str) -> memoryview:
    """Encode HxWx3 uint8 BGR as ``.jpg`` (quality 95) or ``.png`` (lossless)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    written, data = cv2.imencode(suffix, image, options)
    if not written:
        raise ImageError(f"cannot encode a {image.shape} {image.dtype} image as {suffix}")
    return data.data


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return "cannot be decoded" if stream.read(1) else "the file is empty"
    except OSError as error:
        return error.strerror or str(error)
