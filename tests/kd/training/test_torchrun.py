"""One training over the processes of torchrun, which on several machines starts some on each: here two on this CPU.

Their environment is torchrun's, and the store that it keeps is this process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
from torch.distributed import TCPStore

import schemas
from kd.training.trainer import ADAPTERS
from tests.dtld_data import REPOSITORY
from tests.kd_fixtures import write_dataset
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
    words = f"train --data {data} --student yolov5n --teacher {teacher} --allow-weak-teacher --epochs 1 --imgsz 64"
    words += f" --batch 4 --device cpu --set nbs=4 --set warmup_epochs=0 --set close_mosaic=0 --out {out}"
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
