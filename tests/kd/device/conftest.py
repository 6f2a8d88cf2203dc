"""What the tests of exported files share: a dataset, a run's checkpoint, and what `kd export` made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kd_fixtures import write_dataset
from tests.kd_models import save_lively


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset, a run's checkpoint, and what `kd export` made of it."""
    folder = tmp_path_factory.mktemp("export")
    data = write_dataset(folder / "data", train=10, test=3, side=64)
    (data.parent / "report.json").write_text(json.dumps({"configuration": {"tiles": {
        "layout": "grid", "size_px": 640, "overlap": 0.2, "min_visible": 0.4, "min_side_px": 2, "mask_partial": False
    }}}))  # fmt: skip
    save_lively(folder / "run" / "weights" / "best.pt")
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    return folder / "run" / "weights" / "best.pt"


@pytest.fixture(scope="module")
def data(folder, checkpoint):
    """It, with some of the model's own detections as truth, so that scores are neither 0 nor 1."""
    from kd.ultra.data import label_file
    from kd.ultra.models import load_model

    yolo = load_model(str(checkpoint))
    for image in sorted((folder / "data" / "images" / "test").iterdir()):
        boxes = yolo.predict(image, imgsz=64, conf=0.1, save=False, verbose=False)[0].boxes
        rows = zip(boxes.cls.tolist()[::3], boxes.xywhn.tolist()[::3], strict=True)
        lines = dict.fromkeys(f"{int(label)} " + " ".join(f"{value:.6f}" for value in box) for label, box in rows)
        label_file(image).write_text("\n".join(lines))
    return folder / "data" / "data.yaml"


@pytest.fixture(scope="module")
def exported(folder, checkpoint, data):
    from kd.device.export import export

    return export(checkpoint, data=data, out=folder / "run" / "best.onnx")


@pytest.fixture
def own(exported, checkpoint, tmp_path):
    """Copies to damage, laid out as the originals: the path of the file."""
    shutil.copytree(Path(exported["out"]).parent, tmp_path / "run")
    return tmp_path / "run" / "best.onnx"
