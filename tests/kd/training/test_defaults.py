"""What `--teacher T` alone means, pair by pair, and that whatever says more is left as it is."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from kd.config import TrainConfig
from kd.training.defaults import choose
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}
SOFT, FGFI = (("soft-labels", 0.5),), (("fgfi", 0.01),)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints by name: of YOLOv8, also with other classes, and of YOLO11."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "v8": save_detector(folder / "v8.pt", NAMES, architecture="yolov8n"),
        "strange": save_detector(folder / "strange.pt", {0: "cat"}, architecture="yolov8n"),
        "v11": save_detector(folder / "v11.pt", NAMES, architecture="yolo11n"),
    }


@pytest.mark.parametrize(
    ("student", "teacher", "methods", "inherits"),
    [
        ("kd/models/yolov8p.yaml", "v8", (), True),
        ("yolov8n", "v8", (), True),
        ("yolov5n", "v8", SOFT, False),
        ("mobilenet_v3_small", "v8", SOFT, False),
        ("v11", "v8", SOFT, False),  # which has weights of its own
        ("kd/models/yolov8p.yaml", "strange", FGFI, False),
    ],
)
def test_a_pair_learns_in_the_best_way_that_it_allows(data, models, student, teacher, methods, inherits):
    config = tiny_config(data, "run", student=models.get(student, student), teachers=(models[teacher],), methods=())
    assert config.methods == ()
    settled = choose(config)
    assert (settled.methods, settled.inherit) == (methods, models[teacher] if inherits else None)
    assert settled.teachers == (() if inherits else (models[teacher],))
    assert choose(settled) is settled
    assert TrainConfig.from_json(settled.to_json()) == TrainConfig.from_json(choose(settled).to_json())


@pytest.mark.parametrize(
    "more",
    [
        {"methods": (("cwd", 1.0),)},
        {"schedules": ("cosine",)},
        {"inherit": "v8"},
        {"balance": 0.1},
        {"teachers": ("yolov5s",)},
    ],
)
def test_whatever_says_more_is_the_papers_method_or_its_own(data, models, more):
    more = {**more, **({"inherit": models["v8"]} if "inherit" in more else {})}
    config = tiny_config(data, "run", **{"student": "yolov8n", "teachers": (models["v8"],), "methods": (), **more})
    assert config.methods == more.get("methods", FGFI)
    assert choose(config) is config


def test_what_is_amiss_with_a_teacher_is_left_to_the_checks(data):
    config = tiny_config(data, "run", teachers=("none.pt",), methods=())
    assert choose(config).methods == FGFI
