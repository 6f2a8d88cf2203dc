#!/bin/sh
# Ultralytics 8.4.190 against 8.3.0: the same detections have another average precision.
#
# Seen: perfect detections score 0.995 in both. One of two objects found, without a false box, scores 0.495 in 8.4.190 and
# 0.750 in 8.3.0, whose curve falls in a line from the last recall to a recall of 1. Of a right and a wrong box with the
# same confidence, the one that comes first in the data decides: 0.995 or 0.497.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ultralytics==8.4.190 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$folder"
YOLO_CONFIG_DIR="$folder" YOLO_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from ultralytics.utils.metrics import ap_per_class, compute_ap

command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "ultralytics==8.3.0"]
subprocess.run(command, check=True)
(wheel,) = Path().glob("ultralytics-8.3.0*.whl")
source = zipfile.ZipFile(wheel).read("ultralytics/utils/metrics.py").decode()
start = source.index("def compute_ap(")
before = {"np": np}
np.trapz = np.trapezoid  # 8.3.0 was written for NumPy 1
exec(source[start : source.index("\ndef ", start + 1)], before)

curves = {"perfect": ([0.5, 1.0], [1.0, 1.0]), "half found": ([0.5], [1.0])}
seen = {
    name: [round(float(ap(*map(np.array, curve))[0]), 3) for ap in (before["compute_ap"], compute_ap)]
    for name, curve in curves.items()
}
for name, right in (("right first", [1, 0]), ("wrong first", [0, 1])):
    table = np.repeat(np.array(right, bool)[:, None], 10, 1)
    found = ap_per_class(table, np.full(2, 0.5), np.zeros(2), np.zeros(1), names={0: "light"})
    seen[name] = round(float(found[5].mean()), 4)
print(seen)
assert seen == {"perfect": [0.995, 0.995], "half found": [0.75, 0.495], "right first": 0.995, "wrong first": 0.4975}
PYTHON
