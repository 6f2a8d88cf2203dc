"""COCO JSON out and back: as pycocotools reads it, unrounded, and to the byte of the dataset's own label files."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import orjson
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dtld_tools.dataset.reading import read_frames, read_images
from dtld_tools.dataset.records import frame_to_json, image_to_json, label_text
from dtld_tools.errors import DatasetError
from dtld_tools.export import export
from dtld_tools.export.export import to_coco, to_yolo
from dtld_tools.files import UNFINISHED
from dtld_tools.planning.tile import targets_in
from dtld_tools.types import Box, FrameRecord, ImageRecord, SequenceId, Target, Window
from tests.dtld_data import tree_bytes


@pytest.fixture(scope="module")
def exported(tiles, tmp_path_factory):
    """The dataset's COCO file."""
    path = tmp_path_factory.mktemp("coco") / "tiles.json"
    to_coco(tiles, path)
    return path


def load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def targets_of(root):
    """{file name: targets}, derived here from frames.jsonl and the windows."""
    frames = {frame.frame: frame for frame in read_frames(root)}
    return {
        f"images/{image.split}/{image.name}": [
            target
            for target in targets_in(image.window, image.scale, frames[image.frame].lights)
            if target.light_id in image.targets
        ]
        for image in read_images(root)
    }


# --- out -------------------------------------------------------------------------------------------------


def test_pycocotools_finds_every_image_and_every_target(tiles, exported):
    coco, expected = load(exported), targets_of(tiles)
    assert {image["file_name"] for image in coco.imgs.values()} == set(expected)
    assert len(coco.anns) == sum(map(len, expected.values())) > 0
    assert any("_a1." in name and targets for name, targets in expected.items())  # copies are there
    for image in coco.imgs.values():
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [(a["light"], a["category_id"] - 1) for a in found] == [
            (target.light_id, target.class_id) for target in expected[image["file_name"]]
        ]
        for annotation, target in zip(found, expected[image["file_name"]], strict=True):
            box = target.box
            assert annotation["bbox"] == [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]  # to the last bit
            assert annotation["area"] == box.area == annotation["bbox"][2] * annotation["bbox"][3]
            assert (annotation["iscrowd"], annotation["segmentation"]) == (0, [])


def test_images_are_where_the_file_names_say_and_tell_their_origin(tiles, exported):
    manifest = {f"images/{image.split}/{image.name}": image for image in read_images(tiles)}
    for image in load(exported).imgs.values():
        assert (tiles / image["file_name"]).is_file()
        record = manifest[image["file_name"]]
        assert (image["width"], image["height"]) == (96, 96)
        assert SequenceId(image["city"], image["route"], image["sequence"]) == record.sequence
        assert image["frame"] == record.frame


def test_boxes_are_not_rounded(exported):
    values = [value for annotation in load(exported).anns.values() for value in annotation["bbox"]]
    assert any(value != round(value, 6) for value in values)


def test_ids_count_from_1_and_categories_are_the_classes(exported):
    coco = load(exported)
    assert sorted(coco.imgs) == list(range(1, len(coco.imgs) + 1))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert coco.dataset["categories"] == [{"id": 1, "name": "relevant"}, {"id": 2, "name": "not_relevant"}]


