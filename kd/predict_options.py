"""The options of `kd predict --tiled`, each declared once: name, type, default and help text.

Invariant: standard library alone; sizes and overlap have the defaults of `dtld tile`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from kd.train_options import Batch
from schemas.option_groups import Option


@dataclass(frozen=True)
class TiledOptions:
    """The options in the order of their help; all but the first are for it alone."""

    tiled: Annotated[bool, Option("Look at whole frames and videos tile by tile, as dtld tile cuts them.")] = False
    tile_size: Annotated[int, Option("Side of a tile in pixels.")] = 640
    overlap: Annotated[float, Option("Least overlap of neighbouring tiles.")] = 0.2
    batch: Batch = 16
    sparse: Annotated[bool, Option("Skip tiles where the frame before showed nothing.")] = False
    save_txt: Annotated[Path | None, Option("A new folder for YOLO labels with confidences.", metavar="DIR")] = None
    coco: Annotated[Path | None, Option("COCO results to write (.json).", metavar="FILE")] = None
