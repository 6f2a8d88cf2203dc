"""Unlabelled images: what is refused, that they move nothing of the labelled side, and runs with them."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema

import schemas
from kd.distillation.outputs import joined
from kd.distillation.unlabeled import check_unlabeled, statistics_kept
from kd.errors import DataError, RunError, UsageError
from kd.methods.registry import METHODS
from kd.training import run as train_module
from kd.training.build import build_trainer
from kd.training.run import train
from kd.ultra import session
from kd.ultra.data import resolve_data
from tests.kd.training.test_resume import assert_equal, assert_same_run, configure, die_in_epoch, kill
from tests.kd.training.test_trainer import set_up
from tests.kd_fixtures import end_workers, tiny_config, write_dataset

CWD = (("cwd", 1.0),)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), test=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images of several sizes, formats and depths, each of one shade."""
    folder = tmp_path_factory.mktemp("unlabeled")
    for i, (name, shape) in enumerate(
        [("a.png", (96, 96)), ("b.jpg", (50, 120)), ("deep/c.png", (130, 40)), ("deep/er/d.bmp", (64, 64)),
         ("deep/er/e.png", (200, 200))]
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((*shape, 3), 40 * i + 20, np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


# ---------------------------------------------------------------- what is refused


def test_a_folder_is_counted_and_hashed(data, folder, tmp_path):
    view = resolve_data(data)
    found = check_unlabeled(folder, view)
    assert found["images"] == 5
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert check_unlabeled(copy, view) == found
    (copy / "a.png").unlink()
    assert check_unlabeled(copy, view)["sha256"] != found["sha256"]


def test_folders_without_images_are_refused(data, tmp_path):
    view = resolve_data(data)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"--unlabeled .*: got no images, expected \.jpg"):
        check_unlabeled(tmp_path, view)
    with pytest.raises(DataError, match=r"--unlabeled .*no such folder"):
        check_unlabeled(tmp_path / "nothing", view)


def test_images_that_cannot_be_read_are_named(data, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "deep" / "bad.jpg").write_bytes(b"no picture")
    (copy / "deep" / "cut.png").write_bytes((copy / "a.png").read_bytes()[:60])
    cv2.imwrite(str(copy / "small.png"), np.zeros((9, 40, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"got 3 images \(deep/bad\.jpg, deep/cut\.png, small\.png\) that cannot be read"
    ):
        check_unlabeled(copy, resolve_data(data))


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("how", ["copy", "link"])
def test_images_that_are_scored_on_are_refused(data, folder, tmp_path, split, how):
    copy = shutil.copytree(folder, tmp_path / "copy")
    scored = data.parent / "images" / split / "001.png"
    shutil.copy(scored, copy / "other.png") if how == "copy" else (copy / "other.png").symlink_to(scored)
    with pytest.raises(DataError, match=r"got 1 image \(other\.png\) that the val or test split has too"):
        check_unlabeled(copy, resolve_data(data))


def test_training_images_may_be_seen_again(data):
    assert check_unlabeled(data.parent / "images" / "train", resolve_data(data))["images"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--unlabeled: got it with fgfi alone, expected a method that needs no boxes: cwd, pkd, logits, box, ld"),
        ({"methods": CWD, "teachers": ()}, "--unlabeled: got it without --teacher"),
        ({"methods": CWD, "settings": (("rect", True),)}, "--unlabeled: got it with --set rect=true"),
    ],
)
def test_options_that_contradict_it(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        tiny_config(tmp_path, tmp_path, **{"teachers": ("yolov5n",), "unlabeled": "images", **changes})


# ---------------------------------------------------------------- drawing


def ready(data, out, folder, workers=0, **changes):
    """A trainer that is ready for its first step; the workers are those of a GPU's run."""
    taught = {"teachers": ("yolov5n",), "methods": CWD, "unlabeled": folder and str(folder), **changes}
    config = tiny_config(data, out, **taught | ({} if taught["teachers"] else {"methods": ()}))
    with session.silence():
        trainer = build_trainer(config, "yolov5n.yaml", out, None)
        trainer.args.workers = workers
        trainer._setup_train()
    return trainer


def shades(images):
    """Which of the folder's images these are, by the shade in the middle."""
    middle = images[:, :, 30:34, 30:34].mean((1, 2, 3)) * 255
    return sorted(((middle - 20) / 40).round().int().tolist())


@pytest.mark.train
def test_every_image_comes_once_before_any_comes_again(data, folder, tmp_path):
    # Without augmentation, which moves the shades.
    off = tuple((key, 0.0) for key in ("hsv_h", "hsv_s", "hsv_v", "mosaic", "scale", "translate", "warmup_epochs"))
    trainer = ready(data, tmp_path, folder, settings=off)
    unlabeled = trainer.distillation.unlabeled
    like, orders = torch.zeros(5, 3, 64, 64), []
    for epoch in range(3):
        unlabeled.begin(0, epoch, 0, 0)
        for _ in range(2):
            images = unlabeled.draw(like)
            assert (images.shape, images.dtype) == (like.shape, torch.float32)
            assert shades(images) == [0, 1, 2, 3, 4]
            orders.append(images)
    assert len({tuple(images[:, 0, 32, 32].tolist()) for images in orders}) > 1
    unlabeled.begin(0, 1, 0, 0)
    assert torch.equal(unlabeled.draw(like), orders[2])
    padded = {tuple(images[images[:, 0, 32, 32].argsort()][1, :, 0, 0].mul(255).round().tolist()) for images in orders}
    assert padded == {(114, 114, 114)}  # the wide image, as Ultralytics pads


@pytest.mark.train
def test_images_are_augmented_the_same_with_any_number_of_workers(data, folder, tmp_path):
    drawn = []
    for workers in (0, 2):
        trainer = ready(data, tmp_path / str(workers), folder, workers)
        unlabeled = trainer.distillation.unlabeled
        assert unlabeled._loader.num_workers == workers
        for epoch in range(2):
            unlabeled.begin(0, epoch)
            drawn.append([unlabeled.draw(torch.zeros(n, 3, size, size)) for n, size in ((3, 64), (2, 96), (1, 64))])
        end_workers(trainer)
    assert_equal(drawn[:2], drawn[2:])
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1].shape == (2, 3, 96, 96)  # multi_scale


@pytest.mark.train
@pytest.mark.parametrize("workers", [0, 2])
def test_plain_distilled_and_unlabelled_arms_see_the_same_labelled_images(data, folder, tmp_path, workers):
    seen = []
    arms = {"plain": {"teachers": (), "unlabeled": None}, "distilled": {"unlabeled": None}, "unlabeled": {}}
    settings = (("close_mosaic", 1), ("mosaic", 1.0), ("multi_scale", 0.5), ("warmup_epochs", 0.0))
    for name, changes in arms.items():
        trainer = ready(data, tmp_path / name, folder, workers, settings=settings, **changes)
        seen.append([])
        for trainer.epoch in range(3):
            trainer.run_callbacks("on_train_epoch_start")
            for batch in trainer.train_loader:
                batch = trainer.preprocess_batch(batch)
                seen[-1].append((batch["im_file"], batch["img"], batch["bboxes"]))
                if name == "unlabeled":
                    assert trainer.distillation.unlabeled.draw(batch["img"]).shape == batch["img"].shape
        end_workers(trainer)
    assert_equal(seen[0], seen[1])
    assert_equal(seen[0], seen[2])


@pytest.mark.train
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_lost_on_the_way_is_one_line(data, folder, tmp_path, workers):
    images = shutil.copytree(folder, tmp_path / "images")
    trainer = ready(data, tmp_path / "run", images, workers)
    (images / "deep" / "c.png").unlink()
    with pytest.raises(DataError, match=r"deep/c\.png: got no readable image, expected it as .*began$") as lost:
        trainer.distillation.unlabeled.draw(torch.zeros(5, 3, 64, 64))
    end_workers(trainer)
    assert "\n" not in str(lost.value)


# ---------------------------------------------------------------- the step


@pytest.mark.train
@pytest.mark.parametrize("student", ["yolov5n", "yolo26n"])
def test_the_task_loss_and_the_statistics_are_those_of_the_labelled_images(data, folder, tmp_path, student):
    losses, norms = [], []
    for name, images in (("with", folder), ("without", None)):
        trainer = set_up(
            data, tmp_path / name, student=student, teachers=("yolov5n",), methods=CWD,
            unlabeled=images and str(images),
        )  # fmt: skip
        model, trainer.epoch = trainer.model.train(), 0
        trainer.run_callbacks("on_train_epoch_start")
        for batch in trainer.train_loader:
            batch = trainer.preprocess_batch(batch)
            losses.append(trainer.distillation(model(batch["img"]), batch))
        norms.append({key: value for key, value in model.state_dict().items() if "running" in key})
    for (loss, items), (alone, items_alone) in zip(losses[:2], losses[2:], strict=True):
        assert torch.equal(loss[:-1], alone[:-1])
        assert_equal({**items, "kd_loss": 0}, {**items_alone, "kd_loss": 0})
        assert items["kd_loss"] != items_alone["kd_loss"]
        torch.testing.assert_close(loss[-1].detach(), items["kd_loss"] * 3)  # the labelled batch's size
    assert_equal(*norms)
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.train
def test_methods_see_all_images_and_boxes_stay_with_the_labelled_ones(data, folder, tmp_path, monkeypatch):
    trainer = ready(data, tmp_path, folder, methods=(("fgfi", 1.0), *CWD))
    distillation, model = trainer.distillation, trainer.model.train()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    extra = torch.rand_like(batch["img"])
    monkeypatch.setattr(distillation.unlabeled, "draw", lambda like: extra)
    preds = model(batch["img"])
    with statistics_kept(model):
        more = model(extra)
    (alone,) = distillation.inputs(preds, batch)
    (both,) = distillation.inputs(joined(preds, more), {**batch, "img": torch.cat((batch["img"], extra))})
    assert [len(level) for level in both.student.values()] == [len(level) for level in both.teacher.values()] == [6] * 3
    assert torch.equal(both.boxes_xyxy, alone.boxes_xyxy)
    assert torch.equal(both.image_index, alone.image_index)
    items = distillation(preds, batch)[1]
    config = replace(trainer.config, unlabeled=None)
    torch.testing.assert_close(items["kd_cwd_loss"], METHODS["cwd"](both, config).detach())
    torch.testing.assert_close(items["kd_fgfi_loss"], METHODS["fgfi"](alone, config).detach())


@pytest.mark.train
def test_gradients_come_from_the_unlabelled_images(data, folder, tmp_path, monkeypatch):
    trainer = ready(data, tmp_path, folder)
    model, gradients = trainer.model.train(), []
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    for seed in range(2):
        extra = torch.rand(batch["img"].shape, generator=torch.Generator().manual_seed(seed))
        monkeypatch.setattr(trainer.distillation.unlabeled, "draw", lambda like, extra=extra: extra)
        model.zero_grad()
        trainer.distillation(model(batch["img"]), batch)[0][-1].backward()
        gradients.append(model.model[0].conv.weight.grad.clone())
    assert gradients[0].any()
    assert not torch.equal(*gradients)


@pytest.mark.train
def test_the_order_of_python_and_numpy_is_left_alone(data, folder, tmp_path):
    unlabeled = ready(data, tmp_path, folder).distillation.unlabeled
    states = []
    for _ in range(2):
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()))
        unlabeled.draw(torch.zeros(4, 3, 64, 64))
    assert_equal(*states)