def test_perfect_detections_score_1(exported):
    coco = load(exported)
    detections = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
        for a in coco.anns.values()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        scores = COCOeval(coco, coco.loadRes(detections), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    assert scores.stats[0] == pytest.approx(1)


def test_some_splits_only(tiles, tmp_path):
    made = to_coco(tiles, tmp_path / "a.json", ("val",))
    names = [image["file_name"] for image in load(tmp_path / "a.json").imgs.values()]
    assert names
    assert all(name.startswith("images/val/") for name in names)
    assert made["images"] == len(names)


def test_the_same_dataset_gives_the_same_bytes_and_an_existing_file_is_replaced(tiles, exported, tmp_path):
    (tmp_path / "a.json").write_text("old")
    to_coco(tiles, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == exported.read_bytes()
    assert os.listdir(tmp_path) == ["a.json"]


def test_without_images_the_file_is_still_one(tiles, tmp_path):
    root = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    for name in ("frames.jsonl", "manifest.jsonl"):
        (root / name).write_text("")
    assert to_coco(root, tmp_path / "a.json")["images"] == 0
    assert load(tmp_path / "a.json").dataset["annotations"] == []
    assert to_yolo(tmp_path / "a.json", tmp_path / "out")["images"] == 0


# --- out: what is wrong ----------------------------------------------------------------------------------


def test_an_unfinished_dataset_is_refused(tiles, tmp_path):
    root = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    (root / UNFINISHED).mkdir()
    with pytest.raises(DatasetError, match="is unfinished; run the command that was making it again"):
        to_coco(root, tmp_path / "a.json")


def test_no_folder_to_write_into(tiles, tmp_path):
    with pytest.raises(DatasetError, match=r"no: no such folder, expected one to write a\.json into"):
        to_coco(tiles, tmp_path / "no" / "a.json")
    with pytest.raises(DatasetError, match="is a folder, expected the name of a file"):
        to_coco(tiles, tmp_path)


def rewrite(root, name, change):
    lines = (root / name).read_text().splitlines()
    (root / name).write_text("".join(line + "\n" for line in change(lines)))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("frames.jsonl", lambda lines: lines[1:], "its frame is not in frames.jsonl or not in its order"),
        ("frames.jsonl", lambda lines: lines[::-1], "its frame is not in frames.jsonl or not in its order"),
        ("frames.jsonl", lambda lines: [line.replace('"class":1', '"class":7') for line in lines], "got class 7"),
        ("manifest.jsonl", lambda lines: [*lines[:-1], "{"], "manifest.jsonl: line"),
        (
            "manifest.jsonl",
            lambda lines: [
                line.replace('"targets":[', '"targets":[424242,') for line in lines if '"targets":[]' not in line
            ],
            "light 424242 is listed, but its window does not show it; see dtld validate",
        ),
    ],
)  # fmt: skip
def test_a_dataset_that_contradicts_itself_leaves_nothing(tiles, tmp_path, name, change, expected):
    root = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    rewrite(root, name, change)
    with pytest.raises(DatasetError, match=expected):
        to_coco(root, tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["tiles"]


# --- there and back --------------------------------------------------------------------------------------


def test_back_to_the_datasets_own_label_files(tiles, exported, tmp_path):
    made = to_yolo(exported, tmp_path / "back")
    assert tree_bytes(tmp_path / "back" / "labels") == tree_bytes(tiles / "labels")
    assert (tmp_path / "back" / "data.yaml").read_bytes() == (tiles / "data.yaml").read_bytes()
    assert sorted(os.listdir(tmp_path / "back")) == ["data.yaml", "labels"]
    assert (made["images"], made["left_out"]) == (len(load(exported).imgs), {})


@st.composite
def scenes(draw):
    """A frame with lights at any places, and an image of any window, inside it or padded, and of any scale."""
    width, height, side = draw(st.integers(64, 2048)), draw(st.integers(64, 1920)), draw(st.integers(32, 2048))
    x, y = (draw(st.integers(0, max(0, length - side))) for length in (width, height))
    window = Window(x, y, side, side)
    lights = []
    for number in range(draw(st.integers(1, 5))):
        x1, y1 = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
        x2, y2 = draw(st.floats(x1 + 0.01, width)), draw(st.floats(y1 + 0.01, height))
        lights.append(Target(draw(st.integers(0, 1)), Box(x1, y1, x2, y2), number))
    return (width, height), window, draw(st.integers(32, 640)) / side, lights


# A third of 7..47: x + (x2 - x) is not x2, and the centre lies between two numbers of 6 decimals.
TIE = ((1920, 1920), Window(0, 0, 1920, 1920), 640 / 1920, [Target(0, Box(7, 0, 47, 9), 1)])


@settings(max_examples=80, deadline=None)
@example(TIE)
@given(scenes())
def test_there_and_back_whatever_the_window(tiles, tmp_path_factory, scene):
    (width, height), window, scale, lights = scene
    root = tmp_path_factory.mktemp("d")
    targets = [
        target for target in targets_in(window, scale, lights) if min(target.box.width, target.box.height) > 1e-5
    ]
    sequence = SequenceId("A", "1", "s")
    shown = tuple(target.light_id for target in targets)
    kept = tuple(light for light in lights if light.light_id in shown)
    frame = FrameRecord("A/1/s/a.b.tiff", sequence, "train", width, height, kept, ())
    name = f"A_1_s_a.b_x{window.x}_y{window.y}"
    image = ImageRecord(f"{name}.jpg", "train", frame.frame, sequence, window, scale, None, shown, ())
    (root / "frames.jsonl").write_bytes(orjson.dumps(frame_to_json(frame)))
    (root / "manifest.jsonl").write_bytes(orjson.dumps(image_to_json(image)))
    for file in ("data.yaml", "report.json"):
        shutil.copy(tiles / file, root)
    to_coco(root, root / "a.json")
    to_yolo(root / "a.json", root / "back")
    size_wh = (round(window.w * scale), round(window.h * scale))
    assert (root / f"back/labels/train/{name}.txt").read_text() == label_text(targets, size_wh)


def test_the_tie_is_one():
    """Else the example above would prove nothing."""
    (target,) = targets_in(*TIE[1:])
    rebuilt = Box.from_xywh(target.box.x1, target.box.y1, target.box.width, target.box.height)
    other = Target(0, rebuilt, 1)
    assert label_text([target], (640, 640)) != label_text([other], (640, 640))


# --- back: files of others -------------------------------------------------------------------------------

FOREIGN = {
    "images": [
        {"id": "x", "file_name": "val2017/000001.jpg", "width": 200, "height": 100},
        {"id": 7, "file_name": "b.png", "width": 100, "height": 100},
    ],
    "annotations": [
        {"image_id": "x", "category_id": 90, "bbox": [20, 10, 40, 20]},
        {"image_id": "x", "category_id": 3, "bbox": [190, 90, 40, 20.0]},
        {"image_id": "x", "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": "x", "category_id": 3, "bbox": [5, 5, 0, 9]},
        {"image_id": "x", "category_id": 3, "bbox": [300, 5, 9, 9]},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
}


def write(folder, document):
    (folder / "coco.json").write_bytes(orjson.dumps(document) if not isinstance(document, bytes) else document)
    return folder / "coco.json"


def test_a_foreign_file_by_hand(tmp_path):
    made = to_yolo(write(tmp_path, FOREIGN), tmp_path / "out")
    # 20..60 of 200 and 10..30 of 100; then 190..230 and 90..110, clipped to 190..200 and 90..100
    assert (tmp_path / "out/labels/val2017/000001.txt").read_text() == (
        "1 0.200000 0.200000 0.200000 0.200000\n0 0.975000 0.950000 0.050000 0.100000\n"
    )
    assert (tmp_path / "out/labels/b.txt").read_text() == ""
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text()) == {
        "val": "images/val2017",
        "names": {0: "car", 1: "toothbrush"},
    }
    assert made["left_out"] == {"crowd": 1, "without_area": 2}
    assert (made["images"], made["annotations"]) == (2, 2)
    assert (made["splits"], made["in_no_split"]) == ({"val": 1}, 1)


def test_a_box_that_somebody_changed_is_taken_as_it_stands(tmp_path):
    entry = FOREIGN["annotations"][0]
    for corners, expected in (([20, 10, 60, 30], "0.2"), ([0, 0, 60, 30], "0.2"), ("odd", "0.2")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        to_yolo(write(tmp_path, FOREIGN | {"annotations": [entry | {"corners": corners}]}), tmp_path / "out")
        assert (tmp_path / "out/labels/val2017/000001.txt").read_text().split()[1].startswith(expected)


def test_images_may_lie_in_the_folder_but_no_labels(tmp_path):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    to_yolo(write(tmp_path, FOREIGN), out)
    before = tree_bytes(out)
    with pytest.raises(DatasetError, match="labels: is there already"):
        to_yolo(tmp_path / "coco.json", out)
    assert tree_bytes(out) == before


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "label_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        to_yolo(write(tmp_path, FOREIGN), tmp_path / "out")
    assert os.listdir(tmp_path) == ["coco.json"]


def test_what_a_killed_run_left_gives_way_and_what_is_not_its_own_stays(tmp_path):
    path, out = write(tmp_path, FOREIGN), tmp_path / "out"
    to_yolo(path, tmp_path / "once")
    for moved in ("", "labels\ndata.yaml"):
        for left in ("images", "labels/val2017", ".unfinished/whole/labels"):
            (out / left).mkdir(parents=True, exist_ok=True)
        (out / "labels/val2017/half.txt").write_text("0 0.5")
        (out / ".unfinished/moving").write_text(moved)
        if moved:
            to_yolo(path, out)
            assert tree_bytes(out) == tree_bytes(tmp_path / "once")
        else:
            with pytest.raises(DatasetError, match="labels: is there already"):
                to_yolo(path, out)
            assert sorted(tree_bytes(out)) == ["labels/val2017/half.txt"]
    assert sorted(os.listdir(out)) == ["data.yaml", "images", "labels"]


def planted(part, index, **changes):
    document = json.loads(json.dumps(FOREIGN))
    for key, value in changes.items():
        if value is None:
            del document[part][index][key]
        else:
            document[part][index][key] = value
    return document


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b"", r"coco\.json: .*; expected a whole COCO JSON file"),
        (b'{"images": [', "expected a whole COCO JSON file"),
        (b'{"a": NaN}', "expected a whole COCO JSON file"),
        ([], r"coco\.json: got \[\], expected object"),
        ({"categories": [], "images": []}, r"coco\.json: annotations: is missing"),
        (FOREIGN | {"images": {}}, r"coco\.json: images: got \{\}, expected list"),
        (FOREIGN | {"images": [3]}, r"images\[0\]: got 3, expected object"),
        (planted("images", 1, id=None), r"images\[1\]\.id: is missing"),
        (planted("images", 1, id=True), r"images\[1\]\.id: got True, expected int \| str"),
        (planted("images", 1, id="x"), r"images\[1\]\.id: got 'x' a second time"),
        (planted("images", 0, width=0), r"images\[0\]\.width: got 0, expected int >= 1"),
        (planted("images", 0, height="9"), r"images\[0\]\.height: got '9', expected int"),
        (planted("images", 0, file_name="../../etc/a.jpg"), r"images\[0\]\.file_name: got '\.\./\.\./etc/a\.jpg'"),
        (planted("images", 0, file_name="/etc/a.jpg"), r"expected a relative path without '\.\.'"),
        (planted("images", 0, file_name="..\\a.jpg"), r"expected a relative path without '\.\.'"),
        (planted("images", 0, file_name="a\0.jpg"), r"expected a relative path without '\.\.'"),
        (planted("images", 0, file_name=""), r"expected a relative path without '\.\.'"),
        (planted("images", 0, file_name="./b.jpg"), r"images\[1\]\.file_name: its labels would be labels/b\.txt"),
        (planted("annotations", 0, image_id=8), r"annotations\[0\]\.image_id: got 8, expected the id of an image"),
        (planted("annotations", 0, category_id=4), r"annotations\[0\]\.category_id: got 4, expected one of \[3, 90\]"),
        (planted("annotations", 1, category_id=None), r"annotations\[1\]\.category_id: is missing"),
        (
            planted("annotations", 1, bbox=[1, 2, 3]),
            r"annotations\[1\]\.bbox: got \[1, 2, 3\], expected \[x, y, w, h\]",
        ),
        (planted("annotations", 1, bbox=[1, 2, 3, "4"]), r"annotations\[1\]\.bbox: got .* 4 finite numbers"),
        (planted("annotations", 1, bbox=[1, 2, 3, True]), r"annotations\[1\]\.bbox: got .* 4 finite numbers"),
        (planted("categories", 1, id=90), r"categories\[1\]\.id: got 90 a second time"),
        (planted("categories", 1, name=4), r"categories\[1\]\.name: got 4, expected str"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(tmp_path, document, expected):
    with pytest.raises(DatasetError, match=expected) as caught:
        to_yolo(write(tmp_path, document), tmp_path / "out")
    assert str(caught.value).startswith(str(tmp_path / "coco.json"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["coco.json"]


def test_infinity_is_no_coordinate(tmp_path):
    text = orjson.dumps(FOREIGN).replace(b"[20,10,40,20]", b"[20,10,40,1e999]")
    with pytest.raises(DatasetError, match="expected"):
        to_yolo(write(tmp_path, text), tmp_path / "out")


def test_no_file(tmp_path):
    with pytest.raises(DatasetError, match=r"no\.json: No such file.*expected a COCO JSON file"):
        to_yolo(tmp_path / "no.json", tmp_path / "out")


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_both_ways(dtld, tiles, exported, tmp_path):
    out = tmp_path / "a.json"
    counted = load(exported)
    code, printed, err = dtld("export", tiles, "--format", "coco", "--out", out)
    assert (code, err) == (0, "")
    assert printed == f"{out}: {len(counted.imgs)} images, {len(counted.anns)} boxes, 2 classes\n"
    assert out.read_bytes() == exported.read_bytes()
    code, printed, _ = dtld("export", out, "--format", "yolo", "--out", tmp_path / "back", "--json")
    assert json.loads(printed)["annotations"] == len(counted.anns)
    assert tree_bytes(tmp_path / "back" / "labels") == tree_bytes(tiles / "labels")
    code, printed, _ = dtld("export", write(tmp_path, FOREIGN), "--format", "yolo", "--out", tmp_path / "foreign")
    assert printed.endswith("2 images, 2 boxes, 2 classes; left out: 1 crowd, 2 without area\n")


def test_splits_may_be_given_in_one_word_or_in_several(dtld, tiles, tmp_path):
    once, twice = tmp_path / "a.json", tmp_path / "b.json"
    assert dtld("export", tiles, "--out", once, "--split", "test,val")[0] == 0
    assert dtld("export", tiles, "--out", twice, "--split", "val", "--split", "test")[0] == 0
    assert once.read_bytes() == twice.read_bytes()
    assert {image["file_name"].split("/")[1] for image in load(once).imgs.values()} == {"val", "test"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--split", "dev"], "--split: got dev, expected some of train, val, test"),
        (["--split", ","], "--split: got nothing"),
        (["--split", "val", "--format", "yolo"], "--split: got it without another --format than yolo"),
    ],
)
def test_wrong_usage(dtld, tiles, tmp_path, more, expected):
    code, _, err = dtld("export", tiles, "--out", tmp_path / "a.json", *more)
    assert code == 2
    assert expected in err


def test_a_folder_is_no_coco_file_and_a_file_no_dataset(dtld, tiles, exported, tmp_path):
    assert dtld("export", tiles, "--format", "yolo", "--out", tmp_path / "o")[0] == 1
    code, _, err = dtld("export", exported, "--out", tmp_path / "o")
    assert (code, "expected a dataset" in err) == (1, True)
    assert os.listdir(tmp_path) == []
