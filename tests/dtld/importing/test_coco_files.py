"""A COCO file for each split: one dataset, whose splits they are; nothing is twice, each class goes by its name."""

import json

import pytest

from dtld_tools.dataset.reading import read_frames
from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.importing.coco_frames import import_coco
from dtld_tools.importing.imported import Sequences
from dtld_tools.types import SPLITS
from dtld_tools.validation.validate import validate
from tests.dtld.importing.test_import import draw, write_yolo


def write(path, names, categories=("go",), annotations=None):
    """A COCO file of images of 64 x 48, ids from 1; each has a box of the last category unless others are given."""
    each = [{"image_id": n, "category_id": len(categories), "bbox": [1, 2, 3, 4]} for n in range(1, len(names) + 1)]
    document = {
        "images": [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(names, 1)],
        "annotations": each if annotations is None else annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories, 1)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root, *files, pattern=None, crowd="drop"):
    """The import of files in the order of the splits; images are not opened."""
    return import_coco(list(zip(files, SPLITS, strict=False)), root, Sequences("set", pattern), crowd)


def splits_of(dataset):
    return {frame.frame: frame.split for frame in read_frames(dataset)}


def test_cocos_own_layout_is_imported_as_it_is(tmp_path, dtld):
    root, out = tmp_path / "coco", tmp_path / "out"
    for name in ("train2017/1.jpg", "train2017/2.jpg", "val2017/1.jpg"):
        draw(root / name)
    train = write(root / "annotations/instances_train2017.json", ["1.jpg", "2.jpg"], ("cat", "dog"))
    val = write(root / "annotations/instances_val2017.json", ["1.jpg"], ("dog", "cat"))
    line = ("convert", train, "--val-labels", val, "--root", root, "--workers", 1)
    code, printed, err = dtld(*line, "--out", out)
    assert (code, err.startswith("note: the source's own splits are kept")) == (0, True)
    assert "out: train 2, val 1, test 0 images" in printed
    assert "lights: 3 in = 3 kept + 0 dropped" in printed
    assert "  cat: 1 lights, 1 targets\n  dog: 2 lights, 2 targets\n" in printed
    assert splits_of(out) == {"train2017/1.jpg": "train", "train2017/2.jpg": "train", "val2017/1.jpg": "val"}
    assert validate(out)["defects"] == []
    code, _, err = dtld(*line, "--out", tmp_path / "anew", "--val", 0, "--test", 0.3)
    assert (code, "note: --val-labels and --test-labels are no splits now" in err) == (0, True)
    assert set(splits_of(tmp_path / "anew").values()) == {"train", "test"}


def test_our_own_export_of_two_splits_goes_round(tmp_path, dtld):
    labels = {"images/train/1.jpg": "0 .5 .5 .2 .2\n2 .2 .3 .1 .1\n", "images/val/1.jpg": "1 .4 .4 .3 .3\n"}
    source = write_yolo(tmp_path / "set", labels, train="images/train", val="images/val")
    one, two = tmp_path / "one", tmp_path / "two"
    assert dtld("convert", source, "--root", source.parent, "--out", one, "--workers", 1)[0] == 0
    for split in ("train", "val"):
        assert dtld("export", one, "--split", split, "--out", tmp_path / f"{split}.json")[0] == 0
    files = (tmp_path / "train.json", "--val-labels", tmp_path / "val.json")
    code, _, err = dtld("convert", *files, "--root", one, "--out", two, "--workers", 1)
    assert (code, err.count("\n")) == (0, 1)
    boxes = [
        {frame.split: [(light.class_id, light.box) for light in frame.lights] for frame in read_frames(dataset)}
        for dataset in (one, two)
    ]
    assert boxes[0] == boxes[1]
    assert len(boxes[0]["train"]) == 2


def test_classes_are_equal_by_name_and_ids_are_of_their_file(tmp_path):
    touch(tmp_path, "train/1.jpg", "val/1.jpg", "test/1.jpg")
    crowd = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": n, "id": 7} for n in (0, 1)]
    train = write(tmp_path / "train.json", ["1.jpg"], ("go", "stop"))
    val = write(tmp_path / "val.json", ["1.jpg"], ("bus", "stop"))
    test = write(tmp_path / "test.json", ["1.jpg"], ("ant", "bus"), crowd)
    found = read(tmp_path, train, val, test)
    assert found.classes.class_names == ("go", "stop", "bus", "ant")
    by_path = {frame.image_path: frame for frame in found.frames}
    classes = {path: found.classes.class_of(frame.lights[0]) for path, frame in by_path.items()}
    assert classes == {"train/1.jpg": 1, "val/1.jpg": 1, "test/1.jpg": 2}
    assert [(out.reason, out.class_id) for out in by_path["test/1.jpg"].dropped] == [("crowd", 2)]
    assert found.splits == {"train/1.jpg": ("train",), "val/1.jpg": ("val",), "test/1.jpg": ("test",)}
    assert found.notes == ("4 classes are not in every file, such as go; they are classes of all",)


