"""Asking a teacher once: what it says is what Ultralytics' own prediction says, whatever the images' shapes."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics import YOLO

from kd.distillation import cache, caching
from kd.distillation.cache import StudentClasses, ahead, ask, require_fits, require_some
from kd.distillation.cache_file import TeacherCache, image_sha256, most_rows
from kd.distillation.caching import cache_teacher
from kd.errors import DistillationError, ModelError, UsageError
from schemas.cluster import ClusterError
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector

NAMES = {0: "green", 1: "red"}
CPU = torch.device("cpu")


def changed(path, change):
    """A saved detector after a change."""
    content = torch.load(path, weights_only=False)
    change(content["model"])
    torch.save(content, path)
    return path


def scattered(model):
    """Scores and boxes that differ from cell to cell, so that no two detections are nearly equal."""
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0  # or features vanish in a fresh network
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 96, 96))
    head = model.model[-1]
    for branch in (*head.cv2, *head.cv3):
        torch.nn.init.normal_(branch[-1].weight, std=0.1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = save_detector(tmp_path_factory.mktemp("teacher") / "t.pt", NAMES, architecture="yolov8n")
    return changed(path, scattered)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of several shapes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    sizes = [(96, 96), (60, 120), (96, 96), (130, 40), (50, 100), (96, 96)]
    for i, size in enumerate(sizes):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("megapixels", [2.5, 0.02])
def test_the_detections_are_those_of_ultralytics_prediction(teacher, images, megapixels, monkeypatch):
    monkeypatch.setattr(cache, "MEGAPIXELS", megapixels)  # by shape all at once, or two by two
    found = ask(teacher, images, 96, 3, CPU)
    assert (found.imgsz, found.names, len(found.index)) == (96, ("green", "red"), len(images))
    for image in images:
        boxes_xywh, scores = found.detections(image_sha256(image))
        (theirs,) = YOLO(teacher)(image, imgsz=96, conf=0.05, iou=0.7, max_det=most_rows(2), verbose=False)
        own = np.concatenate((boxes_xywh, scores.max(1, keepdims=True)), 1)
        expected = np.concatenate((theirs.boxes.xywhn.numpy(), theirs.boxes.conf.numpy()[:, None]), 1)
        assert len(own) == len(expected) > 3
        apart = np.abs(own[:, None] - expected).max(2)  # in any order, for some scores are nearly equal
        assert apart.min(0).max() < 2e-3
        assert apart.min(1).max() < 2e-3


def test_dual_heads_give_the_scores_of_all_classes(images, tmp_path):
    found = ask(save_detector(tmp_path / "t.pt", NAMES, architecture="yolo26n"), images[:2], 96, 3, CPU)
    assert len(found.rows) > 2
    assert (found.detections(image_sha256(images[0])).scores > 0.02).all()


def test_what_cannot_be_read_is_told_and_what_is_equal_counts_once(teacher, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    shutil.copy(images[0], tmp_path / "copy.png")
    lines = []
    found = ask(teacher, [tmp_path / "broken.png", images[0], tmp_path / "copy.png"], 96, 3, CPU, tell=lines.append)
    assert list(found.index) == [image_sha256(images[0])]
    assert lines == ["1 of 3 training images are left out, for they cannot be read: broken.png"]


def test_a_teacher_that_sees_nothing_is_refused(images, tmp_path):
    blind = changed(
        save_detector(tmp_path / "t.pt", NAMES),
        lambda model: [torch.nn.init.constant_(branch[-1].bias, -20) for branch in model.model[-1].cv3],
    )
    with pytest.raises(DistillationError, match=r"got not one detection of at least 0\.05 in 1 images"):
        require_some(ask(blind, images[:1], 96, 3, CPU), blind)


def test_work_is_done_ahead_in_order_and_never_all_at_once():
    begun, lock = [], threading.Lock()

    def work(i):
        with lock:
            begun.append(i)
        time.sleep(0.001 * (i % 3))
        return i

    results = ahead(work, range(50), threads=3, most=5)
    assert next(results) == 0
    assert len(begun) <= 6
    assert list(results) == list(range(1, 50))


def test_a_cache_fits_a_run_of_its_teacher_size_and_images(teacher, images, tmp_path):
    found = ask(teacher, images[:3], 96, 3, CPU)
    moved = [Path(shutil.copy(image, tmp_path / f"moved{image.name}")) for image in images[:3]]
    require_fits(found, Path("c.npz"), shutil.copy(teacher, tmp_path / "moved.pt"), 96, moved)
    for changes, refusal in (
        ({"teacher": save_detector(tmp_path / "other.pt", NAMES, seed=1)}, "cache of another teacher than .*other.pt"),
        ({"imgsz": 64}, "cache of a teacher at 96 px, expected 64 px"),
        ({"images": images}, r"cache without 3 of 6 training images \(3\.png, 4\.png, 5\.png\), expected all"),
    ):
        with pytest.raises(DistillationError, match=refusal):
            require_fits(found, Path("c.npz"), **{"teacher": teacher, "imgsz": 96, "images": images[:3], **changes})


SCORES = np.array([[0.1, 0.2, 0.3], [0.9, 0.0, 0.5]], np.float32)  # of the teacher's classes c, a, b


@pytest.mark.parametrize(
    ("names", "view", "expected"),
    [
        ({0: "a", 1: "b", 2: "c"}, {}, SCORES[:, [1, 2, 0]]),
        ({0: "b"}, {}, SCORES[:, [2]]),
        ({0: "a", 1: "c"}, {"single_cls": True}, [[0.2], [0.9]]),
        ({0: "a", 1: "c"}, {"classes": [1]}, [[0, 0.1], [0, 0.9]]),
        ({0: "a", 1: "c"}, {"classes": 0, "single_cls": True}, [[0.2], [0.0]]),
    ],
)
def test_scores_are_of_the_students_classes(names, view, expected):
    own = StudentClasses.of(names, ["c", "a", "b"], view, "t.pt").scores(np.pad(SCORES, ((0, 0), (0, 1))))
    np.testing.assert_array_equal(own, np.array(expected, np.float32))


def test_a_teacher_of_one_class_and_one_without_a_class():
    assert StudentClasses.of({0: "a", 1: "c"}, ["item"], {"single_cls": True}, "t.pt").columns == (0,)
    with pytest.raises(DistillationError, match="soft-labels: got a teacher without the class d, expected each"):
        StudentClasses.of({0: "a", 1: "d"}, ["c", "a", "b"], {}, "t.pt")


def test_kd_cache_writes_a_file_and_says_what_is_in_it(teacher, tmp_path):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "new" / "t.npz"
    found = cache_teacher(teacher, data, out, device="cpu", quiet=True)
    read = TeacherCache.read(out)
    assert found.pop("seconds") >= 0
    assert found == {
        "teacher": teacher, "teacher_sha256": read.teacher_sha256, "data": str(data), "out": str(out), "imgsz": 96,
        "images": 6, "rows": len(read.rows), "bytes": out.stat().st_size,
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["t.npz"]


class StandIn:
    """In place of Ray's module: every task is done at once, here."""

    exceptions = type("exceptions", (), {"RayTaskError": KeyError, "RayError": LookupError})

    def __init__(self):
        self.tasks = []

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, **needs):
        def task(work):
            return type("Task", (), {"remote": lambda _, *given: self.tasks.append((needs, *given)) or work(*given)})()

        return task

    def get(self, results):
        return results


