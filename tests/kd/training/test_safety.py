"""Hostile and damaged checkpoints, as `kd train` meets them: nothing in them runs, one line each, exit code 1."""

from __future__ import annotations

import os
import pickle
import re
import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import cli
from kd.commands import app
from kd.errors import KdError, UsageError
from kd.training import checkpoints
from kd.training.run import train
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}
OPTIONS = (
    "--student", "yolov5n", "--epochs", "2", "--imgsz", "64", "--batch", "3", "--device", "cpu",
    "--set", "mosaic=0.0", "--set", "warmup_epochs=0.0",
)  # fmt: skip


class Shell:
    """Touches a file by a shell when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class Code(Shell):
    """Touches a file by Python code when it is unpickled."""

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def zipped(path, marker, bomb):
    """In a checkpoint such as Ultralytics and kd write: a zip archive, everything else in it as it should be."""
    torch.save({"epoch": 0, "format": 2, "checkpoint": "", "model": bomb(marker), "ema": None}, path)


def legacy(path, marker, bomb):
    torch.save({"epoch": 0, "model": bomb(marker)}, path, _use_new_zipfile_serialization=False)


def bare(path, marker, bomb):
    path.write_bytes(pickle.dumps({"model": bomb(marker)}))


def truncated(path, *_):
    save_detector(path, NAMES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path, *_):
    path.write_text("not a checkpoint\n")


def empty(path, *_):
    path.write_bytes(b"")


def folder(path, *_):
    path.mkdir()


HOSTILE = [(form, bomb) for form in (zipped, legacy, bare) for bomb in (Shell, Code)]
DAMAGED = [(form, Shell) for form in (truncated, text, empty, folder)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def refused(capfd):
    """`kd train` with these arguments ends in one line and exit code 1; the answer is that line."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.run("kd", app, KdError, UsageError, ["train", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert (end.value.code, out) == (1, ""), err
        assert re.fullmatch(r"error: .+, expected .+\n", err), err
        assert "a defect of kd" not in err
        return err

    return run


@pytest.mark.parametrize(("bomb", "marker"), [(Shell, "shell"), (Code, "code")])
def test_the_bombs_go_off_where_nobody_watches(tmp_path, bomb, marker):
    for form in (zipped, legacy):
        form(tmp_path / "b.pt", tmp_path / marker, bomb)
        torch.load(tmp_path / "b.pt", weights_only=False)
        assert (tmp_path / marker).exists()
        (tmp_path / marker).unlink()
    bare(tmp_path / "b.pt", tmp_path / marker, bomb)
    pickle.loads((tmp_path / "b.pt").read_bytes())
    assert (tmp_path / marker).exists()


@pytest.mark.parametrize("option", ["--teacher", "--student", "--set"])
@pytest.mark.parametrize(("form", "bomb"), HOSTILE + DAMAGED)
def test_a_file_that_is_no_checkpoint_runs_nothing(data, tmp_path, refused, option, form, bomb):
    file, marker = tmp_path / "model.pt", tmp_path / "marker"
    form(file, marker, bomb)
    value = f"pretrained={file}" if option == "--set" else file
    line = refused("--data", data, *OPTIONS, option, value, "--out", tmp_path / "run")
    assert str(file) in line
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_pretrained_weights_that_are_not_there_are_not_looked_for_elsewhere(data, tmp_path, refused):
    line = refused("--data", data, *OPTIONS, "--set", "pretrained=yolo11n.pt", "--out", tmp_path / "run")
    assert "yolo11n.pt: no such file" in line


@pytest.fixture(scope="module")
def cut_off(data, tmp_path_factory):
    """A run of two epochs that was cut off before its checkpoints were stripped."""
    out = tmp_path_factory.mktemp("runs") / "run"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "strip_optimizer", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(data, out, epochs=2))
    return out


@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "form", "bomb"),
    [(name, *case) for name in ("last.pt", "last.kd.pt") for case in HOSTILE[::3] + DAMAGED]
    + [(name, form, Shell) for name in ("best.pt", "last.pt.partial") for form in (zipped, bare, folder)],
)
def test_a_run_with_a_file_that_is_no_checkpoint_resumes_nothing(data, tmp_path, refused, cut_off, name, form, bomb):
    out, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(cut_off, out)
    file = out / "weights" / name
    file.unlink(missing_ok=True)
    form(file, marker, bomb)
    if name == "last.pt.partial":  # a save that was never committed is dropped, whatever it is
        (out / "weights" / "last.pt").unlink()
        (out / "weights" / "last.kd.pt").write_bytes(b"")
    line = refused("--data", data, *OPTIONS, "--out", out, "--resume")
    assert str(out) in line
    assert not marker.exists()
    assert (out / "config.json").exists()
