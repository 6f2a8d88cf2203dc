"""Sweeps: what is started, continued, shared and recorded, with a stand-in for `kd train`; and one small real sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch", reason="needs the extra kd")
import yaml
from typer.testing import CliRunner

from kd.commands import app
from kd.errors import PlanError, RunError
from kd.sweeps import executors
from kd.sweeps.plan import read_plan
from kd.sweeps.sweep import equal_epochs, sweep
from tests.kd_fixtures import write_dataset
from tests.kd_sweeps import STAND_IN, calls, value


def test_every_run_is_made_once_and_teachers_are_shared(plan, tmp_path):
    out, told = tmp_path / "out", []
    found = sweep(plan, out, tell=told.append)
    assert found == {"out": str(out), "runs": 9, "finished": 9, "failed": {}, "seconds_left": 0}
    made = calls(plan)
    assert len(made) == 9
    assert next(iter(made)) == "teachers/m"
    assert [value(words, "--teacher") for words in made.values() if "--teacher" in words] == [
        str(out / "teachers" / "m" / "weights" / "best.pt")
    ] * 4
    assert value(made["runs/yolov5n/fgfi/seed1"], "--seed") == "1"
    assert told[0] == "[1/9] teachers/m: mAP50-95 50.0, 60 s, about 5 min left"  # 8 runs of 4 epochs of 10 s
    assert len(told) == 9
    sweep(plan, out, tell=told.append)
    assert (calls(plan), len(told)) == ({}, 9)  # nothing is left to do
    assert not (out / "failures.json").exists()


def test_plain_at_equal_time_gets_the_epochs_that_fit(plan, tmp_path):
    assert equal_epochs({"wall_time_s": 70.0, "epochs": 4}, {"wall_time_s": 40.0, "epochs": 4}) == 7
    assert equal_epochs({"wall_time_s": 30.0, "epochs": 4}, {"wall_time_s": 40.0, "epochs": 4}) == 4  # never fewer
    sweep(plan, tmp_path / "out", tell=list)
    made = calls(plan)
    assert value(made["runs/yolov5n/longer/seed0"], "--epochs") == "6"  # 4 epochs of 15 s are 6 of 10 s
    assert list(made).index("runs/yolov5n/fgfi/seed0") < list(made).index("runs/yolov5n/longer/seed0")


PINNED = ["optimizer=AdamW", "lr0=0.001667", "momentum=0.9", "warmup_bias_lr=0.0"]


def settings(words):
    return [words[i + 1] for i, word in enumerate(words) if word == "--set"]


def test_plain_at_equal_time_is_trained_by_the_optimizer_of_its_twin(plan, tmp_path):
    out = tmp_path / "out"
    sweep(plan, out, changes=["settings.set.cos_lr=true"], tell=list)
    made = calls(plan)
    assert settings(made["runs/yolov5n/plain/seed0"]) == settings(made["runs/yolov5n/fgfi/seed0"]) == ["cos_lr=True"]
    for seed in (0, 1):
        assert settings(made[f"runs/yolov5n/longer/seed{seed}"]) == ["cos_lr=True", *PINNED]


@pytest.mark.parametrize("begun", [{}, {"optimizer": "MuSGD", "lr0": 0.02, "cos_lr": True}])
def test_a_begun_run_at_equal_time_keeps_the_optimizer_that_it_began_with(plan, tmp_path, begun):
    out = tmp_path / "out"
    sweep(plan, out, tell=list)
    calls(plan)
    folder = out / "runs/yolov5n/longer/seed0"
    (folder / "run.json").unlink()
    (folder / "config.json").write_text(json.dumps({"config": {"epochs": 9, "settings": begun}}))
    sweep(plan, out, tell=list)
    (words,) = calls(plan).values()
    assert settings(words) == [f"{key}={begun[key]}" for key in begun if key != "cos_lr"]
    assert words[-1] == "--resume"


def test_a_begun_run_is_resumed_and_ultralytics_own_starts_again(plan, tmp_path):
    out = tmp_path / "out"
    for arm, epochs in (("fgfi", 4), ("built-in", 4), ("longer", 9)):
        folder = out / "runs" / "yolov5n" / arm / "seed0"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"config": {"epochs": epochs}}))
    (out / "plan.yaml").write_text(yaml.safe_dump(read_plan(plan), sort_keys=False))
    sweep(plan, out, tell=list)
    made = calls(plan)
    flags = {arm: made[f"runs/yolov5n/{arm}/seed0"][-1] for arm in ("plain", "fgfi", "built-in", "longer")}
    assert flags == {"plain": "--quiet", "fgfi": "--resume", "built-in": "--overwrite", "longer": "--resume"}
    assert value(made["runs/yolov5n/longer/seed0"], "--epochs") == "9"  # as it was begun, whatever the times are now


def test_a_failed_run_is_recorded_and_stops_only_those_that_need_it(plan, tmp_path):
    out, told = tmp_path / "out", []
    (tmp_path / "fail").write_text("runs/yolov5n/fgfi/seed0")
    found = sweep(plan, out, tell=told.append)
    reasons = {
        "runs/yolov5n/fgfi/seed0": "out: got no memory, expected some: buy it",
        "runs/yolov5n/longer/seed0": "needs runs/yolov5n/fgfi/seed0, which failed",
    }
    assert (found["finished"], found["failed"]) == (7, reasons)
    assert json.loads((out / "failures.json").read_text()) == reasons
    assert "failed: runs/yolov5n/fgfi/seed0: out: got no memory, expected some: buy it" in told
    (tmp_path / "fail").unlink()
    calls(plan)
    assert sweep(plan, out, tell=list)["failed"] == {}  # tried again
    assert calls(plan).keys() == reasons.keys()
    assert not (out / "failures.json").exists()


def test_a_failed_teacher_fails_all_that_it_would_have_taught(plan, tmp_path):
    (tmp_path / "fail").write_text("teachers/m")
    found = sweep(plan, tmp_path / "out", tell=list)
    assert (found["finished"], len(found["failed"])) == (2, 7)


def test_the_command_ends_with_exit_1_and_one_line_when_a_run_failed(plan, tmp_path):
    (tmp_path / "fail").write_text("runs/yolov5n/plain/seed1")
    done = CliRunner().invoke(app, ["sweep", str(plan), "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(done.stdout)["finished"] == 7
    assert "got 2 of 9 runs failed, expected none (runs/yolov5n/plain/seed1: out: got no memory" in str(done.exception)


def test_dry_run_writes_nothing_and_estimates_by_what_is_finished(plan, tmp_path):
    out = tmp_path / "out"
    rows = sweep(plan, out, dry_run=True)["plan"]
    assert [(row["state"], row["seconds"]) for row in rows] == [("to do", None)] * 9
    assert not out.exists()
    sweep(plan, out, changes=["seeds=[0]"], tell=list)
    calls(plan)
    found = sweep(plan, out, dry_run=True)
    rows = {row["run"]: row for row in found["plan"]}
    assert rows["runs/yolov5n/fgfi/seed0"]["state"] == "finished"
    assert rows["runs/yolov5n/fgfi/seed1"]["state"] == "to do"
    assert [rows[f"runs/yolov5n/{arm}/seed1"]["seconds"] for arm in ("plain", "fgfi", "longer")] == [40, 60, 60]
    assert rows["runs/yolov5n/longer/seed1"]["epochs"] == "time of runs/yolov5n/fgfi/seed1"
    assert found["seconds_left"] == 40 + 60 + 60 + 60
    assert calls(plan) == {}
    done = CliRunner().invoke(app, ["sweep", str(plan), "--out", str(out), "--dry-run"])
    assert "runs/yolov5n/plain/seed1: to do, epochs 4, about 40 s\n" in done.stdout
    assert done.stdout.endswith("out: 9 runs, 5 finished, about 4 min left\n")
    (row,) = (
        r for r in sweep(plan, out, changes=["arms.born.inherit=m"], dry_run=True)["plan"] if "born/seed1" in r["run"]
    )
    assert (row["inherit"], row["teacher"]) == ("teachers/m", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": 25}, r"--freeze: got 25, expected less than the 25 layers of yolov5n"),
        ({"freeze": 24}, r"--freeze: got 24, all layers but the head, with fgfi"),
        ({"method": "cwd", "unlabeled": "nowhere"}, "--unlabeled nowhere: no such folder"),
        ({"set": {"pretrained": "nowhere.pt"}}, r"nowhere\.pt: "),
    ],
)
def test_what_a_student_cannot_be_asked_for_is_refused_before_its_teacher_trains(plan, tmp_path, options, message):
    content = yaml.safe_load(plan.read_text())
    content["arms"]["fgfi"] |= options
    content["data"] = str(write_dataset(tmp_path / "set"))
    plan.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(PlanError, match=rf"runs/yolov5n/fgfi/seed0: .*{message}"):
        sweep(plan, tmp_path / "out", tell=list)
    assert not (tmp_path / "calls.jsonl").exists()


def test_seeds_may_be_added_and_another_plan_is_refused(plan, tmp_path):
    out = tmp_path / "out"
    sweep(plan, out, changes=["seeds=[0]"], tell=list)
    assert len(calls(plan)) == 5
    sweep(plan, out, tell=list)
    assert {name[-5:] for name in calls(plan)} == {"seed1"}
    with pytest.raises(PlanError, match="epochs: got 5, expected 4 as in the plan that was begun here"):
        sweep(plan, out, changes=["settings.epochs=5"])
    assert yaml.safe_load((out / "plan.yaml").read_text())["settings"]["epochs"] == 4
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(PlanError, match="got something that is no sweep"):
        sweep(plan, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_several_runs_at_once_share_the_cores(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    log = tmp_path / "log"
    for at_once, threads in ((3, "2"), (8, "1"), (1, "7")):
        log.write_bytes(b"")
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.setattr(executors, "KD", ("-c", "import os; print(os.environ['OMP_NUM_THREADS'])"))
        run = executors.Local(at_once).start([], log, tmp_path)
        run.wait()
        assert run.poll() == 0
        assert log.read_text().strip() == threads
    monkeypatch.setattr(executors, "KD", ("-c", STAND_IN))
    assert sweep(plan, tmp_path / "out", at_once=3, tell=list)["finished"] == 9


def start(plan, out, *, session):
    """A sweep in a process of its own that is at work on its first student."""
    plan.with_name("stay").write_text("runs/yolov5n/plain/seed0")
    code = f"from kd.sweeps import executors; executors.KD = ('-c', {STAND_IN!r}); import cli; cli.kd()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sweep", str(plan), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=session,
    )  # fmt: skip
    begun = out / "runs" / "yolov5n" / "plain" / "seed0" / "config.json"
    end = time.monotonic() + 60
    while not begun.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def test_a_killed_sweep_leaves_no_process_and_goes_on(plan, tmp_path):
    out = tmp_path / "out"
    process = start(plan, out, session=True)
    with pytest.raises(RunError, match="another sweep is at work there; wait for it"):
        sweep(plan, out)
    process.kill()
    process.communicate(timeout=30)  # returns when the last holder of its pipes has gone
    plan.with_name("stay").unlink()
    before = calls(plan)
    assert before.keys() == {"teachers/m", "runs/yolov5n/plain/seed0"}
    assert sweep(plan, out, tell=list)["finished"] == 9
    made = calls(plan)
    assert "teachers/m" not in made
    assert made["runs/yolov5n/plain/seed0"][-1] == "--resume"


def test_ctrl_c_is_130_and_stops_the_runs(plan, tmp_path):
    process = start(plan, tmp_path / "out", session=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (130, False)
    names = {path.name for path in (tmp_path / "out").rglob("*") if "partial" in path.name}
    assert names == set()


@pytest.mark.parametrize(("code", "closes", "ends"), [("", False, 0), ("time.sleep(60)", True, 130)])
def test_a_run_ends_by_itself_or_with_the_sweep(code, closes, ends):
    code = f"import time; from kd.sweeps.executors import follow_parent; follow_parent(); {code}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if closes:
            process.stdin.close()
        assert (process.wait(timeout=30), process.stderr.read()) == (ends, b"")


@pytest.mark.train
def test_a_small_sweep_and_what_it_says(tmp_path):
    from kd.runs.compare import compare

    data = write_dataset(tmp_path / "data", train=3, val=2, test=2)
    settings = {"epochs": 1, "imgsz": 64, "batch": 3, "device": "cpu", "allow-weak-teacher": True}
    plan = {
        "settings": {**settings, "set": {"mosaic": 0, "workers": 0, "warmup_epochs": 0}},
        "teachers": {"s": {"plain": "yolov5n"}},
        "students": ["yolov5n"],
        "arms": {"plain": {}, "fgfi": {"teacher": "s", "method": "fgfi"}},
        "seeds": [0],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    told = []
    found = sweep(tmp_path / "plan.yaml", tmp_path / "out", data=data, tell=told.append)
    assert (found["finished"], found["failed"]) == (2, {}), told
    compared = compare([tmp_path / "out"])
    assert (compared["pairs"], compared["seeds"]) == (1, [0])
