"""What is said of images and labels before a run, held against what Ultralytics then does with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("torch", reason="needs the extra kd")
import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import verify_image_label

import schemas
from kd.distillation.unlabeled import check_unlabeled
from kd.errors import DataError
from kd.scoring.evaluate import evaluate
from kd.training.run import train
from kd.training.worth import check_worth
from kd.ultra import labels, session
from kd.ultra.data import hash_data, image_files, resolve_data, ultralytics_view
from kd.ultra.labels import FLAT, check_splits, first_fault, used_images
from kd.ultra.overlap import shared_images
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

SOUND = "0 0.5 0.5 0.2 0.2"
BAD = {
    "7 .5 .5 .1 .1": "line 2: class 7, expected 0 to 1",
    "-1 .5 .5 .1 .1": "line 2: class -1, expected 0 to 1",
    "1.5 .5 .5 .1 .1": "line 2: class 1.5, expected a whole number",
    "nan .5 .5 .1 .1": "line 2: class nan, expected a whole number",
    "0 nan .5 .1 .1": "line 2: the box nan 0.5 0.1 0.1, expected 0 to 1",
    "0 .5 .5 inf .1": "line 2: the box 0.5 0.5 inf 0.1, expected 0 to 1",
    "0 1.5 .5 .1 .1": "line 2: the box 1.5 0.5 0.1 0.1, expected 0 to 1",
    "0 .5 .5 -.1 .1": "line 2: the box 0.5 0.5 -0.1 0.1, expected 0 to 1",
    "0 .5 .5 -.001 .1": "line 2: the box 0.5 0.5 -0.001 0.1, expected 0 to 1",
    "red .5 .5 .1 .1": "line 2: 'red .5 .5 .1 .1', expected numbers",
    "0 .5 .5 .1 .1 .9": "line 2: 6 columns, expected 5 without that of save_conf",
    "0 .5 .5": "line 2: 3 columns, expected 5",
    "0 .1 .1 .2 .2 .3 .3": "line 1: 5 columns among rows of polygons",
    "\ufffe\ud800": "cannot be read",
    "0 .5 .5 0 .1": f"line 2: {FLAT}",
    "0 .5 .5 .1 0.000000": f"line 2: {FLAT}",
}


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", train=4, val=3, test=2)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.png"
    cv2.imwrite(str(path), np.zeros((32, 32, 3), np.uint8))
    return path


def spoil(data: Path, place: str, line: str) -> Path:
    """Put a line after a sound one into a label file; returns the file."""
    label = data.parent / "labels" / f"{place}.txt"
    label.write_bytes(f"{SOUND}\n{line}\n".encode("utf-8", "surrogatepass"))
    return label


def check(data: Path, **options):
    return check_splits(data, resolve_data(data), ("train", "val", "test"), needed=("train", "val"), **options)


@pytest.mark.parametrize(("line", "fault"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_label_file_is_named_with_its_line(data, line, fault):
    label = spoil(data, "train/001", line)
    assert fault in first_fault(label, 2)
    with pytest.raises(DataError) as refusal:
        check(data)
    assert "got 1 of 9 images that cannot be used (labels/train/001.txt: " in str(refusal.value)
    assert fault in str(refusal.value)
    assert "leave them out by --skip-bad-labels" in str(refusal.value)
    told = []
    found = check(data, skip_bad=True, tell=told.append)
    assert (found["train"].images, found["train"].skipped) == (3, 1)
    assert (found["val"].images, found["val"].skipped) == (3, 0)
    assert len(told) == 1
    assert "1 of 9 images are left out: labels/train/001.txt: " in told[0]
    view = ultralytics_view(resolve_data(data))
    with session.silence():
        dataset = YOLODataset(img_path=view["train"], data=view, task="detect", augment=False)
    assert len(dataset) == 3


def test_ten_are_named_and_all_are_counted(tmp_path):
    data = write_dataset(tmp_path / "d", train=14, val=3)
    for i in range(12):
        spoil(data, f"train/{i:03d}", "9 .5 .5 .1 .1")
    with pytest.raises(DataError, match="got 12 of 17 images that cannot be used") as refusal:
        check(data)
    assert str(refusal.value).count("class 9, expected 0 to 1") == 10
    assert "; ...)" in str(refusal.value)


# --- the verdict is Ultralytics' own ----------------------------------------------------------------------

WORDS = ["0", "1", "2", "-1", "1.0", "1.5", "nan", "inf", "-inf", "1e40", "1_0", "0x1", "red", "-0.0", "+1", "1.", ".5"]
WORDS += ["0.5", "0.25", "1.01", "1.0100001", "1.02", "-0.01", "-0.0100001", "-0.005", "-0.02", "0", "1e-9", "٣"]
ROWS = st.lists(
    st.tuples(st.sampled_from(["0", "1"] * 6 + WORDS), st.lists(st.sampled_from([".5"] * 20 + WORDS), max_size=9))
    | st.tuples(st.sampled_from(["0", "1"]), st.lists(st.sampled_from([".5", ".25", "0.3"]), min_size=4, max_size=4)),
    max_size=4,
)


@settings(max_examples=600, deadline=None)
@given(
    rows=ROWS,
    ends=st.sampled_from(["\n", "\r\n", "\n\n", " \n", "\x0b"]),
    single=st.booleans(),
    shape=st.sampled_from([None, [1, 2], [1, 3]]),
    mark=st.booleans(),
)
def test_faults_are_what_ultralytics_drops(image, rows, ends, single, shape, mark):
    label = image.with_suffix(".txt")
    text = "".join(f"{' '.join([kind, *rest])}{ends}" for kind, rest in rows)
    label.write_bytes(("\ufeff" * mark + text).encode())
    verdict = labels._verify((str(image), str(label), "", False, 2, *(shape or (0, 0)), single))
    assert labels._verify is verify_image_label
    fault = first_fault(label, None if single else 2, shape)
    assert (verdict[0] is None) == (fault is not None and FLAT not in fault), (text, fault, verdict[-1])
    if verdict[0] is not None:
        assert (fault is not None) == bool(len(verdict[1]) and verdict[1][:, 3:5].min() <= 0), text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_faults_of_any_bytes_are_what_ultralytics_drops(image, content):
    label = image.with_suffix(".txt")
    label.write_bytes(content)
    verdict = labels._verify((str(image), str(label), "", False, 2, 0, 0, False))
    fault = first_fault(label, 2)
    assert (verdict[0] is None) == (fault is not None and FLAT not in fault)


def test_verdicts_are_remembered_until_a_file_changes(data, monkeypatch):
    asked = []
    monkeypatch.setattr(labels, "_verify", lambda args: asked.append(args[0]) or verify_image_label(args))
    check(data)
    assert len(asked) == 9
    view = ultralytics_view(resolve_data(data))
    with session.silence():
        dataset = YOLODataset(img_path=view["train"], data=view, task="detect", augment=False, single_cls=False)
        merged = YOLODataset(img_path=view["train"], data=view, task="detect", augment=False, single_cls=True)
    assert len(asked) == 9 + 4  # with other classes other labels are sound
    assert {int(kind) for label in dataset.labels for kind in label["cls"].flat} == {0, 1}
    assert {int(kind) for label in merged.labels for kind in label["cls"].flat} == {0}
    before = check(data)
    assert len(asked) == 13
    spoil(data, "val/002", SOUND.replace("0.5", "0.4"))
    assert check(data)["val"].objects == before["val"].objects + 2
    assert len(asked) == 14


# --- counts -----------------------------------------------------------------------------------------------


def test_rows_that_stand_twice_are_counted_once_and_said(data):
    label = spoil(data, "val/000", SOUND)
    label.write_text(f"{SOUND}\n{SOUND}\n1 0.5 0.5 0.2 0.2\n{SOUND}\n")
    told = []
    found = check(data, tell=told.append)
    assert found["val"].repeated == 2
    assert found["train"].repeated == 0
    assert len(told) == 1
    assert "val: 2 label rows equal another one of their file and are not counted" in told[0]
    assert "000.txt" in told[0]
    model = save_detector(data.parent / "m.pt", {0: "red", 1: "green"})
    scores = evaluate(data, model, split="val", device="cpu", quiet=True)
    assert scores["instances"] == found["val"].objects == 4


def test_a_run_goes_on_without_bad_labels_and_says_so_everywhere(data, tmp_path):
    spoil(data, "train/001", "0 .5 .5 .1 .1 .9")
    spoil(data, "val/001", "0 .5 .5 0 .1")
    spoil(data, "test/001", "5 .5 .5 .1 .1")
    (data.parent / "labels/train/000.txt").write_text(f"{SOUND}\n{SOUND}\n")
    out = tmp_path / "run"
    with pytest.raises(DataError, match="got 3 of 9 images that cannot be used"):
        train(tiny_config(data, out), quiet=True)
    assert not out.exists()
    told = []
    result = train(tiny_config(data, out, skip_bad_labels=True), tell=told.append, quiet=True)
    assert len(told) == 2
    assert result["images"] == {"train": 3, "val": 2, "test": 1}
    assert result["skipped"] == {"train": 1, "val": 1, "test": 1}
    assert result["repeated_labels"] == {"train": 1}
    assert result["config"]["skip_bad_labels"] is True
    for scores in (*result["metrics"]["last"].values(), *result["metrics"]["best"].values()):
        assert scores["skipped"] == 1
    jsonschema.validate(json.loads((out / "run.json").read_text()), schemas.load("run"))
    card = (out / "README.md").read_text()
    assert "Images: train 3, val 2, test 1." in card
    assert "cannot be used: images train 1, val 1, test 1." in card
    assert "equal another row of their label file: rows train 1." in card
    with pytest.raises(DataError, match="class 5, expected 0 to 1"):
        evaluate(data, out / "weights/best.pt", device="cpu", quiet=True)
    scores = evaluate(data, out / "weights/best.pt", device="cpu", skip_bad_labels=True, quiet=True)
    assert (scores["images"], scores["skipped"]) == (1, 1)


def test_the_worth_of_a_teacher_is_measured_on_usable_images(data, tmp_path):
    spoil(data, "val/001", "9 .5 .5 .1 .1")
    model = save_detector(tmp_path / "m.pt", {0: "red", 1: "green"})
    config = tiny_config(data, tmp_path / "run", teachers=(model,), imgsz=96, batch=2)
    assert check_worth(config, allow_weak=True)[0].images == 2


def test_images_that_are_none_are_unusable_too(data):
    images = data.parent / "images" / "val"
    (images / "000.png").write_bytes(b"no image")
    cv2.imwrite(str(images / "001.png"), np.zeros((9, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"got 2 of 9 .*000.png: no image that can be read; .*001.png: image size"):
        check(data)
    (images / "000.png").unlink()
    (images / "000.png").symlink_to("gone.png")
    view = resolve_data(data)
    found = check_splits(data, view, ["val"], needed=(), skip_bad=True)
    assert (found["val"].images, found["val"].skipped) == (1, 2)
    assert len(hash_data(data, view)) == 64
    assert shared_images(view) == {}
    assert check_unlabeled(data.parent / "images" / "train", view)["images"] == 4


def test_an_image_that_is_named_twice_counts_twice_as_in_ultralytics(data):
    data.write_text("train: [images/train, images/train]\nval: images/val\nnames: [red, green]\n")
    spoil(data, "train/001", "9 .5 .5 .1 .1")
    found = check_splits(data, resolve_data(data), ["train"], needed=[], skip_bad=True)["train"]
    view = ultralytics_view(resolve_data(data))
    with session.silence():
        dataset = YOLODataset(img_path=view["train"], data=view, task="detect", augment=False)
    assert (found.images, found.skipped) == (len(dataset), 2) == (6, 2)


def test_nothing_that_can_be_used_is_refused_whatever_is_asked_for(data):
    for i in range(3):
        spoil(data, f"val/{i:03d}", "9 .5 .5 .1 .1")
    with pytest.raises(DataError, match="split 'val': got 0 images without one labelled object"):
        check(data, skip_bad=True)


def test_a_split_without_objects_is_named_before_training(data, tmp_path):
    for label in (data.parent / "labels" / "val").iterdir():
        label.write_text("")
    with pytest.raises(DataError, match=r"split 'val': got 3 images without one labelled object, .*score against"):
        train(tiny_config(data, tmp_path / "run"), quiet=True)
    shutil.rmtree(data.parent / "labels" / "train")
    with pytest.raises(DataError, match=r"split 'train': got 4 images without one .*nothing to learn from"):
        train(tiny_config(data, tmp_path / "run"), dry_run=True, quiet=True)
    assert not (tmp_path / "run").exists()


def test_objects_are_those_of_the_settings(tmp_path):
    data = write_dataset(tmp_path / "d", train=3, val=2)
    folder = data.parent / "labels"
    for label in (*(folder / "train").iterdir(), *(folder / "val").iterdir()):
        label.write_text("")
    (folder / "train" / "002.txt").write_text(f"{SOUND}\n")
    (folder / "val" / "000.txt").write_text(f"{SOUND}\n1 .3 .3 .1 .1\n")
    assert check(data)["val"].objects == 2
    assert check(data, classes=[0])["val"].objects == 1
    for settings_, split in (
        ((("classes", [1]),), "train"),
        ((("classes", 7),), "train"),
        ((("fraction", 0.5),), "train"),
        ((("fraction", 1),), None),
        ((("classes", [0]), ("single_cls", True)), None),
    ):
        config = tiny_config(data, tmp_path / "run", settings=settings_)
        if split is None:
            train(config, dry_run=True, quiet=True)
            continue
        with pytest.raises(DataError, match=f"split '{split}': got . images without one labelled object"):
            train(config, quiet=True)


def test_a_bad_label_beyond_the_fraction_does_not_matter(data):
    spoil(data, "train/003", "9 .5 .5 .1 .1")
    assert check(data, fraction=3)["train"].images == 3
    with pytest.raises(DataError, match=r"003\.txt: line 2: class 9"):
        check(data, fraction=4)
    view = resolve_data(data)
    assert used_images(view, "train", [0.5, 0.1]) == image_files(view["train"])[:2]
    assert used_images(view, "val", [0.5, 0.1]) == image_files(view["val"])
