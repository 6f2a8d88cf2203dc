"""Planting defects in a sound dataset: what the tests of `dtld validate` share."""

import json

import numpy as np

from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from dtld_tools.validation.validate import validate
from tests.dtld_data import image, light, make_tree, read_lines, write_raw, write_v2

SPLITS = (("Aachen", 1, "train"), ("Aachen", 2, "train"), ("Berlin", 1, "val"), ("Berlin", 2, "test"))


def write_sound_dataset(root, out):
    """Tiles with copies, lights of every fate: kept, slivers, dropped by rule, size, place and repetition."""
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
    select = Selection((root / "all.json",), root, rules)
    augment = AugmentSpec(clahe=1, copies=1)
    splits = root / "splits.txt"
    splits.write_text("".join(f"{city}/{city}1/2015-04-0{n}_10-50-05 {split}\n" for city, n, split in SPLITS))
    report = pipeline.prepare(
        select, out, SplitSpec(split_file=splits), TileSpec(size_px=96), augment, image_format="png"
    )
    assert set(report["lights"]["dropped"]) >= {"rule", "duplicate", "min_side", "outside_frame", "degenerate"}


def write_full_dataset(root, out):
    """Whole frames as JPEG."""
    write_v2(root / "all.json", make_tree(root, sequences=2, lights=4))
    pipeline.convert(Selection((root / "all.json",), root), out, SplitSpec(0.2, 0.2))


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
