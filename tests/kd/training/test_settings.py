"""Ultralytics' settings beside distillation: each really happens, the terms go on, and scores are taken with it."""

from __future__ import annotations

import csv
import json
import math

import cv2
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema

import schemas
from kd.errors import DistillationError, RunError
from kd.methods.registry import METHODS
from kd.scoring.evaluate import evaluate
from kd.training import build
from kd.training.build import build_trainer
from kd.training.check import check
from kd.training.run import train
from kd.training.trainer import Trainer, trainer_class
from kd.ultra import models, session
from kd.ultra.data import resolve_data
from kd.ultra.labels import used_images
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector
from tests.kd_pairs import YOLO_METHODS

pytestmark = pytest.mark.train

NAMES = {0: "red", 1: "green"}
PLAIN_IMAGES = {"mosaic": 0.0, "warmup_epochs": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("teacher") / "teacher.pt", NAMES, architecture="yolov8n")


class Watch:
    """What a trainer did: its first weights, and every batch as (epoch, preprocessed batch)."""

    def __init__(self, trainer, batches):
        self.trainer, self.batches, self.start = trainer, batches, {}

    def sides(self):
        return {tuple(batch["img"].shape[2:]) for _, batch in self.batches}


@pytest.fixture
def watched(monkeypatch):
    """Runs of kd.training.run are watched; the list gets a Watch for each."""
    watches = []

    def make(config, logs):
        class Watched(trainer_class(config, logs)):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                watches.append(Watch(self, []))

            def _setup_train(self):
                super()._setup_train()
                watches[-1].start = {key: value.clone() for key, value in self.model.state_dict().items()}

            def preprocess_batch(self, batch):
                batch = super().preprocess_batch(batch)
                watches[-1].batches.append((getattr(self, "epoch", -1), batch))
                return batch

        return Watched

    monkeypatch.setattr(build, "trainer_class", make)
    return watches


def run(data, out, teacher, settings=(), **changes):
    """A distilled run with these settings; its result and the rows of results.csv, where every term was at work."""
    settings = tuple(sorted({**PLAIN_IMAGES, **dict(settings)}.items()))
    config = tiny_config(data, out, teachers=(teacher,), settings=settings, **changes)
    result = train(config, allow_weak_teacher=True)
    jsonschema.validate(json.loads(json.dumps(result)), schemas.load("run"))
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["train/kd_loss"]) > 0 for row in rows)
    return result, rows


def test_a_run_that_gets_no_better_stops_early(data, tmp_path, teacher, monkeypatch, watched):
    validate = Trainer.validate

    def flat(self):
        metrics, _ = validate(self)
        self.best_fitness = 0.5
        return metrics, 0.5

    monkeypatch.setattr(Trainer, "validate", flat)
    settings = {"patience": 1, "cos_lr": True, "lr0": 0.01, "optimizer": "SGD"}
    result, rows = run(data, tmp_path / "run", teacher, settings, epochs=6)
    assert result["epochs"] == len(rows) == 2
    cosine = [0.01 * ((1 - math.cos(epoch * math.pi / 6)) / 2 * (0.01 - 1) + 1) for epoch in range(2)]
    assert [float(row["lr/pg0"]) for row in rows] == pytest.approx(cosine)


def test_frozen_layers_stay_and_the_rest_learns(data, tmp_path, teacher, watched):
    run(data, tmp_path / "run", teacher, freeze=3)
    trainer, start = watched[0].trainer, watched[0].start
    for key, value in trainer.model.state_dict().items():
        layer = int(key.split(".")[1]) if key.startswith("model.") else None
        if layer is not None and layer < 3:
            assert torch.equal(value, start[key]), f"{key} was frozen"
        elif key.endswith("conv.weight") and "dfl" not in key:
            assert not torch.equal(value, start[key]), f"{key} was not frozen"
    adapters = [key for key in start if key.startswith("kd_adapters")]
    assert adapters
    assert not any(torch.equal(trainer.model.state_dict()[key], start[key]) for key in adapters)


def test_images_of_changing_size(data, tmp_path, teacher, watched):
    run(data, tmp_path / "run", teacher, {"multi_scale": 0.5}, epochs=2, methods=(("fgfi", 0.01), ("box", 1.0)))
    assert len(watched[0].sides()) > 1


def test_images_that_are_not_square(tmp_path, teacher, watched):
    data = write_dataset(tmp_path / "data")
    for file in (data.parent / "images").rglob("*.png"):
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (192, 96)))
    run(data, tmp_path / "run", teacher, {"rect": True}, imgsz=128, methods=(("fgfi", 0.01), ("box", 1.0)))
    ((height, width),) = watched[0].sides()
    assert height < width


def test_the_last_epochs_are_without_mosaics(data, tmp_path, teacher, watched):
    run(data, tmp_path / "run", teacher, {"mosaic": 1.0, "close_mosaic": 1, "scale": 0.0}, epochs=2)
    most = {}
    for epoch, batch in watched[0].batches:
        most[epoch] = max([most.get(epoch, 0), *batch["batch_idx"].long().bincount().tolist()])
    assert most[0] > 2 >= most[1] > 0, "an image of the data has two boxes at most"


