"""A TIFF, JPEG or PNG file in, its Orientation out: how viewers turn the stored pixels. Nothing is decoded.

Boxes count pixels as they are stored, while readers differ in whether they turn them, and OpenCV 5 differs between
formats and flags. So this tag is read before any of them gets to see the file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

UPRIGHT = 1
_TAG = 0x0112
_TIFF_KINDS = {  # signature -> byte order, and the forms of an offset, of the number of tags and of a tag
    b"II*\0": ("<", "I", "H", "HHI4s"),
    b"MM\0*": (">", "I", "H", "HHI4s"),
    b"II+\0": ("<", "Q", "Q", "HHQ8s"),  # BigTIFF, whose first offset comes after 4 bytes more
    b"MM\0+": (">", "Q", "Q", "HHQ8s"),
}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}  # of TIFF's types those that libtiff takes for an Orientation
_MOST_TAGS = 4096  # a damaged count must not have gigabytes read


def read_orientation(stream: BinaryIO, *, behind_pixels: bool = True) -> int:
    """The Orientation of a file, 1 without one; of several the first that is not 1, and 0 for one that is no number.

    ``behind_pixels`` False saves the way to the end of a PNG, where the tag may also stand.
    """
    stream.seek(0)
    head = stream.read(8)
    try:
        if head[:4] in _TIFF_KINDS:
            found = _of_tiff(stream)
        elif head[:3] == b"\xff\xd8\xff":
            found = _of_jpeg(stream)
        elif head == b"\x89PNG\r\n\x1a\n":
            found = _of_png(stream, behind_pixels)
        else:
            return UPRIGHT
        return next((value for value in found if value != UPRIGHT), UPRIGHT)
    except (struct.error, OverflowError, ValueError):  # cut off or damaged: the decoder's to tell
        return UPRIGHT


def _of_tiff(stream: BinaryIO) -> Iterator[int]:
    """Those of the first directory; an EXIF block is a TIFF file, too."""
    stream.seek(0)
    if (signature := stream.read(4)) not in _TIFF_KINDS:
        return
    order, offset, count, tag = _TIFF_KINDS[signature]
    if offset == "Q":
        stream.read(4)
    stream.seek(_unpack(stream, order + offset))
    length = struct.calcsize(order + tag)
    data = stream.read(min(_unpack(stream, order + count), _MOST_TAGS) * length)
    for number, kind, _, value in struct.iter_unpack(order + tag, data[: len(data) // length * length]):
        if number == _TAG:
            yield struct.unpack_from(order + _WHOLE_NUMBERS[kind], value)[0] if kind in _WHOLE_NUMBERS else 0


def _of_jpeg(stream: BinaryIO) -> Iterator[int]:
    """Those of the EXIF blocks before the pixels; bytes between segments are skipped, as libjpeg does."""
    stream.seek(2)
    while byte := stream.read(1):
        if byte != b"\xff":
            continue
        while (marker := stream.read(1)) == b"\xff":
            pass
        if marker in (b"", b"\xda", b"\xd9"):  # the pixels, or the end
            return
        if marker in (b"\0", b"\x01") or b"\xd0" <= marker <= b"\xd8":  # these have no length
            continue
        length = _unpack(stream, ">H") - 2
        if marker != b"\xe1":
            stream.seek(length, io.SEEK_CUR)
        elif (data := stream.read(length)).startswith(b"Exif\0"):
            yield from _of_tiff(io.BytesIO(data[6:]))


def _of_png(stream: BinaryIO, behind_pixels: bool) -> Iterator[int]:
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND" or (kind == b"IDAT" and not behind_pixels):
            return
        if kind == b"eXIf":
            data = stream.read(length)
            yield from _of_tiff(io.BytesIO(data.removeprefix(b"Exif\0\0")))
            length = 0
        stream.seek(length + 4, io.SEEK_CUR)  # 4: its checksum


def _unpack(stream: BinaryIO, form: str) -> int:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]
