"""A sound dataset has no defects; every defect planted in one is found and named, and nothing else is."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from dtld_data import image, light, make_tree, read_lines, write_raw, write_v2

from dtld_tools import pipeline
from dtld_tools.augment import AugmentSpec
from dtld_tools.errors import DatasetError
from dtld_tools.pipeline import Selection
from dtld_tools.split import SplitSpec
from dtld_tools.types import TileSpec
from dtld_tools.validate import validate

SPLITS = (("Aachen", 1, "train"), ("Aachen", 2, "train"), ("Berlin", 1, "val"), ("Berlin", 2, "test"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Tiles with copies, lights of every fate: kept, slivers, dropped by rule, size, place and repetition."""
    root = tmp_path_factory.mktemp("raw")
    images = make_tree(root, sequences=2, frames=1, lights=5)
    path = "Aachen/Aachen1/2015-04-01_10-50-05/extra.tiff"
    write_raw(root / path, np.random.default_rng(9), 256, 128)
    lamps = [
        light(10, 10, 20, 40, 900),
        light(10, 10, 20, 40, 900),  # repeated: dropped as a duplicate
        light(90, 10, 12, 20, 901),  # over a tile's edge
        light(50, 50, 1, 30, 902),  # too thin
        light(300, 10, 5, 5, 903),  # outside
        light(30, 60, 0, 5, 904),  # degenerate
        light(60, 60, 20, 30, 905, pictogram="tram"),  # dropped by the rule below
    ]
    write_v2(root / "all.json", [*images, image(path, *lamps)])
    rules = root / "rules.json"
    drop = {"class": "drop", "when": {"pictogram": ["tram"]}}
    relevant = {"class": "relevant", "when": {"relevance": ["relevant"]}}
    rules.write_text(json.dumps({"classes": ["relevant", "rest"], "rules": [drop, relevant, {"class": "rest"}]}))
    out = tmp_path_factory.mktemp("sound") / "out"
    select = Selection((root / "all.json",), root, rules)
    augment = AugmentSpec(clahe=1, copies=1)
    splits = root / "splits.txt"
    splits.write_text("".join(f"{city}/{city}1/2015-04-0{n}_10-50-05 {split}\n" for city, n, split in SPLITS))
    report = pipeline.prepare(
        select, out, SplitSpec(split_file=splits), TileSpec(size_px=96), augment, image_format="png"
    )
    assert set(report["lights"]["dropped"]) >= {"rule", "duplicate", "min_side", "outside_frame", "degenerate"}
    return out


@pytest.fixture
def copy(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "out"))


def defects(root):
    return validate(root)["defects"]


def edit_lines(path, change):
    """Rewrite a .jsonl file: ``change`` gets the list of its objects and may return another."""
    lines = read_lines(path)
    lines = change(lines) or lines
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def first_label(root, split="train"):
    return next(p for p in sorted((root / "labels" / split).iterdir()) if p.read_text())


def test_a_sound_dataset(sound):
    found = validate(sound, workers=2)
    assert found["defects"] == []
    manifest = read_lines(sound / "manifest.jsonl")
    assert found["images"] == len(manifest)
    assert found["frames"] == len(read_lines(sound / "frames.jsonl")) == 5
    assert found["targets"] == sum(len(m["targets"]) for m in manifest if not m["augmentation"]) > 0


# --- files -----------------------------------------------------------------------------------------------


def test_a_missing_label(copy):
    path = first_label(copy)
    path.unlink()
    assert defects(copy) == [f"labels/train/{path.name}: No such file or directory, expected a label file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(text[2:10], "0.999999", 1), r"line 1: got '.*', expected '.*' from frames\.jsonl"),
        (lambda text: str(1 - int(text[0])) + text[1:], "line 1: got"),
        (lambda text: "", r"got 0 boxes, expected \d from"),
        (lambda text: text + "0 0.5 0.5 0.1 0.1\n", r"got \d boxes, expected \d from"),
        (lambda text: "no label at all\n" + text, r"boxes, expected"),
    ],
)
def test_a_changed_label(copy, change, message):
    path = first_label(copy)
    path.write_text(change(path.read_text()))
    found = defects(copy)
    assert found
    assert all(defect.startswith(f"labels/train/{path.name}: ") for defect in found)
    assert re.search(message, found[0])


