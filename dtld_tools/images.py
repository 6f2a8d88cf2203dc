"""Image files in, HxWx3 uint8 BGR arrays out, and back: the only opener of images.

A 16-bit single-channel image is a raw DTLD frame and is demosaiced by the official recipe, bit for bit;
every other image is colour (or grey) already and is only read.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dtld_tools.errors import ImageError

JPEG_QUALITY = 95
PAD_GREY = 114  # Ultralytics' letterbox colour
MAX_PIXELS = 2**27  # 64 DTLD frames; a header that claims more is refused before anything is allocated
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")

# Unreadable frames are reported by name; OpenCV's own lines on stderr would only hide that.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels from the header alone. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning about large images; our limit is below
            with Image.open(path, formats=("TIFF", "PNG", "JPEG")) as image:
                width, height = image.size
    except Exception as error:  # Pillow raises nearly anything on a broken header (struct.error, TypeError, ...)
        raise ImageError(f"{path}: {_reason(error)}; expected a TIFF, PNG or JPEG image") from error
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"{path}: got {width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    return width, height


def read_image(path: Path) -> np.ndarray:
    """Read an image as HxWx3 uint8 BGR; raw Bayer frames are demosaiced. Raises ImageError."""
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise ImageError(f"{path}: {_reason(error)}; expected a TIFF, PNG or JPEG image") from error
    if image is None:
        raise ImageError(f"{path}: cannot be decoded, expected a whole TIFF, PNG or JPEG image; copy it again")
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


def decode_bayer(raw: np.ndarray) -> np.ndarray:
    """HxW uint16 with 12 bits of Bayer data to HxWx3 uint8 BGR, as DTLD's official parser does it.

    Demosaic first, shift second: shifting first differs by 1 in places.
    """
    colour = cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR)
    return np.right_shift(colour, 4, out=colour).astype(np.uint8)


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


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """Encode HxWx3 uint8 BGR as ``.jpg`` (quality 95) or ``.png`` (lossless)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    written, data = cv2.imencode(suffix, image, options)
    if not written:
        raise ImageError(f"cannot encode a {image.shape} {image.dtype} image as {suffix}")
    return data.tobytes()


def write_atomically(path: Path, data: bytes, scratch: Path) -> None:
    """Write beside nothing half-written: into ``scratch`` (same file system), then rename."""
    temporary = scratch / f"{os.getpid()}.tmp"
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
