"""Defects of frames.jsonl and manifest.jsonl: leaks, lights lost or changed, classes, rules, order."""

import json
import re
from pathlib import Path

import pytest

from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from tests.dtld_data import make_tree, read_lines, write_v2
from tests.planted import defects, edit_lines, first_label


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
    places = ["report.json: the report.seed must be integer", "data.yaml: line 2: got no YAML"]
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
