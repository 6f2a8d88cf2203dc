"""From a configuration to a run folder: its files, its checkpoints, what is refused, and a run killed midway."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema

import schemas
from kd.errors import DataError, DistillationError, ModelError, RunError, UsageError
from kd.methods.registry import METHODS
from kd.training import run as train_module
from kd.training.run import train
from kd.training.worth import Worth
from kd.ultra.data import hash_data, resolve_data
from tests.kd.training.test_resume import die_in_epoch, kill
from tests.kd_fixtures import tiny_config, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), test=2)


@pytest.fixture(scope="module")
def distilled(data, tmp_path_factory):
    """A distilled run of two epochs: its folder and what `train` returned."""
    out = tmp_path_factory.mktemp("runs") / "distilled"
    config = tiny_config(data, out, epochs=2, teachers=("yolov5s",))
    return config, out, train(config, allow_weak_teacher=True)


def rows(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def run_isolated(code):
    """Run Python with our own packages out of reach, as on a machine that does not have them."""
    blocked = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('kd', 'dtld_tools', 'schemas', 'cli'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1", "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0"}
    return subprocess.run(
        [sys.executable, "-c", blocked + code], env=environment, cwd="/", capture_output=True, text=True
    )


def assert_plain(*checkpoints):
    """Ultralytics alone, by its safe loader, loads the checkpoints, and they hold nothing of ours."""
    code = f"""
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import SAFE_LOAD
assert SAFE_LOAD
for path in {[str(c) for c in checkpoints]!r}:
    yolo = YOLO(path)
    assert type(yolo.model) is DetectionModel
    assert not [k for k, _ in yolo.model.named_modules() if 'kd' in k] and 'kd_adapters' not in yolo.model._modules
    yolo.predict(torch.zeros(1, 3, 64, 64), verbose=False)
