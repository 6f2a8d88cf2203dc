"""Ultralytics' own distillation as a method of `kd train`: a plain student at the end, paired with the plain run."""

from __future__ import annotations

import csv

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
import torch
from ultralytics.nn.tasks import DetectionModel

import schemas
from kd.errors import UsageError
from kd.training.builtin import builtin_trainer
from kd.training.run import train
from kd.training.trainer import trainer_class
from kd.ultra import models, session
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

BUILT_IN = (("built-in", 6.0),)
NAMES = {0: "red", 1: "green"}


def setting(folder):
    data = write_dataset(folder / "data")
    return data, save_detector(folder / "teacher.pt", NAMES, architecture="yolov8n")


def first_batch(config, make, model="yolov5n.yaml"):
    """The student's first weight and the first images of a trainer that Ultralytics would start from."""
    trainer = make(config)(
        overrides={
            "task": "detect", "mode": "train", "model": model, "data": config.data, "epochs": 1, "imgsz": 64,
            "batch": 3, "device": "cpu", "seed": 3, "plots": False, "workers": 0, "save_dir": config.out,
            "distill_model": config.teachers[0] if config.built_in else None,
        }
    )  # fmt: skip
    with session.silence():
        trainer._setup_train()
        trainer.epoch = 0
        trainer.run_callbacks("on_train_epoch_start")
    model = getattr(trainer.model, "student_model", trainer.model)
    return next(model.parameters()).detach().clone(), next(iter(trainer.train_loader))["img"]


@pytest.mark.train
def test_a_run_ends_with_plain_students_and_its_own_column(tmp_path):
    data, teacher = setting(tmp_path)
    config = tiny_config(data, tmp_path / "run", teachers=(teacher,), methods=BUILT_IN)
    record = train(config, allow_weak_teacher=True, quiet=True)
    jsonschema.validate(record, schemas.load("run"))
    assert record["config"]["methods"] == {"built-in": 6.0}
    assert (record["optimizer"]["name"], record["optimizer"]["momentum"]) == ("AdamW", 0.9)
    assert record["kd"]["teachers"][0]["adapter_params"] > 0
    for name in ("last.pt", "best.pt"):
        yolo = models.load_model(str(tmp_path / "run" / "weights" / name))
        assert type(yolo.model) is DetectionModel
        assert not any(module._forward_hooks for module in yolo.model.modules())
    assert {path.name for path in (tmp_path / "run" / "weights").iterdir()} == {"last.pt", "best.pt"}
    (row,) = csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines())
    assert float(row["train/dis_loss"]) > 0
    assert "val/dis_loss" not in row


@pytest.mark.train
def test_it_starts_from_the_plain_runs_weights_and_images(tmp_path):
    data, teacher = setting(tmp_path)
    plain = first_batch(tiny_config(data, tmp_path / "a", seed=3), trainer_class)
    taught = tiny_config(data, tmp_path / "b", seed=3, teachers=(teacher,), methods=BUILT_IN)
    theirs = first_batch(taught, builtin_trainer)
    assert all(map(torch.equal, plain, theirs))


def test_what_it_cannot_do_is_refused(tmp_path):
    data, teacher = setting(tmp_path)
    with pytest.raises(UsageError, match="expected built-in alone"):
        tiny_config(data, tmp_path / "run", teachers=(teacher,), methods=(*BUILT_IN, ("cwd", 1.0)))
    with pytest.raises(UsageError, match=r"expected a \.pt: Ultralytics loads it"):
        tiny_config(data, tmp_path / "run", teachers=("yolov8n",), methods=BUILT_IN)
    with pytest.raises(UsageError, match="start anew with --overwrite"):
        train(tiny_config(data, tmp_path / "run", teachers=(teacher,), methods=BUILT_IN), resume=True)
    assert not (tmp_path / "run").exists()
