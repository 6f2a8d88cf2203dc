"""Image files in, HxWx3 uint8 BGR arrays out, and back: the only opener of images.

A 16-bit single-channel image is a raw DTLD frame and is demosaiced by the official recipe, bit for bit;
every other image is colour (or grey) already and is only read.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import imagesize
import numpy as np
from PIL import Image

from dtld_tools.errors import ImageError
from dtld_tools.types import Box

JPEG_QUALITY = 95
PAD_GREY = 114  # Ultralytics' letterbox colour
MAX_PIXELS = 2**27  # 64 DTLD frames; a header that claims more is refused before anything is allocated
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
UPRIGHT = (0, 1)  # of the tag Orientation (TIFF 6.0; EXIF has it from there): as stored
ORIENTATION = 0x0112

# Unreadable frames are reported by name; OpenCV's own lines on stderr would only hide that.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the header alone. Raises ImageError, also for an image that says it is turned.

    Boxes are in stored pixels. OpenCV 5.0 turns a TIFF whatever the flags (and with Orientation 5 to 8 cannot read it),
    a JPEG only under some, and trainers turn both: no reading of a turned image is everybody's.
    """
    # imagesize, not Pillow: 0.03 ms a file in place of 1 ms, which 40,979 frames wait for before the first pixel.
    width, height = imagesize.get(path, exif_rotation=False)
    if width == height == -1:
        raise ImageError(f"{path}: {_unreadable(path)}; expected a TIFF, PNG or JPEG image")
    if not (width > 0 < height and width * height <= MAX_PIXELS):
        raise ImageError(f"{path}: got {width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    if (turned := orientation(path)) not in UPRIGHT:
        raise ImageError(
            f"{path}: got an image that says it is turned (Orientation {turned}), expected pixels as they are shown: "
            "boxes might be of either; write it again without the tag"
        )
    return width, height


def orientation(path: Path) -> int:
    """The tag Orientation of a TIFF, or of the EXIF data of another image; 1 where there is none."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
            if head[:4] in (b"II*\0", b"MM\0*"):  # 0.02 ms in place of Pillow's 0.25: raw frames are many
                return _tiff_orientation(stream, head)
        with Image.open(path) as image:
            exif = image.info.get("exif")  # getexif would decode a PNG that has none
            return 1 if exif is None else int(image.getexif().get(ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError, TypeError, struct.error, Image.DecompressionBombError):
        return 1  # a damaged header: the decoder says so


def _tiff_orientation(stream: BinaryIO, head: bytes) -> int:
    """The value of the tag in the first directory of a TIFF (TIFF 6.0, section 2)."""
    order = "<" if head[:1] == b"I" else ">"
    stream.seek(struct.unpack(f"{order}I", head[4:])[0])
    (entries,) = struct.unpack(f"{order}H", stream.read(2))
    for entry in struct.iter_unpack(f"{order}HHIHH", stream.read(12 * entries)):
        if entry[0] == ORIENTATION:
            return entry[3]
    return 1


def read_image(path: Path) -> np.ndarray:
    """Read an image as HxWx3 uint8 BGR; raw Bayer frames are demosaiced. Raises ImageError."""
    image_size(path)  # a header that claims 2^31 pixels must not get to the decoder
    try:
        image = _decode(path)
    except (OSError, cv2.error) as error:
        raise ImageError(f"{path}: {_in_one_line(error)}; expected a TIFF, PNG or JPEG image") from error
    if image is None:
        raise ImageError(f"{path}: {_unreadable(path)}; expected a whole TIFF, PNG or JPEG image; copy it again")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.dtype == np.uint16 and channels == 1:
        return decode_bayer(image)
    if image.dtype == np.uint8 and channels == 3:
        return image
    if image.dtype == np.uint8 and channels in (1, 4):
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR)
    raise ImageError(
        f"{path}: got {image.dtype} with {channels} channels, expected 8-bit colour or a 16-bit raw Bayer frame"
    )


def _decode(path: Path) -> np.ndarray | None:
    """imread takes a third of imdecode's time for a raw TIFF, but lets truncated JPEGs pass, their rest grey."""
    with path.open("rb") as stream:
        if stream.read(4) in (b"II*\0", b"MM\0*"):
            return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


def decode_bayer(raw: np.ndarray) -> np.ndarray:
    """HxW uint16 with 12 bits of Bayer data to HxWx3 uint8 BGR, as DTLD's official parser does it.

    Demosaic first, shift second: shifting first differs by 1 in places.
    """
    # Memory that is given back and taken anew costs more than the demosaicing itself, so each thread keeps its own.
    colour = _scratch.colour = cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR, dst=getattr(_scratch, "colour", None))
    if raw.max(initial=0) > 4095:  # more than 12 bits: the official recipe wraps around
        return (colour >> 4).astype(np.uint8)
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


def write_atomically(path: Path | str, data: bytes | memoryview, scratch: Path | str) -> None:
    """Write beside nothing half-written: into ``scratch`` (same file system), then rename."""
    temporary = f"{scratch}/{_WRITER}{os.getpid()}.tmp"
    write(temporary, data)
    os.replace(temporary, path)


def write(path: Path | str, data: bytes | memoryview) -> None:
    """Write a file, half of it if the disk is full."""
    with open(path, "wb") as stream:
        stream.write(data)


_WRITER = f"{socket.gethostname()}-"  # several machines may write into one shared folder


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return "cannot be decoded" if stream.read(1) else "the file is empty"
    except OSError as error:
        return error.strerror or str(error)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
