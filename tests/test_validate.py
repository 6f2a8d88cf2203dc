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


def edit_report(root, change):
    report = json.loads((root / "report.json").read_text())
    change(report)
    (root / "report.json").write_text(json.dumps(report))


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


def image_of(root, label):
    return root / "images" / "train" / label.with_suffix(".png").name


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


def test_a_leaked_sequence_by_one_edit(copy):
    """One word of one line: the leak itself, every image that did not move along, and the frames per split."""
    moved = next(f for f in read_lines(copy / "frames.jsonl") if f["split"] == "train" and f["lights"])
    images = [m["name"] for m in read_lines(copy / "manifest.jsonl") if m["frame"] == moved["frame"]]

    def change(lines):
        next(line for line in lines if line["frame"] == moved["frame"])["split"] = "val"

    edit_lines(copy / "frames.jsonl", change)
    found = defects(copy)
    sequence = "/".join(moved["frame"].split("/")[:3])
    leak = [f for f in found if re.fullmatch(rf"frames.jsonl: {sequence}: the sequence is in \w+ and in \w+, .*", f)]
    assert len(leak) == 1
    assert [f for f in found if "expected val as its frame" in f] == [
        f"manifest.jsonl: {name}: is in train, expected val as its frame" for name in images
    ]
    assert [f[:19] for f in found if f.startswith("report.json")] == ["report.json: frames"]
    assert len(found) == 1 + len(images) + 1


def test_a_leak_behind_another_sequences_name(copy):
    """The frame's path still says which sequence it is of."""
    moved = next(f for f in read_lines(copy / "frames.jsonl") if "extra" in f["frame"])

    def change(lines):
        for line in lines:
            if line["frame"] == moved["frame"]:
                line["sequence"] = "another"

    edit_lines(copy / "frames.jsonl", change)
    assert any(
        f == f"frames.jsonl: {moved['frame']}: got sequence Aachen/Aachen1/another, "
        "expected Aachen/Aachen1/2015-04-01_10-50-05 as its path says"
        for f in defects(copy)
    )


def test_a_manifest_line_without_image(copy):
    """A copy that was never made: no image, no label, and one image and one copy more than the report counts."""

    def change(lines):
        at = next(n for n, line in enumerate(lines) if line["augmentation"])
        stem = lines[at]["name"].rpartition("_a")[0]
        return [*lines[: at + 1], {**lines[at], "name": f"{stem}_a7.png"}, *lines[at + 1 :]]

    edit_lines(copy / "manifest.jsonl", change)
    found = defects(copy)
    assert re.fullmatch(r"images/train/.*_a7\.png: No such file or directory, expected an image", found[0])
    assert re.fullmatch(r"labels/train/.*_a7\.txt: No such file or directory, expected a label file", found[1])
    assert [defect.partition(": got")[0] for defect in found[2:]] == [
        "report.json: images",
        "report.json: augmented_copies",
    ]


def test_a_box_outside_its_frame(copy):
    """The box is told of, and also what no more follows from it."""
    frame = next(f for f in read_lines(copy / "frames.jsonl") if f["lights"])
    box = frame["lights"][0]["box"]

    def change(lines):
        next(line for line in lines if line["frame"] == frame["frame"])["lights"][0]["box"][2] = 257

    edit_lines(copy / "frames.jsonl", change)
    place = f"frames.jsonl: {frame['frame']}: light {frame['lights'][0]['id']}: "
    found = defects(copy)
    assert found[0] == f"{place}got box {[*box[:2], 257, box[3]]}, expected one inside 256 x 128 pixels"
    assert sum(defect.startswith("frames.jsonl") for defect in found) == 1


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
    assert any(defect.startswith(f"{file}.jsonl: ") and "stands twice" in defect for defect in defects(copy))


def test_one_image_name_in_two_splits(copy):
    line = next(m for m in read_lines(copy / "manifest.jsonl") if m["split"] == "train")
    edit_lines(copy / "manifest.jsonl", lambda lines: [*lines, {**line, "split": "val"}])
    assert f"manifest.jsonl: {line['name']}: stands twice, first as train/{line['name']}" in defects(copy)


def test_a_manifest_in_another_order(copy):
    """One defect, not one per line that follows."""
    frames = [f["frame"] for f in read_lines(copy / "frames.jsonl")]
    edit_lines(copy / "manifest.jsonl", lambda lines: [*lines[1:], lines[0]])
    assert defects(copy) == [f"manifest.jsonl: from {frames[1]} on not in the order of frames.jsonl"]


