"""Several ranks: equal gradients and weights under torch's DDP, and the way through Ultralytics' own launcher.

Gloo on a CPU stands in for NCCL on GPUs, which no test here has run on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
from torch.nn.parallel import DistributedDataParallel

import schemas
from kd.errors import DistillationError, RunError, UsageError
from kd.training import build, ranks
from kd.training.build import build_trainer
from kd.training.checkpoints import load_sidecar
from kd.training.run import train
from kd.training.trainer import ADAPTERS
from kd.ultra import session
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector
from tests.kd_pairs import YOLO_METHODS
from tests.kd_ranks import gloo_class, two_ranks

pytestmark = pytest.mark.train

NAMES = {0: "red", 1: "green"}
ALL = tuple(YOLO_METHODS.items())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=8, val=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("teacher") / "teacher.pt", NAMES, architecture="yolov8n")


# --- the criterion and adapters under DDP -----------------------------------------------------------------


def steps(rank, folder, data, methods, teacher, balance=None):
    """Three steps of SGD as Ultralytics' trainer does them, on halves of our own; leaves gradients and weights."""
    # Another seed per rank, so other first weights and adapters: DDP has to bring them together.
    config = tiny_config(data, folder / f"run{rank}", teachers=(teacher,), methods=methods, seed=rank, balance=balance)
    with session.silence():
        trainer = build_trainer(config, "yolov5n.yaml", folder / f"run{rank}", None)
        trainer._setup_train()
    model, frozen = trainer.model.train(), [*trainer.distillation.links[0].teacher.model.parameters()]
    ddp = DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)  # as Ultralytics does
    optimizer = torch.optim.SGD([p for p in ddp.parameters() if p.requires_grad], lr=0.01)
    seen = {"teacher": len({*map(id, frozen)} & {*map(id, ddp.parameters())}), "gradients": [], "items": []}
    for i in range(3):
        loss, items = ddp(half(rank, i))
        (loss.sum() * 2).backward()  # times the ranks, as Ultralytics does, for DDP takes the mean
        seen["gradients"].append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        seen["items"].append({key: float(value) for key, value in items.items()})
        optimizer.step()
        optimizer.zero_grad()
    seen["balance"] = trainer.distillation.balance.samples if balance else {}
    seen["weights"] = {key: value.detach() for key, value in model.named_parameters()}
    torch.save(seen, folder / f"rank{rank}.pt")


def half(rank, i):
    """Two images of a batch; rank 1 has no box in the second one, neither rank any in the third."""
    generator = torch.Generator().manual_seed(10 * i + rank)
    boxes = 0 if i == 2 or (i == 1 and rank == 1) else 3
    return {
        "img": torch.rand(2, 3, 64, 64, generator=generator),
        "bboxes": torch.full((boxes, 4), 0.4), "cls": torch.zeros(boxes, 1), "batch_idx": torch.zeros(boxes),
    }  # fmt: skip


def test_gradients_and_weights_are_equal_on_both_ranks(data, tmp_path, teacher):
    two_ranks(steps, tmp_path, data, ALL, teacher)
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert a["teacher"] == b["teacher"] == 0
    assert a["items"][0]["kd_loss"] != b["items"][0]["kd_loss"], "they had the same images"
    assert a["items"][1]["kd_fgfi_loss"] > 0 == b["items"][1]["kd_fgfi_loss"]
    for own, other in zip(a["gradients"], b["gradients"], strict=True):
        adapters = {key for key in own if key.startswith(ADAPTERS)}
        assert len(adapters) > 12, "adapters of four methods on three levels"
        assert own.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in own.items())
        assert all(value.isfinite().all() for value in own.values())
    assert all(a["gradients"][1][key].any() for key in a["gradients"][1] if "kd_adapters.fgfi" in key)
    assert not any(a["gradients"][2][key].any() for key in a["gradients"][2] if "kd_adapters.fgfi" in key)
    assert all(torch.equal(value, b["weights"][key]) for key, value in a["weights"].items())


def test_ranks_balance_alike_over_the_images_of_both(data, tmp_path, teacher):
    two_ranks(steps, tmp_path, data, (("fgfi", 1.0), ("cwd", 1.0)), teacher, 0.1)
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["balance"] for rank in (0, 1))
    assert a == b
    assert [len(a[name]) for name in ("fgfi", "cwd")] == [2, 3], (
        "one rank alone had boxes at the second step, none then"
    )


# --- Ultralytics' own way: a pickled class, torchrun, a script ----------------------------------------------


@pytest.fixture
def gloo(monkeypatch):
    """Runs go over two ranks on this CPU, where --device 0,1 would have started them."""
    monkeypatch.setattr(build, "trainer_class", gloo_class)


def seen(out):
    """epoch -> per rank (names of images, mean of pixels)."""
    epochs = {}
    for rank in (0, 1):
        for line in (out / f"seen{rank}.txt").read_text().splitlines():
            epoch, names, mean = line.split()
            epochs.setdefault(int(epoch), {}).setdefault(rank, []).append((names, mean))
    return epochs


