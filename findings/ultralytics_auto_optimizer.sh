#!/bin/sh
# Ultralytics 8.4.190: optimizer=auto is another method from the 10,001st iteration on, and says a momentum that it does not use.
#
# Seen: 10,000 iterations give AdamW at lr 0.001667 (two classes), 10,001 give MuSGD at lr 0.01. Its log says momentum=0.9;
# the warm-up of every group that has a momentum then leads to the argument, 0.937, which stays.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ultralytics==8.4.190 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$folder"
YOLO_CONFIG_DIR="$folder" YOLO_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import inspect
from copy import copy
from types import SimpleNamespace

from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

model, seen = DetectionModel("yolov8n.yaml", nc=2, verbose=False), []
for iterations in (10_000, 10_001):
    trainer = SimpleNamespace(args=copy(DEFAULT_CFG), data={"nc": 2})
    optimizer = BaseTrainer.build_optimizer(trainer, model, iterations=iterations)
    group = optimizer.param_groups[0]
    seen.append((type(optimizer).__name__, trainer.args.lr0, group.get("momentum"), trainer.args.momentum))
print(seen)
assert seen == [("AdamW", 0.001667, None, 0.937), ("MuSGD", 0.01, 0.9, 0.937)]
assert "self.args.warmup_momentum, self.args.momentum" in inspect.getsource(BaseTrainer._do_train)
PYTHON
