"""The negative control: a teacher that knows nothing is refused, and told of in run.json where it was insisted on."""

from __future__ import annotations

import json

import jsonschema
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.nn.tasks import DetectionModel

import schemas
from kd.errors import DistillationError
from kd.training.run import train
from kd.ultra import models
from tests.kd_fixtures import tiny_config, write_dataset

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def test_a_random_teacher_is_refused_and_where_it_is_insisted_on_the_run_says_so(data, tmp_path):
    yolo = models.load_model("yolov8n")
    yolo.model = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    yolo.model.names = {0: "red", 1: "green"}
    teacher = tmp_path / "random.pt"
    torch.save({"model": yolo.model, "epoch": -1, "train_args": {"task": "detect", "imgsz": 64}}, teacher)
    config = tiny_config(data, tmp_path / "run", teachers=(str(teacher),))
    with pytest.raises(DistillationError, match=r"random\.pt: teacher: got mAP50 0\.0.*expected at least 0\.05"):
        train(config)
    assert not (tmp_path / "run").exists()
    result = train(config, allow_weak_teacher=True)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    jsonschema.validate(written, schemas.load("run"))
    assert written["kd"] == result["kd"]
    worth = written["kd"]["teachers"][0]["worth"]
    assert worth["weak"] is True
    assert worth["teacher_map50"] < 0.05
