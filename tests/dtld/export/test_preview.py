"""The contact sheet shows what a trainer will see: as many images and boxes as the label files hold."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from dtld_tools.errors import DatasetError, ImageError, UsageError
from dtld_tools.export.preview import preview, read_boxes
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import Box, TileSpec
from tests.dtld_data import make_tree, read_lines, write_v2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_v2(root / "all.json", make_tree(root, lights=4))
    out = root / "tiles"
    select = Selection((root / "all.json",), root)
    pipeline.prepare(select, out, SplitSpec(0.2, 0), TileSpec(size_px=96), AugmentSpec(clahe=1), empty_ratio=0.1)
    return out


@pytest.fixture
def tiles(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "tiles"))


def boxes_in(root, split):
    return [len(path.read_text().splitlines()) for path in (root / "labels" / split).iterdir()]


def test_a_sheet_of_everything_counts_every_box(tiles, tmp_path):
    shown = preview(tiles, tmp_path / "sheet.png", count=100)
    assert shown == {"images": len(boxes_in(tiles, "train")), "boxes": sum(boxes_in(tiles, "train"))}


def test_images_with_lights_go_first(tiles, tmp_path):
    with_lights = sum(n > 0 for n in boxes_in(tiles, "val"))
    assert 0 < with_lights < len(boxes_in(tiles, "val"))
    assert preview(tiles, tmp_path / "a.png", count=with_lights, split="val")["boxes"] == sum(boxes_in(tiles, "val"))
    assert preview(tiles, tmp_path / "b.png", count=1, split="val")["boxes"] > 0


def test_the_boxes_are_drawn(tiles, tmp_path):
    preview(tiles, tmp_path / "with.png", count=4)
    for path in (tiles / "labels/train").iterdir():
        path.write_text("")
    assert preview(tiles, tmp_path / "without.png", count=4) == {"images": 4, "boxes": 0}
    pictures = [cv2.imread(str(tmp_path / name)).astype(int) for name in ("with.png", "without.png")]
    assert pictures[0].shape == pictures[1].shape
    changed = np.abs(pictures[0] - pictures[1]).max(axis=2) > 0
    assert 0.0005 < changed.mean() < 0.2


def test_the_dataset_stays_as_it_is(tiles, tmp_path):
    before = {p: p.read_bytes() for p in tiles.rglob("*") if p.is_file()}
    preview(tiles, tmp_path / "sheet.png")
    assert {p: p.read_bytes() for p in tiles.rglob("*") if p.is_file()} == before


def test_what_cannot_be_shown_is_named(tiles, tmp_path):
    with pytest.raises(DatasetError, match="no images in test, choose another --split"):
        preview(tiles, tmp_path / "sheet.png", split="test")
    with pytest.raises(UsageError, match=r"--out: got the ending '\.xyz'"):
        preview(tiles, tmp_path / "sheet.xyz")
    with pytest.raises(DatasetError, match=r"data\.yaml: No such file"):
        preview(tmp_path, tmp_path / "sheet.png")
    name = next(m["name"] for m in read_lines(tiles / "manifest.jsonl") if m["split"] == "val")
    (tiles / "images/val" / name).write_bytes(b"")
    with pytest.raises(ImageError, match=name.replace(".", r"\.")):
        preview(tiles, tmp_path / "sheet.png", split="val", count=100)


def test_a_label_file_back_to_boxes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 0.5 0.5 0.5 1.0\n0 0.1 0.2 0.2 0.4\n")
    (one, other) = read_boxes(path, (200, 100))
    assert one == (1, Box(50, 0, 150, 100))
    assert other[0] == 0
    assert other[1] == pytest.approx((0, 0, 40, 40))


@pytest.mark.parametrize("text", ["1 0.5 0.5 0.5", "x 0.5 0.5 0.5 0.5", "0 a b c d", "\n", "0 1 2 3 4 5"])
def test_a_line_that_is_no_box(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{text}\n")
    with pytest.raises(DatasetError, match=r"a\.txt: line 2: got .*, expected 'class xc yc w h'"):
        read_boxes(path, (10, 10))


def test_a_label_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        read_boxes(tmp_path / "nowhere.txt", (10, 10))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match=r"a\.txt: is no text"):
        read_boxes(tmp_path / "a.txt", (10, 10))
