"""Runs over a Ray cluster: queued, lost, repeated and reported as on one machine, with a stand-in for `kd train`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from typer.testing import CliRunner

from kd.commands import app
from kd.errors import RunError, UsageError
from kd.sweeps import executors
from kd.sweeps.executors import Cluster, Task, started
from kd.sweeps.plan import expand, read_plan
from kd.sweeps.sweep import LOSSES, Scheduler, sweep
from schemas.cluster import joined
from tests.kd_runs import write_run
from tests.kd_sweeps import calls


@pytest.fixture(scope="module")
def cluster():
    """Ray on two cores, for all tests here."""
    pytest.importorskip("ray")
    with joined(None, 2) as ray:
        yield ray


@pytest.fixture
def on_ray(cluster, monkeypatch):
    monkeypatch.setattr(executors, "joined", lambda address, cores: contextlib.nullcontext(cluster))
    return cluster


def test_what_is_lost_is_repeated_and_what_fails_is_told_as_on_one_machine(plan, tmp_path, on_ray, capsys):
    out, told = tmp_path / "out", []
    (tmp_path / "kill").write_text("runs/yolov5n/plain/seed0")
    (tmp_path / "fail").write_text("runs/yolov5n/fgfi/seed0")
    found = sweep(plan, out, changes=["seeds=[0]"], cluster=Cluster(), tell=told.append)
    assert (found["finished"], found["failed"]) == (
        3,
        {
            "runs/yolov5n/fgfi/seed0": "out: got no memory, expected some: buy it",
            "runs/yolov5n/longer/seed0": "needs runs/yolov5n/fgfi/seed0, which failed",
        },
    )
    assert capsys.readouterr().out == ""
    made = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    names = [name for name, _ in made]
    assert names.index("teachers/m") < names.index("runs/yolov5n/built-in/seed0")
    assert [words[-1] for name, words in made if name == "runs/yolov5n/plain/seed0"] == ["--quiet", "--resume"]
    assert [line for line in told if line.startswith("lost, to be repeated: runs/yolov5n/plain/seed0: ")]
    (tmp_path / "fail").unlink()
    calls(plan)
    assert sweep(plan, out, changes=["seeds=[0]"], tell=list)["failed"] == {}  # goes on without Ray
    assert calls(plan).keys() == found["failed"].keys()


LONG = (
    "from kd.sweeps.executors import follow_parent; follow_parent(); import os, sys, time; "
    "print(os.getpid(), os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(60)"
)


def test_a_stopped_run_has_ended_when_its_executor_has(tmp_path, on_ray, monkeypatch):
    monkeypatch.setattr(executors, "KD", ("-c", LONG))
    log = tmp_path / "log"
    log.touch()
    with started(Cluster(cpus=2), None, ["cpu"], print) as executor:
        assert executor.room() == 1
        run, queued = (executor.start([], log, tmp_path) for _ in range(2))
        while not log.read_text().endswith("\n"):
            assert run.poll() is None
            time.sleep(0.05)
        pid, threads = log.read_text().split()
        for one in (run, queued):
            one.stop()
        for one in (run, queued):
            one.wait()
    assert threads == "2"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_log_that_the_node_does_not_see_is_told(tmp_path, on_ray):
    with started(Cluster(), None, ["cpu"], print) as executor:
        run = executor.start([], tmp_path / "log", tmp_path)
        run.wait()
        with pytest.raises(RunError, match=r"log: got no such file on .*put them on a file system that these share"):
            run.poll()


def test_more_than_this_machine_has_is_refused_and_waited_for_in_a_cluster(on_ray):
    with pytest.raises(UsageError, match=r"got 3 cores and 0 GPUs for a run, expected .* this machine has: 2 cores"):
        started(Cluster(cpus=3), None, ["cpu"], print).__enter__()
    told = []
    with started(Cluster("auto", gpus=1), 7, ["cpu"], told.append) as executor:
        assert (executor.at_once, executor.room()) == (7, 1)
    assert told == ["no node of the cluster has 1 cores and 1 GPUs for a run: they wait for one that does"]


class Gone:
    """A cluster on which every run is lost, or has ended well."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=OSError)

    def __init__(self, code=None):
        self.code = code

    def wait(self, tasks, timeout=None):
        return tasks, []

    def get(self, task):
        if self.code is None:
            raise OSError("The worker died\nunexpectedly.")
        return self.code


class Losing:
    """An executor whose runs are all lost; the second time, if it is to be so, after they have ended."""

    at_once = 1
    starts = 0

    def __init__(self, finishes):
        self.finishes = finishes

    def room(self):
        return 1

    def start(self, words, log, result):
        self.starts += 1
        if self.finishes and self.starts == 2:
            write_run(result.parent, (0.6, 0.5))
        return Task(Gone(), None, result)


@pytest.mark.parametrize("finishes", [False, True])
def test_a_run_that_is_lost_over_and_over_fails_unless_it_had_ended(plan, tmp_path, finishes):
    (job,) = [job for job in expand(read_plan(plan)) if job.name == "runs/yolov5n/plain/seed0"]
    told = []
    scheduler = Scheduler(tmp_path / "out", [job], told.append, 1)
    executor = Losing(finishes)
    scheduler.work(executor, quiet=True)
    if finishes:
        assert (executor.starts, scheduler.failed) == (2, {})
    else:
        reason = f"lost {LOSSES} times: The worker died unexpectedly."
        assert (executor.starts, scheduler.failed) == (LOSSES, {job.name: reason})
    assert told[0] == f"lost, to be repeated: {job.name}: The worker died unexpectedly."


def test_a_result_that_another_node_wrote_is_waited_for(tmp_path, monkeypatch):
    run = Task(Gone(0), None, tmp_path / "run.json")
    assert run.poll() is None
    (tmp_path / "run.json").touch()
    assert run.poll() == 0
    (tmp_path / "run.json").unlink()
    monkeypatch.setattr(time, "monotonic", lambda: run.late + 1)
    assert run.poll() == 0
    assert Task(Gone(3), None, tmp_path / "run.json").poll() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-address", "auto"], "--ray-address: is for --executor ray, which is not given"),
        (["--ray-gpus", "1"], "--ray-gpus: is for --executor ray, which is not given"),
        (["--executor", "ray", "--ray-gpus", "1.5"], "--ray-gpus: got 1.5, expected a share of one such as 0.5, or"),
        (["--executor", "ray", "--ray-cpus", "0"], "--ray-cpus: got 0, expected 1 or more"),
        (["--executor", "ray"], r"--executor ray: Ray is not installed; pip install 'dtld-kd\[ray\]'"),
    ],
)
def test_options_that_do_not_go_together_are_refused_and_nothing_is_written(
    plan, tmp_path, monkeypatch, options, message
):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["sweep", str(plan), "--out", str(tmp_path / "out"), *options])
    with pytest.raises(UsageError, match=message):
        raise done.exception
    assert not (tmp_path / "out").exists()


def test_a_dry_run_needs_no_cluster(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert len(sweep(plan, tmp_path / "out", cluster=Cluster(), dry_run=True)["plan"]) == 9
