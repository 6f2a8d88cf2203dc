"""A narrowed teacher is a plain yaml and a plain run that has begun with the teacher's weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from typer.testing import CliRunner
from ultralytics import YOLO

from kd.commands import app
from kd.errors import KdError, ModelError, UsageError
from kd.training.prune import prune
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prune")
    return save_detector(folder / "teacher.pt", NAMES, imgsz=64), write_dataset(folder / "data")


def test_what_is_left_is_a_yaml_and_a_checkpoint_of_plain_ultralytics(given, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.training.worth.LEAST_MAP50", 0)  # the teacher is untrained
    teacher, data = given
    options = ["--batch", "3", "--epochs", "1", "--device", "cpu", "--set", "mosaic=0"]
    done = CliRunner().invoke(
        app,
        ["prune", teacher, "--data", str(data), "--width", "0.5", "--out", str(tmp_path / "half"), *options, "--json"],
    )
    assert done.exit_code == 0, done.output
    assert '"inherited"' in done.stdout
    (layout,) = tmp_path.glob("*.yaml")
    shapes = [{k: v.shape for k, v in YOLO(file).model.state_dict().items()} for file in (
        layout, tmp_path / "half" / "weights" / "last.pt"
    )]  # fmt: skip
    whole = YOLO(teacher).model.state_dict()
    assert shapes[0]["model.4.cv1.conv.weight"] == shapes[1]["model.4.cv1.conv.weight"]
    assert shapes[1].keys() == shapes[0].keys() == whole.keys()
    assert 2 * shapes[1]["model.4.cv1.conv.weight"][0] == whole["model.4.cv1.conv.weight"].shape[0]


def test_what_cannot_be_pruned_is_one_line_and_leaves_no_layout(given, tmp_path):
    teacher, data = given
    with pytest.raises(UsageError, match=r"--width: got 1, expected a share .* below it"):
        prune(teacher, data, tmp_path / "a")
    with pytest.raises(UsageError, match=r"--width: got 1\.5"):
        prune(teacher, data, tmp_path / "a", width=1.5)
    with pytest.raises(ModelError, match="yolov5n: teacher: got no checkpoint"):
        prune("yolov5n", data, tmp_path / "a", width=0.5)
    with pytest.raises(UsageError, match="in which Ultralytics reads a model's scale"):
        prune(teacher, data, tmp_path / "yolov5s", width=0.5)
    segment = tmp_path / "segment.pt"
    YOLO("yolov8n-seg.yaml").save(segment)
    with pytest.raises(ModelError, match=r"segment\.pt: got a model for segment"):
        prune(str(segment), data, tmp_path / "a", width=0.5)
    segment.unlink()
    with pytest.raises(KdError):
        prune(teacher, tmp_path / "none.yaml", tmp_path / "a", width=0.5)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.yaml").write_text("something")
    with pytest.raises(UsageError, match=r"a\.yaml is there with something else"):
        prune(teacher, data, tmp_path / "a", width=0.5)
    assert (tmp_path / "a.yaml").read_text() == "something"


def test_the_layout_never_replaces_what_is_no_runs(given, tmp_path):
    teacher, data = given
    before = data.read_bytes()
    with pytest.raises(UsageError, match="which is read here"):
        prune(teacher, data, data.with_suffix(""), width=0.5, overwrite=True)
    assert data.read_bytes() == before
    (tmp_path / "a.yaml").write_bytes(b"\xff is no text")
    with pytest.raises(UsageError, match=r"a\.yaml is there with something else"):
        prune(teacher, data, tmp_path / "a", width=0.5, overwrite=True)
    assert (tmp_path / "a.yaml").read_bytes() == b"\xff is no text"


def test_a_run_that_does_not_begin_leaves_the_layout_as_it_was(given, tmp_path):
    teacher, _ = given
    folder, layout = tmp_path / "a", tmp_path / "a.yaml"
    folder.mkdir()
    with pytest.raises(KdError):
        prune(teacher, tmp_path / "none.yaml", folder, width=0.5)
    assert not layout.exists()
    (folder / "config.json").write_text("{}")
    layout.write_text("of the earlier run")
    with pytest.raises(KdError):
        prune(teacher, tmp_path / "none.yaml", folder, width=0.5, overwrite=True)
    assert layout.read_text() == "of the earlier run"
