#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1 (Python 3.11, Linux x86_64, CPU).
#
# The class branches of a Detect head have as many channels as there are classes, from the first level's width to 100. A
# model that is tuned from a checkpoint of 80 classes to fewer keeps those branches at the width for 80: its saved yaml
# says two classes, and makes a smaller network than the one beside it, whose tensors it cannot take. So two models of
# one name and one number of classes differ in size by where they started, and a table that compares a tuned one with
# one trained from nothing compares two networks. The log tells of transferred items, not of the width.
# Seen, for yolov8n and two classes:
#
#   parameters: from nothing 3011238, tuned from 80 classes 3138246, what the tuned one's yaml makes 3011238
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
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

for split in ("train", "val"):
    Path("images", split).mkdir(parents=True)
    Path("labels", split).mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(f"images/{split}/{name}.png", np.full((64, 64, 3), 110, np.uint8))
        Path(f"labels/{split}/{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
Path("data.yaml").write_text(f"path: {Path.cwd()}\ntrain: images/train\nval: images/val\nnames: [red, green]\n")

model = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
model.names = {i: f"class {i}" for i in range(80)}
torch.save({"model": model, "train_args": {"task": "detect"}}, "of_80.pt")
sizes = {}
for start in ("yolov8n.yaml", "of_80.pt"):
    YOLO(start).train(data="data.yaml", epochs=1, imgsz=64, batch=2, device="cpu", workers=0, plots=False,
                      project=str(Path.cwd()), name=Path(start).stem, verbose=False)
    trained = YOLO(f"{Path(start).stem}/weights/last.pt").model
    sizes[start] = sum(parameter.numel() for parameter in trained.parameters())
again = sum(p.numel() for p in DetectionModel(trained.yaml, nc=trained.yaml["nc"], verbose=False).parameters())
print("ultralytics", ultralytics.__version__)
print(f"parameters: from nothing {sizes['yolov8n.yaml']}, tuned from 80 classes {sizes['of_80.pt']}, "
      f"what the tuned one's yaml makes {again}")
if not sizes["yolov8n.yaml"] == again < sizes["of_80.pt"]:
    raise SystemExit("no longer so")
PYTHON
