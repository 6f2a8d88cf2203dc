"""Loading models and datasets: what is accepted, and the one line that each bad input gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import numpy as np
import torch
from ultralytics.data.dataset import YOLODataset

from kd.errors import DataError, ModelError, UsageError
from kd.ultra import models, session
from kd.ultra.data import image_files, label_file, resolve_data
from tests.kd_fixtures import shared_weights, write_dataset


@pytest.mark.parametrize(
    ("name", "millions"), [("yolov5n", 2.65), ("yolov5s", 9.15), ("yolo11n", 2.62), ("yolo26n", 2.57)]
)
def test_a_name_is_the_architecture_at_its_scale(name, millions):
    model = models.load_model(name).model
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_file_of_the_same_name_beside_the_caller_is_not_taken_for_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("yolov5n").write_text("not a model")
    assert models.load_model("yolov5n").task == "detect"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nowhere.pt", "no such file"),
        ("nowhere.yaml", "neither a file nor a model name"),
        ("yolo11z", "yolo11x"),
        ("yolov8n-seg", "segment"),
        ("https://example.com/yolov8n.pt", "no such file"),
    ],
)
def test_what_is_no_model_is_one_line(spec, expected):
    with pytest.raises(ModelError) as refusal:
        models.load_model(spec)
    assert spec in str(refusal.value)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.pt: got no usable model .*expected a checkpoint"):
        models.load_model(str(tmp_path / "x.pt"))


def test_a_yaml_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_text("names: [a]\n")
    with pytest.raises(ModelError, match=r"x\.yaml: got no usable model"):
        models.load_model(str(tmp_path / "x.yaml"))


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"model": b}, lambda b: {"ema": None, "model": b}])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_runs_nothing(tmp_path, wrap, zipped):
    torch.save(wrap(Bomb(tmp_path / "ran")), tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError):
        models.load_model(str(tmp_path / "b.pt"))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_bomb_runs_nothing_and_nothing_is_installed_when_ultralytics_was_imported_first(tmp_path):
    torch.save({"model": Bomb(tmp_path / "ran")}, tmp_path / "b.pt")
    code = (
        "import ultralytics, ultralytics.utils as u\nassert u.AUTOINSTALL and not u.SAFE_LOAD\n"
        "from kd import errors\nfrom kd.ultra import models\n"
        f"try: models.load_model({str(tmp_path / 'b.pt')!r})\n"
        "except errors.ModelError: print('refused')\n"
        "u.checks.ONLINE = True\n"
        "u.checks.subprocess.check_output = lambda *_, **__: print('installs')\n"
        "assert not u.checks.check_requirements('no-such-package')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("ULTRALYTICS_SAFE_LOAD", "YOLO_AUTOINSTALL")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert done.stdout == "refused\n", done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_ultralytics_loads():
    yolo = models.load_model(shared_weights("yolov8n_coco_from_int8.pt"))
    assert len(yolo.names) == 80


def test_the_import_is_silent_and_leaves_the_users_settings_alone(tmp_path):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "ULTRALYTICS", "OMP"))},
        "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }  # fmt: skip
    code = "import kd.ultra, os, torch; print(torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS'))"

    def run(code):
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True
        )

    done, threads = run(code), run("import torch; print(torch.get_num_threads())").stdout.strip()
    assert done.stdout.split() == [threads, "None"]
    assert done.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".config") == ["cache"]
    assert not list((tmp_path / ".config").rglob("settings.json"))


@pytest.mark.parametrize("missing", ["torch", "ultralytics"])
def test_without_the_extra_one_line_says_which_to_install(missing):
    code = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from kd.errors import KdError\n"
        "try: import kd.ultra.models\n"
        "except KdError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.strip() == "kd needs its extra: pip install 'dtld-kd[kd]'", done.stderr


def test_a_device_that_is_not_there_is_one_line():
    session.check_device("cpu")
    with pytest.raises(UsageError, match="--device: got '77', expected cpu, or the number of a GPU"):
        session.check_device("77")


def test_a_dataset_is_resolved_beside_its_file(tmp_path):
    view = resolve_data(write_dataset(tmp_path / "d", train=3, val=2))
    assert view["names"] == {0: "red", 1: "green"}
    assert view["train"] == [tmp_path / "d" / "images" / "train"]
    assert view["test"] == []
    images = image_files(view["val"])
    assert [image.name for image in images] == ["000.png", "001.png"]
    assert label_file(images[0]) == tmp_path / "d" / "labels" / "val" / "000.txt"


def test_splits_may_be_lists_of_folders_and_files_of_paths(tmp_path):
    data = write_dataset(tmp_path / "d", train=3, val=2)
    (tmp_path / "d" / "val.txt").write_text("./images/val/001.png\n./images/train/000.png\n")
    data.write_text(f"path: {tmp_path / 'd'}\ntrain: [images/train, images/val]\nval: val.txt\nnames: [a, b]\n")
    view = resolve_data(data)
    assert len(image_files(view["train"])) == 5
    assert [image.name for image in image_files(view["val"])] == ["000.png", "001.png"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("train: images/train\nval: images/none\nnames: [a]", "val: got images/none, expected an existing"),
        ("train: images/train\nval: empty\nnames: [a]", "val: got no images in"),
        ("train: images/train\nnames: [a]", "val: got nothing, expected"),
        ("train: images/train\nval: images/val", "names: got nothing, expected class names"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}", "names: got"),
        ("train: {a: b}\nval: images/val\nnames: [a]", "train: got"),
        ("path: /nowhere\ntrain: images/train\nval: images/val\nnames: [a]", "path: got '/nowhere'"),
        ("- a\n- b", "got a list, expected a mapping"),
        ("train: [", "got no YAML"),
    ],
)
def test_what_is_no_dataset_is_one_line(tmp_path, content, expected):
    data = write_dataset(tmp_path, train=1, val=1)
    (tmp_path / "empty").mkdir()
    data.write_text(content)
    with pytest.raises(DataError) as refusal:
        resolve_data(data)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_settings_are_checked_by_ultralytics_own_rules():
    session.check_settings({"lr0": 0.1, "cos_lr": True})
    with pytest.raises(UsageError, match="lr0"):
        session.check_settings({"lr0": "fast"})
    with pytest.raises(UsageError, match="dropout"):
        session.check_settings({"dropout": 3.0})


def test_pickled_labels_beside_the_data_are_neither_read_nor_written(tmp_path):
    data = write_dataset(tmp_path / "data")
    images = tmp_path / "data/images/train"
    cache, went_off = tmp_path / "data/labels/train.cache", tmp_path / "went off"
    with cache.open("wb") as file:
        np.save(file, np.array({"bomb": Bomb(went_off)}, dtype=object), allow_pickle=True)
    before = cache.read_bytes()
    read = [YOLODataset(img_path=str(images), data=resolve_data(data), task="detect") for _ in range(2)]
    assert not went_off.exists()
    assert cache.read_bytes() == before
    assert len(read[0].labels) == len(read[1].labels) == len(list(images.iterdir()))
    np.load(cache, allow_pickle=True)
    assert went_off.exists()
