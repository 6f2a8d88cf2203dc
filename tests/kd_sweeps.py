"""A plan, and a stand-in for `kd train` that carries out its runs in no time, for the tests of sweeps."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.kd_runs import write_run

PLAN = {
    "settings": {"epochs": 4},
    "teachers": {"m": {"student": "yolov5m", "epochs": 6}},
    "students": ["yolov5n"],
    "arms": {
        "plain": {},
        "fgfi": {"teacher": "m", "method": "fgfi"},
        "built-in": {"teacher": "m", "method": "built-in"},
        "longer": {"wall_time_of": "fgfi"},
    },
    "seeds": [0, 1],
}

# In place of `kd train`: writes what it was told to config.json, and run.json unless the file `fail`, `stay` or `kill`
# (the process above it, once) beside OUT's folder holds its run's name. A distilled run takes 15 s an epoch, a plain
# one 10.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[2:]
out = Path(words[words.index("--out") + 1])
home = next(parent for parent in out.parents if (parent / "plan.yaml").exists())
name = out.relative_to(home).as_posix()
told = lambda kind: (home.parent / kind).exists() and (home.parent / kind).read_text() == name
out.mkdir(parents=True, exist_ok=True)
with (home.parent / "calls.jsonl").open("a") as file:
    file.write(json.dumps([name, words]) + chr(10))
epochs = int(words[words.index("--epochs") + 1])
settings = dict(words[i + 1].split("=") for i, word in enumerate(words) if word == "--set")
(out / "config.json").write_text(json.dumps({"config": {"epochs": epochs, "settings": settings}}))
if told("kill"):
    (home.parent / "kill").unlink()
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit()
if told("stay"):
    from kd.sweeps.executors import follow_parent
    follow_parent()
    time.sleep(60)
if told("fail"):
    print("noise\\nerror: out: got no memory, expected some: buy it", file=sys.stderr)
    sys.exit(1)
seconds = (15 if "--teacher" in words else 10) * epochs
optimizer = {"name": "AdamW", "lr0": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0}
record = {**json.loads(RECORD), "wall_time_s": seconds, "epochs": epochs, "optimizer": optimizer}
(out / "run.json").write_text(json.dumps(record))
"""


def record():
    """The run.json of a plain run whose last checkpoint has 50.0 on val."""
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads((write_run(Path(folder) / "run", (0.6, 0.5)) / "run.json").read_text())
    found["metrics"]["last"] = {"val": found["metrics"]["last"]["test"]}
    return found


STAND_IN = STAND_IN.replace("RECORD", repr(json.dumps(record())))


def calls(plan):
    """What was started since the last look: name -> words."""
    path = plan.with_name("calls.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return dict(map(json.loads, lines))


def value(words, option):
    return words[words.index(option) + 1]
