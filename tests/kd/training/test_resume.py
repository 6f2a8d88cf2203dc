"""A run that is killed, anywhere, ends like one that is not: the same results.csv, the same weights bit for bit."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import cli
from kd.commands import app
from kd.errors import KdError, RunError, UsageError
from kd.files import sha256
from kd.training import checkpoints
from kd.training import run as train_module
from kd.training.build import build_trainer
from kd.training.checkpoints import load_sidecar, partial_of, settle, sidecar_of
from kd.training.run import train
from kd.training.trainer import Trainer
from kd.ultra import models, session
from tests.kd_fixtures import end_workers, tiny_config, write_dataset
from tests.kd_models import save_detector

pytestmark = pytest.mark.train

EPOCHS = 4
# Three batches an epoch and steps of two: gradients wait across the ends of epochs.
BASE = {"warmup_epochs": 0.0, "nbs": 6, "mosaic": 0.0, "optimizer": "SGD", "lr0": 0.01}
CASES = {
    "plain": ({"seed": 3}, {"mosaic": 1.0, "close_mosaic": 2, "warmup_epochs": 2.0}),  # mosaics end, and a warm-up
    "two epochs": ({"epochs": 2}, {}),
    "distilled": ({"teachers": ("yolov5n",)}, {"optimizer": "AdamW", "lr0": 0.002, "multi_scale": 0.5}),
    "dual heads, distilled": ({"student": "yolo26n", "teachers": ("yolov5n",)}, {"optimizer": "auto"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=8)


def configure(data, out, changes=(), settings=()):
    settings = tuple(sorted({**BASE, **dict(settings)}.items()))
    return tiny_config(data, out, **{"epochs": EPOCHS, "student": "yolov8p", **dict(changes)}, settings=settings)


def run_and_die(config, resume, patches):
    """In a process of its own: train, with patches that end in SIGKILL."""
    for patch in patches:
        patch[0](*patch[1:])
    train(config, resume=resume, allow_weak_teacher=True)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_epoch(epoch, batch=1):
    """Die at a batch of an epoch, both from 0."""
    own, seen = Trainer.preprocess_batch, []

    def preprocess(self, images):
        seen.extend([None] * (self.epoch == epoch))
        if len(seen) > batch:
            die()
        return own(self, images)

    Trainer.preprocess_batch = preprocess


def die_before_rename(name, nth):
    """Die before the nth rename, from 0, to a file of this name."""
    own, seen = Path.replace, []

    def replace(self, target):
        seen.extend([None] * (Path(target).name == name))
        if len(seen) > nth:
            die()
        return own(self, target)

    Path.replace = replace


def stop_after(epochs):
    """Let early stopping decide so."""
    from ultralytics.utils.torch_utils import EarlyStopping

    EarlyStopping.__call__ = lambda self, epoch, fitness: epoch >= epochs


def spoil_epoch(epoch):
    """Put NaN into the last images of an epoch, when it is done for the first time."""
    own, seen = Trainer.preprocess_batch, []

    def preprocess(self, batch):
        batch = own(self, batch)
        if self.epoch == epoch and self.nan_recovery_attempts == 0:
            seen.append(None)
            if len(seen) == len(self.train_loader):
                seen.clear()
                batch["img"].fill_(float("nan"))
        return batch

    Trainer.preprocess_batch = preprocess


def kill(config, *patches, resume=False):
    """A process that was killed in the middle of a run; forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kd.training.run"])
    process = context.Process(target=run_and_die, args=(config, resume, patches))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert not (Path(config.out) / "run.json").exists()


@pytest.fixture
def keep_sidecar(monkeypatch):
    """Leave sidecars whole at the end: they have the weights in full precision."""
    monkeypatch.setattr(train_module, "finish", lambda last: None)


def rows(out):
    with (out / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(file)]


