#!/bin/sh
# Ultralytics 8.4.190: training a pruned checkpoint trains the architecture of its yaml at full size, with fresh values
# wherever shapes differ, and says nothing but how many tensors were transferred.
#
# Seen: a yolov8n whose first layer keeps 4 of 16 channels has fewer parameters; the model that its trainer builds from it
# has as many as yolov8n.yaml makes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ultralytics==8.4.190 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$folder"
YOLO_CONFIG_DIR="$folder" YOLO_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

whole = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
pruned = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
first, second = pruned.model[0], pruned.model[1]
for layer, names in ((first.conv, ("weight",)), (first.bn, ("weight", "bias"))):
    for name in names:
        setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[:4]))
first.bn.running_mean, first.bn.running_var = first.bn.running_mean[:4], first.bn.running_var[:4]
first.conv.out_channels = first.bn.num_features = 4
second.conv.weight, second.conv.in_channels = nn.Parameter(second.conv.weight.detach()[:, :4]), 4
torch.save({"model": pruned, "epoch": -1, "train_args": {"task": "detect"}}, "pruned.pt")

loaded = YOLO("pruned.pt").model
trainer = DetectionTrainer.__new__(DetectionTrainer)
trainer.data = {"nc": 80, "channels": 3, "names": loaded.names}
trainer.set_model_names_for_load = lambda model: model
built = trainer.get_model(cfg=loaded.yaml, weights=loaded, verbose=False)  # as BaseTrainer.setup_model does
counts = [sum(p.numel() for p in model.parameters()) for model in (whole, loaded, built)]
print("yaml, checkpoint, trained:", counts)
assert counts[1] < counts[0] == counts[2]
PYTHON
