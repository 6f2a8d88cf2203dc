"""The two tools meet only in files: a dataset of dtld trains with Ultralytics as it is, without this project."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from dtld_tools.pipeline.stages import Selection, prepare
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.synthetic.sample import sample
from dtld_tools.types import TileSpec

PLAIN = """
import os, sys
sys.modules.update(dict.fromkeys(("kd", "dtld_tools", "cli", "schemas")))  # importing them would fail
from ultralytics import YOLO
model, RUNS = YOLO("yolov5n.yaml"), os.path.abspath("runs")
model.train(data="tiles/data.yaml", epochs=1, imgsz=64, batch=16, device="cpu", workers=0, plots=False, project=RUNS)
print(sorted(model.names.values()), model.trainer.epoch)
"""


@pytest.mark.train
def test_a_dataset_of_dtld_trains_with_plain_ultralytics(tmp_path):
    raw = tmp_path / "raw"
    sample(raw, frames=6)
    labels = raw / "DTLD_Labels_v2.0" / "v2.0" / "DTLD_all.json"
    report = prepare(
        Selection((labels,), raw), tmp_path / "tiles", SplitSpec(), TileSpec("halves", 320), AugmentSpec(copies=0)
    )
    assert min(report["images"].values()) > 0
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "['not_relevant', 'relevant'] 0"
    assert next(tmp_path.rglob("last.pt")).stat().st_size > 0