def test_a_line_that_is_none_hides_no_other_defect(copy):
    with (copy / "manifest.jsonl").open("a") as lines:
        lines.write("{}\n[\n")
    first_label(copy).unlink()
    count = len(read_lines(copy / "frames.jsonl"))
    with (copy / "frames.jsonl").open("a") as lines:
        lines.write('{"frame": 1}\n')
    (copy / "data.yaml").write_text("names: [")
    report = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps(report | {"seed": "x"}))
    found = defects(copy)
    places = ["report.json: the report.seed must be integer", "data.yaml: while parsing"]
    places += [f"manifest.jsonl: line {len((copy / 'manifest.jsonl').read_text().splitlines()) - n}: " for n in (1, 0)]
    places += [f"frames.jsonl: line {count + 1}: ", "labels/train/"]
    for place in places:
        assert sum(defect.startswith(place) for defect in found) == 1, (place, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line["window"].update(x=line["window"]["x"] + 1), "which no tile of report.json's options has"),
        (lambda line: line.update(scale=2), "which no tile of report.json's options has"),
        (lambda line: line["window"].update(x=200), "expected it inside 256 x 128 pixels"),
        (lambda line: line.update(scale=1e300), "expected the size of an image"),
        (lambda line: line.update(scale=1e-300), "expected the size of an image"),
        (lambda line: line["window"].update(w=2**62), "expected the size of an image"),
        (lambda line: line["window"].update(y=32 - line["window"]["y"]), "got that name, expected"),
        (lambda line: line.update(name="x.png"), "got that name, expected Aachen_Aachen1_"),
        (lambda line: line.update(masked=line["targets"]), "is masked, but no sliver"),
        (lambda line: line.update(masked=line["slivers"], slivers=line["slivers"]), None),
        (lambda line: line.update(city="Bonn"), "got sequence Bonn/Aachen1/"),
        (lambda line: line["targets"].append(line["targets"][0]), "stands twice"),
    ],
)
def test_an_image_line_that_says_something_else(copy, change, message):
    line = next(m for m in read_lines(copy / "manifest.jsonl") if m["targets"] and not m["augmentation"])

    def edit(lines):
        change(next(each for each in lines if each["name"] == line["name"]))

    edit_lines(copy / "manifest.jsonl", edit)
    found = defects(copy)
    assert message is None or any(d.startswith("manifest.jsonl: ") and message in d for d in found), found


def test_a_copy_must_show_what_its_original_shows(copy):
    name = next(m for m in read_lines(copy / "manifest.jsonl") if m["augmentation"] and m["targets"])["name"]

    def drop_target(lines):
        line = next(each for each in lines if each["name"] == name)
        line["slivers"].append(line["targets"].pop())

    edit_lines(copy / "manifest.jsonl", drop_target)
    assert any(f"{name}: differs in more than its augmentation from its original" in d for d in defects(copy))
    edit_lines(copy / "manifest.jsonl", lambda lines: [m for m in lines if m["name"] != name.replace("_a1", "")])
    assert any(f"{name}: is a changed copy, but its original is not" in d for d in defects(copy))


def swap_targets_and_slivers(root):
    """Let them change places in one original's line; returns the line as it was."""
    line = next(m for m in read_lines(root / "manifest.jsonl") if m["slivers"] and not m["augmentation"])

    def change(lines):
        found = next(each for each in lines if each["name"] == line["name"])
        found["targets"], found["slivers"] = found["slivers"], found["targets"]

    edit_lines(root / "manifest.jsonl", change)
    return line


def test_targets_and_slivers_by_the_rule(copy):
    line = swap_targets_and_slivers(copy)
    found = defects(copy)
    for light_id in line["slivers"]:
        assert any(f"light {light_id} is a target, expected a sliver for min_" in defect for defect in found)
    for light_id in line["targets"]:
        assert f"manifest.jsonl: {line['name']}: light {light_id} is a sliver, expected a target" in found


@pytest.mark.parametrize("command", ["augment", "split"])
def test_what_is_copied_from_tiles_is_held_against_their_tiling(tmp_path, command):
    root, tiles, out = (tmp_path / name for name in ("raw", "tiles", "out"))
    write_v2(root / "all.json", make_tree(root, sequences=2, frames=1, lights=5))
    select, spec = Selection((root / "all.json",), root), TileSpec(size_px=96, mask_partial=True)
    pipeline.prepare(select, tiles, SplitSpec(), spec, AugmentSpec(copies=0))
    if command == "augment":
        pipeline.augment(tiles, out, AugmentSpec(clahe=1))
    else:
        pipeline.split(tiles, out, SplitSpec(0.5, 0, "city"))
    assert defects(out) == []
    line = swap_targets_and_slivers(out)
    assert any(f"light {line['slivers'][0]} is a target, expected a sliver for min_" in each for each in defects(out))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("min_side", "min_visible", "dropped for min_visible, expected min_side"),
        ("min_side", "max_images", "dropped for max_images, expected min_side"),
        ("min_side", "outside_frame", "dropped for outside_frame, expected no box"),
        ("rule", "min_side", "dropped for min_side, expected a class"),
        ("degenerate", "rule", "dropped for rule, expected a box"),
    ],
)
def test_a_wrong_reason(copy, old, new, message):
    def change(lines):
        next(d for line in lines for d in line["dropped"] if d["reason"] == old)["reason"] = new

    edit_lines(copy / "frames.jsonl", change)
    found = defects(copy)
    assert any(d.startswith("frames.jsonl: ") and d.endswith(message) for d in found), found
    assert any(d.startswith("report.json: lights: got") for d in found)


