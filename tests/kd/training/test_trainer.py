"""The seam: what is attached where, what reaches checkpoints, and that nothing is silently off."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.distillation.links import TeacherLink
from kd.distillation.teacher import Teacher
from kd.errors import DistillationError
from kd.methods.adapters import Adapters
from kd.methods.facts import WEIGHTS
from kd.methods.registry import METHODS
from kd.runs.record import optimizer_of, optimizer_settings
from kd.training import trainer as seam
from kd.training.build import build_trainer
from kd.ultra import models, session
from tests.kd_fixtures import tiny_config, write_dataset

pytestmark = pytest.mark.train


def set_up(data, out, **changes):
    """A trainer that is ready for its first step."""
    config = tiny_config(data, out, **changes)
    with session.silence():
        trainer = build_trainer(config, f"{config.student}.yaml", out, None)
        trainer._setup_train()
    return trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    trainer = set_up(data, tmp_path_factory.mktemp("plain"))
    return trainer, (random.getstate(), np.random.get_state(), torch.get_rng_state())


@pytest.fixture(scope="module")
def distilled(data, tmp_path_factory):
    trainer = set_up(data, tmp_path_factory.mktemp("distilled"), teachers=("yolov5s",))
    return trainer, (random.getstate(), np.random.get_state(), torch.get_rng_state())


@pytest.fixture
def student_and_batch(distilled):
    """The distilled student in training mode, its criterion fresh, and one batch."""
    trainer, _ = distilled
    trainer.distillation._off, trainer.distillation._steps = {}, 0
    return trainer, trainer.preprocess_batch(next(iter(trainer.train_loader)))


def test_one_seed_starts_both_arms_alike(plain, distilled):
    (a, (python_a, numpy_a, torch_a)), (b, (python_b, numpy_b, torch_b)) = plain, distilled
    weights_a, weights_b = a.model.state_dict(), b.model.state_dict()
    assert {k for k in weights_b if not k.startswith(seam.ADAPTERS)} == weights_a.keys()
    assert all(torch.equal(v, weights_b[k]) for k, v in weights_a.items())
    assert python_a == python_b
    assert all(np.array_equal(x, y) for x, y in zip(numpy_a, numpy_b, strict=True))
    assert torch.equal(torch_a, torch_b)
    random.setstate(python_a)
    np.random.set_state(numpy_a)
    first_a = next(iter(a.train_loader))
    random.setstate(python_a)
    np.random.set_state(numpy_a)
    first_b = next(iter(b.train_loader))
    assert first_a["im_file"] == first_b["im_file"]
    assert torch.equal(first_a["img"], first_b["img"])


def test_adapters_are_optimised_and_the_teacher_is_not(distilled):
    trainer, _ = distilled
    distillation = trainer.distillation
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in distillation.adapters.parameters()} <= trained
    assert not {id(p) for p in distillation.links[0].teacher.model.parameters()} & trained
    known = {id(p) for p in trainer.model.parameters()}
    assert not {id(p) for p in distillation.links[0].teacher.model.parameters()} & known
    assert {key: tuple(value.shape) for key, value in distillation.adapters.state_dict().items()} == {
        "0.fgfi.8.0.weight": (128, 64, 1, 1), "0.fgfi.8.0.bias": (128,),
        "0.fgfi.16.0.weight": (256, 128, 1, 1), "0.fgfi.16.0.bias": (256,),
        "0.fgfi.32.0.weight": (512, 256, 1, 1), "0.fgfi.32.0.bias": (512,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda d, o: o.param_groups.clear(), "adapters outside the optimizer"),
        (lambda d, o: d.adapters.requires_grad_(False), "frozen adapters"),
        (
            lambda d, o: o.add_param_group({"params": list(d.links[0].teacher.model.parameters())}),
            "teacher in the optimizer",
        ),
        (lambda d, o: d.links[0].teacher.model.requires_grad_(True), "teacher with gradients"),
        (lambda d, o: d.links[0].teacher.model.train(), "teacher in training mode"),
    ],
)
def test_wrong_wiring_is_refused(distilled, spoil, expected):
    adapters = Adapters({8: (64, 64)}, distilled[0].config)
    model = models.load_model("yolov5n").model
    teacher = Teacher("yolov5n", torch.device("cpu"))
    distillation = seam.Distillation(model, [TeacherLink(teacher, adapters, {8: 8}, 1.0)], distilled[0].config)
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
    seam.require_wired(distillation.links, optimizer)
    spoil(distillation, optimizer)
    with pytest.raises(DistillationError, match=expected):
        seam.require_wired(distillation.links, optimizer)


def test_copies_of_the_student_carry_no_adapters(distilled):
    trainer, _ = distilled
    assert not [key for key in trainer.ema.ema.state_dict() if key.startswith(seam.ADAPTERS)]
    assert deepcopy(trainer.model).criterion is None


def test_the_term_is_weighted_logged_and_multiplied_by_the_batch(student_and_batch):
    trainer, batch = student_and_batch
    distillation, config = trainer.distillation, trainer.config
    preds = trainer.model.eval().train()(batch["img"])
    own_loss, own_items = trainer.model.init_criterion()(preds, batch)
    loss, items = distillation(preds, batch)
    term = 0.01 * METHODS["fgfi"](distillation.inputs(preds, batch)[0], config)
    assert list(items) == [*own_items, "kd_loss"]
    torch.testing.assert_close(items["kd_loss"], term.detach())
    torch.testing.assert_close(loss[:-1], own_loss)
    torch.testing.assert_close(loss[-1], term * 3)


def test_several_methods_are_logged_one_by_one_and_together(student_and_batch, monkeypatch):
    trainer, batch = student_and_batch
    monkeypatch.setitem(WEIGHTS, "two", 1.0)
    monkeypatch.setitem(METHODS, "fgfi", lambda *_: torch.tensor(3.0))
    monkeypatch.setitem(METHODS, "two", lambda *_: torch.tensor(5.0))
    both = replace(trainer.config, methods=(("fgfi", 0.5), ("two", 2.0)))
    monkeypatch.setattr(trainer.distillation, "config", both)
    loss, items = trainer.distillation(trainer.model.train()(batch["img"]), batch)
    assert {k: float(v) for k, v in items.items() if "kd" in k} == {
        "kd_loss": 11.5, "kd_fgfi_loss": 1.5, "kd_two_loss": 10.0,
    }  # fmt: skip
    assert float(loss[-1].detach()) == 11.5 * 3


def test_gradients_reach_student_and_adapters_but_not_the_teacher(student_and_batch):
    trainer, batch = student_and_batch
    trainer.model.zero_grad()
    trainer.distillation(trainer.model.train()(batch["img"]), batch)[0][-1].backward()
    assert trainer.model.model[0].conv.weight.grad.any()
    assert all(parameter.grad.any() for parameter in trainer.distillation.adapters.parameters())
    assert all(p.grad is None for p in trainer.distillation.links[0].teacher.model.parameters())
    trainer.model.zero_grad()


def test_boxes_reach_the_methods_in_pixels(student_and_batch):
    trainer, batch = student_and_batch
    batch = {
        **batch, "img": torch.zeros(2, 3, 64, 128), "bboxes": torch.tensor([[0.5, 0.25, 0.25, 0.5]]),
        "cls": torch.zeros(1, 1), "batch_idx": torch.tensor([1.0]),
    }  # fmt: skip
    (inputs,) = trainer.distillation.inputs(trainer.model(batch["img"]), batch)
    assert inputs.boxes_xyxy.tolist() == [[48.0, 0.0, 80.0, 32.0]]
    assert inputs.image_index.tolist() == [1]


def run_steps(trainer, batch, term, steps, monkeypatch):
    """Steps with a given term; loss and inputs are computed once, for they are not what is looked at."""
    distillation = trainer.distillation
    inputs = distillation.inputs(trainer.model.train()(batch["img"]), batch)
    learnt = torch.ones(1, requires_grad=True)
    monkeypatch.setitem(METHODS, "fgfi", lambda *_: term * learnt[0])
    monkeypatch.setattr(distillation, "inputs", lambda *_: inputs)
    monkeypatch.setattr(distillation, "task", lambda *_: (learnt.expand(3), {}))
    for _ in range(steps):
        distillation({"feats": [learnt]}, batch)
    monkeypatch.undo()


@pytest.mark.parametrize("term", [0.0, float("nan"), float("inf")])
def test_a_term_that_is_off_for_twenty_steps_stops_the_run(student_and_batch, monkeypatch, term):
    trainer, batch = student_and_batch
    run_steps(trainer, batch, term, 19, monkeypatch)
    with pytest.raises(DistillationError, match=r"fgfi: got .* for 20 steps"):
        run_steps(trainer, batch, term, 1, monkeypatch)


def test_a_term_that_is_off_now_and_then_does_not(student_and_batch, monkeypatch):
    trainer, batch = student_and_batch
    for _ in range(3):
        run_steps(trainer, batch, 0.0, 15, monkeypatch)
        run_steps(trainer, batch, 1.0, 1, monkeypatch)


@pytest.mark.parametrize(("term", "said"), [(290.0, 0), (440.0, 1)])
def test_a_term_that_drowns_the_task_is_said_once(student_and_batch, monkeypatch, term, said):
    trainer, batch = student_and_batch
    lines = []
    monkeypatch.setattr(trainer.distillation, "_steps", 0)
    monkeypatch.setattr(session, "warn_aloud", lines.append)
    run_steps(trainer, batch, term, 19, pytest.MonkeyPatch())
    assert not lines
    run_steps(trainer, batch, term, 41, pytest.MonkeyPatch())
    assert len(lines) == said
    assert all("gradient is 4.4 times the task's" in line for line in lines)


def test_a_term_whose_weight_is_balanced_may_be_large(student_and_batch, monkeypatch):
    """Its gradient is a tenth of the task's, whatever its value; the warning would advise what has been done."""
    trainer, batch = student_and_batch
    lines = []
    monkeypatch.setattr(trainer.distillation, "_steps", 0)
    monkeypatch.setattr(trainer.distillation, "balance", SimpleNamespace(settled=True, weights=lambda: {"fgfi": 1.0}))
    monkeypatch.setattr(session, "warn_aloud", lines.append)
    run_steps(trainer, batch, 440.0, 20, pytest.MonkeyPatch())
    assert not lines


