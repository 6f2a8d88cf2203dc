"""COCO JSON of others: where labels go, which split a folder is, crowds; and what Ultralytics finds of it."""

import importlib
import json

import cv2
import numpy as np
import pytest
import yaml

from dtld_tools.errors import DatasetError
from dtld_tools.export.coco import read_coco
from dtld_tools.export.export import to_yolo
from dtld_tools.importing.yolo import label_of
from tests.dtld_data import tree_bytes


def write(folder, *file_names, boxes=1, **more):
    """A COCO file of these images of 100 x 50, each with some boxes, no two alike."""
    images = [{"id": n, "file_name": name, "width": 100, "height": 50} for n, name in enumerate(file_names)]
    annotations = [
        {"image_id": n, "category_id": 1, "bbox": [10 + k, 10, 20, 20], **more}
        for n in range(len(images))
        for k in range(boxes)
    ]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    path = folder / "coco.json"
    path.write_text(json.dumps(document))
    return path


def draw(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(len(name)).integers(0, 255, (50, 100, 3), np.uint8))


def data_yaml(out):
    return yaml.safe_load((out / "data.yaml").read_text())


@pytest.mark.parametrize(
    ("file_name", "label", "split", "entry"),
    [
        ("images/train/drive_a/000001.jpg", "labels/train/drive_a/000001.txt", "train", "images/train"),
        ("images/val/a.b.jpg", "labels/val/a.b.txt", "val", "images/val"),
        ("./images/test/a.png", "labels/test/a.txt", "test", "images/test"),
        ("train2017/a.jpg", "labels/train2017/a.txt", "train", "images/train2017"),
        ("val2017/a.jpg", "labels/val2017/a.txt", "val", "images/val2017"),
        ("valid/images/a.jpg", "valid/labels/a.txt", "val", "valid/images"),
        ("data/Validation/images/x/a.jpg", "data/Validation/labels/x/a.txt", "val", "data/Validation/images"),
        ("images/2020/train/a.jpg", "labels/2020/train/a.txt", "train", "images/2020/train"),
        ("train\\\\a.jpg", "labels/train/a.txt", "train", "images/train"),
        ("images/old/images/testing/a.jpg", "images/old/labels/testing/a.txt", "test", "images/old/images/testing"),
        ("a.jpg", "labels/a.txt", None, None),
        ("trains/a.jpg", "labels/trains/a.txt", None, None),
    ],
)
def test_labels_go_where_a_trainer_looks(tmp_path, file_name, label, split, entry):
    out = tmp_path / "out"
    made = to_yolo(write(tmp_path, file_name.replace("\\\\\\\\", "\\\\")), out)
    assert (out / label).read_text() == "0 0.200000 0.400000 0.200000 0.400000\n"
    assert data_yaml(out) == ({split: entry} if split else {}) | {"names": {0: "car"}}
    assert made["splits"] == ({split: 1} if split else {})
    assert made["in_no_split"] == (split is None)


def test_equal_names_in_two_folders_are_two_images(tmp_path):
    names = ("images/train/a/1.jpg", "images/train/b/1.jpg", "images/val/a/1.jpg")
    to_yolo(write(tmp_path, *names), tmp_path / "out")
    assert set(tree_bytes(tmp_path / "out")) == {"data.yaml", *(label_of(f"/{name}")[1:] for name in names)}