def test_a_run_over_two_ranks_dies_resumes_and_ends_like_any_other(data, tmp_path, teacher, gloo, monkeypatch, capfd):
    out = tmp_path / "run"
    config = tiny_config(
        data, out, epochs=2, batch=4, teachers=(teacher,), methods=(("fgfi", 0.01), ("logits", 1.0)),
        settings=(("mosaic", 1.0), ("warmup_epochs", 0.0), ("nbs", 4), ("close_mosaic", 0)),
    )  # fmt: skip
    monkeypatch.setenv("KD_TEST_DIES", "1")
    with pytest.raises(RunError, match="training: got CalledProcessError"):
        train(config, allow_weak_teacher=True)
    assert json.loads((out / "config.json").read_text())["kd"]["teachers"]
    assert load_sidecar(out / "weights" / "last.kd.pt")["epoch"] == 0
    monkeypatch.delenv("KD_TEST_DIES")
    result = train(config, resume=True, quiet=True)
    assert capfd.readouterr().out == ""
    jsonschema.validate(json.loads(json.dumps(result)), schemas.load("run"))
    assert (result["epochs"], result["resumed"]) == (2, True)
    header, *rows = (out / "results.csv").read_text().splitlines()
    assert len(rows) == 2
    assert all(float(row.split(",")[header.split(",").index("train/kd_loss")]) > 0 for row in rows)
    a, b = (torch.load(out / f"end{rank}.pt", weights_only=True) for rank in (0, 1))
    trained = [key for key in a if not key.endswith(("running_mean", "running_var"))]  # each rank has its own
    assert any(key.startswith(ADAPTERS) for key in trained)
    assert all(torch.equal(a[key], b[key]) for key in trained)
    epochs = seen(out)
    assert set(epochs) == {0, 1}
    for own in epochs.values():
        names = [name for rank in (0, 1) for batch, _ in own[rank] for name in batch.split(",")]
        assert sorted(names) == [f"{i:03d}.png" for i in range(8)], "every image once, on one rank"
        assert {mean for _, mean in own[0]}.isdisjoint(mean for _, mean in own[1])
    assert [names for names, _ in epochs[0][0]] != [names for names, _ in epochs[1][0]], "epochs in another order"
    assert not list(out.glob("**/*.partial"))


def test_what_stops_a_rank_is_told_in_its_own_words(tmp_path, monkeypatch):
    class Fake:
        save_dir = tmp_path

    followed = []
    monkeypatch.setattr(ranks, "RANK", 1)
    monkeypatch.setattr(ranks, "end_with", followed.append)
    monkeypatch.setenv(ranks.LAUNCHER, "lock")
    with pytest.raises(DistillationError), ranks.ranked(Fake):
        raise DistillationError("fgfi: got 0 for 20 steps")
    assert followed == ["lock"]
    monkeypatch.setattr(ranks, "RANK", -1)
    with pytest.raises(DistillationError, match=r"^fgfi: got 0 for 20 steps$"), ranks.launching(Fake):
        raise ranks.subprocess.CalledProcessError(1, "torchrun")
    assert not list(tmp_path.iterdir())
    assert ranks.LAUNCHER not in os.environ


LAUNCH = """
import os, pathlib, time
from kd.training import ranks
class Fake:
    save_dir = pathlib.Path(".")
with ranks.launching(Fake):
    print(os.environ[ranks.LAUNCHER], flush=True)
    time.sleep(60)
"""
FOLLOW = (
    "import sys, time; from kd.training import ranks; ranks.end_with(sys.argv[1]); print(flush=True); time.sleep(60)"
)


def test_a_rank_ends_with_the_process_that_the_user_started():
    with started(LAUNCH) as launcher:
        lock = launcher.stdout.readline().strip()
        with started(FOLLOW, lock) as rank:
            assert rank.stdout.readline() == b"\n"
            time.sleep(2 * ranks.POLL_S)
            assert rank.poll() is None
            launcher.kill()  # and not waited for: a process that nobody has buried is dead, too
            assert rank.wait(timeout=20 * ranks.POLL_S) == 1
        os.unlink(lock)


def started(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"device": "0,1", "batch": 3}, "--batch: got 3 on 2 GPUs, expected a multiple"),
        ({"device": "0,1", "batch": 4, "settings": (("rect", True),)}, "--set rect: got it with --device 0,1"),
    ],
)
def test_what_several_gpus_cannot_have_is_refused(data, tmp_path, changes, expected):
    with pytest.raises(UsageError, match=expected):
        tiny_config(data, tmp_path, **changes)


def test_what_runs_in_one_process_takes_the_first_gpu(data, tmp_path):
    config = tiny_config(data, tmp_path, device="1,0", batch=4)
    assert (config.one_device, replace(config, device=None).one_device) == ("1", None)