def test_batches_without_boxes_do_not_count(student_and_batch, monkeypatch):
    trainer, batch = student_and_batch
    empty = {**batch, "bboxes": torch.zeros(0, 4), "cls": torch.zeros(0, 1), "batch_idx": torch.zeros(0)}
    loss, items = trainer.distillation(trainer.model(batch["img"]), empty)
    assert items["kd_loss"] == 0
    assert loss.isfinite().all()
    run_steps(trainer, empty, 0.0, 45, monkeypatch)


def test_schedules_of_dual_heads_go_on(distilled):
    model = models.load_model("yolo26n").model
    model.args = distilled[0].args
    distillation = seam.Distillation(model, [], distilled[0].config)
    distillation.update()  # before the first step there is nothing to pass on to
    distillation.task = model.init_criterion()
    distillation.updates = 4
    distillation.update()
    assert distillation.task.updates == distillation.updates == 5
    model.criterion = renewed = model.init_criterion()
    distillation.adopt(model)
    assert model.criterion is distillation
    assert distillation.task is renewed
    distillation.adopt(model)
    assert distillation.task is renewed


def test_nan_recovery_brings_the_adapters_back(data, tmp_path):
    trainer = set_up(data, tmp_path, teachers=("yolov5n",))
    trainer.epoch, trainer.fitness, trainer.best_fitness = 0, 0.1, 0.1
    trainer.save_model()
    adapters = trainer.distillation.adapters
    saved = {k: v.clone() for k, v in adapters.state_dict().items()}
    for value in (*adapters.parameters(), trainer.model.model[0].conv.weight):
        value.data.fill_(float("nan"))
    trainer.loss = torch.tensor(float("nan"))
    with session.silence():
        assert trainer._handle_nan_recovery(1)
    assert all(torch.equal(v, saved[k]) for k, v in adapters.state_dict().items())
    assert trainer.model.model[0].conv.weight.isfinite().all()
    assert trainer.model.kd_adapters is adapters
    assert not list(trainer.wdir.glob("*.partial"))


