"""Whole runs on small trees: accounting, determinism, staged = one pass, resume after a kill, refusals."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dtld_tools.errors import DatasetError, ImageError, LabelError
from dtld_tools.pipeline import render
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Run, Selection
from dtld_tools.pipeline.workers import Executor
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import SPLITS, TileSpec
from dtld_tools.validation.validate import validate
from tests.dtld_data import (
    REAL,
    frame_path,
    image,
    light,
    needs_real,
    random_raw,
    read_lines,
    tree_bytes,
    write_raw,
    write_v1,
    write_v2,
)
from tests.small_runs import AUGMENT, SPLIT, TILES, label_images, lights_of, prepare, selection

# --- accounting ------------------------------------------------------------------------------------------


def test_every_light_of_the_label_file_is_found_again(raw, prepared):
    out, report = prepared
    placed = Counter()
    for line in read_lines(out / "frames.jsonl"):
        for each in (*line["lights"], *line["dropped"]):
            placed[line["frame"], each["id"]] += 1
    assert placed == Counter((path, each["unique_id"]) for path, each in lights_of(raw))
    lights = report["lights"]
    assert lights["in"] == len(lights_of(raw)) == lights["kept"] + sum(lights["dropped"].values())
    assert lights["kept"] > 0
    assert lights["dropped"]


def test_every_light_has_its_attributes_in_its_line(raw, prepared):
    given = {(path, each["unique_id"]): each["attributes"] for path, each in lights_of(raw)}
    lines = read_lines(prepared[0] / "frames.jsonl")
    lights = [(line["frame"], each) for line in lines for each in (*line["lights"], *line["dropped"])]
    assert {(frame, each["id"]): each["attributes"] for frame, each in lights} == given
    assert any(line["dropped"] for line in lines)
    assert len({str(each) for each in given.values()}) > 4


def test_targets_of_the_manifest_are_the_lines_of_the_labels(prepared):
    out, report = prepared
    manifest = read_lines(out / "manifest.jsonl")
    lines = sum(
        len((out / "labels" / m["split"] / m["name"]).with_suffix(".txt").read_text().splitlines()) for m in manifest
    )
    assert lines == sum(len(m["targets"]) for m in manifest)
    originals = sum(len(m["targets"]) for m in manifest if m["augmentation"] is None)
    assert originals == sum(sum(c["targets"].values()) for c in report["classes"].values()) > 0


def test_files_and_manifest_are_the_same_images(prepared):
    out, _ = prepared
    listed = {f"{m['split']}/{m['name']}" for m in read_lines(out / "manifest.jsonl")}
    assert {p.relative_to(out / "images").as_posix() for p in (out / "images").rglob("*.*")} == listed
    labels = {p.relative_to(out / "labels").with_suffix(".png").as_posix() for p in (out / "labels").rglob("*.*")}
    assert labels == listed
    assert sorted(p.name for p in out.iterdir()) == [
        "data.yaml", "frames.jsonl", "images", "labels", "manifest.jsonl", "report.json",
    ]  # fmt: skip


def test_no_sequence_is_in_two_splits(prepared):
    out, _ = prepared
    pairs = {(m["city"], m["route"], m["sequence"], m["split"]) for m in read_lines(out / "frames.jsonl")}
    assert len(pairs) == len({pair[:3] for pair in pairs}) == 6
    assert {pair[3] for pair in pairs} == set(SPLITS)


def test_an_image_is_its_window_of_the_decoded_frame(raw, prepared):
    out, _ = prepared
    originals = [m for m in read_lines(out / "manifest.jsonl") if m["augmentation"] is None]
    for line in originals[:: len(originals) // 8]:
        frame = cv2.cvtColor(cv2.imread(str(raw / line["frame"]), cv2.IMREAD_UNCHANGED), cv2.COLOR_BAYER_GB2BGR)
        frame = (frame >> 4).astype(np.uint8)
        x, y, w, h = (line["window"][key] for key in "xywh")
        pixels = cv2.imread(str(out / "images" / line["split"] / line["name"]))
        np.testing.assert_array_equal(pixels, frame[y : y + h, x : x + w])  # no box is painted in, either


def test_a_label_by_hand(tmp_path):
    """A light over the frame's left edge, 20 of 30 px inside, in one tile of 128 px."""
    path = frame_path("Aachen", 1, 0)
    write_raw(tmp_path / path, np.random.default_rng(0), 256, 128)
    write_v2(tmp_path / "all.json", [image(path, light(-10, 32, 30, 64, 5))])
    prepare(
        tmp_path, tmp_path / "out", split=SplitSpec(0, 0), tiles=TileSpec(size_px=128), augment=AugmentSpec(copies=0)
    )
    (name,) = [p for p in (tmp_path / "out/labels/train").iterdir() if p.read_text()]
    assert name.name == "Aachen_Aachen1_2015-04-01_10-50-05_DE_Aachen_000000_k0_x0_y0.txt"
    assert name.read_text() == "0 0.078125 0.500000 0.156250 0.500000\n"  # x 0..20, y 32..96 of 128


