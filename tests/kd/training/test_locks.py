"""One writer per folder, whatever becomes of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from kd import locks
from kd.errors import RunError
from kd.locks import LOCK, hold
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_runs import write_run

HOLDER = """
import sys, time
from pathlib import Path
from kd.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder `run`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("sign", [None, signal.SIGSTOP])
def test_a_second_process_is_refused_also_beside_a_stopped_one(tmp_path, monkeypatch, holder, sign):
    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    if sign:
        holder.send_signal(sign)
    expected = r"run: another process is writing this run; wait for it or choose another --out$"
    with pytest.raises(RunError, match=expected), hold(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / LOCK).exists()


def test_a_killed_holder_leaves_it_free(tmp_path, holder):
    threading.Timer(0.5, holder.kill).start()  # while we wait
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_folder_that_was_not_there_is_gone_when_nothing_is_left_in_it(tmp_path):
    with hold(tmp_path / "a" / "b" / "run"):
        assert (tmp_path / "a" / "b" / "run" / LOCK).exists()
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_that_was_there_stays(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt), hold(tmp_path / "run"):
        raise KeyboardInterrupt
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="got a file, expected a folder"), hold(tmp_path / place):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def is_held(folder):
    """Whether another open file has the folder's lock."""
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_run_holds_its_folder_from_the_first_check_to_the_last_file(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs the extra kd")
    from kd.training import check, run

    data, out, held = write_dataset(tmp_path / "data"), tmp_path / "run", []
    for module, name in ((check, "resolve_data"), (run, "finish")):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, own=own: held.append(is_held(out)) or own(*a))
    run.train(tiny_config(data, out))
    assert held == [True, True]
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "args.yaml", "config.json", "results.csv", "run.json", "weights"
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_no_run_starts_in_a_folder_that_another_process_writes(tmp_path, monkeypatch, holder, options):
    pytest.importorskip("torch", reason="needs the extra kd")
    from kd.training.run import train

    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    data, out = write_dataset(tmp_path / "data"), tmp_path / "run"
    (out / "config.json").write_text("{}")
    with pytest.raises(RunError, match="another process is writing this run"):
        train(tiny_config(data, out), **options)
    assert (out / "config.json").read_text() == "{}"


def test_a_dry_run_neither_waits_nor_writes(tmp_path, holder):
    pytest.importorskip("torch", reason="needs the extra kd")
    from kd.training.run import train

    data, out = write_dataset(tmp_path / "data"), tmp_path / "run"
    assert train(tiny_config(data, out), dry_run=True)["steps_per_epoch"] == 2
    assert [path.name for path in out.iterdir()] == [LOCK]


def test_two_reports_are_not_written_over_each_other(tmp_path, monkeypatch):
    from kd.reports.report import report

    monkeypatch.setattr(locks, "WAIT_S", 0.0)
    write_run(tmp_path / "runs" / "plain", (0.5, 0.3))
    out = tmp_path / "report.md"
    (tmp_path / ".report.md").mkdir()
    with (tmp_path / ".report.md" / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"report.md: another process is writing this report; wait"):
            report(tmp_path / "runs", out, images=0)
    assert not out.exists()
    shutil.rmtree(tmp_path / ".report.md")
    report(tmp_path / "runs", out, images=0)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
