"""`--disparity`: lights get their distances in every stage, and what has none is counted and named."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from jsonschema import Draft7Validator

import schemas
from dtld_tools.errors import DatasetError, ImageError, LabelError, UsageError
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Run, Selection
from dtld_tools.pixels.disparity import Stereo
from dtld_tools.planning.split import SplitSpec
from dtld_tools.synthetic.sample import plan_tree, sample
from dtld_tools.validation.validate import validate
from tests.dtld_data import light, read_lines, tree_bytes, write_v1, write_v2
from tests.small_runs import AUGMENT, SPLIT, TILES, label_images, prepare, selection

NEAR, FAR = 2.96, 11.85  # metres of 10 and of 2.5 px in disparity images of 128 px


@pytest.fixture(scope="module")
def tree(raw, tmp_path_factory):
    """The tree with disparity images: left half near, right half far; labels name them, stale folders before."""
    root = Path(shutil.copytree(raw, tmp_path_factory.mktemp("disparity") / "raw"))
    disparity = np.full((64, 128), 160, np.uint16)
    disparity[:, 64:] = 40
    images = label_images(root)
    for entry in images:
        path = entry["image_path"].replace("_k0.tiff", "_nativeV2.tiff")
        cv2.imwrite(str(root / path), disparity)
        entry["disparity_image_path"] = f"/scratch/old/{path[2:]}"
    images[0]["labels"].append(light(300, 9, 4, 9, 999))  # outside: dropped without a box
    write_v2(root / "all.json", images)
    return root


def stereo_selection(root, **changes):
    return selection(root, stereo=Stereo(), **changes)


def convert(root, out, strict=False, **changes):
    return pipeline.convert(stereo_selection(root, **changes), out, SPLIT, run=Run(strict=strict))


def lights_in(out):
    return [light for line in read_lines(out / "frames.jsonl") for light in (*line["lights"], *line["dropped"])]


def test_every_light_with_a_box_has_its_distance_and_the_dataset_is_sound(tree, tmp_path):
    report = convert(tree, tmp_path / "out")
    found = lights_in(tmp_path / "out")
    assert {each["distance_m"] for each in found if "box" in each} == {NEAR, FAR}
    assert all(each["distance_m"] == (NEAR if each["box"][2] < 120 else FAR) for each in found
               if "box" in each and not (each["box"][0] < 136 and each["box"][2] > 116))  # fmt: skip
    assert [each for each in found if "box" not in each and "distance_m" in each] == []
    kept = [each for line in read_lines(tmp_path / "out/frames.jsonl") for each in line["lights"]]
    assert report["lights_with_distance"] == len(kept) == report["lights"]["kept"]
    assert report["configuration"]["disparity"] == {"baseline_m": 0.208828, "focal_px": 2269.699585}
    assert validate(tmp_path / "out")["defects"] == []
    written = json.loads((tmp_path / "out/report.json").read_text())
    for name, lines in (("frame", read_lines(tmp_path / "out/frames.jsonl")), ("report", [written])):
        assert [e.message for line in lines for e in Draft7Validator(schemas.load(name)).iter_errors(line)] == []


def test_without_the_option_there_are_none(tree, tmp_path):
    report = pipeline.convert(selection(tree), tmp_path / "out", SPLIT)
    assert not any("distance_m" in each for each in lights_in(tmp_path / "out"))
    assert "lights_with_distance" not in report
    with pytest.raises(DatasetError, match="another configuration"):
        convert(tree, tmp_path / "out")


def test_staged_equals_one_pass_and_v1_has_them_too(tree, tmp_path):
    prepare(tree, tmp_path / "once", select=stereo_selection(tree))
    pipeline.convert(stereo_selection(tree), tmp_path / "full", SPLIT, image_format="png")
    pipeline.tile(tmp_path / "full", tmp_path / "tiles", TILES, empty_ratio=0.5)
    report = pipeline.augment(tmp_path / "tiles", tmp_path / "staged", AUGMENT)
    assert tree_bytes(tmp_path / "staged") == tree_bytes(tmp_path / "once")
    assert any("distance_m" in each for each in lights_in(tmp_path / "staged") if "reason" in each)
    assert report["lights_with_distance"] > 10

    images = label_images(tree)
    v1 = write_v1(tmp_path / "all.yml", images)
    paths = {entry["image_path"]: entry["disparity_image_path"] for entry in images}
    text = "".join(
        line + (f"  disp_path: {paths[line.split()[-1]]}\n" if line.startswith("- path:") else "")
        for line in v1.read_text().splitlines(keepends=True)
    )
    v1.write_text(text)
    pipeline.convert(Selection((v1,), tree, stereo=Stereo()), tmp_path / "v1", SPLIT)
    for one, other in zip(lights_in(tmp_path / "full"), lights_in(tmp_path / "v1"), strict=True):
        assert one.get("distance_m") == other.get("distance_m")


@pytest.fixture
def damaged(tree, tmp_path):
    return Path(shutil.copytree(tree, tmp_path / "raw"))


def test_a_missing_and_a_broken_image_are_named_and_strict_stops(damaged, tmp_path):
    first, second, *_ = sorted(damaged.rglob("*_nativeV2.tiff"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:200])
    report = convert(damaged, tmp_path / "out")
    missing, broken = report["notes"]
    assert missing.startswith("1 frames have no disparity image, such as Aachen/")
    assert f"tried {first} and " in missing
    assert broken.startswith(f"1 disparity images cannot be read, so their lights have no distance: {second}: ")
    assert 0 < report["lights_with_distance"] < report["lights"]["kept"]
    assert report["frames_skipped"] == []
    cv2.imwrite(str(second), np.full((64, 96), 160, np.uint16))
    (_, cut) = convert(damaged, tmp_path / "cut")["notes"]
    assert f"{second}: got a width of 96 pixels, expected 1024, or half its frame's 256" in cut
    second.write_bytes(b"II*\0")
    assert validate(tmp_path / "out")["defects"] == []
    with pytest.raises(ImageError, match=r"no disparity image .tried .*; leave out --strict"):
        convert(damaged, tmp_path / "strict", strict=True)
    shutil.copy(sorted(damaged.rglob("*_nativeV2.tiff"))[-1], first)
    with pytest.raises(ImageError, match=str(second)):
        convert(damaged, tmp_path / "strict", strict=True)
    shutil.copy(first, second)
    assert convert(damaged, tmp_path / "strict", strict=True)["notes"] == []


def test_all_missing_is_an_error(damaged, tmp_path):
    for path in damaged.rglob("*_nativeV2.tiff"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"none of 12 frames has its disparity image .tried "):
        convert(damaged, tmp_path / "out")


def test_labels_that_name_none_or_one_outside_the_root(damaged, tmp_path):
    images = label_images(damaged)
    for entry in images:
        del entry["disparity_image_path"]
    write_v2(damaged / "all.json", images)
    with pytest.raises(DatasetError, match="its labels name none"):
        convert(damaged, tmp_path / "out")
    images[0]["disparity_image_path"] = "../../../../etc/passwd"
    write_v2(damaged / "all.json", images)
    with pytest.raises(LabelError, match=r"disparity_image_path: got .*, which leaves the dataset's root"):
        convert(damaged, tmp_path / "out")
    pipeline.convert(selection(damaged), tmp_path / "plain", SPLIT)  # who does not read them is not stopped by them


def test_an_import_has_none(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: images\n")
    with pytest.raises(UsageError, match="--disparity: is for DTLD's"):
        convert(tmp_path, tmp_path.parent / "out", labels=(tmp_path / "data.yaml",))


def test_the_command_takes_and_refuses_the_options(tree, tmp_path, dtld):
    common = ("convert", tree / "all.json", "--root", tree, "--workers", 1)
    code, printed, err = dtld(*common, "--out", tmp_path / "out", "--disparity", "--baseline", "0.417656")
    assert (code, err) == (0, "")
    assert "lights have a distance\n" in printed
    assert {each.get("distance_m") for each in lights_in(tmp_path / "out")} == {None, 2 * NEAR, 2 * FAR}
    code, _, err = dtld(*common, "--out", tmp_path / "other", "--focal-length", "2000")
    assert (code, err) == (2, "error: --focal-length: got it without --disparity, expected both or neither\n")


def test_a_drawn_tree_gets_disparity_images_later_and_they_measure_what_was_drawn(tmp_path):
    """Lights that nothing hides are as far as the scene has them, to the step of a disparity."""
    root = tmp_path / "raw"
    sample(root, 2)
    before = tree_bytes(root)
    sample(root, 2, disparity=True)
    after = tree_bytes(root)
    assert {name: after[name] for name in before} == before
    assert [name[-14:] for name in after.keys() - before.keys()] == ["_nativeV2.tiff"] * 2
    labels = root / "DTLD_Labels_v2.0/v2.0/DTLD_all.json"
    pipeline.convert(Selection((labels,), root, stereo=Stereo()), tmp_path / "out", SplitSpec(0, 0))
    lights = {number: (frame, seen) for frame in plan_tree(2, 0) for number, seen in frame.lights}
    compared = 0
    for each in lights_in(tmp_path / "out"):
        frame, seen = lights[each["id"]]
        depth = frame.sequence.scene().cameras[frame.step].depth(seen.signal.z)
        if seen.visible == 1:
            assert each["distance_m"] == pytest.approx(depth, rel=0.0005 * depth)  # a step is 1/16 of 237 m / depth
            compared += 1
    assert compared > 3
