"""What a teacher is worth: scored before anyone learns from it, and refused with the figures."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.nn.tasks import DetectionModel

from kd.errors import DistillationError
from kd.training import worth as worth_module
from kd.training.run import train
from kd.training.worth import Worth, check_worth
from kd.ultra import models
from kd.ultra.data import spread
from tests.kd_fixtures import shared_weights, tiny_config, write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}


@pytest.fixture
def pair(tmp_path):
    return tuple(save_detector(tmp_path / f"{name}-t.pt", NAMES, architecture=name) for name in ("yolov5n", "yolov8n"))


@pytest.fixture
def data(tmp_path):
    return str(write_dataset(tmp_path / "d", train=1, val=3))


def checkpoint(path, names):
    yolo = models.load_model("yolov5n")
    yolo.model = DetectionModel("yolov5n.yaml", nc=len(names), verbose=False)
    yolo.model.names = dict(enumerate(names))
    yolo.save(path)
    return str(path)


def worth(teacher, student, data, allow_weak=False):
    return check_worth(tiny_config(data, "run", student=student, teachers=(teacher,)), allow_weak)[0]


def scores(monkeypatch, by_name):
    """Let the validator find these figures, by the stem of the checkpoint's name."""
    monkeypatch.setattr(worth_module, "score", lambda yolo, *_, **__: {"map50": by_name[yolo.ckpt_path.split("/")[-1]]})


def test_a_teacher_above_the_students_start_is_worth_it(monkeypatch, tmp_path, data):
    scores(monkeypatch, {"t.pt": 0.8, "s.pt": 0.3})
    teacher = checkpoint(tmp_path / "t.pt", ["red", "green"])
    assert worth(teacher, "yolov5n", data) == Worth(3, 0.8, None, weak=False)
    student = checkpoint(tmp_path / "s.pt", ["red", "green"])
    assert worth(teacher, student, data).student_map50 == 0.3
    elsewhere = checkpoint(tmp_path / "other.pt", ["cat", "dog"])
    assert worth(teacher, elsewhere, data).student_map50 is None


def test_a_teacher_below_the_students_start_is_refused_with_the_figures(monkeypatch, tmp_path, data):
    scores(monkeypatch, {"t.pt": 0.3, "s.pt": 0.4})
    teacher, student = (checkpoint(tmp_path / n, ["red", "green"]) for n in ("t.pt", "s.pt"))
    with pytest.raises(DistillationError, match=r"mAP50 0\.300 .* starting point 0\.400; .*--allow-weak-teacher"):
        worth(teacher, student, data)
    assert worth(teacher, student, data, allow_weak=True) == Worth(3, 0.3, 0.4, weak=True)


def test_an_untrained_teacher_is_refused_with_the_figures(tmp_path, data):
    teacher = checkpoint(tmp_path / "t.pt", ["red", "green"])
    with pytest.raises(DistillationError, match=r"mAP50 0\.0\d\d on 3 validation images .*--allow-weak-teacher"):
        worth(teacher, "yolov5n", data)


def test_a_teacher_of_other_classes_is_refused_by_their_names(data):
    teacher = shared_weights("yolov8n_coco_from_int8.pt")
    with pytest.raises(DistillationError, match=r"80 classes \(person, .*red, green.*--allow-weak-teacher"):
        worth(teacher, "yolov5n", data)
    assert worth(teacher, "yolov5n", data, allow_weak=True) == Worth(3, None, None, weak=True)


def test_at_most_a_hundred_images_are_scored_spread_over_all(tmp_path, monkeypatch):
    files = [tmp_path / f"{i:04d}.png" for i in range(1000)]
    chosen = spread(files, worth_module.WORTH_IMAGES)
    assert [path.stem for path in chosen[:3]] == ["0000", "0010", "0020"]
    assert len(chosen) == 100
    assert spread(files[:7], 100) == files[:7]


def test_every_teacher_is_scored_and_refused_by_its_own_name(data, tmp_path, pair, monkeypatch):
    monkeypatch.setattr(worth_module, "LEAST_MAP50", 0.0)
    other = save_detector(tmp_path / "animals.pt", {0: "cat"})
    config = tiny_config(data, tmp_path / "run", teachers=(pair[0], other))
    with pytest.raises(DistillationError, match=r"animals.pt: teacher: got 1 classes \(cat"):
        train(config, dry_run=True)
    plan = train(config, dry_run=True, allow_weak_teacher=True)
    assert [teacher["worth"]["teacher_map50"] is None for teacher in plan["kd"]["teachers"]] == [False, True]
    assert plan["first_batch"]["terms"]["fgfi"] > 0


def test_teachers_are_scored_at_the_size_that_they_see(data, tmp_path, pair, monkeypatch):
    seen = []

    def score(yolo, *_, imgsz, **__):
        seen.append((yolo.ckpt_path, imgsz))
        return {"map50": 0.5}

    monkeypatch.setattr(worth_module, "score", score)
    student = save_detector(tmp_path / "student.pt", NAMES)
    config = tiny_config(data, tmp_path / "run", student=student, teachers=pair, teacher_imgsz=128)
    worths = check_worth(config, allow_weak=False)
    assert seen == [(pair[0], 128), (pair[1], 128), (student, 64)]  # the student once, however many teachers
    assert worths == [Worth(3, 0.5, 0.5)] * 2
