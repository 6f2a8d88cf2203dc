"""A YOLO data.yaml of any form: which images it names, which boxes their label files hold, what is refused."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import DatasetError
from dtld_tools.importing.imported import Classes, Sequences
from dtld_tools.importing.yolo import LabelFiles, import_yolo, label_of
from dtld_tools.types import Box


def lay_out(root, images):
    """Empty image files, and label files beside them unless the text is None."""
    for name, text in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if text is not None:
            label = root / label_of(f"/{name}")[1:]
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)


def read(root, **document):
    """The import of a data.yaml of these keys, which lies elsewhere."""
    path = root.parent / "data.yaml"
    path.write_text(yaml.safe_dump({"names": ["go", "stop"], **document}))
    return import_yolo(path, root, Sequences("set"))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    lay_out(
        root,
        {
            "images/train/a.jpg": "0 0.5 0.5 0.2 0.4\n",
            "images/train/deep/b.PNG": "",
            "images/train/.hidden.jpg": None,
            "images/val/c.jpg": "1 0.1 0.1 0.1 0.1\n\n0 0.5 0.5 0.5 0.5",
            "images/more/d.jpg": None,
        },
    )
    return root


SPLITS = {"images/train/a.jpg": ["train"], "images/train/deep/b.PNG": ["train"], "images/val/c.jpg": ["val"]}


def test_a_label_lies_where_ultralytics_looks():
    assert label_of("/a/images/b/c.d.jpg") == "/a/labels/b/c.d.txt"
    assert label_of("/a/b/c.jpg") == "/a/b/c.txt"


@pytest.mark.parametrize(
    "document",
    [
        {"train": "images/train", "val": "images/val"},
        {"path": "", "train": "images/train/", "valid": "./images/val"},
        {"path": "images", "train": "train", "validation": "val"},
        {"path": "/content/elsewhere", "train": "images/train", "val": ["images/val"]},
        {"train": "../images/train", "val": "../images/val"},  # Roboflow's way
        {"train": ["images/train/deep", "images/train"], "val": "images/val"},
    ],
)
def test_folders_are_found_however_they_are_named(root, document):
    found = read(root, **document)
    assert found.splits == SPLITS
    assert [frame.image_path for frame in found.frames] == list(SPLITS)
    assert [[light.attributes["class"] for light in frame.lights] for frame in found.frames] == [
        ["go"], [], ["stop", "go"],
    ]  # fmt: skip
    assert [light.unique_id for light in found.frames[2].lights] == [1, 3]  # the number of its line
    assert found.notes == ()


def test_a_list_names_images_also_those_that_are_gone(root):
    (root / "train.txt").write_text(f"./images/train/a.jpg\n\n{root}/images/more/d.jpg\nimages/train/gone.jpg\n")
    found = read(root, train="train.txt", val="images/val")
    assert list(found.splits) == [
        "images/train/a.jpg", "images/more/d.jpg", "images/train/gone.jpg", "images/val/c.jpg",
    ]  # fmt: skip
    assert found.notes == ("2 images have no label file: they are frames without objects",)


def test_one_split_alone_is_no_division(root):
    assert read(root, train="images").splits == {}


def test_an_image_in_two_splits_is_remembered_as_such(root):
    assert read(root, train=["images/train", "images/val"], val="images/val").splits["images/val/c.jpg"] == [
        "train", "val",
    ]  # fmt: skip


def test_labels_where_a_trainer_does_not_look_are_refused(root):
    for name in ("images/train/images/x.jpg", "labels/train/images/x.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("0 0.5 0.5 0.1 0.1\n")
    expected = r"labels/train/images/x\.txt: its image .*x\.jpg has its labels in .*images/train/labels/x\.txt"
    with pytest.raises(DatasetError, match=expected):
        read(root, train="images/train", val="images/val")


def test_a_root_with_dots_has_the_same_labels_and_leaks(root):
    document = {"train": ["images/train", "images/val"], "val": "images/val"}
    plain, dotted = (read(place, **document) for place in (root, root / "labels" / ".."))
    assert dotted == plain
    assert dotted.splits["images/val/c.jpg"] == ["train", "val"]


def test_label_files_without_an_image_are_frames_that_are_missing(root):
    (root / "labels/train/lost.txt").write_text("0 0.5 0.5 0.1 0.1\n0 0.2 0.2 0.1 0.1\n")
    (root / "labels/train/classes.txt").write_text("go\nstop\n")
    found = read(root, train=["images/train", "images"], val="images/val")
    (lost,) = (frame for frame in found.frames if frame.image_path == "images/train/lost.jpg")
    assert len(lost.lights) == 2
    assert found.notes[-1].startswith("1 texts among the label files are neither an image's nor labels, such as ")


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 0.5 0.25", Box(0.25, 0.375, 0.75, 0.625)),
        ("0.0 .5 5e-1 0.5 0.25", Box(0.25, 0.375, 0.75, 0.625)),
        ("0 0.25 0.5 0.75 0.5 0.5 1.0", Box(0.25, 0.5, 0.75, 1.0)),  # a polygon
        ("0 0 0 0.5 0 0.5 0.25 0 0.25", Box(0, 0, 0.5, 0.25)),  # an oriented box
        ("0 0.5 0.5 0 0", Box(0.5, 0.5, 0.5, 0.5)),
        ("0 -0.25 0.5 0.5 0.5", Box(-0.5, 0.25, 0, 0.75)),
    ],
)
def test_a_line_is_a_box_or_the_box_around_its_polygon(root, line, box):
    (root / "labels/train/a.txt").write_text(line)
    (light,) = read(root, train="images/train", val="images/val").frames[0].lights
    assert light.box == box


def test_keypoints_follow_the_box(root):
    (root / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.25 0.1 0.1 2 0.2 0.2 2")
    (light,) = read(root, train="images/train/", kpt_shape=[2, 3]).frames[0].lights
    assert light.box == Box(0.25, 0.375, 0.75, 0.625)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2 0.5 0.5 0.1 0.1", "got class 2, expected 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "got class -1, expected"),
        ("0.5 0.5 0.5 0.1 0.1", "got class 0.5, expected"),
        ("nan 0.5 0.5 0.1 0.1", "got class nan, expected"),
        ("0 320 240 50 60", "got 320, expected shares"),
        ("0 0.5 nan 0.1 0.1", "got nan, expected shares"),
        ("0 0.5 0.5 0.1", "got 4 columns, expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 6 columns, expected 5"),
        ("go 0.5 0.5 0.1 0.1", "got 'go 0.5 0.5 0.1 0.1', expected numbers"),
    ],
)
def test_a_wrong_line_is_named(root, line, expected):
    path = root / "labels/train/a.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DatasetError) as error:
        read(root, train="images/train")
    assert str(error.value).startswith(f"{path}: line 2: {expected}")


NUMBER = st.one_of(
    st.integers(-2, 3).map(str), st.floats(width=16).map(str), st.sampled_from(["", "x", "1e999", "0x1"])
)


@given(st.lists(st.lists(NUMBER, max_size=9).map(" ".join), max_size=4))
def test_every_line_of_any_text_is_a_light_or_an_error(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text("\n".join(lines))
    try:
        lights = LabelFiles(Classes(("go", "stop")), 0).read(path)
    except DatasetError as error:
        message = str(error)
    else:
        message = f"{path}: line "
        assert [light.unique_id for light in lights] == [n for n, line in enumerate(lines, 1) if line.strip()]
        assert all(abs(corner) <= 3 for light in lights for corner in light.box)
    assert message.startswith(f"{path}: line ")


def test_a_label_file_that_is_no_text_is_named(root):
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(DatasetError, match=r"labels/train/a\.txt: is no text, expected lines"):
        read(root, train="images/train")


@pytest.mark.parametrize("names", [["go", "stop"], {0: "go", 1: "stop"}, {1: "stop", 0: "go"}])
def test_names_are_a_list_or_a_mapping(root, names):
    assert read(root, train="images/train", names=names, nc=2).classes.class_names == ("go", "stop")


def test_names_may_be_numbers_or_their_count_alone(root):
    assert read(root, train="images/train", names=[0, 1]).classes.class_names == ("0", "1")
    assert read(root, train="images/train", names=None, nc=2).classes.class_names == ("class_0", "class_1")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"names": {1: "go", 2: "stop"}}, r"names: got the numbers \[1, 2\], expected 0, 1"),
        ({"names": "go"}, "names: got 'go', expected texts"),
        ({"names": [["go"]]}, "names: got .*, expected texts"),
        ({"names": ["go", "go"]}, "names: got 'go' for the classes 0 and 1"),
        ({"names": ["go"], "nc": 3}, "nc: got 3 with 1 names"),
        ({"train": "images/none"}, "train: got images/none, which is not below"),
        ({"train": "labels", "val": "images/val"}, "train: got no images below"),
        ({"train": 7}, "train: got 7, expected"),
        ({"train": [["a"]]}, r"train: got \['a'\], expected"),
        ({"path": 3}, "path: got 3, expected a folder"),
        ({"train": None}, "train, val, test: got no images"),
        ({"train": "/"}, "expected images below --root"),
        ({"kpt_shape": [2]}, r"kpt_shape: got \[2\]"),
    ],
)
def test_a_wrong_data_yaml_is_one_line(tmp_path, root, document, expected):
    (tmp_path / "other" / "images").mkdir(parents=True)
    (tmp_path / "other" / "images" / "x.jpg").touch()
    document = {"train": "images/train", **document}
    if document["train"] == "/":
        document["train"] = str(tmp_path / "other")
    with pytest.raises(DatasetError, match=expected) as error:
        read(root, **document)
    assert str(error.value).startswith(str(tmp_path / "data.yaml"))
    assert "\n" not in str(error.value)