def test_the_nodes_of_a_cluster_make_the_same_file_in_parts(teacher, tmp_path, monkeypatch):
    data, ray = write_dataset(tmp_path / "data", train=17), StandIn()
    monkeypatch.setattr(caching, "joined", lambda *_: contextlib.nullcontext(ray))
    for name, executor in (("here.npz", "local"), ("there.npz", "ray")):
        cache_teacher(teacher, data, tmp_path / name, device="cpu", executor=executor, quiet=True)
    assert [(needs, len(part), device) for needs, part, *_, device in ray.tasks] == [
        ({"num_cpus": 1, "num_gpus": 0}, count, "cpu") for count in (3, 3, 3, 3, 3, 2)
    ]
    here, there = (TeacherCache.read(tmp_path / name) for name in ("here.npz", "there.npz"))
    assert (here.index, here.names, here.teacher_sha256) == (there.index, there.names, there.teacher_sha256)
    np.testing.assert_array_equal(here.starts, there.starts)
    np.testing.assert_allclose(here.rows, there.rows, atol=8)  # other batches, other roundings


def test_a_cluster_that_is_none_is_named(teacher, tmp_path, monkeypatch):
    def refuse(*_):
        raise ClusterError("--ray-address: nowhere: got none")

    monkeypatch.setattr(caching, "joined", refuse)
    over = {"executor": "ray", "ray_address": "nowhere"}
    with pytest.raises(UsageError, match="--ray-address: nowhere"):
        cache_teacher(teacher, write_dataset(tmp_path / "d"), tmp_path / "t.npz", device="cpu", **over)


def test_kd_cache_refuses(teacher, tmp_path):
    data = write_dataset(tmp_path / "data")
    for given, kind, refusal in (
        ((teacher, data, tmp_path / "t.zip"), UsageError, "expected a file that ends in .npz"),
        (("yolov8n", data, tmp_path / "t.npz"), ModelError, "got no checkpoint, expected a trained detector"),
    ):
        with pytest.raises(kind, match=refusal):
            cache_teacher(*given, device="cpu", quiet=True)
    with pytest.raises(UsageError, match="--imgsz: got 100"):
        cache_teacher(teacher, data, tmp_path / "t.npz", imgsz=100, device="cpu", quiet=True)
    assert not (tmp_path / "t.npz").exists()
