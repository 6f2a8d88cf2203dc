"""Runs with soft labels: the teacher is asked once, the run is its plain twin's but for the loss, and it resumes."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

import kd.training.taught
import schemas
from kd.config import TrainConfig
from kd.distillation.cache_file import TeacherCache
from kd.distillation.caching import cache_teacher
from kd.distillation.criterion import Distillation
from kd.distillation.rows import ROWS
from kd.errors import DistillationError, RunError, UsageError
from kd.files import sha256
from kd.training.build import build_trainer
from kd.training.run import train
from kd.training.taught import taught
from kd.ultra import session
from kd.ultra.data import resolve_data
from kd.ultra.models import load_model
from tests.kd.training.test_resume import die_in_epoch, kill
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

pytestmark = pytest.mark.train

SOFT = (("soft-labels", 0.5),)
STUDENT = "kd/models/yolov8p.yaml"
MIXED = (("cutmix", 0.5), ("mixup", 0.3), ("mosaic", 0.8), ("nbs", 3), ("warmup_epochs", 0.0))


def configure(data, teacher, out, **changes):
    data = changes.pop("of", data)
    values = {"student": STUDENT, "epochs": 2, "teachers": (teacher,), "methods": SOFT, "settings": MIXED, **changes}
    return tiny_config(data, out, **values)


@pytest.fixture(scope="module")
def run(data, teacher, tmp_path_factory):
    """A run of two epochs: its folder and what `train` returned."""
    out = tmp_path_factory.mktemp("runs") / "soft"
    return out, train(configure(data, teacher, out), allow_weak_teacher=True, quiet=True)


def rows(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_run_says_what_it_learned_from(run, teacher):
    out, result = run
    jsonschema.validate(json.loads((out / "run.json").read_text()), schemas.load("run"))
    assert result["config"]["methods"] == {"soft-labels": 0.5}
    (known,) = result["kd"]["teachers"]
    assert (known["sha256"], known["levels"], known["adapter_params"]) == (sha256(Path(teacher)), [], 0)
    assert known["worth"]["weak"]  # it was looked at
    cache = TeacherCache.read(out / "teacher.npz")
    assert result["kd"]["cache"] == {"sha256": sha256(out / "teacher.npz"), **cache.size(out / "teacher.npz")}
    assert result["kd"]["cache"]["images"] == 6
    assert json.loads((out / "config.json").read_text())["kd"] == result["kd"]
    assert all(float(row["train/kd_loss"]) != 0 for row in rows(out))
    assert "val/kd_loss" not in rows(out)[0]
    assert "soft-labels 0.5" in (out / "README.md").read_text()


def batches(config, out):
    """The student's first weights, and what it would see in its first epoch."""
    with session.silence():
        trainer = build_trainer(config, config.student, out, None)
        trainer._setup_train()
        trainer.epoch = 0
        trainer.run_callbacks("on_train_epoch_start")
        return next(trainer.model.parameters()).detach().clone(), list(trainer.train_loader)


def test_it_sees_what_its_plain_twin_sees(run, data, teacher, tmp_path):
    out, _ = run
    soft = configure(data, teacher, tmp_path / "a", teacher_cache=str(out / "teacher.npz"))
    plain = configure(data, teacher, tmp_path / "b", teachers=(), methods=())
    (own, seen), (theirs, expected) = (batches(config, Path(config.out)) for config in (soft, plain))
    assert torch.equal(own, theirs)
    for batch, other in zip(seen, expected, strict=True):
        assert batch.keys() == other.keys() | {ROWS}
        assert batch["im_file"] == other["im_file"]
        assert all(torch.equal(batch[key], other[key]) for key in ("img", "cls", "bboxes", "batch_idx"))
    assert sum(len(one) for batch in seen for one in batch[ROWS]) > 6


def test_one_file_serves_several_runs_and_the_teacher_is_asked_once(data, teacher, tmp_path, monkeypatch):
    asked, own = [], kd.training.taught.ask
    monkeypatch.setattr(kd.training.taught, "ask", lambda *given: asked.append(given) or own(*given))
    file, view = tmp_path / "shared" / "t.npz", resolve_data(data)
    configs = [configure(data, teacher, tmp_path / "run", seed=seed, teacher_cache=str(file)) for seed in (0, 1)]
    first, second = (taught(config, view, torch.device("cpu"), True) for config in configs)
    assert len(asked) == 1
    assert first == second == {"sha256": sha256(file), **TeacherCache.read(file).size(file)}
    cache_teacher(teacher, data, tmp_path / "made.npz", imgsz=64, device="cpu", quiet=True)
    assert (tmp_path / "made.npz").read_bytes() == file.read_bytes()


def test_a_killed_run_ends_like_one_that_was_not_with_the_cache_it_began_with_alone(run, data, teacher, tmp_path):
    out, whole = run
    file = Path(shutil.copy(out / "teacher.npz", tmp_path / "t.npz"))
    config = configure(data, teacher, tmp_path / "killed", teacher_cache=str(file))
    kill(config, (die_in_epoch, 1))
    other = TeacherCache.read(file)
    other.rows[0, 0] ^= 1
    other.write(file)
    with pytest.raises(DistillationError, match="got another cache than the run began with"):
        train(config, resume=True, quiet=True)
    moved = replace(config, teacher_cache=str(out / "teacher.npz"))
    resumed = train(moved, resume=True, quiet=True)
    assert resumed["resumed"]
    assert resumed["kd"] == whole["kd"]
    for one, other in zip(rows(out), rows(tmp_path / "killed"), strict=True):
        assert {**one, "time": 0} == {**other, "time": 0}