def test_red_yellow_is_relevant(tmp_path):
    path = frame_path("Aachen", 1, 0)
    write_raw(tmp_path / path, np.random.default_rng(0), 256, 128)
    write_v2(tmp_path / "all.json", [image(path, light(10, 10, 20, 40, 1, state="red_yellow"))])
    report = pipeline.convert(selection(tmp_path), tmp_path / "out", SplitSpec(0, 0))
    assert {name: counts["lights"] for name, counts in report["classes"].items()} == {"relevant": 1, "not_relevant": 0}


# --- determinism -----------------------------------------------------------------------------------------


def test_two_workers_write_the_same_bytes(raw, prepared, tmp_path):
    prepare(raw, tmp_path / "out", run=Run(Executor(2)))
    assert tree_bytes(tmp_path / "out") == tree_bytes(prepared[0])


def test_another_seed_writes_another_dataset(raw, prepared, tmp_path):
    prepare(raw, tmp_path / "out", seed=1)
    assert tree_bytes(tmp_path / "out") != tree_bytes(prepared[0])


def test_jpeg_is_deterministic_too(raw, tmp_path):
    for name in ("a", "b"):
        prepare(raw, tmp_path / name, image_format="jpg")
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")
    assert {p.suffix for p in (tmp_path / "a/images").rglob("*.*")} == {".jpg"}


def test_a_moved_dataset_is_the_same(prepared, tmp_path):
    moved = Path(shutil.copytree(prepared[0], tmp_path / "moved"))
    assert validate(moved)["defects"] == []


@pytest.mark.parametrize("layout", ["grid", "halves"])
def test_staged_equals_one_pass(raw, tmp_path, layout):
    tiles = replace(TILES, layout=layout)
    prepare(raw, tmp_path / "once", tiles=tiles)
    pipeline.convert(selection(raw), tmp_path / "full", SPLIT, image_format="png")
    pipeline.tile(tmp_path / "full", tmp_path / "tiles", tiles, empty_ratio=0.5, run=Run(Executor(2)))
    pipeline.augment(tmp_path / "tiles", tmp_path / "staged", AUGMENT)
    assert tree_bytes(tmp_path / "staged") == tree_bytes(tmp_path / "once")
    assert any(m["augmentation"] for m in read_lines(tmp_path / "once/manifest.jsonl"))


def test_v1_and_v2_labels_give_the_same_lines(raw, tmp_path):
    images = label_images(raw)
    for each in (each for entry in images for each in entry["labels"]):
        del each["attributes"]["reflection"]  # which v1.0 does not know
    v1, v2 = write_v1(tmp_path / "all.yml", images), write_v2(tmp_path / "all.json", images)
    for name, labels in (("v1", v1), ("v2", v2)):
        prepare(raw, tmp_path / name, select=Selection((labels,), raw))
    assert tree_bytes(tmp_path / "v1") == tree_bytes(tmp_path / "v2")


def test_stale_paths_and_several_files_give_the_same_dataset(raw, prepared, tmp_path):
    images = label_images(raw)
    stale = [entry | {"image_path": f"/scratch/fs2/DTLD_final/{entry['image_path'][2:]}"} for entry in images]
    one, other = write_v2(tmp_path / "one.json", stale[:8]), write_v2(tmp_path / "other.json", images[5:])
    prepare(raw, tmp_path / "out", select=Selection((other, one), raw))
    assert tree_bytes(tmp_path / "out") == tree_bytes(prepared[0])


# --- resume ----------------------------------------------------------------------------------------------


def test_deleted_images_and_labels_are_made_again(raw, prepared, tmp_path):
    out = Path(shutil.copytree(prepared[0], tmp_path / "out"))
    images, labels = sorted((out / "images").rglob("*.png")), sorted((out / "labels").rglob("*.txt"))
    for path in (*images[::3], *labels[1::4]):
        path.unlink()
    (out / "manifest.jsonl").unlink()
    untouched = images[2]
    before = untouched.stat().st_mtime_ns
    prepare(raw, out)
    assert tree_bytes(out) == tree_bytes(prepared[0])
    assert untouched.stat().st_mtime_ns == before