# ---------------------------------------------------------------- runs


@pytest.mark.train
def test_a_run_tells_its_unlabelled_images_and_refuses_others_on_resume(data, folder, tmp_path):
    images = shutil.copytree(folder, tmp_path / "images")
    config = tiny_config(data, tmp_path / "run", teachers=("yolov5n",), methods=CWD, unlabeled=str(images))
    result = train(config, allow_weak_teacher=True)
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    jsonschema.validate(content, schemas.load("run"))
    assert content["config"]["unlabeled"] == str(images.resolve())
    assert content["kd"]["unlabeled"] == check_unlabeled(images, resolve_data(data))
    assert result["images"]["train"] == 6
    (tmp_path / "run" / "run.json").unlink()
    (images / "a.png").unlink()
    with pytest.raises(RunError, match=r"unlabeled images: got .*'images': 4"):
        train(config, resume=True)


@pytest.mark.train
def test_a_leaking_folder_leaves_no_run(data, tmp_path):
    config = tiny_config(
        data, tmp_path / "run", teachers=("yolov5n",), methods=CWD, unlabeled=str(data.parent / "images" / "val")
    )
    with pytest.raises(DataError, match=r"got 3 images .*val or test split has too"):
        train(config, allow_weak_teacher=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.train
def test_a_killed_run_with_all_of_it_ends_like_one_that_was_not(data, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "finish", lambda last: None)
    changes = {
        "teachers": ("yolov5n",), "methods": (("fgfi", 1.0), *CWD), "unlabeled": str(folder), "balance": 0.1,
        "schedules": ("warmup", "cosine"),
    }  # fmt: skip
    whole, cut = (configure(data, tmp_path / name, changes) for name in ("whole", "cut"))
    kill(cut, (die_in_epoch, 1))
    kill(cut, (die_in_epoch, 3), resume=True)
    results = [train(whole, allow_weak_teacher=True), train(cut, resume=True)]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert results[0]["kd"]["balanced_weights"] == results[1]["kd"]["balanced_weights"]
    assert all(weight > 0 for weight in results[0]["kd"]["balanced_weights"].values())


@pytest.mark.train
def test_a_step_in_mixed_precision(data, folder, tmp_path):
    trainer = ready(data, tmp_path, folder, balance=0.1, methods=(*CWD, ("score-l2", 1.0)))
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, items = trainer.distillation(trainer.model.train()(batch["img"]), batch)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert all(items[key] > 0 for key in ("kd_cwd_loss", "kd_score-l2_loss"))
    assert all(p.grad.isfinite().all() for p in trainer.model.parameters() if p.grad is not None)