@pytest.mark.parametrize(
    ("names", "there", "expected"),
    [
        (["1.jpg", "2.jpg"], ["valid/2.jpg"], "valid/2.jpg"),  # the first that is there decides
        (["1.jpg"], ["images/val2017/1.jpg"], "images/val2017/1.jpg"),
        (["val/1.jpg"], ["val/1.jpg"], "val/1.jpg"),
        (["drive/1.jpg"], ["drive/1.jpg", "train/drive/1.jpg"], "drive/1.jpg"),
        (["1.jpg"], ["val/1.png"], "val/1.jpg"),  # found by its other ending, as everywhere
    ],
)
def test_where_the_images_of_a_file_lie(tmp_path, names, there, expected):
    touch(tmp_path, "train/0.jpg", *there)
    found = read(tmp_path, write(tmp_path / "train.json", ["0.jpg"]), write(tmp_path / "val.json", names))
    assert expected in found.splits
    assert sorted(found.splits.values()) == [("train",), *[("val",)] * len(names)]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["train/1.jpg"], "val.json: none of its images is in {root} or {root}/valid, expected them below --root"),
        (["val/1.jpg", "valid/1.jpg"], "val.json: 1.jpg may be {root}/val/1.jpg or {root}/valid/1.jpg, expected one"),
        (["1.jpg", "val/1.jpg"], "val.json: 1.jpg may be {root}/1.jpg or {root}/val/1.jpg, expected one"),
    ],
)
def test_images_in_no_place_or_two_are_refused(tmp_path, there, expected):
    touch(tmp_path, "train/0.jpg", "valid/0.jpg", *there)
    train, val = write(tmp_path / "train.json", ["0.jpg"]), write(tmp_path / "val.json", ["1.jpg"])
    with pytest.raises(DatasetError) as error:
        read(tmp_path, train, val)
    assert str(error.value).startswith(f"{tmp_path}/{expected.format(root=tmp_path)}")


def test_an_image_or_a_sequence_in_two_files_is_a_leak(tmp_path):
    touch(tmp_path, "a_1.jpg", "a_2.jpg", "b_1.jpg")
    train = write(tmp_path / "train.json", ["a_1.jpg", "b_1.jpg"])
    with pytest.raises(DatasetError, match=r"val\.json: 1 of its 2 images are in .*train\.json, too, such as a_1\.jpg"):
        read(tmp_path, train, write(tmp_path / "val.json", ["./a_1.jpg", "a_2.jpg"]))
    (tmp_path / "again.json").symlink_to(train)
    with pytest.raises(UsageError, match=r"train\.json: is given twice, expected a COCO file of its own"):
        read(tmp_path, train, tmp_path / "again.json")
    found = read(tmp_path, train, write(tmp_path / "val.json", ["a_2.jpg"]), pattern="(.*)_")
    with pytest.raises(DatasetError, match=r"set/-/a: has images in two of the source's splits \(1 in train and 1 in"):
        found.split_of_sequences()


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"category_id": 9, "bbox": [1, 2, 3, 4]}, "annotations[0].category_id: got 9, expected one of [1]"),
        ({"category_id": 1, "bbox": [1, 2]}, "annotations[0].bbox: got [1, 2], expected [x, y, w, h]"),
        ({"category_id": 1}, "annotations: got 1 crowds or annotations without a box and no other"),
    ],
)
def test_an_error_names_its_file(tmp_path, annotation, expected):
    touch(tmp_path, "train/1.jpg", "val/1.jpg")
    val = write(tmp_path / "val.json", ["1.jpg"], annotations=[{"image_id": 1, **annotation}])
    with pytest.raises(DatasetError) as error:
        read(tmp_path, write(tmp_path / "train.json", ["1.jpg"]), val)
    assert str(error.value).startswith(f"{val}: {expected}")
    with pytest.raises(DatasetError, match=r"val\.json: images: got none, expected at least one"):
        read(tmp_path, write(tmp_path / "train.json", ["1.jpg"]), write(val, []))


def test_files_that_do_not_go_together(tmp_path, raw, dtld):
    root = tmp_path / "set"
    touch(root, "train/1.jpg", "val/1.jpg")
    train, val = (write(tmp_path / f"{split}.json", ["1.jpg"]) for split in ("train", "val"))
    out = ("--root", root, "--out", tmp_path / "out")
    code, _, err = dtld("convert", train, val, *out)
    assert (code, "COCO files of other splits go with --val-labels and --test-labels" in err) == (2, True)
    for other in (raw / "all.json", tmp_path / "none.json"):
        code, _, err = dtld("convert", train, "--test-labels", other, *out)
        assert (code, err.startswith(f"error: {other}: "), err.count("\n")) == (1, True, 1)
    code, _, err = dtld("convert", train, "--val-labels", val, "--root", root, "--out", val, "--overwrite")
    assert (code, "expected another place to write into" in err) == (1, True)