def is_channels_last(model):
    return model.model[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_student_on_a_cpu_has_its_channels_last_and_its_checkpoints_as_ever(plain):
    trainer, _ = plain
    assert is_channels_last(trainer.model)
    assert is_channels_last(trainer.ema.ema)
    trainer.epoch, trainer.fitness, trainer.best_fitness = 0, 0.1, 0.1
    trainer.save_model()
    saved = models.load_model(str(trainer.last)).model
    assert all(value.is_contiguous() for value in saved.state_dict().values())


@pytest.mark.parametrize(("name", "fused"), [("SGD", True), ("AdamW", True), ("RMSProp", None)])
def test_an_optimizer_on_a_cpu_takes_the_fused_step_where_torch_has_one(data, tmp_path, name, fused):
    settings = (("mosaic", 0.0), ("optimizer", name), ("warmup_epochs", 0.0))
    optimizer = set_up(data, tmp_path, settings=settings).optimizer
    assert [group.get("fused") for group in optimizer.param_groups] == [fused] * len(optimizer.param_groups)


def test_channels_last_can_be_turned_off(data, tmp_path):
    off = (("channels_last", False), ("mosaic", 0.0), ("warmup_epochs", 0.0))
    assert not is_channels_last(set_up(data, tmp_path, settings=off).model)


def test_torch_threads_are_given_back(data, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "TORCH_THREADS", 3)  # neither the machine's number nor the one that is left by half
    set_up(data, tmp_path)
    assert torch.get_num_threads() == 3
    monkeypatch.undo()
    torch.set_num_threads(session.TORCH_THREADS)


# --- the optimizer that is trained with --------------------------------------------------------------------

# Below 10,000 iterations auto takes AdamW, above MuSGD; six images are one iteration an epoch.
AUTO = [
    (1, 0.0, {"name": "AdamW", "lr0": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0}),
    (10_000, 3.0, {"name": "AdamW", "lr0": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0}),
    (10_001, 3.0, {"name": "MuSGD", "lr0": 0.01, "momentum": 0.937, "warmup_bias_lr": 0.0}),
    (10_001, 0.0, {"name": "MuSGD", "lr0": 0.01, "momentum": 0.9, "warmup_bias_lr": 0.0}),
]


@pytest.mark.parametrize(("epochs", "warmup", "expected"), AUTO)
def test_the_chosen_optimizer_is_told_and_can_be_asked_for(data, tmp_path, epochs, warmup, expected):
    usual = (("mosaic", 0.0), ("warmup_epochs", warmup))
    auto = set_up(data, tmp_path / "auto", epochs=epochs, settings=usual)
    assert optimizer_of(vars(auto.args)) == expected
    pinned = optimizer_settings({"optimizer": expected})
    asked = set_up(data, tmp_path / "asked", epochs=3, settings=(*usual, *pinned.items()))
    assert optimizer_of(vars(asked.args)) == expected
    groups = [[{**g, "params": len(g["params"])} for g in t.optimizer.param_groups] for t in (auto, asked)]
    if expected["name"] == "MuSGD" and warmup:  # auto starts at another momentum; the first step of the warm-up sets it
        assert {group.pop("momentum") for group in groups[0]} == {0.9}
        assert {group.pop("momentum") for group in groups[1]} == {0.937}
    assert groups[0] == groups[1]
    assert auto.args.warmup_bias_lr == asked.args.warmup_bias_lr


def test_an_optimizer_asked_for_is_told_by_its_name(data, tmp_path):
    trainer = set_up(data, tmp_path, settings=(("mosaic", 0.0), ("optimizer", "sgd"), ("lr0", 0.03), ("momentum", 0.8)))
    told = optimizer_of(vars(trainer.args))
    assert told == {"name": "SGD", "lr0": 0.03, "momentum": 0.8, "warmup_bias_lr": trainer.args.warmup_bias_lr}