def test_images_that_are_there_are_not_made_again(raw, prepared, tmp_path, monkeypatch):
    out = Path(shutil.copytree(prepared[0], tmp_path / "out"))
    monkeypatch.setattr(render, "read_image", lambda path: pytest.fail(f"{path} was decoded"))
    prepare(raw, out)
    assert tree_bytes(out) == tree_bytes(prepared[0])


# --- frames that cannot be read --------------------------------------------------------------------------


def damage(root, index, content=None):
    """Remove the index-th frame, or replace its bytes; returns its path and the number of its lights."""
    entry = sorted(label_images(root), key=lambda each: each["image_path"])[index]
    path = root / entry["image_path"]
    path.unlink() if content is None else path.write_bytes(content(path.read_bytes()))
    return entry["image_path"][2:], len(entry["labels"])


def hidden_damage(data):
    """The header still says the size; the pixels are gone."""
    image_file_directory = int.from_bytes(data[4:8], "little")
    return data[:8] + bytes(image_file_directory - 8) + data[image_file_directory:]


@pytest.mark.parametrize("workers", [1, 2])
def test_skipped_frames_are_named_and_their_lights_counted(own_raw, tmp_path, workers):
    missing, n_missing = damage(own_raw, 0)
    empty, n_empty = damage(own_raw, 3, lambda data: b"")
    hidden, n_hidden = damage(own_raw, 7, hidden_damage)
    report = prepare(own_raw, tmp_path / "out", empty_ratio=None, run=Run(Executor(workers)))
    skipped = {skip["frame"]: skip for skip in report["frames_skipped"]}
    assert set(skipped) == {missing, empty, hidden}
    assert skipped[missing]["reason"] == "missing"
    assert skipped[empty]["reason"].startswith("unreadable: ")
    assert skipped[hidden]["reason"].startswith("unreadable: ")
    lights = report["lights"]
    assert lights["in_skipped_frames"] == n_missing + n_empty + n_hidden
    assert (
        lights["in"]
        == len(lights_of(own_raw))
        == lights["kept"] + sum(lights["dropped"].values()) + lights["in_skipped_frames"]
    )
    names = {m["frame"] for kind in ("frames", "manifest") for m in read_lines(tmp_path / f"out/{kind}.jsonl")}
    assert len(names) == 9
    assert not names & set(skipped)
    stems = ["_".join(name.split("/")).removesuffix(".tiff") for name in skipped]
    assert not [p for stem in stems for p in (tmp_path / "out").rglob(f"{stem}*")]
    assert validate(tmp_path / "out")["defects"] == []


@pytest.mark.parametrize("how", [None, lambda data: b"", hidden_damage])
def test_strict_stops(own_raw, tmp_path, how):
    name, _ = damage(own_raw, 4, how)
    with pytest.raises(ImageError, match=Path(name).stem):
        prepare(own_raw, tmp_path / "out", empty_ratio=None, run=Run(strict=True))


def test_a_frame_that_comes_back_is_made_on_the_next_run(own_raw, raw, tmp_path):
    name, _ = damage(own_raw, 7, hidden_damage)
    assert len(prepare(own_raw, tmp_path / "out", empty_ratio=None)["frames_skipped"]) == 1
    shutil.copy(raw / name, own_raw / name)
    assert prepare(own_raw, tmp_path / "out", empty_ratio=None)["frames_skipped"] == []
    prepare(raw, tmp_path / "whole", empty_ratio=None)
    assert tree_bytes(tmp_path / "out") == tree_bytes(tmp_path / "whole")


def test_a_frame_that_breaks_between_two_runs_leaves_no_image_behind(own_raw, tmp_path):
    out = tmp_path / "out"
    prepare(own_raw, out, empty_ratio=None)
    name, _ = damage(own_raw, 7, hidden_damage)
    lines = [m for m in read_lines(out / "manifest.jsonl") if m["frame"] == name]
    assert len(lines) > 2
    (out / "images" / lines[-1]["split"] / lines[-1]["name"]).unlink()
    assert [skip["frame"] for skip in prepare(own_raw, out, empty_ratio=None)["frames_skipped"]] == [name]
    assert validate(out)["defects"] == []  # no file that the manifest does not list


