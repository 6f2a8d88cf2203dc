"""Imports from end to end: convert, and what every later command makes of the result."""

import json

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dtld_tools.dataset.reading import read_frames, read_images
from dtld_tools.export.export import to_coco
from dtld_tools.importing.reading import form_of
from dtld_tools.importing.yolo import label_of
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.types import TileSpec
from dtld_tools.validation.validate import validate
from tests.dtld_data import tree_bytes

NAMES = ["car", "off", "1e3"]


def draw(path, size_wh=(64, 48), orientation=None):
    """A picture of noise; returns its pixels as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size_wh
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (height, width, 3), np.uint8)
    pixels = cv2.resize(pixels[::8, ::8], size_wh, interpolation=cv2.INTER_LINEAR)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels[..., ::-1]).save(path, exif=exif)
    return pixels


def write_yolo(root, images, **document):
    """A YOLO dataset: {name: text of its labels}; returns its data.yaml."""
    for name, text in images.items():
        draw(root / name)
        label = root / label_of(f"/{name}")[1:]
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    path = root / "data.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"names": NAMES, **document}))  # which is YAML, too
    return path


@pytest.fixture
def yolo(tmp_path):
    """Two splits; boxes inside, over the edge, outside and without area."""
    labels = "0 0.5 0.5 0.25 0.25\n2 0 0.5 0.5 0.5\n1 1.5 0.5 0.2 0.2\n1 0.5 0.5 0 0.1\n"
    images = {
        "images/train/a_1.jpg": labels, "images/train/a_2.png": "", "images/val/b_1.jpg": "1 0.5 0.5 1 1\n",
    }  # fmt: skip
    return write_yolo(tmp_path / "set", images, train="images/train", val="images/val")


def test_the_file_says_what_it_is(tmp_path, yolo, raw):
    assert form_of(yolo) == "yolo"
    assert form_of(raw / "all.json") is None
    for name, text in (("v1.yml", "- {path: a}\n"), ("odd.yaml", "a: [\n"), ("empty.yml", ""), ("a.txt", "a: 1\n")):
        (tmp_path / name).write_text(text)
        assert form_of(tmp_path / name) == ("yolo" if name == "odd.yaml" else None)
    (tmp_path / "coco.json").write_text('{"categories": [], "images": []')  # COCO's image_info files
    assert form_of(tmp_path / "coco.json") == "coco"
    (tmp_path / "coco.json").write_text('{"annotations": []')
    assert form_of(tmp_path / "coco.json") == "coco"
    assert form_of(tmp_path / "none.json") is None


def test_an_import_is_accounted_for_and_keeps_its_splits_and_bytes(yolo, tmp_path, dtld):
    out = tmp_path / "out"
    before = tree_bytes(yolo.parent)
    code, printed, err = dtld("convert", yolo, "--root", yolo.parent, "--out", out)
    assert (code, err) == (0, "note: the source's own splits are kept; --val, --test and the like split anew by whole "
                              "sequences\n")  # fmt: skip
    assert "lights: 5 in = 3 kept + 2 dropped (degenerate 1, outside_frame 1) + 0 in skipped frames" in printed
    assert "  off: 1 lights, 1 targets\n" in printed
    for image in read_images(out):
        assert (out / "images" / image.split / image.name).read_bytes() == before[image.frame]
        assert image.name == "set_-_" + image.frame.replace("/", "_")
    assert not any(light.attributes for frame in read_frames(out) for light in (*frame.lights, *frame.dropped))
    assert {frame.frame: frame.split for frame in read_frames(out)} == {
        "images/train/a_1.jpg": "train", "images/train/a_2.png": "train", "images/val/b_1.jpg": "val",
    }  # fmt: skip
    assert yaml.safe_load((out / "data.yaml").read_text())["names"] == dict(enumerate(NAMES))
    assert tree_bytes(yolo.parent) == before
    assert validate(out)["defects"] == []


def test_every_later_command_takes_it(yolo, tmp_path, dtld):
    out = [tmp_path / name for name in ("full", "tiles", "copies", "anew", "sheet.png", "a.json")]
    common = ("--workers", 1)
    assert dtld("convert", yolo, "--root", yolo.parent, "--out", out[0], *common)[0] == 0
    assert dtld("tile", out[0], "--out", out[1], "--tile-size", 32, "--empty-ratio", "all", *common)[0] == 0
    assert dtld("augment", out[1], "--out", out[2], "--clahe", 1, *common)[0] == 0
    assert dtld("split", out[1], "--out", out[3], "--val", 0, "--test", 0.4, *common)[0] == 0
    for dataset in out[:4]:
        code, _, err = dtld("validate", dataset, *common)
        assert (code, err) == (0, "")
    assert dtld("preview", out[1], "--out", out[4])[0] == 0
    assert dtld("export", out[1], "--out", out[5])[0] == 0
    assert {category["name"] for category in json.loads(out[5].read_text())["categories"]} == set(NAMES)


def test_prepare_takes_it_in_one_pass(yolo, tmp_path, dtld):
    common = ("--root", yolo.parent, "--workers", 1)
    assert dtld("convert", yolo, *common, "--out", tmp_path / "full", "--image-format", "png")[0] == 0
    tiling = ("--tile-size", 32, "--empty-ratio", "all")
    assert dtld("tile", tmp_path / "full", "--out", tmp_path / "a", *tiling, "--workers", 1)[0] == 0
    one_pass = ("--out", tmp_path / "b", *tiling, "--image-format", "png", "--copies", 0)
    assert dtld("prepare", yolo, *common, *one_pass)[0] == 0
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")


def test_splits_are_made_anew_where_that_is_asked(yolo, tmp_path, dtld):
    options = ("--root", yolo.parent, "--out", tmp_path / "out", "--workers", 1, "--sequence-from", r"(.+)\.")
    code, printed, _ = dtld("convert", yolo, *options, "--val", 0, "--test", 0.3)
    assert (code, "out: train 2, val 0, test 1 images" in printed) == (0, True)


def test_a_sequence_in_two_splits_is_an_error_until_split_anew(tmp_path, dtld):
    images = dict.fromkeys(("train/images/a.1.jpg", "valid/images/a.2.jpg", "valid/images/b.1.jpg"), "")
    path = write_yolo(tmp_path / "set", images, train="../train/images", val="../valid/images")
    options = ("--root", path.parent, "--out", tmp_path / "out", "--workers", 1, "--sequence-from", r"(.*)\.\d\.")
    code, _, err = dtld("convert", path, *options)
    assert code == 1
    assert "set/-/a: has images in two of the source's splits (1 in train and 1 in val; 1 of 2 sequences have)" in err
    assert not (tmp_path / "out").exists()
    assert dtld("convert", path, *options, "--val", 0.2, "--test", 0)[0] == 0
    splits = {frame.frame[-7:]: frame.split for frame in read_frames(tmp_path / "out")}
    assert splits["a.1.jpg"] == splits["a.2.jpg"] != splits["b.1.jpg"]


def test_images_that_are_missing_or_broken_are_named_and_strict_stops(tmp_path, dtld):
    path = write_yolo(
        tmp_path / "set", {"images/a.jpg": "0 .5 .5 .1 .1", "images/b.jpg": "0 .5 .5 .1 .1"}, train="images"
    )
    (path.parent / "images/b.jpg").write_bytes((path.parent / "images/b.jpg").read_bytes()[:-200])
    (path.parent / "labels/lost.txt").write_text("0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n")
    options = ("--root", path.parent, "--out", tmp_path / "out", "--workers", 1, "--val", 0, "--test", 0)
    code, printed, err = dtld("convert", path, *options)
    assert code == 0
    assert "lights: 4 in = 1 kept + 0 dropped + 3 in skipped frames" in printed
    assert "skipped: images/lost.jpg: missing\n" in err
    assert "skipped: images/b.jpg: unreadable: " in err
    code, _, err = dtld("convert", path, *options, "--strict", "--overwrite")
    assert (code, "images/lost.jpg: no such file, tried " in err) == (1, True)


def test_equal_names_in_two_folders_stay_apart_or_are_refused(tmp_path, dtld):
    path = write_yolo(tmp_path / "set", {"images/a/1.jpg": "", "images/b/1.jpg": ""}, train="images")
    options = ("--root", path.parent, "--out", tmp_path / "out", "--workers", 1, "--val", 0, "--test", 0)
    assert dtld("convert", path, *options)[0] == 0
    assert sorted(image.name for image in read_images(tmp_path / "out")) == [
        "set_-_images_a_1.jpg", "set_-_images_b_1.jpg",
    ]  # fmt: skip
    code, _, err = dtld("convert", path, *options, "--overwrite", "--sequence-from", r"(1)")
    assert (code, "images/b/1.jpg: its images would be named set_-_1_1" in err) == (
        1,
        True,
    )


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (("--rules", "rules.json"), 2, "--rules: is for the attributes of DTLD's lights"),
        (("--test-labels", "a.json"), 2, "--val-labels, --test-labels: are for files of DTLD or COCO"),
        (("--sequence-from", "("), 2, "--sequence-from: got '('"),
        (("--out", "set/out"), 1, "lies in the input"),
        (("--cities", "Berlin"), 1, "--cities: no frames of Berlin, expected some of set"),
    ],
)
def test_options_that_an_import_cannot_take_are_refused(yolo, tmp_path, dtld, monkeypatch, options, code, expected):
    monkeypatch.chdir(tmp_path)
    given = ("convert", yolo, "--root", yolo.parent, "--out", tmp_path / "out", *options)
    got, _, err = dtld(*given)
    assert (got, expected in err) == (code, True)
    assert not (tmp_path / "out").exists()
    assert not (yolo.parent / "out").exists()


def test_a_folder_is_no_file_and_a_file_no_root(yolo, tmp_path, dtld):
    for file, root, expected in (
        (yolo.parent, yolo.parent, "set: got a folder, expected"),
        (yolo, yolo, "is no folder"),
    ):
        code, _, err = dtld("convert", file, "--root", root, "--out", tmp_path / "out")
        assert (code, expected in err, err.count("\n")) == (1, True, 1)


def test_a_stage_says_who_imports_a_dataset_of_others(yolo, tmp_path, dtld):
    for command in ("tile", "split"):
        code, _, err = dtld(command, yolo.parent, "--out", tmp_path / "out")
        assert (code, "dtld convert imports what others made" in err) == (1, True)


def test_a_backslash_in_a_name_goes_round(tmp_path):
    root, none = tmp_path / "set", pipeline.SplitSpec(0, 0)
    path = write_yolo(root, {"images/drive\\1.jpg": "0 0.5 0.5 0.5 0.5\n"}, train="images")
    pipeline.convert(Selection((path,), root), tmp_path / "one", none)
    to_coco(tmp_path / "one", tmp_path / "coco.json")
    pipeline.convert(Selection((tmp_path / "coco.json",), tmp_path / "one"), tmp_path / "two", none)
    assert [len(frame.lights) for frame in read_frames(tmp_path / "two")] == [1]
    assert validate(tmp_path / "one")["defects"] == []


def test_two_imports_at_once_and_the_options_of_imports_for_dtld_are_refused(yolo, raw, tmp_path, dtld):
    out = ("--root", raw, "--out", tmp_path / "out")
    code, _, err = dtld("convert", yolo, raw / "all.json", *out)
    assert (code, "LABELS: got 2 files, expected" in err) == (2, True)
    for option in (("--sequence-from", "(a)"), ("--crowd", "keep")):
        code, _, err = dtld("convert", raw / "all.json", *out, *option)
        assert (code, f"{option[0]}: is for a data.yaml or a COCO JSON" in err) == (2, True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_is_written_as_it_is_shown(tmp_path, orientation, suffix):
    """As Ultralytics takes it, which boxes of YOLO label files are of: OpenCV's IMREAD_COLOR turns."""
    root = tmp_path / "set"
    path = write_yolo(root, {}, train="images")
    draw(root / f"images/a{suffix}", (64, 48), orientation)
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.25 0.5 0.5 1\n")
    report = pipeline.convert(Selection((path,), root), tmp_path / "out", pipeline.SplitSpec(0, 0))
    (frame,), (image,) = read_frames(tmp_path / "out"), read_images(tmp_path / "out")
    file = tmp_path / "out/images/train" / image.name
    width, height = (48, 64) if orientation >= 5 else (64, 48)
    assert frame.lights[0].box == (0, 0, width / 2, height)
    written = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    shown = np.asarray(Image.open(root / f"images/a{suffix}").convert("RGB"))[..., ::-1]
    turned = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
              7: "TRANSVERSE", 8: "ROTATE_90"}.get(orientation)  # fmt: skip
    if turned:
        shown = np.asarray(Image.fromarray(shown).transpose(Image.Transpose[turned]))
    assert written.shape == shown.shape == (height, width, 3)
    assert np.abs(written.astype(int) - shown).max() <= (0 if suffix == ".png" or orientation == 1 else 24)
    assert (file.read_bytes() == (root / f"images/a{suffix}").read_bytes()) == (orientation == 1)
    assert [note.partition(",")[0] for note in report["notes"]] == (
        [] if orientation == 1 else ["1 images are turned as their Orientation says"]
    )
    assert validate(tmp_path / "out")["defects"] == []


