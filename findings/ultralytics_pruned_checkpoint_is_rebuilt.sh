#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1 (Python 3.11, Linux x86_64, CPU).
#
# A checkpoint of Ultralytics holds the module itself, so a network whose channels were pruned saves, loads, predicts
# and validates as it is. Training does not train it: the trainer builds the network anew from the yaml that the
# checkpoint carries, at full width, takes over the tensors whose shapes agree, and draws the others. There is no error
# and no warning; the log line says how many items were transferred. What comes out is as large as before pruning.
# Seen, for yolov5n with one block's hidden channels halved:
#
#   parameters: whole 2508659, pruned 2488115, loaded 2488115, trained 2508659
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
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

for split in ("train", "val"):
    Path("images", split).mkdir(parents=True)
    Path("labels", split).mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(f"images/{split}/{name}.png", np.full((64, 64, 3), 110, np.uint8))
        Path(f"labels/{split}/{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
Path("data.yaml").write_text(f"path: {Path.cwd()}\ntrain: images/train\nval: images/val\nnames: [light]\n")


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def fewer_outputs(block, channels):
    """Keep the first output channels of a convolution and its batch norm."""
    block.conv.weight = nn.Parameter(block.conv.weight[:channels].clone())
    block.conv.out_channels = channels
    norm = nn.BatchNorm2d(channels, eps=block.bn.eps, momentum=block.bn.momentum)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data = getattr(block.bn, name)[:channels].clone()
    block.bn = norm


model = DetectionModel("yolov5n.yaml", nc=1, verbose=False)
model.names = {0: "light"}
whole = size(model)
bottleneck = model.model[6].m[0]  # two convolutions in a row: what the first gives, only the second takes
half = bottleneck.cv1.conv.out_channels // 2
fewer_outputs(bottleneck.cv1, half)
bottleneck.cv2.conv.weight = nn.Parameter(bottleneck.cv2.conv.weight[:, :half].clone())
bottleneck.cv2.conv.in_channels = half
torch.save({"model": model, "train_args": {"task": "detect"}}, "pruned.pt")
pruned = size(model)

again = YOLO("pruned.pt")
loaded = size(again.model)
again.predict("images/val/a.png", imgsz=64, device="cpu", verbose=False)  # the pruned network works
again.train(data="data.yaml", epochs=1, imgsz=64, batch=2, device="cpu", workers=0, plots=False, project=str(Path.cwd()),
            name="run", verbose=False)
trained = size(YOLO("run/weights/last.pt").model)
print("ultralytics", ultralytics.__version__)
print(f"parameters: whole {whole}, pruned {pruned}, loaded {loaded}, trained {trained}")
if not pruned == loaded < whole == trained:
    raise SystemExit("no longer so")
PYTHON
