"""Weights from gradients: a toy whose norms are known, and a real run whose ratio is measured anew."""

from __future__ import annotations

import json
import math
import random
from statistics import median

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
import numpy as np

import schemas
from kd.distillation.balance import BATCHES, Balance, gradient_norm
from kd.errors import DistillationError, UsageError
from kd.methods.registry import METHODS
from kd.options import parse_methods
from kd.training.checkpoints import load_sidecar, sidecar_of
from kd.training.run import train
from tests.kd.training.test_trainer import set_up
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector


def features():
    return [torch.zeros(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 4, 1, 1, requires_grad=True)]


def test_the_norm_is_over_all_levels_together():
    a, b = features()
    assert gradient_norm(3 * a.sum() + 2 * b.sum(), [a, b]) == pytest.approx(math.sqrt(8 * 9 + 4 * 4))
    assert gradient_norm(3 * a.sum(), [a, b]) == pytest.approx(math.sqrt(8 * 9))
    assert gradient_norm(torch.tensor(1.0), [a, b]) == 0
    assert a.grad is None


def test_a_term_gets_the_weight_that_makes_its_gradient_the_ratio_of_the_tasks():
    read = features()
    balance = Balance(0.1, ["one", "two"])
    total = sum(level.sum() for level in read)
    balance.measure(6 * total, {"one": 2 * total, "two": 30 * total}, read)
    assert balance.weights() == pytest.approx({"one": 0.3, "two": 0.02})


def test_the_weight_is_the_median_so_far_and_final_after_sixteen_batches():
    read = features()
    balance = Balance(1.0, ["term"])
    total = read[0].sum()
    weights = []
    for scale in (1, 100, 3, *[3] * 13, 50, 50):
        assert balance.settled == (len(weights) >= BATCHES)
        balance.measure(scale * total, {"term": total}, read)
        weights.append(balance.weights()["term"])
    assert weights[:4] == pytest.approx([1, 50.5, 3, 3])
    assert weights[-1] == pytest.approx(3)
    assert len(balance.samples["term"]) == BATCHES == 16


@pytest.mark.parametrize(("task", "term"), [(1.0, 0.0), (0.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_a_batch_without_a_gradient_gives_no_sample(task, term):
    read = features()
    balance = Balance(0.1, ["term"])
    balance.measure(task * read[0].sum(), {"term": term * read[0].sum()}, read)
    assert balance.samples == {"term": []}
    assert balance.weights() == {"term": 0}


def test_half_precision_gradients_are_not_lost():
    read = [torch.zeros(64, dtype=torch.float16, requires_grad=True)]
    tiny = 2.0**-26  # below the least of float16
    assert gradient_norm(tiny * read[0].float().sum(), read) == pytest.approx(8 * tiny)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("teacher") / "t.pt", {0: "red", 1: "green"})


METHODS_TRIED = (("fgfi", 1.0), ("cwd", 1.0), ("logits", 1.0))


def measured_ratios(trainer, batch):
    """By method, |d term| / |d task|, unweighted; by backward passes and hooks, another way than the engine's."""
    distillation, seen = trainer.distillation, {}
    preds = trainer.model(batch["img"])
    task = distillation.task(preds, batch)[0].sum() / len(batch["img"])
    for i, level in enumerate(preds.get("one2many", preds)["feats"]):
        level.register_hook(lambda gradient, i=i: seen.__setitem__(i, float(gradient.square().sum())))

    def norm(scalar):
        seen.clear()
        scalar.backward(retain_graph=True)
        return math.sqrt(sum(seen.values()))

    (inputs,), whole = distillation.inputs(preds, batch), norm(task)
    ratios = {name: norm(METHODS[name](inputs, trainer.config)) / whole for name, _ in trainer.config.methods}
    trainer.optimizer.zero_grad()
    return ratios


@pytest.mark.train
@pytest.mark.parametrize("student", ["yolov5n", "yolo26n"])
def test_after_balancing_every_method_has_the_ratio(data, tmp_path, teacher, student):
    trainer = set_up(
        data, tmp_path, student=student, teachers=(teacher,), balance=0.1, methods=METHODS_TRIED,
        settings=(("channels_last", False), ("mosaic", 0.0), ("warmup_epochs", 0.0), ("lr0", 1e-4),
                  ("optimizer", "SGD")),
    )  # fmt: skip
    # On a few tiny images the figures scatter with what is drawn: 0.070, 0.127, 0.124, 0.093 for fgfi of yolo26n with
    # the seeds 0 to 3, around the 0.1 that is asked for.
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    distillation, model, steps = trainer.distillation, trainer.model.train(), 0
    while not distillation.balance.settled:
        for batch in trainer.train_loader:
            batch = trainer.preprocess_batch(batch)
            distillation(model(batch["img"]), batch)[0].sum().backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            steps += 1
    assert BATCHES <= steps < BATCHES + 4
    final = distillation.balance.weights()
    ratios = [measured_ratios(trainer, trainer.preprocess_batch(b)) for _ in range(12) for b in trainer.train_loader]
    for name, weight in final.items():
        assert 0.07 < weight * median(ratio[name] for ratio in ratios) < 0.14, name
    for _ in range(2):
        distillation(model(batch["img"]), batch)
    assert distillation.balance.weights() == final


@pytest.mark.train
def test_a_run_keeps_its_weights(data, tmp_path, teacher):
    config = tiny_config(data, tmp_path / "run", teachers=(teacher,), balance=0.2, methods=(("cwd", 1.0),))
    result = train(config, allow_weak_teacher=True)
    jsonschema.validate(json.loads((tmp_path / "run" / "run.json").read_text()), schemas.load("run"))
    assert (result["config"]["balance"], result["config"]["methods"]) == (0.2, {"cwd": None})
    assert result["kd"]["balanced_weights"]["cwd"] > 0
    assert "balance" not in load_sidecar(sidecar_of(tmp_path / "run" / "weights" / "last.pt"))


@pytest.mark.train
def test_features_that_do_not_learn_are_refused(data, tmp_path):
    trainer = set_up(data, tmp_path, teachers=("yolov5n",), balance=0.1, freeze=24)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    with pytest.raises(DistillationError, match="--balance: got a student whose features do not learn"):
        trainer.distillation(trainer.model.train()(batch["img"]), batch)


@pytest.mark.parametrize(
    ("texts", "weight", "given"),
    [(["fgfi=0.1"], None, "fgfi=0.1"), (["fgfi"], 0.5, "--weight 0.5"), (["cwd", "pkd=6"], None, "pkd=6")],
)
def test_balance_and_weights_exclude_each_other(texts, weight, given):
    with pytest.raises(UsageError, match=f"--balance: got it with {given}, expected methods without weights"):
        parse_methods(texts, weight, 0.1)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_is_above_zero(tmp_path, ratio):
    with pytest.raises(UsageError, match=r"--balance: got .*expected a ratio of gradients above 0"):
        tiny_config(tmp_path, tmp_path, teachers=("yolov5n",), balance=ratio)
