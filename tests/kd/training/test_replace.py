"""`--overwrite`: nothing that is read is replaced, and an earlier run is there until the new one is finished."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.errors import DataError, KdError, RunError
from kd.runs.record import (
    REPLACED,
    read_runs,
)
from kd.training import run_folder
from kd.training.run import train
from kd.training.run_folder import clear, replacing, settle_earlier
from kd.training.trainer import Trainer
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

EARLIER = {"config.json": "old", "run.json": "old", "weights/last.pt": "old", "interrupted/mine": "old"}
BEGUN = {"config.json": "new", "results.csv": "new"}
RESUMABLE = {**BEGUN, "weights/last.pt": "new", "weights/last.kd.pt": "new"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Nothing is done after it, as every later rename raises it too."""


def begin_and_stop(out, files, tell=print):
    """Move an earlier run away, write what a new one has when it is stopped, and stop it."""

    def begin():
        with replacing(out, tell):
            assert not [name for name in content(out) if not name.startswith(".replaced/")]
            fill(out, files)
            raise KeyboardInterrupt

    with pytest.raises((Killed, KeyboardInterrupt)):
        begin()


# ---------------------------------------------------------------- an input in OUT


@pytest.mark.parametrize("option", ["--teacher", "--student", "--set pretrained", "--priors", "--unlabeled", "--data"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_out_that_holds_an_input_is_refused_and_stays(data, tmp_path, option, linked):
    out = fill(tmp_path / "run", {"config.json": '{"config": {}, "data_sha256": ""}'})
    inside = out / "deep" / "er"
    inside.mkdir(parents=True)
    model = save_detector(inside / "model.pt", {0: "red", 1: "green"})
    shutil.copytree(data.parent, inside / "set")
    places = tmp_path / "link" if linked else inside
    if linked:
        places.symlink_to(inside)
    changes, also_read = {}, []
    if option in ("--teacher", "--student", "--set pretrained"):
        given = str(places / "model.pt")
        changes = {
            "--teacher": {"teachers": (given,)}, "--student": {"student": given},
            "--set pretrained": {"settings": (*tiny_config(data, out).settings, ("pretrained", given))},
        }[option]  # fmt: skip
    elif option == "--unlabeled":
        (inside / "more").mkdir()
        image = (inside / "set" / "images" / "train" / "000.png").read_bytes()
        (inside / "more" / "other.png").write_bytes(image + b"\0")
        changes = {"teachers": (model,), "methods": (("logits", 1.0),), "unlabeled": str(places / "more")}
        model = save_detector(tmp_path / "model.pt", {0: "red", 1: "green"})
        changes["teachers"] = (model,)
    elif option == "--priors":
        fill(inside, {"priors.json": "{}"})
        also_read = [places / "priors.json"]
    before = sorted(out.rglob("*"))
    source = places / "set" / "data.yaml" if option == "--data" else data
    with pytest.raises(RunError, match=rf"run: got {option} .* in it, expected .*: choose another --out$"):
        train(tiny_config(source, out, **changes), overwrite=True, also_read=also_read)
    assert sorted(out.rglob("*")) == before


def test_an_out_that_holds_images_of_a_list_elsewhere_is_refused(data, tmp_path):
    out = fill(tmp_path / "run", {"config.json": '{"config": {}, "data_sha256": ""}'})
    shutil.copytree(data.parent, out / "set")
    (tmp_path / "train.txt").write_text("".join(f"{file}\n" for file in (out / "set/images/train").iterdir()))
    file = fill(tmp_path, {"data.yaml": f"train: train.txt\nval: {data.parent}/images/val\nnames: [red, green]\n"})
    with pytest.raises(RunError, match=r"got --data .*\.png in it"):
        train(tiny_config(file / "data.yaml", out), overwrite=True)
    assert len(list((out / "set/images/train").iterdir())) == 6


# ---------------------------------------------------------------- an earlier run


def test_a_refused_run_leaves_the_earlier_one(data, tmp_path):
    out = fill(tmp_path / "run", EARLIER)
    with pytest.raises(DataError):
        train(tiny_config(tmp_path / "none.yaml", out), overwrite=True)
    with pytest.raises(KdError):
        train(tiny_config(data, out, student="none.pt"), overwrite=True)
    assert content(out) == EARLIER


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_run_that_fails_at_its_start_brings_the_earlier_one_back(data, tmp_path, monkeypatch, error):
    out, told = fill(tmp_path / "run", EARLIER), []

    def fail(*_):
        assert (out / ".replaced" / "run.json").read_text() == "old"
        assert (out / "config.json").read_text() != "old"
        raise error

    monkeypatch.setattr(Trainer, "_setup_train", fail)
    with pytest.raises(RunError if error is RuntimeError else error):
        train(tiny_config(data, out), overwrite=True, tell=told.append)
    assert content(out) == EARLIER
    assert told == [f"{out}: the earlier run is back"]


def test_a_finished_run_takes_the_place_of_the_earlier_one(data, tmp_path):
    out = fill(tmp_path / "run", EARLIER)
    train(tiny_config(data, out), overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "args.yaml", "config.json", "results.csv", "run.json", "weights"
    ]  # fmt: skip


def test_a_run_that_can_be_resumed_is_kept_beside(tmp_path):
    out, told = fill(tmp_path, EARLIER), []
    begin_and_stop(out, RESUMABLE, told.append)
    assert content(out) == {**EARLIER, **{f"interrupted2/{name}": text for name, text in RESUMABLE.items()}}
    assert told == [f"{out}: the earlier run is back; the new one is in {out / 'interrupted2'}, for --resume"]


def test_what_cannot_be_moved_away_stays_where_it_is(tmp_path, monkeypatch):
    out, own = fill(tmp_path, EARLIER), run_folder.Path.rename

    def rename(self, target):
        if self == out / "weights":
            raise OSError(16, "Device or resource busy", str(self))
        return own(self, target)

    monkeypatch.setattr(run_folder.Path, "rename", rename)
    with pytest.raises(OSError, match="weights"), replacing(out, print):
        pytest.fail("it is still there")
    assert content(out) == EARLIER


@pytest.mark.parametrize("new", [BEGUN, RESUMABLE])
@pytest.mark.parametrize("nth", range(12))
def test_killed_between_any_two_moves_nothing_is_lost(tmp_path, monkeypatch, new, nth):
    out, moves = fill(tmp_path, EARLIER), []
    own = run_folder.Path.rename

    def rename(self, target):
        moves.append(target)
        if len(moves) > nth:
            raise Killed
        return own(self, target)

    monkeypatch.setattr(run_folder.Path, "rename", rename)
    begin_and_stop(out, new)
    monkeypatch.setattr(run_folder.Path, "rename", own)
    settle_earlier(out)
    found = content(out)
    if "new" in found["config.json"]:  # killed before it was brought back: the new one goes on, the other is beside it
        assert {name: found[name] for name in new} == new
        assert {name: found[f".replaced/{name}"] for name in EARLIER} == EARLIER
    else:
        assert {name: found[name] for name in EARLIER} == EARLIER
        assert not (out / ".replaced").exists()
    assert not (out / ".moving").exists()


def test_a_second_overwrite_keeps_the_run_that_was_finished(tmp_path):
    out = fill(tmp_path, EARLIER)
    fill(out / ".replaced", EARLIER)  # a killed process had put it there
    clear(out)
    fill(out, RESUMABLE)
    settle_earlier(out)
    begin_and_stop(out, {})
    assert content(out) == EARLIER


def test_an_earlier_run_goes_when_the_new_one_is_finished_by_a_later_process(tmp_path):
    out = fill(tmp_path, {**RESUMABLE, "run.json": "new"})
    fill(out / ".replaced", EARLIER)
    settle_earlier(out)
    assert content(out) == {**RESUMABLE, "run.json": "new"}


def test_an_earlier_run_that_was_moved_away_is_in_no_report(tmp_path):
    fill(tmp_path / "run" / ".replaced", EARLIER)
    assert read_runs(tmp_path) == ([], {})


def test_a_folder_of_something_else_is_never_cleared(tmp_path):
    """Neither one that has a folder of our name in it, nor one with a config.json of another program."""
    (tmp_path / "a" / REPLACED).mkdir(parents=True)
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"architectures": ["BertModel"]}')
    for folder, overwrite in (("a", False), ("a", True), ("b", True)):
        before = sorted(path.name for path in (tmp_path / folder).iterdir())
        run_folder.settle_earlier(tmp_path / folder)
        with pytest.raises(RunError, match="got something that is no run of kd"):
            run_folder.require_free(tmp_path / folder, overwrite)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == before