def test_the_criterion_that_ultralytics_renews_for_dual_heads_is_watched_too(data, teacher, tmp_path):
    model = load_model("yolo26n").model
    model.args = IterableSimpleNamespace(**DEFAULT_CFG_DICT)
    distillation = Distillation(model, [], configure(data, teacher, tmp_path))
    model.criterion = distillation
    model.criterion = model.init_criterion()  # as resuming does
    distillation.adopt(model)
    assert model.criterion is distillation
    assert all(task.assigner._forward_hooks for task in (distillation.task.one2many, distillation.task.one2one))


def test_what_does_not_fit_is_refused_before_anything_is_written(run, data, teacher, tmp_path):
    out, _ = run
    cache = shutil.copy(out / "teacher.npz", tmp_path / "t.npz")
    other = write_dataset(tmp_path / "other", seed=1)
    headless = save_detector(tmp_path / "e.pt", {0: "red", 1: "green"}, architecture="yolov10n")
    content = torch.load(headless, weights_only=False)
    content["model"].model[-1].end2end = True
    content["model"].model[-1].fuse()
    torch.save(content, headless)
    for changes, refusal in (
        ({"of": other, "teacher_cache": cache}, "got a cache without 6 of 6 training images"),
        ({"imgsz": 96, "teacher_cache": cache}, "got the cache of a teacher at 64 px, expected 96 px"),
        ({"teacher_imgsz": 128, "teacher_cache": cache}, "got the cache of a teacher at 64 px, expected 128 px"),
        ({"teachers": (save_detector(tmp_path / "b.pt", {0: "red"}),)}, "got a teacher without the class green"),
        ({"teachers": (headless,)}, "head without a one-to-many branch like YOLO's"),
    ):
        with pytest.raises(DistillationError, match=refusal):
            train(configure(data, teacher, tmp_path / "run", **changes), allow_weak_teacher=True, quiet=True)
        assert not (tmp_path / "run").exists()
    again = configure(data, teacher, out, teacher_cache=str(out / "teacher.npz"))
    with pytest.raises(RunError, match=r"got --teacher-cache .* in it, expected a run without what the new one reads"):
        train(again, overwrite=True, allow_weak_teacher=True, quiet=True)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"methods": (*SOFT, ("cwd", 1.0))}, "--method: got soft-labels, cwd, expected soft-labels alone"),
        ({"methods": (("soft-labels", 1.5),)}, "weight: got 1.5, expected the teacher's share"),
        ({"teachers": ("a.pt", "b.pt")}, "--teacher: got a.pt, b.pt with soft-labels, expected one trained"),
        ({"teachers": ("yolov8n",)}, "--teacher: got yolov8n with soft-labels, expected one trained"),
        ({"balance": 0.1}, "--balance: got it with soft-labels"),
        ({"unlabeled": "folder"}, "--unlabeled: got it with soft-labels"),
        ({"teacher_cache": "t.pkl"}, "--teacher-cache: got t.pkl, expected a file that ends in .npz"),
        ({"teacher_cache": "t.npz", "methods": (("cwd", 1.0),)}, "--teacher-cache: got it without --method soft"),
        ({"teacher_cache": "t.npz", "teachers": (), "methods": ()}, "--teacher-cache: got it without --method soft"),
    ],
)
def test_options_that_contradict_it_are_refused(changes, refusal):
    with pytest.raises(UsageError, match=refusal):
        TrainConfig(**{"data": "d", "student": "s", "out": "o", "teachers": ("t.pt",), "methods": SOFT, **changes})


def test_a_dry_run_asks_no_teacher(run, data, teacher, tmp_path):
    out, _ = run
    plan = train(configure(data, teacher, tmp_path / "run"), dry_run=True, allow_weak_teacher=True, quiet=True)
    assert plan["config"]["methods"] == {"soft-labels": 0.5}
    assert "first_batch" not in plan
    config = configure(data, teacher, tmp_path / "run", teacher_cache=str(out / "teacher.npz"))
    plan = train(config, dry_run=True, allow_weak_teacher=True, quiet=True)
    assert plan["first_batch"]["terms"]["soft-labels"] != 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("view", [{"single_cls": True}, {"classes": [0]}], ids=str)
def test_settings_that_decide_which_objects_there_are(run, data, teacher, tmp_path, view):
    out, _ = run
    settings = tuple(sorted({**dict(MIXED), **view}.items()))
    config = configure(data, teacher, tmp_path, settings=settings, teacher_cache=str(out / "teacher.npz"))
    _, seen = batches(config, tmp_path)
    scores = torch.cat([one[:, 4:] for batch in seen for one in batch[ROWS]])
    assert scores.shape[1] == (1 if "single_cls" in view else 2)
    assert (scores[:, 0] > 0).all()
    assert "single_cls" in view or not scores[:, 1].any()