print('plain')
"""
    done = run_isolated(code)
    assert done.stdout.splitlines()[-1:] == ["plain"], done.stderr


@pytest.mark.train
def test_a_run_has_the_files_of_the_contract_and_no_others(distilled):
    _, out, _ = distilled
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == [
        "README.md", "args.yaml", "config.json", "results.csv", "run.json", "weights/best.pt", "weights/last.kd.pt",
        "weights/last.pt",
    ]  # fmt: skip


@pytest.mark.train
def test_run_json_satisfies_its_schema_and_tells_the_run(distilled):
    config, out, returned = distilled
    content = json.loads((out / "run.json").read_text())
    jsonschema.validate(content, schemas.load("run"))
    chosen = {"name": "AdamW", "lr0": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0}  # by `optimizer=auto`
    assert content["optimizer"] == chosen
    assert content == json.loads(json.dumps(returned))
    assert content["config"] == config.to_json()
    (taught,) = content["kd"]["teachers"]
    assert taught["weight"] == 1
    assert taught["levels"] == [
        {"stride": 8, "teacher_stride": 8, "student_channels": 64, "teacher_channels": 128},
        {"stride": 16, "teacher_stride": 16, "student_channels": 128, "teacher_channels": 256},
        {"stride": 32, "teacher_stride": 32, "student_channels": 256, "teacher_channels": 512},
    ]
    adapters = torch.load(out / "weights" / "last.kd.pt", weights_only=True)["adapters"]
    assert taught["adapter_params"] == sum(value.numel() for value in adapters.values())
    assert content["images"] == {"train": 6, "val": 3, "test": 2}
    assert content["epochs"] == 2
    assert content["metrics"]["last"].keys() == {"val", "test"}
    assert content["metrics"]["best"]["test"]["per_class"].keys() == {"red", "green"}
    assert content["gflops"] > 0


@pytest.mark.train
def test_the_term_is_logged_every_epoch(distilled):
    _, out, _ = distilled
    assert [float(row["train/kd_loss"]) > 0 for row in rows(out)] == [True, True]
    assert "val/kd_loss" not in rows(out)[0]


@pytest.mark.train
def test_the_adapters_were_trained(distilled):
    config, out, _ = distilled
    from kd.methods.adapters import Adapters

    alone = Adapters({8: (64, 128), 16: (128, 256), 32: (256, 512)}, config)
    start = torch.nn.ModuleList([alone]).state_dict()
    end = torch.load(out / "weights" / "last.kd.pt", weights_only=True)["adapters"]
    assert start.keys() == end.keys()
    assert not any(torch.equal(value, end[key]) for key, value in start.items())


@pytest.mark.train
def test_checkpoints_are_plain(distilled):
    _, out, _ = distilled
    assert_plain(out / "weights" / "last.pt", out / "weights" / "best.pt")


@pytest.mark.train
def test_the_same_command_gives_the_same_figures(distilled, tmp_path):
    config, out, _ = distilled
    again = tiny_config(config.data, tmp_path / "again", epochs=2, teachers=("yolov5s",))
    train(again, allow_weak_teacher=True)

    def without_time(folder):
        return [{key: value for key, value in row.items() if key != "time"} for row in rows(folder)]

    assert without_time(tmp_path / "again") == without_time(out)


@pytest.mark.train
def test_a_finished_run_is_neither_resumed_nor_replaced_unasked(distilled):
    config, out, _ = distilled
    before = (out / "run.json").read_bytes()
    with pytest.raises(RunError, match="got a finished run"):
        train(config, resume=True, allow_weak_teacher=True)
    with pytest.raises(RunError, match="--resume or --overwrite"):
        train(config, allow_weak_teacher=True)
    assert (out / "run.json").read_bytes() == before


@pytest.mark.train
def test_a_run_killed_midway_is_plain_and_resumes_the_distillation(data, tmp_path):
    # A dual-head student: Ultralytics replaces its criterion on resume, which would switch distillation off.
    out = tmp_path / "run"
    config = tiny_config(data, out, epochs=3, student="yolo26n", teachers=("yolov5n",))
    kill(config, (die_in_epoch, 2, 0))
    assert_plain(out / "weights" / "last.pt")
    adapters = torch.load(out / "weights" / "last.kd.pt", weights_only=True)
    for value in adapters["adapters"].values():
        value += 1  # a mark: where the adapters go on from
    torch.save(adapters, out / "weights" / "last.kd.pt")

    with pytest.raises(RunError, match=r"imgsz: got 96, expected 64 as the run was started with"):
        train(tiny_config(data, out, epochs=3, student="yolo26n", teachers=("yolov5n",), imgsz=96), resume=True)
    with pytest.raises(RunError, match="methods: got"):
        train(
            tiny_config(data, out, epochs=3, student="yolo26n", teachers=("yolov5n",), methods=(("fgfi", 1.0),)),
            resume=True,
        )
    result = train(config, resume=True)
    jsonschema.validate(json.loads(json.dumps(result)), schemas.load("run"))
    assert (result["optimizer"]["name"], result["optimizer"]["momentum"]) == ("AdamW", 0.9)
    assert result["resumed"]
    assert [row["epoch"] for row in rows(out)] == ["1", "2", "3"]
    assert all(float(row["train/kd_loss"]) > 0 for row in rows(out))
    resumed = torch.load(out / "weights" / "last.kd.pt", weights_only=True)
    assert (adapters["epoch"], resumed["epoch"]) == (1, 2)
    drift = max(float((resumed["adapters"][k] - v).abs().max()) for k, v in adapters["adapters"].items())
    assert 0 < drift < 0.1  # trained on from the sidecar, not from a new start, which is 1 away


@pytest.mark.train
def test_a_plain_run_needs_no_teacher(data, tmp_path):
    result = train(tiny_config(data, tmp_path / "plain"))
    jsonschema.validate(json.loads(json.dumps(result)), schemas.load("run"))
    assert result["kd"] is None
    assert "train/kd_loss" not in rows(tmp_path / "plain")[0]
    assert not (tmp_path / "plain" / "weights" / "last.kd.pt").exists()


@pytest.mark.train
def test_a_dry_run_tells_the_plan_and_writes_nothing(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", teachers=("yolov5s-p6",))
    plan = train(config, dry_run=True, allow_weak_teacher=True)
    assert not (tmp_path / "run").exists()
    assert [level["stride"] for level in plan["kd"]["teachers"][0]["levels"]] == [8, 16, 32]
    assert plan["steps_per_epoch"] == 2
    assert plan["first_batch"]["boxes"] > 0
    assert all(0 < share <= 1 for share in plan["first_batch"]["mask_share"].values())
    assert plan["first_batch"]["terms"]["fgfi"] > 0


@pytest.mark.train
def test_training_that_stops_early_leaves_no_folder(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "fgfi", lambda *_: 1 / 0)
    config = tiny_config(data, tmp_path / "run", teachers=("yolov5n",))
    with pytest.raises(RunError, match="training: got ZeroDivisionError"):
        train(config, allow_weak_teacher=True)
    assert not (tmp_path / "run").exists()


def weak(*_, **__):
    raise DistillationError("t: teacher: got mAP50 0.000")


@pytest.mark.parametrize(
    ("changes", "options", "error"),
    [
        ({"student": "nothing.pt"}, {}, ModelError),
        ({"teachers": ("nothing.pt",)}, {}, ModelError),
        ({"data": "nothing.yaml"}, {}, DataError),
        ({"settings": (("lr0", "fast"),)}, {}, UsageError),
        ({"teachers": ("yolov5n",)}, {}, DistillationError),
        ({}, {"resume": True}, RunError),
        ({}, {"resume": True, "overwrite": True}, UsageError),
        ({"device": "77"}, {}, UsageError),
    ],
)
def test_a_refused_run_leaves_no_folder(data, tmp_path, monkeypatch, changes, options, error):
    monkeypatch.setattr(train_module, "check_worth", weak)
    with pytest.raises(error) as refusal:
        train(tiny_config(changes.pop("data", data), tmp_path / "run", **changes), **options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_never_deleted(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(RunError, match="no run of kd"):
            train(tiny_config(data, tmp_path / "run"), **options)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_a_refused_run_with_overwrite_keeps_the_old_one(data, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    earlier = json.dumps({"config": {}, "data_sha256": ""})
    (tmp_path / "run" / "config.json").write_text(earlier)
    monkeypatch.setattr(train_module, "check_worth", weak)
    with pytest.raises(DistillationError):
        train(tiny_config(data, tmp_path / "run", teachers=("yolov5n",)), overwrite=True)
    assert (tmp_path / "run" / "config.json").read_text() == earlier


def test_worth_is_checked_with_the_options_of_the_run(data, tmp_path, monkeypatch):
    seen = []

    def check(*given):
        seen.append(given)
        return [Worth(3, 0.5, None)]

    monkeypatch.setattr(train_module, "check_worth", check)
    monkeypatch.setattr(train_module, "plan", lambda config, checked: checked.record)
    config = tiny_config(data, tmp_path / "run", teachers=("yolov5n",))
    plan = train(config, dry_run=True)
    assert seen == [(config, False)]
    assert plan["kd"]["teachers"][0]["worth"] == Worth(3, 0.5, None).to_json()


def test_the_data_hash_sees_labels_and_images(tmp_path):
    data = write_dataset(tmp_path, train=2, val=1)
    hashes = [hash_data(data, resolve_data(data))]
    label = tmp_path / "labels" / "train" / "000.txt"
    label.write_text(label.read_text().replace("0", "1", 1))
    hashes.append(hash_data(data, resolve_data(data)))
    (tmp_path / "images" / "train" / "001.png").unlink()
    hashes.append(hash_data(data, resolve_data(data)))
    assert len(set(hashes)) == 3
    assert hash_data(data, resolve_data(data)) == hashes[-1]
