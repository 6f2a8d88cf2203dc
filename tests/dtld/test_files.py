"""An output that is, holds or lies in an input is refused before anything is read or deleted."""

import os
import shutil
from pathlib import Path

import pytest

from dtld_tools.errors import DatasetError
from dtld_tools.files import (
    UNFINISHED,
    WHOLE,
    refuse_inputs,
    told_when_full,
    whole_file,
    whole_folder,
    write_atomically,
)
from tests.dtld_data import tree_bytes

TILES = ("--tile-size", 96, "--workers", 1)


@pytest.fixture
def work(raw, full, tmp_path):
    """A folder with a raw tree, its labels, and a dataset of whole frames."""
    shutil.copytree(raw, tmp_path / "raw")
    shutil.copytree(full, tmp_path / "full")
    return tmp_path


def refused(dtld, work, *command):
    """Exit 1, one line that says so, and not a byte is another."""
    before = tree_bytes(work, without=())
    code, out, err = dtld(*command)
    assert (code, out) == (1, ""), err
    assert "expected another place to write into" in err
    assert tree_bytes(work, without=()) == before


@pytest.mark.parametrize("command", ["tile", "augment", "split"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("out", ["full", ".", "full/images", "full/new", "full/../full"])
def test_a_stage_does_not_write_into_its_dataset(dtld, work, command, overwrite, out):
    refused(dtld, work, command, work / "full", "--out", work / out, *overwrite)


@pytest.mark.parametrize("command", ["convert", "prepare"])
@pytest.mark.parametrize("out", ["raw", "."])
def test_root_and_labels_are_not_written_over(dtld, work, command, out):
    labels = work / "raw" / "all.json"
    refused(dtld, work, command, labels, "--root", work / "raw", "--out", work / out, "--overwrite")


@pytest.mark.parametrize("option", [None, "--rules", "--split-file", "--val-labels", "--test-labels"])
def test_a_dataset_that_holds_an_input_is_not_overwritten(dtld, work, option):
    """--overwrite would delete labels/, and the file in it."""
    given = shutil.copy(work / "raw" / "all.json", work / "full" / "labels" / "all.json")
    labels = work / "raw" / "all.json" if option else given
    more = [option, given] if option else []
    refused(dtld, work, "prepare", labels, "--root", work / "raw", "--out", work / "full", "--overwrite", *more, *TILES)


def test_a_link_to_an_input_is_the_input(dtld, work):
    (work / "link").symlink_to(work / "full")
    refused(dtld, work, "tile", work / "full", "--out", work / "link")
    refused(dtld, work, "tile", work / "link", "--out", work / "full" / "new")


@pytest.mark.parametrize(
    "name", ["data.yaml", "frames.jsonl", "manifest.jsonl", "report.json", "images/x.json", "labels/train/x.json"]
)
def test_export_does_not_write_over_the_dataset(dtld, work, name):
    refused(dtld, work, "export", work / "full", "--out", work / "full" / name)


def test_export_may_put_its_file_beside_the_others(dtld, work):
    assert dtld("export", work / "full", "--out", work / "full" / "coco.json")[0] == 0


def test_preview_does_not_write_over_an_image(dtld, work):
    image = next((work / "full" / "images" / "train").iterdir())
    refused(dtld, work, "preview", work / "full", "--out", image)
    (work / "link.jpg").hardlink_to(work / "full" / "data.yaml")
    refused(dtld, work, "preview", work / "full", "--out", work / "link.jpg")
    assert dtld("preview", work / "full", "--out", work / "sheet.png")[0] == 0


def test_a_plot_does_not_replace_labels_rules_or_a_frame(dtld, work):
    labels = (work / "raw" / "all.json").rename(work / "raw" / "all.png")
    rules = work / "rules.svg"
    rules.write_text("{classes: [a], rules: [{class: a}]}")
    shutil.copy(labels, work / "labels.json")
    refused(dtld, work, "inspect", work / "labels.json", "--rules", rules, "--plot", rules)
    (work / "plot.png").symlink_to(work / "labels.json")
    refused(dtld, work, "inspect", work / "labels.json", "--plot", work / "plot.png")
    frame = next((work / "raw").rglob("*.tiff"))
    png = frame.rename(frame.with_suffix(".png"))
    text = (work / "labels.json").read_text().replace(frame.name, png.name)
    (work / "labels.json").write_text(text)
    refused(dtld, work, "inspect", work / "labels.json", "--root", work / "raw", "--plot", png)


def test_out_in_root_is_allowed(dtld, work):
    """`--root . --out tiles`: frames are only looked for where the labels name them."""
    labels = work / "raw" / "all.json"
    assert dtld("prepare", labels, "--root", work / "raw", "--out", work / "raw" / "tiles", *TILES)[0] == 0


def test_overwriting_with_unreadable_frames_leaves_the_old_dataset(dtld, work):
    before = tree_bytes(work / "full", without=())
    for frame in (work / "raw").rglob("*.tiff"):
        data = frame.read_bytes()
        frame.write_bytes(data[:8] + b"\xff" * (len(data) - 308) + data[-300:])  # a header, and no pixels
    command = ("prepare", work / "raw" / "all.json", "--root", work / "raw", "--out", work / "full", *TILES)
    code, _, err = dtld(*command, "--overwrite")
    assert (code, "none of 12 frames could be read" in err) == (1, True), err
    assert tree_bytes(work / "full", without=()) == before
    code, _, err = dtld(*command, "--overwrite", "--rules", work / "nowhere.json")
    assert code == 1
    assert tree_bytes(work / "full", without=()) == before


def test_relations(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for out, given, inside, relation in (
        ("a", "a", True, "is the input"),
        ("a/../a", "a", True, "is the input"),
        ("a", "a/b", True, "holds the input"),
        ("a", "a/not/there", True, "holds the input"),
        ("a/b/c", "a", True, "lies in the input"),
    ):
        with pytest.raises(DatasetError, match=f"--out: .*: {relation}"):
            refuse_inputs(tmp_path / out, [None, tmp_path / given], inside=inside)
    refuse_inputs(tmp_path / "a/b/c", [tmp_path / "a"], inside=False)
    refuse_inputs(tmp_path / "ab", [tmp_path / "a"])


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(error):
        with whole_file(path) as part:
            part.write_text("half")
            raise error

    for error, expected in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), DatasetError)):
        with pytest.raises(expected):
            fail(error)
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
        assert path.read_text() == "old"
    with whole_file(path) as part:
        assert part.suffix == ".png"
        part.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_has_its_name_when_it_is_whole_and_what_a_killed_run_left_goes(tmp_path):
    out, left = tmp_path / "out", tmp_path / ".out.tmp" / UNFINISHED / WHOLE
    left.mkdir(parents=True)
    (left / "half.txt").write_text("half")
    with pytest.raises(KeyboardInterrupt), whole_folder(out):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    left.mkdir(parents=True)
    (left / "half.txt").write_text("half")
    with whole_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        with pytest.raises(DatasetError, match="another process is writing this export"), whole_folder(out):
            pass
    assert (os.listdir(tmp_path), os.listdir(out)) == (["out"], ["a.txt"])


def test_where_a_file_system_is_mounted_no_folder_gets_its_name():
    with pytest.raises(DatasetError, match="/proc: is where a file system is mounted"), whole_folder(Path("/proc")):
        pass


def test_only_a_full_disk_is_told_as_one(tmp_path):
    with pytest.raises(DatasetError, match="out: No space left; what is written is kept"), told_when_full(Path("out")):
        raise OSError(28, "No space left", "x")
    with pytest.raises(PermissionError), told_when_full(Path("out")):
        raise PermissionError(13, "no", "x")


def test_writing_replaces_and_leaves_no_temporary(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    write_atomically(path, b"new", scratch)
    assert path.read_bytes() == b"new"
    assert list(scratch.iterdir()) == []
