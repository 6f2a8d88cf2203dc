"""--freeze: layers that stay as they are to the bit, statistics included, with and without distillation."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.errors import UsageError
from kd.training.build import build_trainer
from kd.training.run import train
from kd.ultra import models, session
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

FROZEN = 5  # of yolov5n's 25 layers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("models") / "student.pt", {0: "red", 1: "green"}, imgsz=64)


def is_frozen(key):
    return int(key.split(".")[1]) < FROZEN


@pytest.mark.train
@pytest.mark.parametrize("teachers", [(), ("yolov5n",)], ids=["plain", "distilled"])
def test_frozen_layers_stay_to_the_bit_in_training_and_in_both_checkpoints(data, tmp_path, student, teachers):
    config = tiny_config(data, tmp_path / "run", student=student, teachers=teachers, freeze=FROZEN, epochs=2)
    with session.silence():
        trainer = build_trainer(config, student, tmp_path / "run", None)
        start, start_of_adapters = {}, {}
        trainer.add_callback("on_train_start", lambda t: start.update(copy(t.model)))
        if teachers:
            trainer.add_callback("on_train_start", lambda t: start_of_adapters.update(copy(t.distillation.adapters)))
        trainer.train()
    end = trainer.model.state_dict()
    assert any("running_var" in key for key in start if is_frozen(key))
    assert all(torch.equal(value, end[key]) for key, value in start.items() if is_frozen(key))
    moved = {key for key, value in start.items() if not torch.equal(value, end[key])}
    assert {key for key in start if not is_frozen(key) and "running_mean" in key} <= moved
    if teachers:
        adapters = trainer.distillation.adapters.state_dict()
        assert not any(torch.equal(value, adapters[key]) for key, value in start_of_adapters.items())
    for name in ("last", "best"):
        kept = models.load_model(str(tmp_path / "run" / "weights" / f"{name}.pt")).model.float().state_dict()
        assert all(
            torch.equal(v.half().float(), kept[k]) for k, v in start.items() if is_frozen(k) and v.is_floating_point()
        )


def copy(model):
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("kd_")}


@pytest.mark.parametrize(
    ("freeze", "changes", "expected"),
    [
        (25, {}, r"^--freeze: got 25, expected less than the 25 layers of yolov5n, head included$"),
        (99, {"teachers": ("yolov5n",), "methods": (("box", 1.0),)}, r"got 99, expected less than the 25 layers"),
        (
            24,
            {"teachers": ("yolov5n",), "methods": (("cwd", 1.0), ("box", 1.0))},
            r"all layers but the head, with cwd,",
        ),
    ],
)
def test_freezing_all_that_could_learn_is_refused(data, tmp_path, freeze, changes, expected):
    with pytest.raises(UsageError, match=expected):
        train(tiny_config(data, tmp_path / "run", freeze=freeze, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.train
def test_a_head_alone_can_be_trained_and_taught(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", freeze=24, teachers=("yolov5n",), methods=(("box", 1.0),))
    plan = train(config, dry_run=True, allow_weak_teacher=True)
    assert plan["first_batch"]["terms"]["box"] > 0