def test_a_split_of_two_folders(tmp_path):
    to_yolo(write(tmp_path, "images/a/train/1.jpg", "images/b/train/1.jpg"), tmp_path / "out")
    assert data_yaml(tmp_path / "out")["train"] == ["images/a/train", "images/b/train"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("images/a.jpg", "images/a.png"), "its labels would be labels/a.txt, as those of images/a.jpg"),
        (("a.jpg", "images/a.jpg"), "its labels would be labels/a.txt, as those of a.jpg"),
        (("train/images/a.jpg", "train/images/val/b.jpg"), "which lies in train/images of train, expected"),
        (("../a.jpg",), "expected a relative path without"),
        (("/a.jpg",), "expected a relative path without"),
        (("C:\\\\a.jpg",), "expected a relative path without"),
        (("images/train/a",), "with the image's ending"),
        (("a\0.jpg",), "expected a relative path without"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused(tmp_path, names, expected):
    with pytest.raises(DatasetError, match="file_name: ") as error:
        to_yolo(write(tmp_path, *names), tmp_path / "out")
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


# --- images that are there -------------------------------------------------------------------------------


def test_images_elsewhere_than_data_yaml_says_are_refused(tmp_path):
    out = tmp_path / "out"
    draw(out, "val2017/1.jpg")
    path = write(tmp_path, "val2017/1.jpg")
    before = tree_bytes(tmp_path)
    with pytest.raises(DatasetError, match=r"val2017/1\.jpg: expected this image in .*out/images/val2017/1\.jpg"):
        to_yolo(path, out)
    draw(out, "images/1.jpg")
    (out / "val2017" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"images/val2017: no such folder, expected the images that .* holds"):
        to_yolo(path, out)
    assert set(tree_bytes(tmp_path)) == set(before) - {"out/val2017/1.jpg"} | {"out/images/1.jpg"}


def test_missing_and_unlisted_images_are_counted(tmp_path, dtld):
    out = tmp_path / "out"
    draw(out, "images/train/1.jpg", "images/train/more/3.jpg", "images/train/.hidden.jpg")
    path = write(tmp_path, "images/train/1.jpg", "images/train/2.jpg", "elsewhere/4.jpg")
    code, printed, err = dtld("export", path, "--format", "yolo", "--out", out)
    assert (code, err) == (0, "")
    assert "data.yaml: train 2 images\n" in printed
    assert "1 images are in no split: no folder of theirs is called train, val or test\n" in printed
    assert "1 images of these are missing in their folders\n" in printed
    assert "1 images are there that the COCO file lacks: they train as images without objects\n" in printed


@pytest.mark.parametrize(
    "names",
    [
        ("images/train/drive_a/1.jpg", "images/train/drive_b/1.jpg", "images/val/drive_a/1.jpg"),
        ("train2017/1.jpg", "val2017/1.jpg"),
        ("train/images/1.jpg", "valid/images/1.jpg", "test/images/1.jpg"),
    ],
)
def test_ultralytics_finds_every_box(tmp_path, names):
    pytest.importorskip("torch", reason="needs the extra kd")
    importlib.import_module("kd.ultra.models")  # its settings, before Ultralytics is imported
    dataset, utils = (importlib.import_module(f"ultralytics.data.{name}") for name in ("dataset", "utils"))

    out = tmp_path / "out"
    path = write(tmp_path, *names, boxes=2)
    images = [image.path for image in read_coco(path).images]
    draw(out, *images)
    made = to_yolo(path, out)
    data = utils.check_det_dataset(str(out / "data.yaml"), autodownload=False)
    found = {}
    for split in made["splits"]:
        labels = dataset.YOLODataset(img_path=data[split], data=data, imgsz=64, augment=False, cache=False).labels
        found[split] = len(labels)
        assert [len(label["cls"]) for label in labels] == [2] * len(labels)
    assert found == made["splits"]
    assert sum(found.values()) == len(names)


# --- crowds ----------------------------------------------------------------------------------------------


def test_crowds_alone_are_no_dataset_unless_kept(tmp_path, dtld):
    path = write(tmp_path, "images/train/1.jpg", boxes=3, iscrowd=1)
    code, out, err = dtld("export", path, "--format", "yolo", "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "got 3 crowds and no other box in an image, expected some; pass --crowd keep" in err
    assert not (tmp_path / "out").exists()
    command = ("export", path, "--format", "yolo", "--out", tmp_path / "out", "--crowd", "keep")
    assert dtld(*command)[0] == 0
    assert (tmp_path / "out/labels/train/1.txt").read_text().count("\n") == 3


def test_crowd_is_for_yolo(tmp_path, dtld):
    code, _, err = dtld("export", tmp_path, "--out", tmp_path / "a.json", "--crowd", "keep")
    assert (code, "--crowd: got it without --format yolo" in err) == (2, True)


@pytest.mark.parametrize("value", ["0", "no", 2, 0.5, [], {}])
def test_iscrowd_that_says_nothing_is_refused(tmp_path, value):
    with pytest.raises(DatasetError, match=r"annotations\[0\]\.iscrowd: got .*, expected 0 or 1"):
        read_coco(write(tmp_path, "a.jpg", iscrowd=value))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = write(tmp_path, "a.jpg")
    path.write_text(path.read_text().replace('"width"', '"width": 3, "width"'))
    with pytest.raises(DatasetError, match="got the key 'width' 2 times in one object"):
        read_coco(path)
