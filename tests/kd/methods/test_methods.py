"""Each method in a real training step, the built-in as reference, and pairs that cannot be compared."""

from __future__ import annotations

import csv
import json
from copy import deepcopy

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema

import schemas
from kd.errors import DistillationError
from kd.methods.adapters import Adapters
from kd.methods.facts import DEFAULT_WEIGHTS, NEEDS_HEAD, ON_FEATURES
from kd.methods.features import score_weighted
from kd.methods.fgfi import fgfi_masks
from kd.methods.fgfi_config import FgfiConfig
from kd.methods.masks import Grid, foreground
from kd.methods.registry import METHODS
from kd.training.build import build_trainer
from kd.training.run import train
from kd.ultra import models, session
from tests.kd_fixtures import shared_weights, tiny_config, write_dataset
from tests.kd_models import save_detector
from tests.kd_pairs import YOLO_METHODS

pytestmark = pytest.mark.train

NAMES = {0: "red", 1: "green"}
ALL = tuple(YOLO_METHODS.items())
# Student, teacher: other widths; both heads dual; dual from single; single from dual; other reg_max (no ld).
PAIRS = [("yolov5n", "yolov8s"), ("yolov10n", "yolov10n"), ("yolov10n", "yolov5n"), ("yolov5n", "yolov10n")]
DFL_FREE = [("yolo26n", "yolo26n"), ("yolov5n", "yolo26n"), ("yolo26n", "yolov8s")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """The path of a detector of this architecture that finds many boxes of the data's classes."""
    folder = tmp_path_factory.mktemp("teachers")

    def path(architecture):
        file = folder / f"{architecture}-trained.pt"  # yolov5n.pt is a name that Ultralytics reads as another
        return str(file) if file.exists() else save_detector(file, NAMES, architecture=architecture)

    return path


def set_up(data, out, student, teacher, methods, **options):
    config = tiny_config(data, out, student=student, teachers=(teacher,), methods=tuple(methods), **options)
    with session.silence():
        trainer = build_trainer(config, f"{student}.yaml", out, None)
        trainer._setup_train()
    return trainer, trainer.preprocess_batch(next(iter(trainer.train_loader)))


def step(trainer, batch, autocast=False):
    """One optimizer step on the distillation terms alone; returns their values."""
    model = trainer.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, items = trainer.distillation(model(batch["img"]), batch)
    assert loss.isfinite().all()
    assert loss[-1].dtype == torch.float32
    trainer.optimizer.zero_grad()
    loss[-1].backward()
    trainer.optimizer.step()
    return {key: float(value) for key, value in items.items() if key.startswith("kd_")}


@pytest.mark.parametrize("name", YOLO_METHODS)
def test_a_step_trains_student_and_adapters_and_leaves_the_teacher(data, tmp_path, teachers, name):
    trainer, batch = set_up(data, tmp_path, "yolov5n", teachers("yolov8s"), [(name, DEFAULT_WEIGHTS[name])])
    distillation = trainer.distillation
    assert bool(distillation.links[0].teacher.model.model[-1].branches) == (name in NEEDS_HEAD)
    assert bool(list(distillation.adapters.parameters())) == (name in ON_FEATURES)
    teacher = {key: value.clone() for key, value in distillation.links[0].teacher.model.state_dict().items()}
    adapters = {key: value.clone() for key, value in distillation.adapters.state_dict().items()}
    student = trainer.model.model[0].conv.weight.clone()
    assert step(trainer, batch)["kd_loss"] > 0
    assert not torch.equal(trainer.model.model[0].conv.weight, student)
    assert all(torch.equal(v, teacher[key]) for key, v in distillation.links[0].teacher.model.state_dict().items())
    assert not any(torch.equal(v, adapters[key]) for key, v in distillation.adapters.state_dict().items())
    assert step(trainer, batch, autocast=True)["kd_loss"] > 0


@pytest.mark.parametrize(
    "options", [{"threshold": 0.3, "assigned": True}, {"kernel": 3}, {"mask": "boxes"}, {"soft": True, "kernel": 3}]
)
def test_every_variant_of_fgfi_trains_a_step(data, tmp_path, teachers, options):
    fgfi = (("fgfi", 0.01),)
    trainer, batch = set_up(data, tmp_path, "yolov5n", teachers("yolov8s"), fgfi, fgfi=FgfiConfig(**options))
    teacher, adapters = trainer.distillation.links[0].teacher, trainer.distillation.adapters
    assert bool(teacher.model.model[-1].branches) == options.get("soft", False)
    sides = {tuple(p.shape[2:]) for p in adapters.parameters() if p.ndim == 4}
    assert sides == {(options.get("kernel", 1),) * 2}
    assert step(trainer, batch)["kd_loss"] > 0
    assert step(trainer, batch, autocast=True)["kd_loss"] > 0


def test_without_anchors_the_cells_inside_boxes_are_imitated(data, tmp_path, teachers):
    config = {"methods": (("fgfi", 0.01),), "fgfi": FgfiConfig(mask="boxes")}
    trainer, batch = set_up(data, tmp_path, "yolov5n", teachers("yolov8s"), **config)
    seen = trainer.distillation.inputs(trainer.model.train()(batch["img"]), batch)[0]
    for (stride, features), mask in zip(seen.student.items(), fgfi_masks(seen, trainer.config), strict=True):
        grid = Grid(stride, *features.shape[2:])
        assert torch.equal(mask, foreground(seen.boxes_xyxy, seen.image_index, len(features), grid))
        assert 0 < mask.float().mean() < 1


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_all_methods_together_whatever_the_heads(data, tmp_path, teachers, student, teacher):
    trainer, batch = set_up(data, tmp_path, student, teachers(teacher), ALL)
    values = step(trainer, batch)
    assert values.keys() == {"kd_loss", *(f"kd_{name}_loss" for name in YOLO_METHODS)}
    assert all(value > 0 for value in values.values())
    assert values["kd_loss"] == pytest.approx(sum(value for key, value in values.items() if key != "kd_loss"), rel=1e-5)
    empty = {**batch, "bboxes": torch.zeros(0, 4), "cls": torch.zeros(0, 1), "batch_idx": torch.zeros(0)}
    assert step(trainer, empty)["kd_fgfi_loss"] == 0


@pytest.mark.parametrize(("student", "teacher"), DFL_FREE)
def test_heads_without_distributions_have_all_but_ld(data, tmp_path, teachers, student, teacher):
    trainer, batch = set_up(data, tmp_path, student, teachers(teacher), [pair for pair in ALL if pair[0] != "ld"])
    assert all(value > 0 for value in step(trainer, batch).values())


def test_a_dual_students_one_to_one_branch_learns_from_a_dual_teacher_alone(data, tmp_path, teachers):
    for teacher, learns in (("yolov10n", True), ("yolov5n", False)):
        trainer, batch = set_up(data, tmp_path / teacher, "yolov10n", teachers(teacher), [("logits", 1.0)])
        trainer.distillation(trainer.model.train()(batch["img"]), batch)[0][-1].backward()
        grads = [p.grad for p in trainer.model.model[-1].one2one_cv3.parameters()]
        assert any(g is not None and g.any() for g in grads) == learns


def test_a_methods_adapters_start_alike_whatever_the_others(data):
    channels = {8: (4, 6), 16: (5, 7)}
    state = torch.get_rng_state()
    together = Adapters(channels, tiny_config(data, "o", teachers=("t",), methods=ALL)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    for name in YOLO_METHODS:
        alone = Adapters(channels, tiny_config(data, "o", teachers=("t",), methods=((name, 1.0),))).state_dict()
        assert all(torch.equal(value, together[key]) for key, value in alone.items())
    other = Adapters(channels, tiny_config(data, "o", teachers=("t",), methods=ALL, seed=1)).state_dict()
    assert not any(torch.equal(value, other[key]) for key, value in together.items())


@pytest.mark.parametrize("methods", [(("fgfi", 0.01),), ALL])
def test_whatever_the_methods_the_student_starts_as_in_the_plain_arm(data, tmp_path, teachers, methods):
    config = tiny_config(data, tmp_path / "plain")
    with session.silence():
        plain = build_trainer(config, "yolov5n.yaml", tmp_path / "plain", None)
        plain._setup_train()
    state = torch.get_rng_state()
    trainer, _ = set_up(data, tmp_path / "kd", "yolov5n", teachers("yolov8s"), methods)
    distilled = trainer.model.state_dict()
    assert all(torch.equal(value, distilled[key]) for key, value in plain.model.state_dict().items())
    with session.silence():
        again = build_trainer(trainer.config, "yolov5n.yaml", tmp_path / "again", None)
        again._setup_train()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_of_several_methods_has_a_column_for_each(data, tmp_path, teachers):
    methods = (("cwd", 1.0), ("logits", 0.5), ("score-l2", 6.0))
    config = tiny_config(data, tmp_path / "run", teachers=(teachers("yolov8s"),), methods=methods)
    result = train(config, allow_weak_teacher=True)
    jsonschema.validate(json.loads(json.dumps(result)), schemas.load("run"))
    assert result["config"]["methods"] == {"cwd": 1.0, "logits": 0.5, "score-l2": 6.0}
    with (tmp_path / "run" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    parts = [float(row[f"train/kd_{name}_loss"]) for name, _ in methods]
    assert all(part > 0 for part in parts)
    assert float(row["train/kd_loss"]) == pytest.approx(sum(parts), rel=1e-3)
    adapters = torch.load(tmp_path / "run" / "weights" / "last.kd.pt", weights_only=True)["adapters"]
    assert {key.split(".")[1] for key in adapters} == {"cwd", "score-l2"}
    assert result["kd"]["teachers"][0]["adapter_params"] == sum(value.numel() for value in adapters.values())


def test_methods_on_heads_alone_have_no_adapters(data, tmp_path, teachers):
    config = tiny_config(data, tmp_path / "run", teachers=(teachers("yolov8s"),), methods=(("box", 1.0), ("ld", 1.0)))
    plan = train(config, dry_run=True, allow_weak_teacher=True)
    assert plan["kd"]["teachers"][0]["adapter_params"] == 0
    assert plan["first_batch"].keys() == {"boxes", "terms", "shares"}
    assert all(value > 0 for value in plan["first_batch"]["terms"].values())


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "method", "expected"),
    [
        ("yolo26n", "yolo26n", "ld", r"yolo26n: ld: got reg_max 1 with the student's 1, expected the same above 1"),
        ("yolov5n", "yolo26n", "ld", r"ld: got reg_max 1 with the student's 16, .*: choose box"),
        ("yolov5n", "yolov8n", "logits", r"yolov8n: logits: got a teacher without the class red, green, expected"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(data, tmp_path, student, teacher, method, expected):
    config = tiny_config(data, tmp_path / "run", student=student, teachers=(teacher,), methods=((method, 1.0),))
    with pytest.raises(DistillationError, match=expected) as refusal:
        train(config, allow_weak_teacher=True)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_classes_are_mapped_by_name_whatever_their_order(data, tmp_path):
    teacher = save_detector(tmp_path / "t.pt", {0: "green", 1: "blue", 2: "red"})
    trainer, batch = set_up(data, tmp_path / "run", "yolov5n", teacher, [("logits", 1.0)])
    (inputs,) = trainer.distillation.inputs(trainer.model.train()(batch["img"]), batch)
    assert inputs.classes == [2, 0]
    assert inputs.teacher_heads[0][8].scores.shape[1] == 3


def test_a_trained_model_that_is_its_own_teacher_has_next_to_nothing_to_learn(tmp_path):
    # The same COCO network on both sides, in eval mode and with real scores: all that differs is folding.
    weights = shared_weights("yolov8n_coco_from_int8.pt")
    names = models.load_model(weights).names
    data = write_dataset(tmp_path / "data")
    content = data.read_text().replace("{0: red, 1: green}", json.dumps(names))
    data.write_text(content)
    heads = [(name, 1.0) for name in ("logits", "box", "ld")]
    config = tiny_config(data, tmp_path / "run", student=weights, teachers=(weights,), methods=tuple(heads))
    with session.silence():
        trainer = build_trainer(config, weights, tmp_path / "run", None)
        trainer._setup_train()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    with torch.no_grad():
        (inputs,) = trainer.distillation.inputs(trainer.model.eval()(batch["img"]), batch)
    for name, _ in heads:
        assert float(METHODS[name](inputs, config)) < 1e-3


# --- Ultralytics' built-in distillation as the reference --------------------------------------------------


@pytest.mark.parametrize(("student", "teacher"), [("yolov5n", "yolov8s"), ("yolo26n", "yolo26n")])
def test_score_l2_is_ultralytics_own_term(data, tmp_path, teachers, student, teacher):
    """Their whole loss on our batch, with our projector in their place: a dual head's branches included."""
    from ultralytics.nn.distill_model import DistillationModel

    trainer, batch = set_up(data, tmp_path, student, teachers(teacher), [("score-l2", 6.0)])
    ours = trainer.distillation(trainer.model.train()(batch["img"]), batch)[1]["kd_loss"]
    bare = deepcopy(trainer.model)
    bare.args = trainer.args
    theirs = DistillationModel(models.load_model(teachers(teacher)).model, bare)
    for projector, convs in zip(theirs.projector, trainer.distillation.adapters[0]["score-l2"].values(), strict=True):
        projector[0].load_state_dict(convs[0].state_dict())
        projector[2].load_state_dict(convs[1].state_dict())
    loss, items = theirs.train().loss(batch)
    # Their teacher is not folded: the same within float32 noise.
    torch.testing.assert_close(ours, items["dis_loss"].squeeze(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss[-1].detach(), ours * len(batch["img"]), rtol=1e-4, atol=1e-6)
    assert theirs.dis == DEFAULT_WEIGHTS["score-l2"]


def test_the_formula_of_score_l2_is_ultralytics_own():
    from ultralytics.nn.distill_model import DistillationModel

    student, teacher, score = torch.randn(2, 5, 4, 3), torch.randn(2, 5, 4, 3), torch.rand(2, 4, 3)
    want = DistillationModel.loss_sl2(None, student, teacher, 0, (score.flatten(1)[:, None],))
    torch.testing.assert_close(score_weighted(student, teacher, score), want)