# --- data.yaml -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("images/val", "images/train", r"data\.yaml: val: got 'images/train', expected images/val"),
        ("test: images/test\n", "", r"data\.yaml: test: got None, expected images/test"),
        ("train:", "path: /elsewhere\ntrain:", r"data\.yaml: path: got '/elsewhere', expected no such key: .*"),
        (
            "relevant",
            "irrelevant",
            r"data\.yaml: names: got \{0: 'irrelevant', 1: 'rest'\}, expected .* as in report\.json",
        ),
        ("  1: rest\n", "", r"data\.yaml: names: got \{0: 'relevant'\}, expected .*"),
        ("train", "2015-99-99\n", r"data\.yaml: .*; expected a YOLO dataset's data\.yaml"),
    ],
)
def test_a_wrong_data_yaml(copy, old, new, message):
    text = (copy / "data.yaml").read_text()
    assert old in text
    (copy / "data.yaml").write_text(text.replace(old, new, 1))
    (found,) = defects(copy)
    assert re.fullmatch(message, found)


@pytest.mark.parametrize("text", ["", "[]", "a: !!int", "a: !!timestamp x", "a: !!float x", "a: !!bool x", "[" * 2000])
def test_a_data_yaml_that_is_none(copy, text):
    (copy / "data.yaml").write_text(text)
    (found,) = defects(copy)
    assert found.startswith("data.yaml: ")
    assert found.endswith(("expected a YOLO dataset's data.yaml", "expected train, val, test and names"))


# --- report.json -----------------------------------------------------------------------------------------


def test_an_image_of_no_frame(copy):
    edit_lines(copy / "frames.jsonl", lambda lines: [line for line in lines if "extra" not in line["frame"]])
    place = "manifest.jsonl: Aachen/Aachen1/2015-04-01_10-50-05/extra.tiff: "
    assert any(d.startswith(place) and "is not in frames.jsonl, but" in d for d in defects(copy))


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
        (lambda report: report.update(slivers=0), "slivers"),
        (lambda report: report["frames_skipped"].append({"frame": "x", "reason": "missing", "lights": 3}), "lights"),
    ],
)
def test_a_wrong_sum(copy, change, key):
    edit_report(copy, change)
    (found,) = defects(copy)
    assert found.startswith(f"report.json: {key}: got ")
    assert "as counted again" in found


@pytest.mark.parametrize(
    ("change", "message", "key"),
    [
        (lambda report: report.update(slivers=-1), "the report.slivers must be bigger than or equal to 0", "slivers"),
        (lambda report: report.pop("padded_frames"), "the report must contain .*", "padded_frames"),
        (lambda report: report["configuration"].update(command="x"), "the report.configuration must be valid .*", None),
        (lambda report: report.update(seed=9), "seed: got 9, expected 0 as in configuration", None),
        (
            lambda report: report["configuration"]["tiles"].update(overlap=0.95),
            "configuration.tiles: --overlap: got 0.95, expected .*",
            None,
        ),
    ],
)
def test_a_report_against_its_schema(copy, change, message, key):
    """Sums are compared also where the schema is not satisfied."""
    edit_report(copy, change)
    first, *others = defects(copy)
    assert re.fullmatch(f"report.json: {message}", first)
    assert [other.partition(": got")[0] for other in others] == ([f"report.json: {key}"] if key else [])


def test_a_skipped_frame_that_is_there(copy):
    frame = read_lines(copy / "frames.jsonl")[0]["frame"]
    edit_report(copy, lambda r: r["frames_skipped"].append({"frame": frame, "reason": "missing", "lights": 0}))
    assert defects(copy) == [f"report.json: frames_skipped: {frame} is in frames.jsonl, expected in one of them"]


@pytest.mark.parametrize("text", ["{}", "[]", "{", "null", ""])
def test_another_report(copy, text):
    """Its lack is one defect, or more where there is something to compare; nothing else is hidden by it."""
    first_label(copy).unlink()
    (copy / "report.json").write_text(text)
    found = defects(copy)
    assert found[0].startswith("report.json: ")
    assert found[-1].startswith("labels/train/")
    assert len(found) == 2


