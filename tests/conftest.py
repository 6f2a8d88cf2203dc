"""What tests of several modules run."""

import gc
import shutil
from pathlib import Path

import pytest

import cli
import kd  # noqa: F401  sets the environment of Ultralytics before a test imports it
from dtld_tools.commands import app
from dtld_tools.errors import DtldError, UsageError
from tests.dtld_data import make_tree, write_v2
from tests.planted import write_full_dataset, write_sound_dataset
from tests.small_runs import prepare


def pytest_collection_finish():
    """What is imported by now stays: the many full collections of garbage, of which each training asks for, pass by."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def dtld(capsys, monkeypatch):
    """Run `dtld` in this process; the answer is (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.run("dtld", app, DtldError, UsageError, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A dataset without defects; tests that plant some take a `copy`."""
    out = tmp_path_factory.mktemp("sound") / "out"
    write_sound_dataset(tmp_path_factory.mktemp("raw"), out)
    return out


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """Whole frames as JPEG."""
    out = tmp_path_factory.mktemp("full") / "out"
    write_full_dataset(tmp_path_factory.mktemp("raw"), out)
    return out


@pytest.fixture
def copy(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "out"))


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A tree of 12 frames of 256x128 with v2.0 labels; tests that damage it copy it first."""
    root = tmp_path_factory.mktemp("raw")
    write_v2(root / "all.json", make_tree(root, lights=5))
    return root


@pytest.fixture
def own_raw(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "raw"))


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory):
    """One dataset of tiles, and its report: what other runs are compared with."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(raw, out)
