"""Frames and labels as people have them: other endings, long names, equal boxes, replaced files, damaged pixels."""

import json
import os
import re
import shutil
import time

import cv2
import numpy as np
import pytest

from tests.dtld_data import image, light, read_lines, tool, tree_bytes, write_v2
from tests.small_runs import prepare

SEQUENCE = "Aachen/Aachen1/2015-04-01_10-50-05"


def colour_frame(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 16, 3), np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(coarse, (128, 64)))


def frames(root, names, labelled=None):
    """Write colour frames and a label file that may call them otherwise."""
    for number, name in enumerate(names):
        colour_frame(root / SEQUENCE / name, number)
    written = [image(f"./{SEQUENCE}/{name}", light(10, 10, 8, 20, n)) for n, name in enumerate(labelled or names)]
    return write_v2(root / "all.json", written)


ALL_TRAIN = ("--val", "0", "--test", "0")


def test_frames_converted_to_png_are_found_by_their_stem_and_said_once(tmp_path, dtld):
    labels = frames(tmp_path, ["a_k0.png", "b_k0.jpg", "c_k0.png"], ["a_k0.tiff", "b_k0.tiff", "c_k0.png"])
    code, _, told = dtld("convert", labels, "--root", tmp_path, "--out", tmp_path / "out", *ALL_TRAIN)
    assert code == 0
    assert told == (
        f"note: 2 frames have another ending than in the labels, such as {SEQUENCE}/a_k0.png for {SEQUENCE}/a_k0.tiff\n"
    )
    lines = read_lines(tmp_path / "out" / "frames.jsonl")
    assert [line["frame"].rpartition("/")[2] for line in lines] == ["a_k0.png", "b_k0.jpg", "c_k0.png"]
    assert dtld("validate", tmp_path / "out")[0] == 0


def test_the_file_that_the_label_names_goes_first(tmp_path, dtld):
    labels = frames(tmp_path, ["a_k0.png", "a_k0.jpg"], ["a_k0.jpg"])
    code, _, told = dtld("convert", labels, "--root", tmp_path, "--out", tmp_path / "out", *ALL_TRAIN)
    assert (code, told) == (0, "")
    assert read_lines(tmp_path / "out" / "frames.jsonl")[0]["frame"].endswith("a_k0.jpg")


def test_of_several_other_endings_none_counts(tmp_path, dtld):
    labels = frames(tmp_path, ["a_k0.png", "a_k0.jpg", "b.jpg"], ["a_k0.tiff", "b.jpg"])
    code, _, told = dtld("convert", labels, "--root", tmp_path, "--out", tmp_path / "out", *ALL_TRAIN)
    assert (code, told) == (0, f"skipped: {SEQUENCE}/a_k0.tiff: missing\n")


@pytest.mark.parametrize("length", [300, 250])
def test_a_frame_with_too_long_a_name_is_left_out_by_name(tmp_path, dtld, length):
    """300 bytes: no file can be called so. 250: the file can, but its tiles would have longer names than files take."""
    long = "a" * (length - 5) + ".jpg"
    labels = frames(tmp_path, ["b.jpg", *([long] if length < 256 else [])], ["b.jpg", long])
    code, printed, told = dtld("prepare", labels, "--root", tmp_path, "--out", tmp_path / "out", *ALL_TRAIN)
    assert code == 0
    reason = "missing" if length > 255 else "unreadable: its name is too long"
    assert re.search(rf"skipped: .*: {reason}", told)
    assert "1 frames skipped" in printed
    assert dtld("validate", tmp_path / "out")[0] == 0


def test_equal_boxes_under_two_ids_are_counted_and_said(tmp_path, dtld):
    labels = frames(tmp_path, ["a.jpg"])
    content = json.loads(labels.read_text())
    content["images"][0]["labels"] += [light(10, 10, 8, 20, 8), light(10, 10, 9, 20, 9)]
    labels.write_text(json.dumps(content))
    code, printed, told = dtld("convert", labels, "--root", tmp_path, "--out", tmp_path / "out", *ALL_TRAIN)
    assert code == 0
    assert told.startswith("note: 1 lights have the class and the box of another of their frame under another id: ")
    assert "3 kept" in printed
    (label,) = (tmp_path / "out" / "labels" / "train").iterdir()
    assert len(label.read_text().splitlines()) == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text())["notes"] == [told.removeprefix("note: ").strip()]


def test_a_replaced_frame_is_made_anew_by_the_same_command(raw, tmp_path):
    """Same name, same size, other pixels, and newer, as `make` decides; untouched frames keep their files."""
    root, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, root)
    prepare(root, out)
    before, made = tree_bytes(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    frame = sorted(root.rglob("*.tiff"))[0]
    other = sorted(root.rglob("*.tiff"))[1]
    frame.write_bytes(other.read_bytes())
    os.utime(frame, ns=(time.time_ns(), max(made.values()) + 10**9))
    prepare(root, out)
    changed = {name for name, content in tree_bytes(out).items() if content != before[name]}
    assert changed
    assert all(frame.stem in name and name.endswith(".png") for name in changed)
    kept = [path for path, at in made.items() if frame.stem not in path.name and path.stat().st_mtime_ns != at]
    assert kept == []
    whole = tmp_path / "whole"
    prepare(root, whole)
    assert tree_bytes(out) == tree_bytes(whole)


@pytest.mark.parametrize("option", ["--test-labels", "--val-labels"])
def test_label_files_that_leave_nothing_for_train(tmp_path, dtld, option):
    labels = frames(tmp_path, ["a.jpg"])
    code, _, told = dtld("convert", labels, "--root", tmp_path, "--out", tmp_path / "out", option, labels)
    assert code == 2
    assert told.startswith(f"error: {option}: got {labels}, which is all that LABELS has, expected LABELS to hold")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_damaged_pixels_bring_our_own_lines_alone_on_stderr(tmp_path, workers):
    """libpng and libjpeg print to the terminal by themselves, from worker processes too."""
    names = [f"{kind}{n}.{kind}" for kind in ("jpg", "png") for n in range(3)]
    labels = frames(tmp_path, ["whole.jpg", *names])
    rng = np.random.default_rng(1)
    for name in names:
        path = tmp_path / SEQUENCE / name
        content = bytearray(path.read_bytes())
        for place in rng.integers(len(content) // 2, len(content) - 20, 12):
            content[place] ^= 0x5A
        path.write_bytes(content)
    found = tool(
        "dtld", "convert", labels, "--root", tmp_path, "--out", tmp_path / "out", *ALL_TRAIN, "--workers", workers
    )
    assert found.returncode == 0
    lines = found.stderr.splitlines()
    assert lines, "the damage should be told of"
    assert [line for line in lines if not line.startswith(("skipped: ", "note: "))] == []


def test_a_split_file_with_a_byte_order_mark(tmp_path, dtld):
    labels = frames(tmp_path, ["a.jpg"])
    (tmp_path / "splits.txt").write_text(f"{SEQUENCE} train\n", encoding="utf-8-sig")
    options = ("--root", tmp_path, "--out", tmp_path / "out", "--split-file", tmp_path / "splits.txt")
    assert dtld("convert", labels, *options)[0] == 0
