"""A full disk, by a limit on the size of files: one line that names the file; what was written before stays whole."""

from __future__ import annotations

import errno
import json
import resource

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.errors import RunError
from kd.files import sha256
from kd.training import checkpoints
from kd.training.checkpoints import load_sidecar
from kd.training.disk import write_text, writing
from kd.training.resume import ResumableTrainer
from kd.training.run import train
from tests.kd_fixtures import tiny_config, write_dataset

LINE = r"{name}: got '{reason}' when it was written, expected room on its disk, where \d+ MB are free: make room, .*"


@pytest.fixture
def limit():
    """Let no file of this process become larger; as on a full disk, writes are cut short and then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
])  # fmt: skip
def test_what_a_full_disk_raises_names_the_file(tmp_path, error):
    with (
        pytest.raises(RunError, match=rf"{tmp_path}/last.pt: got .*make room") as caught,
        writing(tmp_path / "last.pt"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [
    OSError(errno.EACCES, "Permission denied", "x"), RuntimeError("CUDA out of memory"), ValueError("unexpected pos"),
    RuntimeError("PytorchStreamReader failed reading zip archive"),
])  # fmt: skip
def test_what_is_no_full_disk_is_left_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing(tmp_path / "last.pt"):
        raise error
    assert caught.value is error


def test_a_file_of_text_is_whole_or_as_it_was(tmp_path, limit):
    """The limit is one that the files of pytest itself stay below: they belong to this process, too."""
    write_text(tmp_path / "run.json", '{"a": 1}')
    limit(1_000_000)
    with pytest.raises(RunError, match=LINE.format(name="run.json", reason="File too large")):
        write_text(tmp_path / "run.json", "b" * 2_000_000)
    limit(resource.RLIM_INFINITY)
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}


@pytest.mark.train
@pytest.mark.parametrize("name", ["last.pt", "last.kd.pt", "results.csv"])
def test_a_disk_that_is_full_in_the_second_epoch_leaves_the_first_one(tmp_path, monkeypatch, limit, name):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "run"
    weights = out / "weights"
    method = "save_metrics" if name == "results.csv" else "save_model"
    own = getattr(ResumableTrainer, method)

    def full(self, *arguments):
        if self.epoch == 1:
            sizes = {path.name: path.stat().st_size for path in (*weights.iterdir(), out / "results.csv")}
            assert sizes["last.pt"] < sizes["last.kd.pt"]
            limit(sizes[name] - 1)
        return own(self, *arguments)

    settings = (*tiny_config(data, out).settings, ("save_period", 1))
    config = tiny_config(data, out, epochs=3, settings=settings)
    monkeypatch.setattr(ResumableTrainer, method, full)
    reason = "a write that was cut short" if name == "last.kd.pt" else "File too large"
    with pytest.raises(RunError, match=LINE.format(name=f"{out}/.*{name}", reason=reason)):
        train(config)
    limit(resource.RLIM_INFINITY)
    state = load_sidecar(weights / "last.kd.pt")
    assert (state["epoch"], state["checkpoint"]) == (0, sha256(weights / "last.pt"))
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "epoch0.pt", "last.kd.pt", "last.pt"]
    monkeypatch.undo()
    assert train(config, resume=True)["epochs"] == 3


@pytest.mark.train
def test_a_disk_that_is_full_at_the_end_leaves_what_can_be_finished(tmp_path, monkeypatch, limit):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "run"
    own = checkpoints.strip_optimizer

    def full(*arguments):
        limit(1_000_000)
        return own(*arguments)

    monkeypatch.setattr(checkpoints, "strip_optimizer", full)
    with pytest.raises(RunError, match=LINE.format(name="last.pt", reason="a write that was cut short")):
        train(tiny_config(data, out))
    limit(resource.RLIM_INFINITY)
    monkeypatch.undo()
    assert train(tiny_config(data, out), resume=True)["epochs"] == 1
    assert sorted(path.name for path in (out / "weights").iterdir()) == ["best.pt", "last.pt"]