def assert_equal(a, b, place=""):
    """Two values of nested dicts and lists, tensors bit for bit."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


def assert_same_run(a, b):
    """Metrics, full-precision state, and the finished checkpoints."""
    assert rows(a) == rows(b)
    states = [load_sidecar(sidecar_of(out / "weights" / "last.pt")) for out in (a, b)]
    for state in states:
        del state["checkpoint"], state["seconds"]  # the checkpoint has a date
    assert_equal(*states)
    for name in ("last.pt", "best.pt"):
        assert_equal(*(models.load_model(str(out / "weights" / name)).model.state_dict() for out in (a, b)))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """By case: the folder of a run that nobody killed, made when it is asked for."""
    folders = {}

    def run(case):
        if case not in folders:
            out = folders[case] = tmp_path_factory.mktemp("runs") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train_module, "finish", lambda last: None)
                done = train(configure(data, out, *CASES[case]), allow_weak_teacher=True)
            assert done["epochs"] == len(rows(out)) == done["config"]["epochs"]
        return folders[case]

    return run


@pytest.mark.parametrize("case", [case for case in CASES if case != "two epochs"])
def test_a_run_killed_twice_ends_like_one_that_was_not(data, uninterrupted, tmp_path, keep_sidecar, case):
    config = configure(data, tmp_path / "run", *CASES[case])
    kill(config, (die_in_epoch, 1))
    kill(config, (die_in_epoch, EPOCHS - 1), resume=True)
    seconds = load_sidecar(tmp_path / "run" / "weights" / "last.kd.pt")["seconds"]
    result = train(config, resume=True)
    assert_same_run(uninterrupted(case), tmp_path / "run")
    assert result["resumed"]
    assert result["wall_time_s"] > seconds > 0
    times = [float(line.split(",")[1]) for line in (tmp_path / "run" / "results.csv").read_text().splitlines()[1:]]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        ("config.json", 0),
        ("last.kd.pt", 0), ("best.pt", 0), ("last.pt", 0),  # after the first epoch
        ("last.kd.pt", 1), ("last.pt", 1),  # after the last one
        ("last.pt", 2), ("best.pt", 2),  # when they are stripped
    ],
)  # fmt: skip
def test_a_run_killed_before_any_rename_ends_like_one_that_was_not(
    data, uninterrupted, tmp_path, keep_sidecar, name, nth
):
    config = configure(data, tmp_path / "run", *CASES["two epochs"])
    kill(config, (die_before_rename, name, nth))
    train(config, resume=(tmp_path / "run" / "config.json").exists())
    assert_same_run(uninterrupted("two epochs"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.fixture(scope="module")
def recovered(data, tmp_path_factory):
    """The folder of a run that recovered from NaN in its epoch 2, and that nobody killed."""
    out = tmp_path_factory.mktemp("recovered") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "finish", lambda last: None)
        patch.setattr(Trainer, "preprocess_batch", Trainer.preprocess_batch)  # undone at the end
        spoil_epoch(2)
        train(configure(data, out, *CASES["dual heads, distilled"]), allow_weak_teacher=True)
    return out


@pytest.mark.parametrize("killed_in", [2, 3])
def test_a_run_that_recovers_from_nan_is_the_same_when_killed_before_or_after(
    data, recovered, tmp_path, keep_sidecar, monkeypatch, killed_in
):
    # Killed in epoch 2: the NaN comes in the first epoch after the resume.
    cut = configure(data, tmp_path / "cut", *CASES["dual heads, distilled"])
    kill(cut, (spoil_epoch, 2), (die_in_epoch, killed_in, 0))
    monkeypatch.setattr(Trainer, "preprocess_batch", Trainer.preprocess_batch)  # undone at the end
    spoil_epoch(2)
    train(cut, resume=True)
    assert_same_run(recovered, tmp_path / "cut")
    state = load_sidecar(tmp_path / "cut" / "weights" / "last.kd.pt")
    assert state["schedule"] == EPOCHS + 1  # Ultralytics counts the epoch that was done twice
    assert all(value.isfinite().all() for value in state["adapters"].values())


def test_a_run_that_had_stopped_early_is_not_trained_on(data, tmp_path):
    config = configure(data, tmp_path / "run")
    kill(config, (stop_after, 2), (die_before_rename, "last.pt", 2))  # the third is that of the stripped checkpoint
    assert train(config, resume=True)["epochs"] == 2


def test_a_finished_plain_run_keeps_no_sidecar(data, tmp_path):
    train(configure(data, tmp_path / "run", {"epochs": 1}))
    assert sorted(p.name for p in (tmp_path / "run" / "weights").iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.parametrize("workers", [0, 2])
def test_both_arms_see_the_same_images_in_every_epoch(data, tmp_path, workers):
    seen = []
    for name, teachers in (("plain", ()), ("taught", ("yolov5n",))):
        config = configure(data, tmp_path / name, {"teachers": teachers}, {"mosaic": 1.0, "close_mosaic": 1})
        with session.silence():
            trainer = build_trainer(config, "yolov5n.yaml", tmp_path / name, None)
            trainer.args.workers = workers
            trainer._setup_train()
        assert trainer.train_loader.num_workers == workers
        seen.append([])
        for trainer.epoch in range(3):
            trainer.run_callbacks("on_train_epoch_start")
            torch.rand(len(teachers))  # as a term may do
            seen[-1] += [(batch["im_file"], batch["img"]) for batch in trainer.train_loader]
        end_workers(trainer)
    assert_equal(*seen)
    orders = [[file for files, _ in seen[0][i : i + 3] for file in files] for i in (0, 3, 6)]
    assert [len(set(order)) for order in orders] == [8, 8, 8]
    assert orders[0] != orders[1] != orders[2]


def save_pair(folder, epoch=0):
    """A stand-in for what a save leaves: a checkpoint and a sidecar that knows it."""
    (folder / "last.pt").write_bytes(f"checkpoint {epoch}".encode())
    state = {"format": checkpoints.FORMAT, "epoch": epoch, "checkpoint": sha256(folder / "last.pt"), "adapters": {}}
    torch.save(state, folder / "last.kd.pt")


def test_a_torn_save_is_dropped_and_the_pair_before_it_stays(tmp_path):
    save_pair(tmp_path)
    for name in ("last.pt", "last.kd.pt", "best.pt"):
        partial_of(tmp_path / name).write_bytes(b"torn")
    settle(tmp_path / "last.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.kd.pt", "last.pt"]
    assert load_sidecar(tmp_path / "last.kd.pt")["checkpoint"] == sha256(tmp_path / "last.pt")


def test_a_folder_without_anything_is_settled(tmp_path):
    settle(tmp_path / "weights" / "last.pt")
    assert not list(tmp_path.iterdir())


def test_a_sidecar_of_the_first_format_is_one_line(tmp_path):
    torch.save({"epoch": 1, "adapters": {}}, tmp_path / "last.kd.pt")
    with pytest.raises(RunError, match=r"last\.kd\.pt: got a sidecar of format 1, expected format 2: .*--overwrite$"):
        load_sidecar(tmp_path / "last.kd.pt")


def test_a_damaged_or_missing_sidecar_is_one_line(tmp_path):
    (tmp_path / "last.kd.pt").write_bytes(b"torn")
    for name in ("last.kd.pt", "none.kd.pt"):
        with pytest.raises(RunError, match=rf"{name}: got no readable sidecar .*--overwrite$"):
            load_sidecar(tmp_path / name)


def test_another_checkpoint_beside_the_sidecar_is_refused(data, tmp_path):
    config = configure(data, tmp_path / "run")
    kill(config, (die_in_epoch, 2))
    (tmp_path / "run" / "weights" / "last.pt").write_bytes(
        (tmp_path / "run" / "weights" / "best.pt").read_bytes() + b" "
    )
    before = (tmp_path / "run" / "results.csv").read_bytes()
    with pytest.raises(RunError, match="got the sidecar of another checkpoint"):
        train(config, resume=True)
    assert (tmp_path / "run" / "results.csv").read_bytes() == before


# ---------------------------------------------------------------- by its folder alone, and elsewhere


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """A copy of the data, a teacher and a distilled run that was killed in its second epoch, all in one folder."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(data.parent, folder / "data")
    teacher = save_detector(folder / "teacher.pt", {0: "red", 1: "green"})
    config = configure(folder / "data" / "data.yaml", folder / "run", {"teachers": (teacher,), "epochs": 2})
    kill(config, (die_in_epoch, 1))
    return folder


