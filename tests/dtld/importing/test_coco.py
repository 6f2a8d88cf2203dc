"""A COCO JSON as frames: every annotation a light or dropped with its reason; whichever split a folder is called."""

import json
import re

import pytest

from dtld_tools.errors import DatasetError
from dtld_tools.importing.coco_frames import import_coco
from dtld_tools.importing.imported import Sequences
from dtld_tools.types import Box, Dropped

SQUARE = [[1, 2, 11, 2, 11, 12], [30, 5, 31, 5, 31, 22]]


def import_file(path, crowd="drop"):
    return import_coco([(path, None)], path.parent, Sequences("set"), crowd)


def read(folder, annotations, images=("a.jpg",), categories=((7, "stop"), (3, "go")), crowd="drop", **more):
    """The import of a file of these annotations, whose defaults are image 0 and category 3."""
    document = {
        "images": [{"id": n, "file_name": name, "width": 100, "height": 50} for n, name in enumerate(images)],
        "annotations": [{"image_id": 0, "category_id": 3, **annotation} for annotation in annotations],
        "categories": [{"id": number, "name": name} for number, name in categories],
        **more,
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(document))
    return import_file(path, crowd)


def test_boxes_classes_and_ids(tmp_path):
    found = read(tmp_path, [{"id": 9, "bbox": [1, 2, 3, 4]}, {"id": 5, "bbox": [0.5, 0, 1, 1], "category_id": 7}])
    assert found.classes.class_names == ("go", "stop")  # in the order of the ids
    (frame,) = found.frames
    assert (frame.image_path, frame.size_wh, frame.sequence) == ("a.jpg", (100, 50), ("set", "-", "-"))
    assert [(light.unique_id, light.box, found.classes.class_of(light)) for light in frame.lights] == [
        (9, Box(1, 2, 4, 6), 0),
        (5, Box(0.5, 0, 1.5, 1), 1),
    ]
    assert (found.notes, found.splits) == ((), {})


def test_corners_of_our_own_files_are_taken_to_the_last_bit(tmp_path):
    box = Box(0.06, 0.2, 0.87, 0.3)
    bbox = [box.x1, box.y1, box.width, box.height]
    assert Box.from_xywh(*bbox) != box
    (light,) = read(tmp_path, [{"bbox": bbox, "corners": list(box)}]).frames[0].lights
    assert light.box == box
    (light,) = read(tmp_path, [{"bbox": [1, 1, 1, 1], "corners": list(box)}]).frames[0].lights
    assert light.box == Box(1, 1, 2, 2)  # somebody changed bbox


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}])
def test_polygons_alone_give_the_box_around_them(tmp_path, bbox):
    found = read(tmp_path, [{**bbox, "segmentation": SQUARE}, {"bbox": [1, 2, 3, 4], "segmentation": SQUARE}])
    assert [light.box for light in found.frames[0].lights] == [Box(1, 2, 31, 22), Box(1, 2, 4, 6)]
    assert found.notes == ("1 annotations have no bbox: theirs are the boxes around their polygons",)


@pytest.mark.parametrize(
    "mask", [{"size": [50, 100], "counts": "ab"}, [], [[]], [[1, 2, 3]], [["a", 1]], None, "x", [7]]
)
def test_an_annotation_without_a_box_is_dropped(tmp_path, mask):
    found = read(tmp_path, [{"id": 4, "segmentation": mask}, {"bbox": [1, 2, 3, 4]}])
    assert found.frames[0].dropped == (Dropped(4, "no_box", 0),)
    assert len(found.frames[0].lights) == 1


