"""A sound dataset has no defects; every defect planted in one is found and named, and nothing else is."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dtld_tools.errors import DatasetError
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from dtld_tools.validation.validate import validate
from tests.dtld_data import image, light, read_lines, write_raw, write_v2
from tests.planted import defects, edit_lines, edit_report, first_label


def test_a_sound_dataset(sound):
    found = validate(sound, workers=2)
    assert found["defects"] == []
    manifest = read_lines(sound / "manifest.jsonl")
    assert found["images"] == len(manifest)
    assert found["frames"] == len(read_lines(sound / "frames.jsonl")) == 5
    assert found["targets"] == sum(len(m["targets"]) for m in manifest if not m["augmentation"]) > 0


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