def test_all_unreadable_is_an_error_and_leaves_no_dataset(own_raw, tmp_path):
    for index in range(12):
        damage(own_raw, index, hidden_damage)
    with pytest.raises(DatasetError, match="none of 12 frames could be read; the first: unreadable"):
        prepare(own_raw, tmp_path / "out", empty_ratio=None)
    assert not any((tmp_path / "out").iterdir())


# --- frames of other kinds -------------------------------------------------------------------------------


def test_small_frames_are_padded_and_counted(tmp_path):
    path = frame_path("Aachen", 1, 0)
    write_raw(tmp_path / path, np.random.default_rng(0), 80, 60)
    write_v2(tmp_path / "all.json", [image(path, light(70, 50, 20, 20, 1))])
    report = prepare(tmp_path, tmp_path / "out", split=SplitSpec(0, 0), augment=AugmentSpec(copies=0))
    assert report["padded_frames"] == 1
    (made,) = (tmp_path / "out/images/train").iterdir()
    pixels = cv2.imread(str(made))
    assert pixels.shape == (96, 96, 3)
    assert (pixels[60:] == 114).all()
    # The light ends with the frame, not with the padding: 70..80 and 50..60 of 96.
    (label,) = (tmp_path / "out/labels/train").iterdir()
    assert label.read_text() == "0 0.781250 0.572917 0.104167 0.104167\n"


def test_colour_frames_and_a_doubly_nested_city(tmp_path):
    rng = np.random.default_rng(0)
    paths = {
        "Berlin/Berlin1/s/a.png": rng.integers(0, 256, (128, 256, 3), dtype=np.uint8),
        "Berlin/Berlin1/s/b.jpg": rng.integers(0, 256, (128, 256, 3), dtype=np.uint8),
        "Berlin/Berlin1/s/grey.png": rng.integers(0, 256, (128, 256), dtype=np.uint8),
        "Berlin/Berlin1/s/alpha.png": rng.integers(0, 256, (128, 256, 4), dtype=np.uint8),
        "Bonn/Bonn1/s/raw.tiff": random_raw(rng, 256, 128),
    }
    for path, pixels in paths.items():
        where = tmp_path / (path if path.startswith("Berlin") else f"Bonn/{path}")
        where.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(where), pixels)
    write_v2(tmp_path / "all.json", [image(path, light(20, 20, 20, 40, n)) for n, path in enumerate(paths)])
    report = pipeline.convert(selection(tmp_path), tmp_path / "out", SplitSpec(0, 0), image_format="png")
    assert report["frames_skipped"] == []
    images = {p.name: cv2.imread(str(p)) for p in (tmp_path / "out/images/train").iterdir()}
    np.testing.assert_array_equal(images["Berlin_Berlin1_s_a.png"], paths["Berlin/Berlin1/s/a.png"])
    assert "Bonn_Bonn1_s_raw.png" in images
    assert [m["frame"] for m in read_lines(tmp_path / "out/frames.jsonl")][-1] == "Bonn/Bonn/Bonn1/s/raw.tiff"
    pipeline.tile(tmp_path / "out", tmp_path / "tiles", TILES)
    assert validate(tmp_path / "tiles")["defects"] == []


def test_links_out_of_the_root(own_raw, tmp_path):
    shutil.move(own_raw / "Aachen", tmp_path / "elsewhere")
    (own_raw / "Aachen").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabelError, match="--follow-symlinks"):
        prepare(own_raw, tmp_path / "out")
    assert prepare(own_raw, tmp_path / "out", select=selection(own_raw, follow_symlinks=True))["frames_skipped"] == []


# --- the real photographs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "targets"), [("grid", 146), ("halves", 65)])
def test_the_real_photographs(tmp_path, layout, targets):
    needs_real()
    labels = tuple(sorted((REAL / "DTLD_Labels_v2.0" / "v2.0").glob("*.json")))
    report = pipeline.prepare(
        Selection(labels, REAL),
        tmp_path / "out",
        SplitSpec(),
        TileSpec(layout=layout),
        AugmentSpec(copies=0),
        empty_ratio=0,
        run=Run(Executor(2)),
    )
    assert report["lights"] == {"in": 65, "kept": 65, "dropped": {}, "in_skipped_frames": 0}
    assert sum(sum(c["targets"].values()) for c in report["classes"].values()) == targets
    assert report["frames_skipped"] == []
    assert validate(tmp_path / "out", workers=2)["defects"] == []
