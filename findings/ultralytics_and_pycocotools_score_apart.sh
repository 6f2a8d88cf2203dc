#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1, pycocotools 2.0.11 (Python 3.11, Linux x86_64, CPU).
#
# The same objects and the same detections, each found exactly, scored by both. pycocotools' AP is 1. Ultralytics' is
# 0.995: its recall axis ends at a precision of 0, which the last of 101 points reads, so that no detector can have more.
# And they do not count the same objects: of label rows that are equal Ultralytics' reader keeps one, pycocotools keeps
# every annotation. Two lights in one place, or a box that two annotators drew, are one target there and two here. Seen,
# of an image with 4 rows, 2 of them equal:
#
#   targets: 4 in the file, 3 for Ultralytics, 4 for pycocotools
#   AP50 of the same perfect detections: Ultralytics 0.995, pycocotools 1.000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ultralytics==8.4.190 torch==2.14.1 opencv-python==5.0.0.93 \
    numpy==2.4.6 pycocotools==2.0.11
cd "$work"
export YOLO_CONFIG_DIR="$work" YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import ultralytics
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.metrics import ap_per_class

side, rows = 64, [(0, 0.25, 0.25, 0.25, 0.25), (0, 0.75, 0.25, 0.25, 0.25), (0, 0.5, 0.75, 0.25, 0.25)]
rows.append(rows[0])
Path("data/images").mkdir(parents=True)
Path("data/labels").mkdir()
cv2.imwrite("data/images/a.png", np.full((side, side, 3), 110, np.uint8))
Path("data/labels/a.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))

data = {"names": {0: "light"}, "nc": 1, "channels": 3}
(label,) = YOLODataset(img_path="data/images", data=data, task="detect", imgsz=side, augment=False).labels
theirs = len(label["cls"])
boxes = [[(x - w / 2) * side, (y - h / 2) * side, w * side, h * side] for _, x, y, w, h in rows]
annotations = [
    {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    for i, box in enumerate(boxes, 1)
]
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = {"images": [{"id": 1, "width": side, "height": side}], "annotations": annotations,
                     "categories": [{"id": 1, "name": "light"}]}  # fmt: skip
    truth.createIndex()
    found = truth.loadRes([{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes])
    scored = COCOeval(truth, found, "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
coco = scored.stats[1]
# Each of these is right at every threshold of IoU: [detections, thresholds], confidence, class found, class there.
ap = ap_per_class(np.ones((theirs, 10), bool), np.full(theirs, 0.9), np.zeros(theirs), np.zeros(theirs))[5]
print("ultralytics", ultralytics.__version__)
print(f"targets: {len(rows)} in the file, {theirs} for Ultralytics, {len(truth.anns)} for pycocotools")
print(f"AP50 of the same perfect detections: Ultralytics {ap[0, 0]:.3f}, pycocotools {coco:.3f}")
if (theirs, len(truth.anns), round(float(ap[0, 0]), 3), round(float(coco), 3)) != (3, 4, 0.995, 1.0):
    raise SystemExit("no longer so")
PYTHON
