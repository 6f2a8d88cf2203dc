"""The schedules' known values, and that a run follows them: off means that the teacher does not run."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.distillation.teacher import Teacher
from kd.errors import UsageError
from kd.schedule import SCHEDULES, Progress, factor, turn
from kd.training.run import train
from kd.training.trainer import Trainer
from tests.kd.training.test_trainer import set_up
from tests.kd_fixtures import tiny_config, write_dataset


@pytest.mark.parametrize(
    ("schedules", "progress", "expected"),
    [
        ((), Progress(7, 30), 1),
        (("constant",), Progress(7, 30), 1),
        (("warmup",), Progress(0, 30), 0),
        (("warmup",), Progress(1.5, 30), 0.5),
        (("warmup",), Progress(3, 30), 1),
        (("warmup",), Progress(0.25, 2), 0.25),  # one epoch at least
        (("cosine",), Progress(0, 30), 1),
        (("cosine",), Progress(20, 30), 0.25),
        (("cosine",), Progress(31, 30), 0),  # --set time changes the number of epochs on the way
        (("no-closing",), Progress(19.99, 30, 10), 1),
        (("no-closing",), Progress(20, 30, 10), 0),
        (("first-half",), Progress(14.99, 30), 1),
        (("first-half",), Progress(15, 30), 0),
        (("first-half",), Progress(0.5, 1), 0),  # a single epoch by its steps
        (("warmup", "cosine"), Progress(10, 200), 0.5 * (1 + 0.9876883405951378) / 2),
        (("warmup", "no-closing"), Progress(29, 30, 10), 0),
    ],
)
def test_factors(schedules, progress, expected):
    assert factor(schedules, progress) == pytest.approx(expected, abs=1e-12)


def test_every_factor_is_a_share_throughout():
    for name in SCHEDULES:
        assert all(0 <= factor([name], Progress(done / 10, 7, 2)) <= 1 for done in range(80))


@pytest.mark.parametrize("every", [1, 2, 7])
def test_the_mean_gradient_stays_when_the_teacher_waits_for_every_nth_step(every):
    turns = [turn(every, step) for step in range(5 * every)]
    assert turns[0] == every
    assert sum(turns) == len(turns)
    assert sum(share > 0 for share in turns) == 5


def test_a_resumed_run_keeps_the_beat_of_every_nth_step():
    def factors(epochs):
        trainer = SimpleNamespace(
            epochs=4, train_loader=range(5), args=SimpleNamespace(close_mosaic=0),
            config=SimpleNamespace(every=3, schedules=("first-half",)), distillation=SimpleNamespace(unlabeled=None),
        )  # fmt: skip
        for trainer.epoch in epochs:
            Trainer._begin_distillation(trainer)
            for _ in trainer.train_loader:
                Trainer._schedule(trainer)
                yield trainer.distillation.factor

    whole = list(factors(range(4)))
    assert whole == [3, 0, 0, 3, 0, 0, 3, 0, 0, 3, *[0] * 10]
    assert [*factors(range(1)), *factors(range(1, 4))] == whole


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.train
def test_a_term_is_logged_as_it_is_weighted_and_scheduled(data, tmp_path):
    trainer = set_up(data, tmp_path, teachers=("yolov5n",))
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    preds = trainer.model.train()(batch["img"])
    whole, items = trainer.distillation(preds, batch)
    trainer.distillation.factor = 0.25
    part, scheduled = trainer.distillation(preds, batch)
    torch.testing.assert_close(scheduled["kd_loss"], items["kd_loss"] / 4)
    torch.testing.assert_close(part[-1], whole[-1] / 4)
    assert torch.equal(part[:-1], whole[:-1])


@pytest.mark.train
def test_steps_without_distillation_are_not_held_against_it(data, tmp_path):
    methods = (("fgfi", 1.0), ("cwd", 1.0))
    trainer = set_up(data, tmp_path, teachers=("yolov5n",), methods=methods)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    preds = trainer.model.train()(batch["img"])
    trainer.distillation.factor = 0.0
    for _ in range(45):
        loss, items = trainer.distillation(preds, batch)
    assert (float(loss[-1].detach()), loss.shape) == (0, (4,))
    assert [float(items[key]) for key in ("kd_loss", "kd_fgfi_loss", "kd_cwd_loss")] == [0, 0, 0]
    assert trainer.distillation._steps == 0


@pytest.mark.train
def test_a_run_follows_its_schedules_and_spares_the_teacher_where_they_are_zero(data, tmp_path, monkeypatch):
    seen, factors = [], []
    own = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: seen.append(len(images)) or own(self, images))
    schedule = Trainer._schedule

    def spy(self):
        schedule(self)
        factors.append(self.distillation.factor)

    monkeypatch.setattr(Trainer, "_schedule", spy)
    config = tiny_config(
        data, tmp_path / "run", epochs=3, teachers=("yolov5n",), schedules=("warmup", "no-closing"),
        settings=(("close_mosaic", 1), ("mosaic", 0.0), ("warmup_epochs", 0.0)),
    )  # fmt: skip
    result = train(config, allow_weak_teacher=True)
    assert factors == [0, 0.5, 1, 1, 0, 0]
    assert len(seen) == 3
    with (tmp_path / "run" / "results.csv").open() as file:
        losses = [float(row["train/kd_loss"]) for row in csv.DictReader(file)]
    assert losses[0] > 0
    assert losses[1] > losses[0]
    assert losses[2] == 0
    assert result["config"]["schedules"] == ["warmup", "no-closing"]


@pytest.mark.train
def test_the_teacher_is_asked_at_every_nth_step_alone(data, tmp_path, monkeypatch):
    seen = []
    own = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: seen.append(len(images)) or own(self, images))
    config = tiny_config(data, tmp_path / "run", epochs=2, teachers=("yolov5n",), methods=(("cwd", 1.0),), every=3)
    result = train(config, allow_weak_teacher=True)
    assert len(seen) == 2  # of four steps
    assert result["config"]["every"] == 3


@pytest.mark.parametrize("closing", [0, 3])
def test_closing_epochs_that_leave_nothing_or_all_are_refused(data, tmp_path, closing):
    config = tiny_config(
        data, tmp_path / "run", epochs=3, teachers=("yolov5n",), schedules=("no-closing",),
        settings=(("close_mosaic", closing),),
    )  # fmt: skip
    with pytest.raises(UsageError, match=f"no-closing: got {closing} closing epochs of 3, expected at least 1"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedules": ("cosin",)},
            "--schedule: got 'cosin', expected one of: constant, warmup, cosine, first-half, no-closing",
        ),
        ({"schedules": ("cosine", "cosine")}, "expected each schedule once"),
        ({"schedules": ("cosine",), "teachers": ()}, "--schedule: got it without --teacher"),
        ({"every": 2, "teachers": ()}, "--every: got it without --teacher"),
        ({"every": 0}, "--every: got 0, expected a whole number from 1"),
        ({"every": 2, "teachers": ("t.pt",), "methods": (("built-in", 6.0),)}, "--every: got it with built-in"),
        ({"every": 2, "teachers": ("t.pt",), "methods": (("soft-labels", 0.5),)}, "--every: got it with soft-labels"),
    ],
)
def test_schedules_that_are_none(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        tiny_config(tmp_path, tmp_path, **{"teachers": ("yolov5n",), **changes})