def test_plots_cache_and_a_fraction_of_the_images(data, tmp_path, teacher, watched):
    result, _ = run(data, tmp_path / "run", teacher, {"plots": True, "cache": "ram", "fraction": 0.5})
    assert result["images"] == {"train": 3, "val": 3, "test": 0}
    assert {"results.png", "labels.jpg", "train_batch0.jpg"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert len(watched[0].trainer.train_loader.dataset) == 3
    assert watched[0].trainer.train_loader.dataset.cache == "ram"


@pytest.mark.parametrize(("fraction", "left"), [(0.5, 3), (0.01, 1), (2, 2), (9, 6), (1, 6), ([0.5, 0.1], 3)])
def test_a_fraction_is_counted_as_ultralytics_takes_it(data, tmp_path, teacher, fraction, left):
    trainer, _ = set_up(data, tmp_path, teacher, [("fraction", fraction)])
    view = resolve_data(data)
    counted = check(trainer.config, False, print, True).found["train"].images
    assert counted == len(used_images(view, "train", fraction)) == len(trainer.train_loader.dataset) == left


def set_up(data, out, teacher, settings=(), **changes):
    """A distilling trainer that is ready for its first step, and a batch."""
    config = tiny_config(data, out, teachers=(teacher,), settings=(*PLAIN_IMAGES.items(), *settings), **changes)
    with session.silence():
        trainer = build_trainer(config, "yolov5n.yaml", out, None)
        trainer._setup_train()
    return trainer, trainer.preprocess_batch(next(iter(trainer.train_loader)))


def test_half_precision_is_off_on_a_cpu_and_bf16_refused_there(data, tmp_path, teacher):
    trainer, _ = set_up(data, tmp_path / "on", teacher, [("amp", True)])
    assert trainer.amp is False
    with pytest.raises(RunError, match="training: got RuntimeError: bfloat16 autocast requires CUDA") as refusal:
        train(tiny_config(data, tmp_path / "bf16", settings=(*PLAIN_IMAGES.items(), ("amp", "bf16"))))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "bf16").exists()


def test_terms_of_half_precision_features_are_computed_in_float32(data, tmp_path, teacher):
    trainer, batch = set_up(data, tmp_path, teacher, methods=tuple(YOLO_METHODS.items()))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        preds = trainer.model.train()(batch["img"])
        assert preds["feats"][0].dtype == torch.bfloat16
        (inputs,) = trainer.distillation.inputs(preds, batch)
        under = {name: METHODS[name](inputs, trainer.config) for name in YOLO_METHODS}
    with torch.no_grad():
        alone = {name: METHODS[name](inputs, trainer.config) for name in YOLO_METHODS}
    for name, term in under.items():
        assert term.dtype == torch.float32, name
        assert term > 0, name
        assert torch.equal(term, alone[name]), f"{name}: autocast changes it"


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSProp", "auto"])
def test_every_optimizer_trains_the_adapters(data, tmp_path, teacher, optimizer):
    trainer, batch = set_up(data, tmp_path, teacher, [("optimizer", optimizer)])
    adapters = {key: value.clone() for key, value in trainer.adapters.state_dict().items()}
    trainer.model.train()(batch)[0].sum().backward()
    trainer.optimizer_step()
    assert not any(torch.equal(value, adapters[key]) for key, value in trainer.adapters.state_dict().items())


def test_muon_takes_the_adapters_weights_as_matrices(data, tmp_path, teacher):
    trainer, _ = set_up(data, tmp_path, teacher, [("optimizer", "MuSGD")])  # a step of it takes ten seconds on a CPU
    groups = {id(p): group["param_group"] for group in trainer.optimizer.param_groups for p in group["params"]}
    found = {key.rpartition(".")[2]: groups[id(p)] for key, p in trainer.adapters.named_parameters()}
    assert found == {"weight": "muon", "bias": "bias"}


def test_some_of_the_classes(data, tmp_path, teacher, watched):
    result, _ = run(data, tmp_path / "run", teacher, {"classes": [1]})
    assert {int(c) for _, batch in watched[0].batches for c in batch["cls"]} == {1}
    scores = result["metrics"]["last"]["val"]
    assert scores["per_class"]["red"]["map50"] is None, "no red object was looked at"
    assert scores["per_class"]["green"]["map50"] is not None
    labels = [line for file in (data.parent / "labels" / "val").iterdir() for line in file.read_text().splitlines()]
    assert scores["instances"] == sum(line.startswith("1 ") for line in labels)


def test_all_classes_as_one(data, tmp_path, teacher, watched):
    """Plain, then distilled from a teacher of the data's classes, then from one of the one class."""
    one = {"single_cls": True}
    settings = tuple(sorted({**PLAIN_IMAGES, **one}.items()))
    plain = train(tiny_config(data, tmp_path / "plain", settings=settings))
    assert {int(c) for _, batch in watched[0].batches for c in batch["cls"]} == {0}
    single = str(tmp_path / "plain" / "weights" / "last.pt")
    assert models.load_model(single).names == {0: "item"}
    result, _ = run(data, tmp_path / "run", teacher, one)
    for found in (plain["metrics"]["last"]["val"], result["metrics"]["last"]["val"]):
        assert list(found["per_class"]) == ["item"]
        assert found["instances"] == 4, "all objects, whatever their class"
    assert result["kd"]["teachers"][0]["worth"]["teacher_map50"] is not None, (
        "a teacher of the data's classes is scored as one class"
    )
    found = evaluate(data, tmp_path / "run" / "weights" / "last.pt", split="val", batch=3, device="cpu", quiet=True)
    assert {key: found[key] for key in ("map50", "per_class")} == {
        key: result["metrics"]["last"]["val"][key] for key in ("map50", "per_class")
    }
    logits = tiny_config(data, tmp_path / "l", settings=settings, methods=(("logits", 1.0),), teachers=(teacher,))
    with pytest.raises(DistillationError, match="logits: got a teacher without the class item"):
        train(logits, allow_weak_teacher=True)
    plan = train(
        tiny_config(data, tmp_path / "l", settings=settings, methods=(("logits", 1.0),), teachers=(single,)),
        dry_run=True,
        allow_weak_teacher=True,
    )
    assert plan["first_batch"]["terms"]["logits"] > 0