def test_a_label_that_is_no_text(copy):
    path = first_label(copy)
    path.write_bytes(b"\xff\xfe\xff")
    assert defects(copy) == [f"labels/train/{path.name}: is no text, expected lines 'class xc yc w h'"]


def image_of(root, label):
    return root / "images" / "train" / label.with_suffix(".png").name


def test_a_missing_image(copy):
    path = image_of(copy, first_label(copy))
    path.unlink()
    (found,) = defects(copy)
    assert found.startswith(f"images/train/{path.name}: No such file")


def test_a_truncated_image(copy):
    path = image_of(copy, first_label(copy))
    path.write_bytes(path.read_bytes()[:-200])
    (found,) = defects(copy)
    assert found.startswith(f"images/train/{path.name}: cannot be decoded")


def test_an_image_of_another_size(copy):
    path = image_of(copy, first_label(copy))
    cv2.imwrite(str(path), np.zeros((96, 95, 3), np.uint8))
    assert defects(copy) == [f"images/train/{path.name}: got 95 x 96 pixels, expected 96 x 96"]


@pytest.mark.parametrize("name", ["images/train/extra.png", "labels/val/extra.txt", "images/test/.DS_Store"])
def test_a_file_that_no_line_names(copy, name):
    (copy / name).write_bytes(b"x")
    assert defects(copy) == [f"{name}: is not in manifest.jsonl"]


def test_an_unfinished_dataset(copy):
    (copy / ".unfinished").mkdir()
    assert defects(copy) == [".unfinished: the dataset is unfinished; run the command that made it again"]
    (copy / "report.json").unlink()
    (copy / "data.yaml").unlink()
    with pytest.raises(DatasetError, match="is unfinished; run the command that was making it again"):
        validate(copy)


# --- lines -----------------------------------------------------------------------------------------------


def test_a_leaked_sequence(copy):
    """One frame of a training sequence is called a test frame, in both files, and its images moved: still a leak."""
    name = next(m["frame"] for m in read_lines(copy / "manifest.jsonl") if m["split"] == "train")

    def move(lines):
        for line in lines:
            if line["frame"] == name:
                line["split"] = "test"

    for line in read_lines(copy / "manifest.jsonl"):
        if line["frame"] == name:
            for kind, ending in (("images", ".png"), ("labels", ".txt")):
                file = Path(line["name"]).with_suffix(ending)
                (copy / kind / "train" / file).rename(copy / kind / "test" / file)
    edit_lines(copy / "frames.jsonl", move)
    edit_lines(copy / "manifest.jsonl", move)
    found = defects(copy)
    sequence = "/".join(name.split("/")[:3])
    assert f"frames.jsonl: {sequence}: the sequence is in " in found[0]
    assert all(defect.startswith("report.json") for defect in found[1:])


def test_an_image_in_another_split_than_its_frame(copy):
    line = next(m for m in read_lines(copy / "manifest.jsonl") if m["split"] == "train")

    def move(lines):
        next(each for each in lines if each["name"] == line["name"])["split"] = "val"

    edit_lines(copy / "manifest.jsonl", move)
    assert f"manifest.jsonl: {line['name']}: is in val, expected train as its frame" in defects(copy)


def test_a_wrong_class_number(copy):
    def change(lines):
        next(line for line in lines if line["lights"])["lights"][0]["class"] = 7

    edit_lines(copy / "frames.jsonl", change)
    assert any(re.search(r"got class 7, expected 0 to 1", defect) for defect in defects(copy))


def test_a_light_in_no_image(copy):
    def change(lines):
        line = next(line for line in lines if line["dropped"] and line["dropped"][0]["reason"] == "min_side")
        moved = line["dropped"].pop(0)
        line["lights"].append({"id": moved["id"], "class": moved["class"], "box": moved["box"]})

    edit_lines(copy / "frames.jsonl", change)
    assert any("is in no image, expected in one or dropped" in defect for defect in defects(copy))


def test_a_dropped_light_that_an_image_shows_as_a_target(copy):
    def change(lines):
        line = next(line for line in lines if line["lights"])
        moved = line["lights"].pop(0)
        line["dropped"].append({**moved, "reason": "min_visible"})

    edit_lines(copy / "frames.jsonl", change)
    assert any("is dropped, but a target of an image" in defect for defect in defects(copy))


