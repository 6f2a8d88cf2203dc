"""A small dataset for the tests of exports; nobody changes it."""

from __future__ import annotations

import pytest

from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from tests.dtld_data import make_tree, write_v2


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Halves of frames 120 px high at 96 px, a scale of 0.8: coordinates are no whole numbers; with copies."""
    root = tmp_path_factory.mktemp("raw")
    labels = write_v2(root / "all.json", make_tree(root, size_wh=(240, 120), lights=6))
    out = root / "tiles"
    spec, augment = TileSpec("halves", size_px=96), AugmentSpec(clahe=1)
    report = pipeline.prepare(Selection((labels,), root), out, SplitSpec(0.2, 0.2), spec, augment)
    assert min(report["images"].values()) > 0
    return out
