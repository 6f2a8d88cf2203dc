"""Runs with `--inherit`: what training starts from, what is said of it, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema

import schemas
from kd.errors import DistillationError, ModelError, RunError, UsageError
from kd.inheritance.weights import inherit_weights
from kd.training import start
from kd.training.run import train
from kd.training.run_folder import own_config
from kd.ultra.data import resolve_data
from kd.ultra.models import load_model
from tests.kd.training.test_builtin import first_batch
from tests.kd.training.test_resume import die_in_epoch, kill
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

STUDENT = "kd/models/yolov8p.yaml"
STILL = (("optimizer", "SGD"), ("lr0", 1e-9), ("warmup_epochs", 0.0), ("warmup_bias_lr", 0.0), ("workers", 0))


def configure(data, teacher, out, **changes):
    return tiny_config(data, out, **{"student": STUDENT, "inherit": teacher, "settings": STILL, **changes})


@pytest.fixture(scope="module")
def killed(data, teacher, tmp_path_factory):
    """A run that was killed in its second epoch."""
    out = tmp_path_factory.mktemp("killed") / "run"
    kill(configure(data, teacher, out, epochs=2), (die_in_epoch, 1))
    return out


@pytest.fixture(scope="module")
def resumed(killed, data, teacher):
    """What that run's run.json says after it was continued, and the first weights as they were before."""
    before = (killed / "weights" / "inherited.pt").read_bytes()
    return train(configure(data, teacher, killed, epochs=2), resume=True, quiet=True), before


@pytest.mark.train
def test_a_run_starts_from_the_weights_of_kd_inherit(resumed, killed, data, teacher, tmp_path):
    inherit_weights(teacher, STUDENT, data, tmp_path / "w.pt", imgsz=64, quiet=True)
    places = (tmp_path / "w.pt", killed / "weights" / "inherited.pt", killed / "weights" / "last.pt")
    expected, start, end = (load_model(str(path)).model.state_dict() for path in places)
    weights = [key for key in expected if key.endswith("weight")]
    assert len(weights) > 100
    assert all(torch.equal(start[key], expected[key]) for key in weights)
    assert all(torch.allclose(end[key].float(), expected[key].float(), atol=1e-3) for key in weights)


@pytest.mark.train
def test_a_resumed_run_keeps_its_first_weights_and_what_was_said_of_them(resumed, killed, teacher):
    record, before = resumed
    jsonschema.validate(record, schemas.load("run"))
    assert (killed / "weights" / "inherited.pt").read_bytes() == before
    assert (record["resumed"], record["kd"], record["config"]["inherit"]) == (True, None, teacher)
    told = record["inherited"]
    assert (told["images"], told["copied"], told["fresh"]) == (6, [], [])
    assert told["worth"] == {"images": 3, "teacher_map50": None, "student_map50": None, "weak": False}  # other order
    assert json.loads((killed / "config.json").read_text())["inherited"] == told
    assert "## First weights" in (killed / "README.md").read_text()


@pytest.mark.train
def test_it_resumes_with_the_same_teacher_alone(killed, data, teacher, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink(missing_ok=True)
    other = save_detector(tmp_path / "other.pt", {0: "green", 1: "red"}, architecture="yolov8n", seed=1)
    with pytest.raises(RunError, match=r"inherit: got .*other.pt, expected .*t.pt; inherited weights: got .*"):
        train(configure(data, other, tmp_path / "run", epochs=2), resume=True)


@pytest.mark.parametrize("teachers", [(), ("/gone.pt",)])
def test_a_teacher_that_is_elsewhere_now_is_so_for_its_weights_too(data, teacher, tmp_path, teachers):
    config = configure(data, "/gone.pt", tmp_path / "run", teachers=teachers)
    record = {"config": config.to_json(), "kd": {"teachers": []}, "data_sha256": "", "student_sha256": None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    given = {"teachers": (teacher,), "teacher_weights": (1.0,)}
    assert own_config(tmp_path / "run", **given).inherit == teacher
    assert own_config(tmp_path / "run", **given).teachers == ((teacher,) if teachers else ())
    assert own_config(tmp_path / "run", **given, inherit="x.pt").inherit == "x.pt"
    assert own_config(tmp_path / "run").inherit == "/gone.pt"


@pytest.mark.train
def test_a_run_has_the_images_of_its_plain_twin(data, teacher, tmp_path):
    from kd.training.start import inherit_start
    from kd.training.trainer import trainer_class
    from kd.ultra.data import resolve_data

    config = configure(data, teacher, tmp_path / "run", seed=3)
    inherit_start(config, resolve_data(data), tmp_path / "run", torch.device("cpu"), quiet=True)
    start = tmp_path / "run" / "weights" / "inherited.pt"
    (own, images), (plain, same) = (first_batch(config, trainer_class, model) for model in (str(start), STUDENT))
    assert torch.equal(own, next(load_model(str(start)).model.parameters()).float())
    assert not torch.equal(own, plain)
    assert torch.equal(images, same)


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(data, teacher, tmp_path):
    out = tmp_path / "run"
    other = save_detector(tmp_path / "yolo11n.pt", {0: "red", 1: "green"}, architecture="yolo11n")
    for changes, kind, expected in (
        ({"inherit": other}, ModelError, "yolo11n.pt: inherit: got a teacher of another family"),
        ({"inherit": "none.pt"}, ModelError, "none.pt"),
        ({"student": teacher}, UsageError, "--inherit: got it with the student .*t.pt, expected an architecture"),
        ({"settings": (("pretrained", True),)}, UsageError, "--inherit: got it with --set pretrained"),
        ({"inherit": "yolov8n"}, DistillationError, "yolov8n: inherit: got an architecture, whose weights"),
    ):
        with pytest.raises(kind, match=expected):
            train(configure(data, changes.pop("inherit", teacher), out, **changes), quiet=True)
    assert not out.exists()


def test_it_looks_at_no_image_that_is_not_trained_on(teacher, tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "data")
    (tmp_path / "data" / "images" / "train" / "001.png").write_bytes(b"no image")
    monkeypatch.setattr(start, "write_first_weights", lambda *args: args[4])
    config = configure(data, teacher, tmp_path / "run", settings=(("fraction", 0.5),), skip_bad_labels=True)
    files = start.inherit_start(config, resolve_data(data), tmp_path, torch.device("cpu"), True)
    assert [file.name for file in files] == ["000.png", "002.png"]


def test_a_failed_inheritance_leaves_no_folder(data, teacher, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("kd.inheritance.weights.inherit", fail)
    with pytest.raises(RunError, match="got out of memory"):
        train(configure(data, teacher, tmp_path / "run"), quiet=True)
    assert not list((tmp_path / "run").glob("*"))
