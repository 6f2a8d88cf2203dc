"""Nothing is written but what the user names, and kd's own cache: not beside the images, not in the home folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.dtld_data import image, light, write_v2
from tests.kd_fixtures import write_dataset
from tests.kd_runs import write_run

TRAIN = (
    "--student",
    "yolov5n",
    "--imgsz",
    "64",
    "--batch",
    "3",
    "--device",
    "cpu",
    "--epochs",
    "1",
    "--set",
    "workers=0",
)


@pytest.fixture
def command(tmp_path):
    """Run `kd` or `dtld` with a home, a working and a temporary folder that are new; what is in them afterwards."""
    places = {name: tmp_path / name for name in ("home", "here", "tmp")}
    for place in places.values():
        place.mkdir()

    def run(tool, *words, code=0):
        keep = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "MPLCONFIGDIR")}
        environment = {**keep, "HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "XDG_CONFIG_HOME": ""}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", f"import cli; cli.{tool}()", *map(str, words)],
            env=environment, cwd=places["here"], capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        files = {str(path.relative_to(tmp_path)) for place in places.values() for path in place.rglob("*")}
        return done.stderr, {file for file in files if not f"{file}/".startswith("home/.cache/dtld-kd/")} - {
            "home/.cache"
        }

    return run


def tree(folder):
    return {path: path.is_file() and (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*")}


def test_a_dry_run_writes_nothing(tmp_path, command):
    pytest.importorskip("torch", reason="needs the extra kd")
    data = write_dataset(tmp_path / "data")
    before = tree(tmp_path / "data")
    assert command("kd", "train", "--data", data, *TRAIN, "--teacher", "yolov5n", "--allow-weak-teacher", "--dry-run",
                   "--out", tmp_path / "a" / "run") == ("", set())  # fmt: skip
    assert tree(tmp_path / "data") == before
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("word", ["disk", "DISK"])
def test_copies_of_images_beside_them_are_refused(tmp_path, command, word):
    pytest.importorskip("torch", reason="needs the extra kd")
    data = write_dataset(tmp_path / "data")
    before = tree(tmp_path / "data")
    words = ("kd", "train", "--data", data, *TRAIN, "--out", tmp_path / "run", "--set", f"cache={word}")
    expected = "error: --set cache: got disk, which writes a file beside every image, expected ram: --set cache=ram\n"
    assert command(*words, code=2) == (expected, set())
    assert tree(tmp_path / "data") == before
    assert not (tmp_path / "run").exists()


def test_a_run_writes_into_its_folder_alone(tmp_path, command):
    pytest.importorskip("torch", reason="needs the extra kd")
    data = write_dataset(tmp_path / "data")
    before = tree(tmp_path / "data")
    assert command("kd", "train", "--data", data, *TRAIN, "--out", tmp_path / "run", "--set", "cache=ram")[1] == set()
    assert tree(tmp_path / "data") == before


def test_a_report_leaves_the_home_folder_alone(tmp_path, command):
    write_run(tmp_path / "runs" / "plain", (0.5, 0.3))
    assert command("kd", "report", tmp_path / "runs", "--out", tmp_path / "r.md", "--images", 0) == ("", set())
    assert (tmp_path / "r.md").exists()
    assert (tmp_path / "home" / ".cache" / "dtld-kd" / "matplotlib").exists()


def test_a_plot_of_labels_leaves_the_home_folder_alone(tmp_path, command):
    labels = write_v2(tmp_path / "labels.json", [image("Aachen/1/s/a.tiff", light(10, 10, 5, 9))])
    assert command("dtld", "inspect", labels, "--plot", tmp_path / "plot.png")[1] == set()
    assert (tmp_path / "plot.png").exists()
    assert (tmp_path / "home" / ".cache" / "dtld-kd" / "matplotlib").exists()
