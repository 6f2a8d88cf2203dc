"""The folder of a dataset while it is made: taken only if it is ours, continued, replaced, given back."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from dtld_tools.dataset import folder
from dtld_tools.dataset.folder import line_files, output
from dtld_tools.errors import DatasetError, ImageError
from dtld_tools.files import UNFINISHED
from dtld_tools.types import SPLITS
from tests.dtld_data import tree_bytes


def start(out, identity="one", *, overwrite=False):
    """Begin a dataset and stop in the middle."""
    with output(out, identity, overwrite=overwrite):
        (out / "images/train/a.jpg").write_bytes(b"a")


def finish(out, identity="one"):
    with output(out, identity, overwrite=False):
        (out / "images/train/a.jpg").write_bytes(b"a")
        folder.finish(out, {"identity": identity})


def test_a_new_folder_is_opened_and_finished(tmp_path):
    out = tmp_path / "deep" / "out"
    with output(out, "one", overwrite=False):
        assert {p.relative_to(out).as_posix() for p in out.glob("*/*")} == {
            ".unfinished/identity",
            ".unfinished/lock",
            *(f"{kind}/{split}" for kind in ("images", "labels") for split in SPLITS),
        }
        folder.finish(out, {"identity": "one"})
    assert sorted(p.name for p in out.iterdir()) == ["images", "labels", "report.json"]


def test_an_interrupted_one_stays_marked(tmp_path):
    with pytest.raises(KeyboardInterrupt), output(tmp_path, "one", overwrite=False):
        raise KeyboardInterrupt
    assert (tmp_path / ".unfinished" / "identity").read_text() == "one"


@pytest.mark.parametrize("make", [start, finish])
def test_the_same_plan_continues_and_another_is_refused(tmp_path, make):
    out = tmp_path / "out"
    make(out)
    before = tree_bytes(out, without=())
    with (
        pytest.raises(DatasetError, match=r"holds a dataset of another configuration.*--overwrite"),
        output(out, "two", overwrite=False),
    ):
        pass
    assert tree_bytes(out, without=()) == before  # a refusal touches nothing
    with output(out, "one", overwrite=False):
        assert (out / "images/train/a.jpg").exists()


def test_overwrite_replaces_the_other_dataset_and_nothing_foreign(tmp_path):
    out = tmp_path / "out"
    finish(out)
    (out / "notes.txt").write_text("mine")
    (out / "runs").mkdir()
    (out / "runs" / "best.pt").write_bytes(b"weights")
    with output(out, "two", overwrite=True):
        # The old one stands aside until the new one is finished: the input may turn out to be wrong.
        aside = {name: data for name, data in tree_bytes(out, without=()).items() if "/replaced/" in name}
        assert set(aside) == {".unfinished/replaced/images/train/a.jpg", ".unfinished/replaced/report.json"}
        assert tree_bytes(out, without=(".unfinished/lock", *aside)) == {
            ".unfinished/identity": b"two",
            "notes.txt": b"mine",
            "runs/best.pt": b"weights",
        }
        folder.finish(out, {"identity": "two"})
    assert set(tree_bytes(out, without=())) == {"notes.txt", "runs/best.pt", "report.json"}


def replace_and_fail(out, error):
    with output(out, "two", overwrite=True):
        assert not (out / "images/train/a.jpg").exists()  # an image of the old one is none of the new one
        (out / "images/train/b.jpg").write_bytes(b"of the new one")
        (out / "frames.jsonl").write_bytes(b"of the new one")
        raise error("a frame cannot be read")


@pytest.mark.parametrize("error", [DatasetError, ImageError])
def test_a_replaced_dataset_comes_back_when_the_input_is_wrong(tmp_path, error):
    out = tmp_path / "out"
    finish(out)
    (out / "notes.txt").write_text("mine")
    before = tree_bytes(out, without=())
    with pytest.raises(error):
        replace_and_fail(out, error)
    assert tree_bytes(out, without=()) == before
    with output(out, "one", overwrite=False):  # it is as it was
        pass


@pytest.mark.parametrize("moves", range(5))
def test_a_replaced_dataset_is_there_however_the_run_was_killed(tmp_path, monkeypatch, moves):
    """Killed before, between and after the moves aside; then the same command goes on, or its input is wrong."""
    out, left = tmp_path / "out", [moves]
    finish(out)
    before = tree_bytes(out, without=())
    replace = Path.replace

    def replace_or_die(self, target):
        if ".unfinished/replaced" in str(target):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(KeyboardInterrupt), output(out, "two", overwrite=True):
        raise KeyboardInterrupt
    monkeypatch.undo()
    with pytest.raises(DatasetError):
        replace_and_fail(out, DatasetError)
    assert tree_bytes(out, without=()) == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path, overwrite):
    out = tmp_path / "out"
    code = (
        f"from pathlib import Path; from dtld_tools.dataset.folder import output; out = Path({str(out)!r})\n"
        f"with output(out, 'one', overwrite={overwrite}): print('in')"
    )
    with output(out, "one", overwrite=False):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "DatasetError" in second.stderr
        assert "another process is writing this dataset" in second.stderr
        assert (out / "images/train").is_dir()
        folder.finish(out, {"identity": "one"})
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert third.stdout == "in\n"


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_taken_over(tmp_path, overwrite):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "report.json").write_text('["another tool"]')
    with pytest.raises(DatasetError, match="holds files that are no dataset of dtld"):
        start(tmp_path, overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photo.jpg", "report.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(DatasetError, match="out: is a file"):
        start(tmp_path / "out", overwrite=True)


def test_a_run_killed_before_its_first_file_can_be_continued(tmp_path):
    """The mark's folder is made first; a kill right after it must not lock the output for good."""
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / "123.tmp").write_bytes(b"half")
    (tmp_path / UNFINISHED / "lock").write_bytes(b"")  # the lock of a process that is no more
    start(tmp_path)
    assert (tmp_path / UNFINISHED / "identity").read_text() == "one"
    assert not (tmp_path / UNFINISHED / "123.tmp").exists()


def test_lines_get_their_names_when_both_files_are_whole(tmp_path):
    (tmp_path / UNFINISHED).mkdir()
    with contextlib.suppress(KeyboardInterrupt), line_files(tmp_path) as (frames, _):
        frames.write(b"{}\n")
        raise KeyboardInterrupt
    assert not list(tmp_path.glob("*.jsonl"))
    with line_files(tmp_path) as (frames, images):
        frames.write(b"f\n")
        images.write(b"i\n")
    assert (tmp_path / "frames.jsonl").read_bytes() + (tmp_path / "manifest.jsonl").read_bytes() == b"f\ni\n"
