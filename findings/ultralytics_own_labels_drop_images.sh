#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1 (Python 3.11, Linux x86_64, CPU).
#
# Results.save_txt(save_conf=True), what `yolo predict save_txt save_conf` writes, has six columns: class, box and
# confidence. Ultralytics' own reader of labels takes five. A dataset that gets such a file as a label (pseudo labels
# are made so) loses the whole image, not the line, and training and validation go on with those that are left, with a
# warning in the log and no error. Seen, of two images with the same object, one of them labelled by save_txt:
#
#   columns written by save_txt(save_conf=True): 6
#   images that the reader keeps of 2: 1 (hand.png)
#   images that the reader keeps of 2 with save_conf=False: 2
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
import torch
import ultralytics
from ultralytics.data.dataset import YOLODataset
from ultralytics.engine.results import Results

print("ultralytics", ultralytics.__version__)
names = {0: "light"}
pixels = np.full((64, 64, 3), 110, np.uint8)
kept = {}
for with_confidence in (True, False):
    root = Path("with" if with_confidence else "without")
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for name in ("hand", "own"):
        cv2.imwrite(str(root / f"images/{name}.png"), pixels)
    (root / "labels/hand.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    found = Results(pixels, path="own.png", names=names, boxes=torch.tensor([[24.0, 24, 40, 40, 0.9, 0]]))
    found.save_txt(root / "labels/own.txt", save_conf=with_confidence)
    if with_confidence:
        columns = len((root / "labels/own.txt").read_text().split())
        print("columns written by save_txt(save_conf=True):", columns)
    data = {"names": names, "nc": 1, "channels": 3}
    read = YOLODataset(img_path=str(root / "images"), data=data, task="detect", imgsz=64, augment=False)
    kept[with_confidence] = [Path(label["im_file"]).name for label in read.labels]
print(f"images that the reader keeps of 2: {len(kept[True])} ({', '.join(kept[True])})")
print(f"images that the reader keeps of 2 with save_conf=False: {len(kept[False])}")
if columns != 6 or kept[True] != ["hand.png"] or len(kept[False]) != 2:
    raise SystemExit("no longer so")
PYTHON