def test_a_light_that_was_taken_out_everywhere(copy):
    """The sums of the report are the last witness."""

    def change(lines):
        line = next(line for line in lines if any(d["reason"] == "outside_frame" for d in line["dropped"]))
        line["dropped"] = [d for d in line["dropped"] if d["reason"] != "outside_frame"]

    edit_lines(copy / "frames.jsonl", change)
    (found,) = defects(copy)
    assert found.startswith("report.json: lights: got ")


@pytest.mark.parametrize("key", ["targets", "slivers"])
def test_a_light_left_out_of_an_image_line(copy, key):
    line = next(m for m in read_lines(copy / "manifest.jsonl") if m[key])

    def change(lines):
        next(each for each in lines if each["name"] == line["name"])[key].pop()

    edit_lines(copy / "manifest.jsonl", change)
    assert f"manifest.jsonl: {line['name']}: shows light {line[key][-1]}, expected it in targets or slivers" in defects(
        copy
    )


def test_a_light_that_the_window_does_not_show(copy):
    line = next(m for m in read_lines(copy / "manifest.jsonl") if m["targets"])

    def change(lines):
        next(each for each in lines if each["name"] == line["name"])["slivers"].append(4711)

    edit_lines(copy / "manifest.jsonl", change)
    assert f"manifest.jsonl: {line['name']}: light 4711 is listed, but its window does not show it" in defects(copy)


@pytest.mark.parametrize("file", ["frames", "manifest"])
def test_a_line_that_stands_twice(copy, file):
    edit_lines(copy / f"{file}.jsonl", lambda lines: [*lines, lines[0]])
    assert any(defect.startswith(f"{file}.jsonl: ") and defect.endswith("stands twice") for defect in defects(copy))


def test_an_image_of_no_frame(copy):
    edit_lines(copy / "frames.jsonl", lambda lines: [line for line in lines if "extra" not in line["frame"]])
    assert any(
        "its frame Aachen/Aachen1/2015-04-01_10-50-05/extra.tiff is not in" in defect for defect in defects(copy)
    )


def test_a_line_without_image_and_image_without_line(copy):
    line = read_lines(copy / "manifest.jsonl")[0]
    edit_lines(copy / "manifest.jsonl", lambda lines: lines[1:])
    assert f"images/{line['split']}/{line['name']}: is not in manifest.jsonl" in defects(copy)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda report: report["lights"].update(kept=0), "lights"),
        (lambda report: report["images"].update(val=1), "images"),
        (lambda report: report["classes"]["rest"].update(lights=0), "classes"),
        (lambda report: report.update(slivers=-1), "slivers"),
        (lambda report: report.pop("padded_frames"), "padded_frames"),
        (lambda report: report["frames_skipped"].append({"frame": "x", "reason": "missing", "lights": 3}), "lights"),
    ],
)
def test_a_wrong_sum(copy, change, key):
    report = json.loads((copy / "report.json").read_text())
    change(report)
    (copy / "report.json").write_text(json.dumps(report))
    (found,) = defects(copy)
    assert found.startswith(f"report.json: {key}: got ")
    assert "as counted again" in found


@pytest.mark.parametrize("name", ["data.yaml", "report.json", "frames.jsonl", "manifest.jsonl"])
def test_a_folder_without_its_files_is_no_dataset(copy, name):
    (copy / name).unlink()
    with pytest.raises(DatasetError, match=re.escape(name)):
        validate(copy)


@pytest.mark.parametrize("text", ["{}", "[]", "{", "null"])
def test_another_report_is_no_dataset(copy, text):
    (copy / "report.json").write_text(text)
    with pytest.raises(DatasetError, match=r"report\.json"):
        validate(copy)


def test_a_full_frame_dataset_is_proven_too(tmp_path):
    write_v2(tmp_path / "all.json", make_tree(tmp_path, sequences=2, lights=4))
    select = Selection((tmp_path / "all.json",), tmp_path)
    pipeline.convert(select, tmp_path / "out", SplitSpec(0.2, 0.2))
    assert defects(tmp_path / "out") == []
    label = first_label(tmp_path / "out")
    label.write_text("")
    assert len(defects(tmp_path / "out")) == 1
