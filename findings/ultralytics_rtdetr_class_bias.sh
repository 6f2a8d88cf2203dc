#!/usr/bin/env bash
# ultralytics 8.4.190, torch 2.14.1 (Python 3.11, Linux x86_64, CPU).
#
# An RT-DETR's score heads begin with a bias that is to say "an object with probability 0.01" (the prior of focal loss),
# but it is divided by 80 and multiplied by the number of classes. With COCO's 80 that is the prior; with fewer it is
# hardly one: a model of two classes begins by taking each of its 300 queries for an object of each class with
# probability 0.47, and its classification loss begins hundreds of times higher than with the prior set. YOLO's Detect
# heads beside it have the prior for any number of classes.
# Seen, for yolov8n-rtdetr.yaml, the score that a head's bias stands for:
#
#   classes 80: 0.010   20: 0.241   2: 0.471   1: 0.486
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet ultralytics==8.4.190 torch==2.14.1 numpy==2.4.6
cd "$work"
export YOLO_CONFIG_DIR="$work" YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0
"$work/venv/bin/python" - <<'PYTHON'
import torch
import ultralytics
from ultralytics.nn.tasks import RTDETRDetectionModel

print("ultralytics", ultralytics.__version__, "torch", torch.__version__.partition("+")[0])
seen = {}
for classes in (80, 20, 2, 1):
    torch.manual_seed(0)
    model = RTDETRDetectionModel("yolov8n-rtdetr.yaml", nc=classes, verbose=False)
    head = model.model[-1]
    biases = torch.cat([head.enc_score_head.bias, *(layer.bias for layer in head.dec_score_head)]).detach()
    assert len(biases.unique()) == 1
    seen[classes] = round(float(biases[0].sigmoid()), 3)
print("classes -> score:", seen)
assert seen == {80: 0.01, 20: 0.241, 2: 0.471, 1: 0.486}, seen
PYTHON
