"""The files satisfy schemas/ by an independent validator, and the schemas refuse what is broken."""

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from tests.dtld_data import REAL, image, light, make_tree, needs_real, read_lines, write_v2

FOLDER = Path(__file__).resolve().parents[1] / "schemas"


def schema(name):
    return Draft7Validator(json.loads((FOLDER / f"{name}.schema.json").read_text()))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """One dataset of every command, a skipped frame, drops and copies included."""
    root = tmp_path_factory.mktemp("raw")
    images = make_tree(root, lights=6)
    images[0]["labels"] += [
        light(5, 5, 9, 9, 1000),
        light(5, 5, 9, 9, 1000),
        light(999, 5, 9, 9, 1001),
        light(9, 9, 0, 9, 1002),
    ]
    images.append(image("./Berlin/Berlin1/2015-04-01_10-50-05/missing.tiff", light(1, 2, 3, 4, 5)))
    select = Selection((write_v2(root / "all.json", images),), root)
    tiles, augment = TileSpec(size_px=96), AugmentSpec(clahe=0.7, blur=0.7)
    made = {name: root / name for name in ("prepare", "convert", "tile", "augment", "split")}
    pipeline.prepare(select, made["prepare"], SplitSpec(0.2, 0.2), tiles, augment)
    pipeline.convert(select, made["convert"], SplitSpec(0.2, 0.2, test_cities=("Berlin",)))
    pipeline.tile(made["convert"], made["tile"], tiles, empty_ratio=None)
    pipeline.augment(made["tile"], made["augment"], augment)
    pipeline.split(made["tile"], made["split"], SplitSpec(0.2, 0, "city"))
    return made


def test_every_schema_is_a_schema():
    names = sorted(path.name for path in FOLDER.glob("*.json"))
    assert {f"{name}.schema.json" for name in ("frame", "manifest", "report", "rules", "label_v2", "run")} <= set(names)
    for name in names:
        Draft7Validator.check_schema(json.loads((FOLDER / name).read_text()))


@pytest.mark.parametrize("command", ["prepare", "convert", "tile", "augment", "split"])
@pytest.mark.parametrize(("file", "name"), [("frames.jsonl", "frame"), ("manifest.jsonl", "manifest")])
def test_lines(datasets, command, file, name):
    lines = read_lines(datasets[command] / file)
    assert lines
    check = schema(name)
    assert [error.message for line in lines for error in check.iter_errors(line)] == []


@pytest.mark.parametrize("command", ["prepare", "convert", "tile", "augment", "split"])
def test_reports(datasets, command):
    report = json.loads((datasets[command] / "report.json").read_text())
    assert [error.message for error in schema("report").iter_errors(report)] == []
    assert report["configuration"]["command"] == command


def test_the_datasets_hold_every_kind_of_line(datasets):
    """Else the tests above would prove little."""
    frames = read_lines(datasets["prepare"] / "frames.jsonl")
    manifest = read_lines(datasets["prepare"] / "manifest.jsonl")
    reasons = {dropped["reason"] for line in frames for dropped in line["dropped"]}
    assert reasons >= {"duplicate", "outside_frame", "degenerate"}
    assert {kind for line in manifest for kind in line["augmentation"] or ()} == {"clahe", "gaussian", "motion"}
    assert any(line["slivers"] for line in manifest)
    report = json.loads((datasets["prepare"] / "report.json").read_text())
    assert len(report["frames_skipped"]) == 1


def test_rules():
    rules = json.loads((FOLDER.parent / "dtld_tools" / "rules.json").read_text())
    assert schema("rules").is_valid(rules)


@pytest.mark.parametrize("name", ["DTLD_all", "Malang", "Surabaya"])
def test_the_real_label_files(name):
    needs_real()
    labels = json.loads((REAL / "DTLD_Labels_v2.0" / "v2.0" / f"{name}.json").read_text())
    assert schema("label_v2").is_valid(labels)


def without(value, *keys):
    value = copy.deepcopy(value)
    at = value
    for key in keys[:-1]:
        at = at[key]
    del at[keys[-1]]
    return value


def changed(value, new, *keys):
    value = copy.deepcopy(value)
    at = value
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = new
    return value


LABELS = {"images": [image("./A/A1/s/a.tiff", light(1, 2, 3, 4))]}
PLACE = ("images", 0, "labels", 0)


def test_a_label_file_by_hand():
    assert schema("label_v2").is_valid(LABELS)
    assert schema("label_v2").is_valid(changed(LABELS, "purple", *PLACE, "attributes", "state"))  # lenient in values


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"images": []},
        without(LABELS, "images", 0, "labels"),
        without(LABELS, "images", 0, "image_path"),
        *(without(LABELS, *PLACE, key) for key in ("x", "y", "w", "h", "attributes", "unique_id")),
        changed(LABELS, "1", *PLACE, "x"),
        changed(LABELS, 1.5, *PLACE, "unique_id"),
        changed(LABELS, 3, *PLACE, "attributes", "state"),
        changed(LABELS, [], *PLACE, "attributes"),
        changed(LABELS, 7, "images", 0, "image_path"),
    ],
)
def test_a_broken_label_file(broken):
    assert not schema("label_v2").is_valid(broken)


def refused(name, good):
    """The paths of the keys whose removal, or whose value's replacement by nonsense, the schema lets pass."""
    check = schema(name)
    assert check.is_valid(good)
    passed = [f"{key} removed" for key in good if check.is_valid(without(good, key))]
    passed += [f"{key} changed" for key in good if check.is_valid(changed(good, {"odd": [None]}, key))]
    if check.is_valid(good | {"unknown_key": 1}):
        passed.append("unknown_key added")
    return passed


def test_the_schemas_of_lines_and_report_are_strict(datasets):
    """No key may be absent, hold nonsense, or be added, at the top of each kind of file."""
    frame = next(line for line in read_lines(datasets["prepare"] / "frames.jsonl") if line["lights"])
    manifest = next(line for line in read_lines(datasets["prepare"] / "manifest.jsonl") if line["targets"])
    report = json.loads((datasets["prepare"] / "report.json").read_text())
    assert refused("frame", frame) == []
    assert refused("manifest", manifest) == []
    assert refused("report", report) == []
    assert refused("frame", without(frame, "lights") | {"lights": []}) == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("lights", "kept"), -1),
        (("lights", "dropped"), {"mood": 1}),
        (("lights", "dropped"), {"rule": 0}),
        (("images", "train"), 1.5),
        (("images",), {"train": 1, "val": 1}),
        (("classes",), {}),
        (("classes", "relevant", "targets", "dev"), 1),
        (("frames_skipped",), [{"frame": "a", "reason": "mood", "lights": 0}]),
        (("identity",), "abc"),
        (("configuration", "command"), "sample"),
        (("configuration", "extra"), 1),
        (("configuration", "tiles", "layout"), "quarters"),
        (("configuration", "split", "val"), 2),
        (("wall_time_s",), "1 s"),
    ],
)
def test_a_broken_report(datasets, keys, value):
    report = json.loads((datasets["prepare"] / "report.json").read_text())
    assert schema("report").is_valid(report)
    assert not schema("report").is_valid(changed(report, value, *keys))
