#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, numpy 2.4.6 (Python 3.11, Linux x86_64).
#
# cv2.imread(path, IMREAD_UNCHANGED | IMREAD_IGNORE_ORIENTATION) of an uncompressed 16-bit grey TIFF: the flag is
# kept for no value of the tag Orientation (274) but 1. 3 comes turned by 180 degrees and 2 and 4 mirrored; 5 to 8 are
# not read at all (None), though they are valid. Boxes that were drawn on the stored pixels are then in the wrong
# place of what OpenCV returns, and a Bayer mosaic begins with another colour. Seen, beside OpenCV's own error lines:
#
#   orientation 1: as stored
#   orientation 2: mirrored left to right
#   orientation 3: turned by 180 degrees
#   orientation 4: mirrored top to bottom
#   orientation 5: not read
#   orientation 6: not read
#   orientation 7: not read
#   orientation 8: not read
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import struct

import cv2
import numpy as np

stored = np.arange(6, dtype="<u2").reshape(2, 3) * 100


def tiff(orientation):
    """A baseline TIFF: one strip of 16-bit grey, eight tags and the orientation."""
    height, width = stored.shape
    pixels = stored.tobytes()
    short, long = 3, 4
    tags = [(256, long, width), (257, long, height), (258, short, 16), (259, short, 1), (262, short, 1),
            (273, long, 8), (274, short, orientation), (277, short, 1), (278, long, height), (279, long, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


words = {1: "as stored", 2: "mirrored left to right", 3: "turned by 180 degrees", 4: "mirrored top to bottom"}
turns = {"as stored": stored, "mirrored left to right": stored[:, ::-1], "turned by 180 degrees": stored[::-1, ::-1],
         "mirrored top to bottom": stored[::-1]}
changed = []
print("opencv", cv2.__version__)
for orientation in range(1, 9):
    with open("image.tiff", "wb") as file:
        file.write(tiff(orientation))
    read = cv2.imread("image.tiff", cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    found = "not read" if read is None else next(
        (name for name, pixels in turns.items() if np.array_equal(pixels, read)), f"other pixels {read.tolist()}"
    )
    print(f"orientation {orientation}: {found}")
    if found != words.get(orientation, "not read"):
        changed.append(orientation)
if changed:
    raise SystemExit(f"no longer so for orientation {changed}")
PYTHON
