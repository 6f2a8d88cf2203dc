#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1, opencv-python 5.0.0.93 (Python 3.11, Linux x86_64, CPU).
#
# TIFF is among Ultralytics' image formats, and 16-bit files are read, by OpenCV, which divides each value by 256 when
# it is asked for 8-bit colour. A camera with 12 bits writes values up to 4095, so the network sees at most 15 of 255:
# training and validation run to the end on pictures that are all but black. Nothing is said. Seen, of one frame with
# values from 0 to 4095:
#
#   in the file: uint16, up to 4095
#   what the network gets: uint8, up to 15 of 255
#   the same frame as 8-bit: up to 255 of 255
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ultralytics==8.4.190 torch==2.14.1 opencv-python==5.0.0.93 numpy==2.4.6
cd "$work"
export YOLO_CONFIG_DIR="$work" YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0
"$work/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import cv2
import numpy as np
import ultralytics
from ultralytics.data.dataset import YOLODataset

print("ultralytics", ultralytics.__version__, "opencv", cv2.__version__)
frame = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
largest = {}
for bits, pixels in ((16, frame), (8, (frame // 16).astype(np.uint8))):
    root = Path(f"bits{bits}")
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    cv2.imwrite(str(root / "images/frame.tiff"), pixels)
    (root / "labels/frame.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    data = {"names": {0: "light"}, "nc": 1, "channels": 3}
    sample = YOLODataset(img_path=str(root / "images"), data=data, task="detect", imgsz=64, augment=False)[0]
    largest[bits] = int(sample["img"].max())
    kind = str(sample["img"].dtype).removeprefix("torch.")
stored = cv2.imread("bits16/images/frame.tiff", cv2.IMREAD_UNCHANGED)
print(f"in the file: {stored.dtype}, up to {stored.max()}")
print(f"what the network gets: {kind}, up to {largest[16]} of 255")
print(f"the same frame as 8-bit: up to {largest[8]} of 255")
if stored.max() != 4095 or largest != {16: 15, 8: 255}:
    raise SystemExit("no longer so")
PYTHON
