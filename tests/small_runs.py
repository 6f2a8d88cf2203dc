"""Runs of the pipeline on a small tree: what its tests share."""

import json
from dataclasses import replace

from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec

SPLIT = SplitSpec(0.2, 0.3)
TILES = TileSpec(size_px=96, overlap=0.2, min_visible=0.4, min_side_px=2)
AUGMENT = AugmentSpec(clahe=0.5, blur=0.5, copies=2, splits=("train", "val"))


def selection(root, **changes):
    return replace(Selection((root / "all.json",), root), **changes)


def prepare(root, out, *, split=SPLIT, tiles=TILES, augment=AUGMENT, select=None, **options):
    options = {"empty_ratio": 0.5, "image_format": "png", **options}
    return pipeline.prepare(select or selection(root), out, split, tiles, augment, **options)


def lights_of(root):
    return [(entry["image_path"][2:], each) for entry in label_images(root) for each in entry["labels"]]


def label_images(root):
    return json.loads((root / "all.json").read_text())["images"]
