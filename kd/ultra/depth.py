"""How many bits an image file has per channel, by its header alone: what is not 8-bit must not come in.

In: image files. Out: nothing, or a refusal.
Invariant: no pixel is decoded. Ultralytics keeps the high byte of 16 bits without a word, of which a raw frame, whose
values fill 12, has hardly anything: at most 15 of 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from kd.errors import DataError

NAMED = 3  # files that an error names
TIFF, BIG_TIFF = (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")
BITS_PER_SAMPLE = 258  # TIFF's tag


def bits_per_channel(image: Path) -> int:
    """The bits that a file's header names; 8 where it names none or cannot be read: decoders judge the rest."""
    try:
        with image.open("rb") as file:
            head = file.read(128)
            if head[:4] in (*TIFF, *BIG_TIFF):
                directory = ImageFileDirectory_v2(head[: 16 if head[:4] in BIG_TIFF else 8])
                file.seek(directory.next)
                directory.load(file)
                return max(directory.get(BITS_PER_SAMPLE, (8,)))
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                return head[24]
            if head.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000, bare
                return (head[42] & 0x7F) + 1
            if head[4:8] == b"jP  ":
                return (head[head.index(b"ihdr") + 14] & 0x7F) + 1
    except Exception:  # whatever a damaged file makes of it
        pass
    return 8


def require_8_bit(where: str, images: Sequence[Path], bits: Sequence[int] | None = None) -> None:
    """Raise DataError, which begins with ``where``, for images of more than 8 bits; ``bits`` where they are known."""
    bits = [bits_per_channel(image) for image in images] if bits is None else bits
    deep = [(image, depth) for image, depth in zip(images, bits, strict=True) if depth > 8]
    if deep:
        names = ", ".join(f"{image.name} has {depth} bits" for image, depth in deep[:NAMED])
        raise DataError(
            f"{where}: got {len(deep)} of {len(images)} images that are not 8-bit ({names}"
            f"{', ...' if len(deep) > NAMED else ''}), expected 8 bits per channel: of raw DTLD frames make a dataset "
            f"by dtld convert, convert others first"
        )
