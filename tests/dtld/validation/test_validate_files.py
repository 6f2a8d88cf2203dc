"""Defects of files: missing, changed, damaged, of another kind, too many, not finished."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from dtld_tools.errors import DatasetError
from dtld_tools.validation.validate import validate
from tests.dtld_data import read_lines
from tests.planted import defects, first_label


def image_of(root, label):
    return root / "images" / "train" / label.with_suffix(".png").name


def test_a_missing_label(copy):
    path = first_label(copy)
    path.unlink()
    assert defects(copy) == [f"labels/train/{path.name}: No such file or directory, expected a label file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Its class, and its box, as it was and beyond the right edge.
        (
            lambda text: str(1 - int(text[0])) + text[1:],
            r"line 1: got class [01], expected class [01] from frames\.jsonl",
        ),
        (
            lambda text: text.replace(text[2:10], "1.200000", 1),
            r"line 1: got '.* 1\.200000 .*', which lies outside the image, expected '.*' from frames\.jsonl",
        ),
        (lambda text: text.replace(text[2:10], "0.500001", 1), r"line 1: got '[01] 0.500001 .*', expected '.*' from"),
        (lambda text: text[:2] + "x" + text[3:], r"line 1: got '[01] x.*', expected '.*' from"),
        (lambda text: "", r"got 0 boxes, expected \d from frames\.jsonl; they differ from line 1 on"),
        (
            lambda text: text + "0 0.5 0.5 0.1 0.1\n",
            r"got (\d) boxes, expected \d from .*; they differ from line \1 on",
        ),
        (lambda text: "no label at all\n" + text, r"boxes, expected .*; they differ from line 1 on"),
        (lambda text: text.replace("\n", "\r\n"), "has other line ends"),
        (lambda text: text.rstrip("\n"), "has other line ends"),
        (lambda text: text.encode() + b"\xff", "is no text, expected lines 'class xc yc w h'"),
    ],
)
def test_a_changed_label(copy, change, message):
    path = first_label(copy)
    changed = change(path.read_text())
    path.write_bytes(changed.encode() if isinstance(changed, str) else changed)
    (found,) = defects(copy)
    assert found.startswith(f"labels/train/{path.name}: ")
    assert re.search(message, found)


def test_a_missing_image(copy):
    path = image_of(copy, first_label(copy))
    path.unlink()
    (found,) = defects(copy)
    assert found.startswith(f"images/train/{path.name}: No such file")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image(sound, full, tmp_path, suffix):
    """However little is missing; an image with bytes behind its end is no more what dtld wrote."""
    root = Path(shutil.copytree(sound if suffix == "png" else full, tmp_path / "out"))
    path = next((root / "images/train").iterdir())
    whole = path.read_bytes()
    assert defects(root) == []
    for length in (0, 1, 3, 20, len(whole) // 4, len(whole) // 2, len(whole) - 200, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        (found,) = defects(root)
        expected = "is empty or no" if length < 3 else "is (empty|truncated)"
        assert re.match(rf"images/train/{re.escape(path.name)}: {expected}.*; make the dataset again", found), length
    path.write_bytes(whole + b"\0")
    assert "is truncated: its end is not that of a" in defects(root)[0]


def test_an_image_of_another_kind_or_damaged_inside(copy):
    path = image_of(copy, first_label(copy))
    whole = path.read_bytes()
    path.write_bytes(cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes())
    assert defects(copy) == [f"images/train/{path.name}: is empty or no png image; make the dataset again"]
    path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    (found,) = defects(copy)
    assert found.startswith(f"images/train/{path.name}: cannot be decoded")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_linked_file_is_not_the_datasets_own(copy, tmp_path, kind):
    path = next((copy / kind / "train").iterdir())
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    (found,) = defects(copy)
    assert found.startswith(f"{kind}/train/{path.name}: is a symbolic link, expected a")
    path.unlink()
    path.mkdir()
    (found,) = defects(copy)
    assert found.startswith(f"{kind}/train/{path.name}: is no file, expected a")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_linked_or_missing_folder(copy, tmp_path, kind):
    (copy / kind / "val").rename(tmp_path / "val")
    (copy / kind / "val").symlink_to(tmp_path / "val")
    assert defects(copy) == [f"{kind}/val: is no folder, expected one of the dataset's own"]
    (copy / kind / "val").unlink()
    found = defects(copy)
    assert found.count(f"{kind}/val: is no folder, expected one of the dataset's own") == 1
    files = [m["name"] for m in read_lines(copy / "manifest.jsonl") if m["split"] == "val"]
    assert len(found) == 1 + len(files) > 1


def test_an_image_of_another_size(copy):
    path = image_of(copy, first_label(copy))
    cv2.imwrite(str(path), np.zeros((96, 95, 3), np.uint8))
    assert defects(copy) == [f"images/train/{path.name}: got 95 x 96 pixels, expected 96 x 96"]


@pytest.mark.parametrize(
    ("name", "told_of"),
    [
        ("images/train/extra.png", "images/train/extra.png"),
        ("labels/val/extra.txt", "labels/val/extra.txt"),
        ("images/test/.DS_Store", "images/test/.DS_Store"),
        ("images/extra.png", "images/extra.png"),
        ("images/extra/extra.png", "images/extra"),
        ("labels/train/deep/extra.txt", "labels/train/deep"),
        ("images/train.cache", "images/train.cache"),
        ("images/train/extra.npy", "images/train/extra.npy"),
    ],
)
def test_a_file_that_no_line_names(copy, name, told_of):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    assert defects(copy) == [f"{told_of}: is not in manifest.jsonl"]


def test_an_image_with_another_ending_beside_the_listed_one(copy):
    path = image_of(copy, first_label(copy))
    shutil.copy(path, path.with_suffix(".jpg"))
    assert defects(copy) == [f"images/train/{path.with_suffix('.jpg').name}: is not in manifest.jsonl"]


def test_what_training_leaves_behind_is_no_defect(copy):
    """Ultralytics 8.4 writes labels/<split>.cache, and with cache=disk an .npy beside each image."""
    (copy / "labels/train.cache").write_bytes(b"x")
    (copy / "labels/val.cache").write_bytes(b"x")
    next((copy / "images/train").iterdir()).with_suffix(".npy").write_bytes(b"x")
    (copy / "LICENSE").write_text("DTLD's")
    assert defects(copy) == []


def test_an_unfinished_dataset(copy):
    (copy / ".unfinished").mkdir()
    assert defects(copy) == [".unfinished: the dataset is unfinished; run the command that made it again"]
    (copy / "report.json").unlink()
    (copy / "data.yaml").unlink()
    with pytest.raises(DatasetError, match="is unfinished; run the command that was making it again"):
        validate(copy)
