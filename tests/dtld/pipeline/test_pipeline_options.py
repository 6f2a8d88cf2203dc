"""What the options of a run do, and what a stage refuses to take."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dtld_tools.errors import DatasetError, ImageError, UsageError
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Run, Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import SPLITS, TileSpec
from dtld_tools.validation.validate import validate
from tests.dtld_data import (
    frame_path,
    image,
    light,
    read_lines,
    tree_bytes,
    write_raw,
    write_v2,
)
from tests.small_runs import AUGMENT, SPLIT, TILES, label_images, lights_of, prepare, selection


def test_rules_of_ones_own(raw, prepared, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "classes: [stop, go]\nrules:\n- {class: drop, when: {direction: {not: [front]}}}\n"
        "- {class: stop, when: {state: [red, red_yellow]}}\n- {class: go}\n"
    )
    report = prepare(raw, tmp_path / "out", select=selection(raw, rules=rules))
    expected = sum(each["attributes"]["direction"] != "front" for _, each in lights_of(raw))
    dropped = report["lights"]["dropped"]
    assert 0 < dropped["rule"] <= expected <= dropped["rule"] + dropped.get("outside_frame", 0)
    assert list(report["classes"]) == ["stop", "go"]
    assert report["lights"]["in"] == prepared[1]["lights"]["in"]
    assert validate(tmp_path / "out")["defects"] == []


def test_limit_and_cities(raw, tmp_path):
    report = prepare(raw, tmp_path / "a", select=selection(raw, limit=6, cities=("Berlin",)))
    assert sum(report["frames"].values()) == 6
    assert {m["city"] for m in read_lines(tmp_path / "a/frames.jsonl")} == {"Berlin"}
    report = prepare(raw, tmp_path / "b", select=selection(raw, limit=5), split=SplitSpec(0, 0))
    assert [m["frame"] for m in read_lines(tmp_path / "b/frames.jsonl")] == sorted(
        e["image_path"][2:] for e in label_images(raw)
    )[:5]


def test_a_split_file_and_cities_decide(raw, tmp_path):
    lines = sorted({"/".join(e["image_path"].split("/")[1:4]) for e in label_images(raw)})
    chosen = dict(zip(lines, ["val", "train", "test", "train", "train", "val"], strict=True))
    (tmp_path / "splits.txt").write_text("".join(f"{name} {split}\n" for name, split in chosen.items()))
    prepare(raw, tmp_path / "out", split=SplitSpec(split_file=tmp_path / "splits.txt"))
    for line in read_lines(tmp_path / "out/frames.jsonl"):
        assert line["split"] == chosen[f"{line['city']}/{line['route']}/{line['sequence']}"]
    prepare(raw, tmp_path / "cities", split=SplitSpec(0.1, 0.2, test_cities=("Berlin",)))
    assert all((m["split"] == "test") == (m["city"] == "Berlin") for m in read_lines(tmp_path / "cities/frames.jsonl"))


def test_the_official_label_files_as_splits(raw, tmp_path):
    """As DTLD_train.json and DTLD_test.json are: by sequence; what is left is divided by shares."""
    by_sequence = sorted({entry["image_path"].rpartition("/")[0] for entry in label_images(raw)})
    test = [e for e in label_images(raw) if e["image_path"].startswith((f"{by_sequence[0]}/", f"{by_sequence[4]}/"))]
    rest = [entry for entry in label_images(raw) if entry not in test]
    write_v2(tmp_path / "test.json", test)
    spec = SplitSpec(0.2, 0.3)
    test_labels = (tmp_path / "test.json",)
    select = Selection((write_v2(tmp_path / "train.json", rest),), raw, test_labels=test_labels)
    report = prepare(raw, tmp_path / "out", split=spec, select=select)
    lines = read_lines(tmp_path / "out/frames.jsonl")
    assert {f["frame"] for f in lines if f["split"] == "test"} == {entry["image_path"][2:] for entry in test}
    assert {f["split"] for f in lines} == set(SPLITS)
    assert len(lines) == len(label_images(raw))
    assert report["configuration"]["split"]["test_labels"] == [str(tmp_path / "test.json")]
    among_all = selection(raw, test_labels=test_labels)
    prepare(raw, tmp_path / "same", split=spec, select=among_all)
    assert tree_bytes(tmp_path / "same") == tree_bytes(tmp_path / "out")
    prepare(raw, tmp_path / "spec", split=replace(spec, test_labels=test_labels))
    assert tree_bytes(tmp_path / "spec") == tree_bytes(tmp_path / "out")

    write_v2(tmp_path / "test.json", [*test, rest[0]])  # the other frame of its sequence stays in train
    with pytest.raises(DatasetError, match=r"stands in the test labels and in labels of other splits"):
        prepare(raw, tmp_path / "no", split=spec, select=select)
    write_v2(tmp_path / "test.json", test)
    with pytest.raises(DatasetError, match=r"stands in the test labels and in val labels"):
        prepare(raw, tmp_path / "no", split=spec, select=replace(among_all, val_labels=test_labels))
    with pytest.raises(UsageError, match="--split-file: decides alone"):
        prepare(raw, tmp_path / "no", split=SplitSpec(split_file=tmp_path / "splits.txt"), select=select)


def test_label_files_and_cities_that_disagree_are_refused(raw, tmp_path):
    berlin = write_v2(tmp_path / "b.json", [e for e in label_images(raw) if "/Berlin/" in e["image_path"]])
    select = selection(raw, test_labels=(berlin,))
    with pytest.raises(DatasetError, match=r"Berlin/.* is in val by its city and in test by its label file"):
        prepare(raw, tmp_path / "out", split=SplitSpec(0.1, 0.1, val_cities=("Berlin",)), select=select)


@pytest.mark.parametrize("staged", [False, True])
def test_slivers_are_painted_over_and_targets_are_not(tmp_path, staged):
    """Tiles of 128 px meet at x = 128: a light of 50 px shows 40 px on the left, 10 px on the right."""
    path = frame_path("Aachen", 1, 0)
    write_raw(tmp_path / path, np.random.default_rng(0), 256, 128)
    lights = [light(88, 32, 50, 40, 1), light(130, 50, 40, 40, 2), light(0, 0, 60, 1, 3)]  # the last: too low
    write_v2(tmp_path / "all.json", [image(path, *lights)])
    made, spec = {}, TileSpec(size_px=128, overlap=0)
    for name, tiles in (("plain", spec), ("masked", replace(spec, mask_partial=True))):
        out = tmp_path / name
        options = {"split": SplitSpec(0, 0), "empty_ratio": None}
        if staged:
            pipeline.convert(selection(tmp_path), tmp_path / f"full-{name}", options["split"], image_format="png")
            report = pipeline.tile(tmp_path / f"full-{name}", out, tiles, empty_ratio=None)
        else:
            report = prepare(tmp_path, out, tiles=tiles, augment=AugmentSpec(copies=0), **options)
        assert (report["slivers"], report["masked_slivers"]) == (2, 2 * (name == "masked"))
        assert validate(out)["defects"] == []
        made[name] = [cv2.imread(str(p)) for p in sorted((out / "images/train").iterdir())]
    left, right = made["plain"][0].copy(), made["plain"][1].copy()
    left[0:1, 0:60] = 114
    targets = right[50:90, 2:42].copy()
    right[32:72, 0:10] = 114  # columns 128 to 138 of the frame
    right[50:90, 2:42] = targets
    by_offset = sorted(read_lines(tmp_path / "masked/manifest.jsonl"), key=lambda m: m["window"]["x"])
    assert [(m["slivers"], m["masked"]) for m in by_offset] == [([3], [3]), ([1], [1])]
    np.testing.assert_array_equal(made["masked"][0], left)
    np.testing.assert_array_equal(made["masked"][1], right)


def test_splitting_anew_moves_whole_sequences_and_no_pixel(raw, prepared, tmp_path):
    pipeline.prepare(selection(raw), tmp_path / "tiles", SPLIT, TILES, AugmentSpec(copies=0), image_format="png")
    pipeline.split(tmp_path / "tiles", tmp_path / "anew", SplitSpec(0.5, 0, "city"), seed=3)
    before = {p.name: p.read_bytes() for p in (tmp_path / "tiles").rglob("*.*") if p.parent.name in SPLITS}
    after = {p.name: p.read_bytes() for p in (tmp_path / "anew").rglob("*.*") if p.parent.name in SPLITS}
    assert before == after
    assert {m["split"] for m in read_lines(tmp_path / "anew/frames.jsonl")} == {"train", "val"}
    assert len({(m["city"], m["split"]) for m in read_lines(tmp_path / "anew/frames.jsonl")}) == 2
    assert validate(tmp_path / "anew")["defects"] == []
    with pytest.raises(DatasetError, match=r"augmented copies such as .*split first, then augment"):
        pipeline.split(prepared[0], tmp_path / "no", SPLIT)


def test_stages_refuse_what_they_cannot_take(raw, prepared, tmp_path):
    tiles = tmp_path / "tiles"
    prepare(raw, tiles, augment=AugmentSpec(copies=0))
    with pytest.raises(DatasetError, match=r"is a tile or a copy, expected a dataset of dtld convert"):
        pipeline.tile(prepared[0], tmp_path / "out", TILES)
    with pytest.raises(DatasetError, match="augmented copies"):
        pipeline.augment(prepared[0], tmp_path / "out", AUGMENT)
    with pytest.raises(DatasetError, match="is the input"):
        pipeline.split(tiles, tiles, SPLIT)
    with pytest.raises(UsageError):
        prepare(tmp_path, tmp_path / "out", tiles=TileSpec(size_px=1))
    assert not (tmp_path / "out").exists()


def test_another_configuration_is_refused_until_overwritten(raw, prepared, tmp_path):
    out = Path(shutil.copytree(prepared[0], tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="another configuration"):
        prepare(raw, out, seed=9)
    assert tree_bytes(out, without=("report.json", "notes.txt")) == tree_bytes(prepared[0])
    prepare(raw, out, seed=9, run=Run(overwrite=True))
    prepare(raw, tmp_path / "fresh", seed=9)
    assert tree_bytes(out, without=("report.json", "notes.txt")) == tree_bytes(tmp_path / "fresh")
    assert (out / "notes.txt").read_text() == "mine"


def test_a_source_image_of_another_size_is_skipped_by_name(raw, tmp_path):
    pipeline.convert(selection(raw), tmp_path / "full", SPLIT, image_format="png")
    line = read_lines(tmp_path / "full/manifest.jsonl")[0]
    cv2.imwrite(str(tmp_path / "full/images" / line["split"] / line["name"]), np.zeros((64, 64, 3), np.uint8))
    report = pipeline.tile(tmp_path / "full", tmp_path / "out", TILES, empty_ratio=None)
    ((frame, reason),) = [(skip["frame"], skip["reason"]) for skip in report["frames_skipped"]]
    assert frame == line["frame"]
    assert reason.endswith("decoded to 64 x 64 pixels, expected 256 x 128")


def test_a_manifest_in_another_order_than_the_frames_is_refused(raw, tmp_path):
    pipeline.convert(selection(raw), tmp_path / "full", SPLIT)
    manifest = tmp_path / "full/manifest.jsonl"
    manifest.write_text("".join(sorted(manifest.read_text().splitlines(keepends=True), reverse=True)))
    with pytest.raises(DatasetError, match=r"manifest\.jsonl: .* is not in frames\.jsonl or not in its order"):
        pipeline.split(tmp_path / "full", tmp_path / "out", SPLIT)


def test_a_copy_that_would_have_an_originals_name_is_refused(tmp_path):
    """Whole frames named a.tiff and a_a1.tiff: the copy of the first would be written over the second."""
    root, rng = tmp_path / "raw", np.random.default_rng(0)
    names = [f"Aachen/Aachen1/2015-04-01_10-50-05/{name}.tiff" for name in ("a", "a_a1")]
    for name in names:
        write_raw(root / name, rng, 256, 128)
    labels = write_v2(root / "all.json", [image(name, light(10, 10, 20, 40)) for name in names])
    pipeline.convert(Selection((labels,), root), tmp_path / "full", SplitSpec(0, 0))
    expected = f"{names[0]}: a copy of its image would be named Aachen_.*_a_a1.jpg as that of {names[1]}; rename"
    with pytest.raises(DatasetError, match=expected):
        pipeline.augment(tmp_path / "full", tmp_path / "out", AugmentSpec(clahe=1))
    assert not (tmp_path / "out").exists()
    pipeline.augment(tmp_path / "full", tmp_path / "out", AugmentSpec(copies=0))
    assert validate(tmp_path / "out")["defects"] == []


def test_a_dataset_without_its_report_is_not_copied(raw, tmp_path):
    pipeline.convert(selection(raw), tmp_path / "full", SPLIT)
    (tmp_path / "full/report.json").unlink()
    with pytest.raises(DatasetError, match=r"report\.json: No such file.* unfinished or damaged"):
        pipeline.split(tmp_path / "full", tmp_path / "out", SPLIT)


def test_a_source_image_that_vanished_stops_augment(raw, tmp_path):
    pipeline.convert(selection(raw), tmp_path / "full", SPLIT)
    next((tmp_path / "full/images/train").iterdir()).unlink()
    with pytest.raises(ImageError, match=r"No such file.*dtld validate"):
        pipeline.augment(tmp_path / "full", tmp_path / "out", AUGMENT)