@pytest.fixture
def command(capfd):
    """Exit code and error line of a `kd train` command."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.run("kd", app, KdError, UsageError, ["train", *map(str, words)])
        out, err = capfd.readouterr()
        return end.value.code, out, err

    return run


def test_a_run_resumes_by_its_folder_alone(killed, tmp_path, command):
    out = Path(shutil.copytree(killed / "run", tmp_path / "run"))
    code, _, err = command("--resume", "--out", out, "--quiet")
    assert code == 0, err
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (killed / "run", out))
    assert json.loads((out / "run.json").read_text())["config"] == after["config"] == {
        **before["config"], "out": str(out)
    }  # fmt: skip
    assert [row["epoch"] for row in rows(out)] == ["1", "2"]


def test_a_run_goes_on_where_its_data_and_teacher_are_now(killed, tmp_path, command):
    shutil.copytree(killed, tmp_path / "new")
    here, moved = tmp_path / "new", tmp_path / "moved"
    record = json.loads((here / "run" / "config.json").read_text())
    record["config"] |= {"data": "/gone/data.yaml", "teachers": ["/gone/teacher.pt"]}
    (here / "run" / "config.json").write_text(json.dumps(record))
    here.rename(moved)
    code, _, err = command("--resume", "--out", moved / "run")
    assert (code, err) == (1, "error: /gone/data.yaml: no such file, expected the data.yaml of a YOLO dataset\n")
    given = ("--data", moved / "data" / "data.yaml", "--teacher", moved / "teacher.pt")
    code, _, err = command("--resume", "--out", moved / "run", *given, "--quiet")
    assert code == 0, err
    kept = json.loads((moved / "run" / "config.json").read_text())["config"]
    assert (kept["data"], kept["teachers"]) == (str(given[1]), [str(given[3])])


def test_other_data_are_refused_wherever_they_are(killed, tmp_path, command):
    other = write_dataset(tmp_path, train=8, seed=1)
    code, _, err = command("--resume", "--out", killed / "run", "--data", other)
    assert code == 1
    assert "data: got " in err
    assert "data_sha256: got " in err
    assert not (killed / "run" / "run.json").exists()


def test_all_that_differs_is_named_at_once(killed, command):
    given = ("--epochs", 7, "--imgsz", 96, "--seed", 3, "--method", "cwd", "--set", "lr0=0.5")
    code, _, err = command("--resume", "--out", killed / "run", *given)
    assert code == 1
    for part in ("epochs: got 7, expected 2", "imgsz: got 96, expected 64", "seed: got 3, expected 0", "methods: got",
                 "settings: got"):  # fmt: skip
        assert part in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"config": 3}', '{"config": {}, "data_sha256": "", "student_sha256": "", "kd": null}', "[" * 5000,
     '{"config": {"methods": [], "settings": 1}, "data_sha256": "", "student_sha256": "", "kd": {"teachers": [1]}}',
     '{"config": {"data": "d", "student": "s", "out": "o", "epochs": "x", "methods": {}, "settings": {}},'
     ' "data_sha256": "", "student_sha256": "", "kd": null}'],
)  # fmt: skip
def test_a_damaged_configuration_is_one_line(tmp_path, command, text):
    (tmp_path / "config.json").write_text(text)
    code, out, err = command("--resume", "--out", tmp_path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "defect" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_without_resume_data_and_student_are_asked_for(tmp_path, command):
    assert command("--student", "yolov5n") == (
        2, "", "error: --data: got none, expected one: only --resume --out RUN goes without\n"
    )  # fmt: skip
    assert command("--data", "d.yaml")[2].startswith("error: --student: got none")