def test_crowds_are_dropped_or_kept(tmp_path):
    annotations = [{"id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1}, {"id": 2, "bbox": [5, 5, 1, 1], "iscrowd": 0}]
    dropped = read(tmp_path, annotations)
    assert dropped.frames[0].dropped == (Dropped(1, "crowd", 0, Box(1, 2, 4, 6)),)
    kept = read(tmp_path, annotations, crowd="keep")
    assert [light.unique_id for light in kept.frames[0].lights] == [1, 2]
    assert kept.notes == ("1 crowds are taken as objects (--crowd keep)",)
    with pytest.raises(DatasetError, match="got 1 crowds or annotations without a box and no other, expected some"):
        read(tmp_path, annotations[:1])


def test_ids_that_lack_or_repeat_stay_apart(tmp_path):
    found = read(tmp_path, [{"bbox": [n, 2, 3, 4], **more} for n, more in enumerate([{}, {"id": 0}, {"id": 8}])])
    assert [light.unique_id for light in found.frames[0].lights] == [0, "0#2", 8]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train/a.jpg", "valid/images/b.jpg"), {"train/a.jpg": ("train",), "valid/images/b.jpg": ("val",)}),
        (("val2017/a.jpg", "images/test/b.jpg"), {"val2017/a.jpg": ("val",), "images/test/b.jpg": ("test",)}),
        (("a.jpg", "b.jpg"), {}),
    ],
)  # fmt: skip
def test_folders_are_called_as_splits(tmp_path, names, splits):
    found = read(tmp_path, [], names)
    assert (found.splits, found.notes) == (splits, ())


def test_some_images_in_no_split_are_said(tmp_path):
    found = read(tmp_path, [], ("train/a.jpg", "b.jpg"))
    assert found.splits == {}
    assert found.notes == ("1 images lie in no folder called train, val or test: all are split anew",)


def test_a_byte_order_mark_and_other_keys_are_no_matter(tmp_path):
    read(tmp_path, [{"bbox": [1, 2, 3, 4]}], licenses=[{"id": 1, "name": "x"}], info={"id": 3, "bbox": 4})
    path = tmp_path / "coco.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(import_file(path).frames[0].lights) == 1


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"image_id": 8}, r"annotations[0].image_id: got 8, expected the id of an image there (annotation 41)"),
        ({"category_id": 4}, r"annotations[0].category_id: got 4, expected one of [3, 7] (annotation 41)"),
        ({"bbox": [1, 2, 3]}, "annotations[0].bbox: got [1, 2, 3], expected [x, y, w, h], 4 finite numbers of pixels"),
        ({"bbox": [1, 2, 3, "4"]}, "annotations[0].bbox: got [1, 2, 3, '4'], expected [x, y, w, h]"),
        ({"bbox": [1, 2, 3, 1e16]}, "annotations[0].bbox: got [1, 2, 3, 1e+16], expected [x, y, w, h]"),
        ({"iscrowd": 2}, "annotations[0].iscrowd: got 2, expected 0 or 1"),
        ({"id": "x"}, "annotations[0].id: got 'x', expected int | null"),
    ],
)
def test_a_wrong_annotation_is_one_line(tmp_path, annotation, expected):
    with pytest.raises(DatasetError) as error:
        read(tmp_path, [{"id": 41, "bbox": [1, 2, 3, 4], **annotation}])
    assert str(error.value).startswith(f"{tmp_path / 'coco.json'}: {expected}")


@pytest.mark.parametrize("key", ["id", "bbox", "image_id", "file_name", "name", "iscrowd"])
def test_a_key_that_stands_twice_is_refused(tmp_path, key):
    read(tmp_path, [{"id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0}])
    path = tmp_path / "coco.json"
    text = path.read_text()
    member = re.search(rf'"{key}": (\[.*?\]|".*?"|\d+)', text)[0]
    path.write_text(text.replace(member, f"{member}, {member}", 1))
    with pytest.raises(DatasetError, match=f"got the key '{key}' 2 times"):
        import_file(path)


def test_images_that_repeat_and_names_that_are_equal_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"images\[1\]\.file_name: got a\.jpg a second time"):
        read(tmp_path, [], ("a.jpg", "./a.jpg"))
    with pytest.raises(DatasetError, match="categories: got 'go' for the classes 0 and 1"):
        read(tmp_path, [], categories=((1, "go"), (2, "go")))
    with pytest.raises(DatasetError, match="images: got none"):
        read(tmp_path, [], ())