@pytest.mark.parametrize("name", ["data.yaml", "report.json"])
def test_a_missing_data_yaml_or_report(copy, name):
    (copy / name).unlink()
    (found,) = defects(copy)
    assert found.startswith(f"{name}: No such file or directory")


@pytest.mark.parametrize("name", ["frames.jsonl", "manifest.jsonl"])
def test_a_folder_without_lines_is_no_dataset(copy, name):
    (copy / name).unlink()
    with pytest.raises(DatasetError, match=rf"{re.escape(name)}: No such file or directory; expected a dataset"):
        validate(copy)


def test_validate_writes_nothing(sound):
    pytest.importorskip("imagehash", reason="needs the extra 'duplicates'")

    def state():
        return {path: path.lstat().st_mtime_ns for path in [sound, *sound.rglob("*")]}

    before = state()
    validate(sound, workers=2, distance=6)
    assert state() == before


# --- other datasets --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Whole frames as JPEG."""
    root = tmp_path_factory.mktemp("full")
    write_v2(root / "all.json", make_tree(root, sequences=2, lights=4))
    pipeline.convert(Selection((root / "all.json",), root), root / "out", SplitSpec(0.2, 0.2))
    return root / "out"


def test_a_full_frame_dataset_is_proven_too(full, tmp_path):
    root = Path(shutil.copytree(full, tmp_path / "out"))
    assert defects(root) == []
    first_label(root).write_text("")
    assert len(defects(root)) == 1


@pytest.mark.parametrize("options", [{"mask_partial": True}, {"layout": "halves"}, {"size_px": 160}])
def test_tiles_of_every_kind_are_sound_and_so_are_their_copies_and_splits(full, tmp_path, options):
    """160 px pad frames of 128 px; augment's and split's reports do not say how the tiles were cut."""
    tiles = TileSpec(**{"size_px": 96, **options})
    pipeline.tile(full, tmp_path / "all", tiles, empty_ratio=None)
    assert defects(tmp_path / "all") == []
    pipeline.augment(tmp_path / "all", tmp_path / "copies", AugmentSpec(clahe=1, blur=1, copies=2))
    assert defects(tmp_path / "copies") == []
    pipeline.split(tmp_path / "all", tmp_path / "split", SplitSpec(0.2, 0.2), seed=3)
    assert defects(tmp_path / "split") == []


def test_a_limited_number_of_images(full, tmp_path):
    report = pipeline.tile(full, tmp_path / "out", TileSpec(size_px=96, mask_partial=True), max_images={"train": 6})
    assert report["lights"]["dropped"]["max_images"] > 0
    assert defects(tmp_path / "out") == []


# --- any bytes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """As small as a dataset with every kind of line can be, to be proven hundreds of times."""
    root = tmp_path_factory.mktemp("tiny")
    images = []
    for number, city in enumerate(("A", "B", "C")):
        path = f"{city}/{city}1/s/f{number}.tiff"
        write_raw(root / path, np.random.default_rng(number), 64, 32)
        lamps = [light(2, 2, 9, 9, 1), light(28, 2, 9, 9, 2), light(0, 0, 1, 9, 3), light(99, 0, 1, 9, 4)]
        images.append(image(path, *lamps))
    splits = root / "splits.txt"
    splits.write_text("A/A1/s train\nB/B1/s val\nC/C1/s test\n")
    select = Selection((write_v2(root / "all.json", images),), root)
    out = root / "out"
    pipeline.prepare(select, out, SplitSpec(split_file=splits), TileSpec(size_px=32), AugmentSpec(clahe=1))
    assert defects(out) == []
    return out


@pytest.mark.parametrize("name", ["data.yaml", "report.json", "frames.jsonl", "manifest.jsonl"])
def test_any_bytes_give_defects_never_a_traceback(tiny, tmp_path, name):
    root = Path(shutil.copytree(tiny, tmp_path / "out"))
    whole, rng, told = (root / name).read_bytes(), np.random.default_rng(7), 0
    pieces = [b"", b"9", b"-", b".", b"1e308", b"1e999", b'"', b"}", b"[", b"null", b"\n", b"\0", b"\xff", b"\\u0000"]
    for _ in range(80):
        changed = bytearray(whole)
        for _ in range(int(rng.integers(1, 3))):
            at = int(rng.integers(len(changed)))
            changed[at : at + int(rng.integers(3))] = pieces[int(rng.integers(len(pieces)))]
        (root / name).write_bytes(changed)
        try:
            found = defects(root)
        except DatasetError as error:
            found = [str(error)]
        assert all("\n" not in defect for defect in found)
        told += bool(found)
    assert told > 40  # blanks and the like change nothing
