"""One training over the processes of torchrun, which on several machines starts some on each: here two on this CPU.

Their environment is torchrun's, and the store that it keeps is this process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
from torch.distributed import TCPStore

import schemas
from kd.environment import WORLD, lead_ranks
from kd.errors import DataError, RunError, UsageError
from kd.training import ranks
from kd.training.check import check
from kd.training.run import train
from kd.training.trainer import ADAPTERS
from tests.dtld_data import REPOSITORY
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}


@pytest.fixture
def store():
    """The store of torchrun's first machine, with what it tells its processes."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def environment(store, rank, size=2):
    """What torchrun gives a process, of which it started one on each machine."""
    values = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": store.port}
    return {
        **{key: str(value) for key, value in values.items()},
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@pytest.mark.train
def test_two_machines_train_one_student(store, tmp_path):
    data = write_dataset(tmp_path / "data", train=8, val=2)
    teacher = save_detector(tmp_path / "teacher.pt", NAMES, architecture="yolov8n")
    out = tmp_path / "run"
    words = f"train --data {data} --student yolov5n --teacher {teacher} --method fgfi --allow-weak-teacher"
    words += f" --epochs 1 --imgsz 64 --batch 4 --device cpu --set nbs=4 --set warmup_epochs=0 --out {out}"
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kd_ranks", *words.split()],
            cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1", **environment(store, rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    ends = [machine.communicate(timeout=600) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends
    assert "1 epoch in" in ends[0][0]
    assert ends[1][0] == ""
    result = json.loads((out / "run.json").read_text())
    jsonschema.validate(result, schemas.load("run"))
    assert result["device"].startswith("2 x ")
    header, *rows = (out / "results.csv").read_text().splitlines()
    assert len(rows) == 1
    assert float(rows[0].split(",")[header.split(",").index("train/kd_loss")]) > 0
    a, b = (torch.load(out / f"end{rank}.pt", weights_only=True) for rank in (0, 1))
    trained = [key for key in a if not key.endswith(("running_mean", "running_var"))]  # each rank has its own
    assert any(key.startswith(ADAPTERS) for key in trained)
    assert all(torch.equal(a[key], b[key]) for key in trained)
    seen = [[line.split()[1] for line in (out / f"seen{rank}.txt").read_text().splitlines()] for rank in (0, 1)]
    assert [[batch.count(",") + 1 for batch in batches] for batches in seen] == [[2, 2], [2, 2]]
    assert sorted(name for batches in seen for batch in batches for name in batch.split(",")) == [
        f"{i:03d}.png" for i in range(8)
    ]
    assert not list(out.glob("**/*.partial"))


@pytest.fixture
def first(store, monkeypatch):
    """This process is torchrun's first one, of two."""
    for key, value in environment(store, 0).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv(WORLD, "")  # to be restored
    lead_ranks()
    assert "WORLD_SIZE" not in os.environ


@pytest.fixture
def second(store, monkeypatch):
    """This process is torchrun's second one."""
    for key, value in environment(store, 1).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranks, "RANK", 1)
    monkeypatch.setattr(ranks, "WORLD_SIZE", 2)


def test_what_the_first_refuses_ends_the_others(first, store, tmp_path, monkeypatch):
    with pytest.raises(DataError):
        train(tiny_config(tmp_path / "nowhere.yaml", tmp_path / "run", device="cpu", batch=4))
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv(WORLD)
    with pytest.raises(RunError, match=r"got no run from rank 0 \(.*nowhere\.yaml: .*\), expected one: see there"):
        ranks.task()


def test_what_stops_another_before_it_starts_ends_the_first(first, store, tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "data", train=2, val=1)
    store.set(ranks.READY.format(1), f"{ranks.REFUSED}teacher.pt: got no file")
    with pytest.raises(RunError, match=r"^rank 1: teacher\.pt: got no file$"):
        train(tiny_config(data, tmp_path / "run", device="cpu", batch=4), quiet=True)
    assert not (tmp_path / "run").exists()
    assert store.get(ranks.TASK).decode() == f"{ranks.REFUSED}rank 1: teacher.pt: got no file"


def test_another_says_what_it_cannot_read(second, store, tmp_path):
    with pytest.raises(DataError):
        train(tiny_config(tmp_path / "nowhere.yaml", tmp_path / "run", device="cpu", batch=4))
    assert store.get(ranks.READY.format(1)).decode().startswith(ranks.REFUSED)
    assert "nowhere.yaml" in store.get(ranks.READY.format(1)).decode()


def test_another_trains_nothing_else_than_the_first(second, store, tmp_path):
    data = write_dataset(tmp_path / "data", train=2, val=1)
    out = tmp_path / "run"
    config = tiny_config(data, out, device="cpu", batch=4)
    store.set(ranks.TASK, ranks.NOTHING)
    assert train(config) == {}
    assert store.get(ranks.READY.format(1)).decode() == "ready"
    checked = check(replace(config, seed=7), True, print, quiet=True)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(checked.record))
    store.set(ranks.TASK, ranks.START)
    with pytest.raises(RunError, match="seed: got 0, expected 7 as the run was started with"):
        train(config)
    assert "seed: got 0" in store.get(ranks.READY.format(1)).decode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"device": None},
            "--device: got None for 1 processes of torchrun on this machine, expected as many GPUs, such",
        ),
        ({"device": "0,1"}, "--device: got 0,1 for 1 processes"),
        ({"batch": 3}, "--batch: got 3 over 2 processes, expected a multiple"),
        ({"settings": (("rect", True),)}, "--set rect: got it under torchrun, expected one process"),
    ],
)
def test_what_several_processes_cannot_have_is_refused(first, tmp_path, changes, expected):
    (tmp_path / "data.yaml").touch()
    config = tiny_config(tmp_path / "data.yaml", tmp_path / "run", **{"device": "cpu", "batch": 4, **changes})
    with pytest.raises(UsageError, match=expected):
        train(config)
    with pytest.raises(UsageError, match="--dry-run: got it under torchrun"):
        train(replace(config, device="cpu"), dry_run=True)


def test_ranks_that_torchrun_did_not_start_are_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "data.yaml").touch()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(ranks, "RANK", 1)
    monkeypatch.setattr(ranks, "WORLD_SIZE", 2)
    with pytest.raises(RunError, match=r"RANK: got 1 of 2 processes, expected none, or those of torchrun: torchrun --"):
        train(tiny_config(tmp_path / "data.yaml", tmp_path / "run"))


def test_a_store_that_has_gone_is_one_line(second, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(ranks, "CONNECT", ranks.timedelta(seconds=0.1))
    with pytest.raises(RunError, match=r"torchrun: got no word of rank 0 \(.*\), expected it there"):
        ranks.task()
