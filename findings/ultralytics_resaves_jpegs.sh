#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1, pillow 13.0.0 (Python 3.11, Linux x86_64, CPU).
#
# To validate is to read, but the reader of a dataset writes: a JPEG whose last two bytes are not FF D9 counts as
# damaged and is encoded anew at quality 100, in its place. Many cameras append bytes after the end of the image (a
# second picture, a note of the maker), which decoders skip. The user's file grows or shrinks, what was appended is
# gone, and the decoded pixels are no longer those that were there. Seen, of a JPEG with 64 bytes after its end:
#
#   bytes before 2145, after 9593
#   largest difference of a decoded pixel: 3 of 255
#   appended bytes still there: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ultralytics==8.4.190 torch==2.14.1 opencv-python==5.0.0.93 \
    numpy==2.4.6 pillow==13.0.0
cd "$work"
export YOLO_CONFIG_DIR="$work" YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0
"$work/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import cv2
import numpy as np
import ultralytics
from ultralytics.data.dataset import YOLODataset

print("ultralytics", ultralytics.__version__)
root, appended = Path("data"), b"note of the maker".ljust(64)
(root / "images").mkdir(parents=True)
(root / "labels").mkdir()
coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
image = root / "images/photo.jpg"
cv2.imwrite(str(image), cv2.resize(coarse, (96, 96)), [cv2.IMWRITE_JPEG_QUALITY, 80])
image.write_bytes(image.read_bytes() + appended)
(root / "labels/photo.txt").write_text("0 0.5 0.5 0.25 0.25\n")
before, pixels = image.read_bytes(), cv2.imread(str(image)).astype(int)
data = {"names": {0: "light"}, "nc": 1, "channels": 3}
read = YOLODataset(img_path=str(root / "images"), data=data, task="detect", imgsz=64, augment=False)
after, largest = image.read_bytes(), np.abs(cv2.imread(str(image)).astype(int) - pixels).max()
print(f"bytes before {len(before)}, after {len(after)}")
print(f"largest difference of a decoded pixel: {largest} of 255")
print("appended bytes still there:", appended in after)
if len(read) != 1 or after == before or appended in after:
    raise SystemExit("no longer so")
PYTHON
