"""`batch: auto` in a plan: all arms of a student have the smallest of their batches, also those that come later."""

from __future__ import annotations

import json

import pytest
import yaml

pytest.importorskip("torch", reason="needs the extra kd")

from kd.errors import PlanError, RunError, UsageError
from kd.sweeps import executors
from kd.sweeps.batches import _read
from kd.sweeps.executors import Cluster
from kd.sweeps.sweep import sweep
from kd.training import auto_batch
from tests.kd_sweeps import PLAN, STAND_IN, calls, value

# In place of a `kd train --dry-run`: without a teacher there is room for 48 images, with one for 32.
MEASURING = """
import json, sys
if "--dry-run" in sys.argv:
    words = sys.argv[2:]
    print("warning: {noise}", file=sys.stderr)
    asked = words[words.index("--batch") + 1], words[words.index("--teacher") + 1] if "--teacher" in words else None
    with open(LOG, "a") as file:
        file.write(json.dumps([words[words.index("--out") + 1].rpartition("/")[2], asked]) + chr(10))
    if asked == ("auto:0.1", None):
        sys.exit("error: --batch auto: got out of memory")
    print(json.dumps({"config": {"batch": 32 if asked[1] else 48}}, indent=2))
    sys.exit()
"""


@pytest.fixture
def measured(plan, tmp_path, monkeypatch):
    """The plan with `batch: auto`; returns what has been measured since the last look, arm -> (asked, teacher)."""
    log = tmp_path / "measured.jsonl"
    monkeypatch.setattr(executors, "KD", ("-c", MEASURING.replace("LOG", repr(str(log))) + STAND_IN))
    monkeypatch.setattr(auto_batch, "write_untrained", lambda config, path: path.with_suffix(".txt"))
    rewrite(plan)

    def look():
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return dict(map(json.loads, lines))

    return look


def rewrite(plan, **changes):
    content = {"data": "data.yaml", **PLAN, "seeds": [0], **changes}
    content["settings"] = {"epochs": 4, "batch": "auto:0.7", **changes.get("settings", {})}
    plan.write_text(yaml.safe_dump(content, sort_keys=False))


def batches(plan):
    return {name: value(words, "--batch") for name, words in calls(plan).items()}


def test_all_arms_take_the_smallest_and_later_ones_the_same(plan, tmp_path, measured):
    said = []
    out = tmp_path / "out"
    assert sweep(plan, out, tell=said.append)["finished"] == 5
    runs = {f"runs/yolov5n/{arm}/seed0": "32" for arm in PLAN["arms"]}
    assert batches(plan) == {"teachers/m": "auto:0.7", **runs}
    found = measured()
    assert {arm.removeprefix("runs_yolov5n_"): asked for arm, (asked, _) in found.items()} == dict.fromkeys(
        ("plain", "fgfi", "built-in"), "auto:0.7"
    ), "the longer plain runs take what plain ones take"
    teacher = found["runs_yolov5n_fgfi"][1]
    assert teacher.startswith(str(out / "batches")), "the teacher was not trained yet"
    assert said[0] == "yolov5n at 640 px, auto:0.7: batch 32, of plain 48, fgfi 32, built-in 32"
    arms = {"plain": 48, "fgfi": 32, "built-in": 32}
    assert json.loads((out / "batches.json").read_text()) == {
        said[0].partition(": batch")[0]: {"batch": 32, "arms": arms}
    }
    rewrite(plan, seeds=[0, 1], arms={**PLAN["arms"], "cwd": {"teacher": "m", "method": "cwd"}})
    assert sweep(plan, out, tell=said.append)["finished"] == 11
    assert set(batches(plan).values()) == {"32"}
    assert measured() == {}


def test_a_number_of_an_arms_own_stays(plan, tmp_path, measured):
    rewrite(plan, arms={"plain": {"batch": 8}, "fgfi": {"teacher": "m", "method": "fgfi"}}, settings={"imgsz": 320})
    said = []
    sweep(plan, tmp_path / "out", tell=said.append)
    assert said[0] == "yolov5n at 320 px, auto:0.7: batch 32, of fgfi 32"
    assert batches(plan)["runs/yolov5n/plain/seed0"] == "8"


def test_an_arm_without_room_ends_the_sweep_before_its_first_run(plan, tmp_path, measured):
    rewrite(plan, settings={"batch": "auto:0.1"})
    with pytest.raises(RunError, match=r"^runs/yolov5n/plain: batch: --batch auto: got out of memory"):
        sweep(plan, tmp_path / "out")
    assert calls(plan) == {}


def test_a_dry_run_measures_nothing(plan, tmp_path, measured):
    assert sweep(plan, tmp_path / "out", dry_run=True)["runs"] == 5
    assert measured() == {}


@pytest.mark.parametrize(
    ("share", "at_once", "cluster", "part"),
    [("auto", 3, None, "0.27"), ("auto:0.6", 2, None, "0.4"), ("auto:0.6", None, Cluster(gpus=0.25), "0.2")],
)
def test_runs_at_once_that_have_no_room_together_are_refused(plan, tmp_path, measured, share, at_once, cluster, part):
    rewrite(plan, settings={"batch": share})
    with pytest.raises(UsageError, match=rf"at once on a GPU, .*, expected room for all: batch: auto:{part}, or fewer"):
        sweep(plan, tmp_path / "out", at_once=at_once, cluster=cluster)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"batch": "auto:0.5"}, {"device": "cpu"}, {"batch": 8}])
def test_others_may_run_at_once(plan, tmp_path, measured, settings):
    rewrite(plan, settings=settings)
    assert sweep(plan, tmp_path / "out", at_once=2, dry_run=True)["runs"] == 5


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {}}', '{"a": {"batch": "x"}}'])
def test_batches_that_are_none_are_said_to_be(tmp_path, text):
    (tmp_path / "batches.json").write_text(text)
    with pytest.raises(RunError, match=r"batches\.json: got no batches, expected what kd sweep wrote"):
        _read(tmp_path / "batches.json")


@pytest.mark.parametrize("batch", ["auto:2", "auto:0", "auto:x", "all", 0, -1])
def test_a_batch_that_is_none_is_refused_in_the_plan(plan, tmp_path, measured, batch):
    rewrite(plan, settings={"batch": batch})
    with pytest.raises(PlanError, match="batch"):
        sweep(plan, tmp_path / "out")