def test_only_what_is_an_upright_8_bit_image_of_its_name_is_copied(tmp_path):
    root = tmp_path / "set"
    path = write_yolo(root, {}, train="images")
    pixels = draw(root / "images/tail.jpg")
    whole = (root / "images/tail.jpg").read_bytes()
    (root / "images/tail.jpg").write_bytes(whole + b"more pictures")
    cv2.imwrite(str(root / "images/raw.png"), np.full((48, 64), 2048, np.uint16))
    (root / "images/misnamed.jpg").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    cv2.imwrite(str(root / "images/photo.tif"), pixels)
    (root / "images/shouted.JPEG").write_bytes(whole)
    pipeline.convert(Selection((path,), root), tmp_path / "out", pipeline.SplitSpec(0, 0))
    out = tmp_path / "out/images/train"
    assert {file.name.removeprefix("set_-_images_") for file in out.iterdir()} == {
        "tail.jpg", "raw.png", "misnamed.jpg", "photo.png", "shouted.jpeg",
    }  # fmt: skip
    assert (out / "set_-_images_tail.jpg").read_bytes() == whole == (out / "set_-_images_shouted.jpeg").read_bytes()
    assert (cv2.imread(str(out / "set_-_images_photo.png")) == pixels).all()
    assert cv2.imread(str(out / "set_-_images_raw.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint8
    assert validate(tmp_path / "out")["defects"] == []


def test_grey_of_16_bits_is_no_raw_frame(tmp_path):
    root = tmp_path / "set"
    path = write_yolo(root, {"images/a.jpg": "", "images/thermal.png": "0 0.5 0.5 0.1 0.1\n"}, train="images")
    cv2.imwrite(str(root / "images/thermal.png"), np.full((48, 64), 29315, np.uint16))  # 20 degrees, in 0.01 K
    report = pipeline.convert(Selection((path,), root), tmp_path / "out", pipeline.SplitSpec(0, 0))
    (skipped,) = report["frames_skipped"]
    assert (skipped["frame"], skipped["lights"]) == ("images/thermal.png", 1)
    assert "got values up to 29315, expected 8 bits, or a raw Bayer frame of 12" in skipped["reason"]


def test_a_coco_image_of_another_size_is_left_out(tmp_path):
    root = tmp_path / "set"
    draw(root / "a.jpg")
    draw(root / "b.jpg", (64, 48), 6)
    images = [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(("a.jpg", "b.jpg"))]
    annotations = [
        {"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": c} for n, c in ((0, 0), (1, 0), (1, 1))
    ]
    path = root / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}))
    report = pipeline.convert(Selection((path,), root), tmp_path / "out", pipeline.SplitSpec(0, 0))
    assert report["frames_skipped"] == [
        {
            "frame": "b.jpg",
            "reason": "unreadable: got 48 x 64 pixels as Orientation 6 shows it, expected 64 x 48 as its labels say",
            "lights": 2,
        }
    ]


def boxes_of(dataset):
    """Every box by the end of its image's name, with its class."""
    return {
        image.name.rpartition("_")[2]: sorted((light.class_id, light.box) for light in frame.lights)
        for frame, image in zip(read_frames(dataset), read_images(dataset), strict=True)
    }


SHARE = st.floats(0, 1).map(lambda share: round(share, 6))
LINE = st.tuples(st.integers(0, 2), SHARE, SHARE, SHARE, SHARE).map(lambda values: " ".join(map(str, values)))


@settings(max_examples=10)
@given(texts=st.lists(st.lists(LINE, max_size=4), min_size=3, max_size=3))
def test_import_export_import_gives_the_same_boxes(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("round")
    images = {f"images/{name}.jpg": "\n".join(lines) for name, lines in zip("xyz", texts, strict=True)}
    path = write_yolo(folder / "set", images, train="images")
    split, one, two = pipeline.SplitSpec(0, 0), folder / "one", folder / "two"
    report = pipeline.convert(Selection((path,), folder / "set"), one, split)
    counted = report["lights"]
    assert counted["in"] == sum(map(len, texts)) == counted["kept"] + sum(counted["dropped"].values())
    coco = folder / "coco.json"
    to_coco(one, coco)
    if counted["kept"]:
        pipeline.convert(Selection((coco,), one), two, split)
        assert boxes_of(two) == boxes_of(one)


def test_tiles_of_an_import_go_round_too(yolo, tmp_path):
    pipeline.convert(Selection((yolo,), yolo.parent), tmp_path / "full")
    pipeline.tile(tmp_path / "full", tmp_path / "tiles", TileSpec(size_px=32), empty_ratio=None)
    to_coco(tmp_path / "tiles", tmp_path / "coco.json")
    report = pipeline.convert(Selection((tmp_path / "coco.json",), tmp_path / "tiles"), tmp_path / "again")
    targets = sum(len(image.targets) for image in read_images(tmp_path / "tiles"))
    assert report["lights"]["kept"] == report["lights"]["in"] == targets
    assert validate(tmp_path / "again")["defects"] == []
