"""The options that several commands of `dtld` share, and how their texts become the values of the stages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from dtld_tools.augment import AugmentSpec
    from dtld_tools.pipeline import Run, Selection
    from dtld_tools.split import GroupBy, SplitSpec
    from dtld_tools.types import Layout, Split, TileSpec

Labels = Annotated[list[Path], typer.Argument(help="Label files: v2.0 .json or v1.0 .yml.", show_default=False)]
Dataset = Annotated[Path, typer.Argument(help="A dataset made by dtld.", show_default=False)]
Root = Annotated[Path, typer.Option(help="The folder that holds City/Route/Sequence/...", show_default=False)]
Out = Annotated[Path, typer.Option(help="The folder to write the dataset into.", show_default=False)]
Rules = Annotated[Path | None, typer.Option(help="A rule table (JSON or YAML) in place of the two classes.")]
Format = Annotated[Literal["jpg", "png"], typer.Option(help="JPEG (quality 95) or PNG (lossless).")]
Val = Annotated[float, typer.Option(help="Share of the frames for validation.")]
Test = Annotated[float, typer.Option(help="Share of the frames for test.")]
SplitBy = Annotated[Literal["sequence", "route", "city"], typer.Option(help="What is never divided between splits.")]
ValCities = Annotated[str, typer.Option(metavar="A,B", help="Cities for validation; decides before shares.")]
TestCities = Annotated[str, typer.Option(metavar="A,B", help="Cities for test; decides before shares.")]
SplitFile = Annotated[Path | None, typer.Option(help="Lines 'City/Route/Sequence split'; decides alone.")]
Cities = Annotated[str, typer.Option(metavar="A,B", help="Only frames of these cities.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N frames in sorted order.")]
Symlinks = Annotated[bool, typer.Option("--follow-symlinks", help="Allow links that lead out of --root.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first frame that cannot be read.")]
TileSize = Annotated[int, typer.Option(help="Side of a tile in pixels.")]
Overlap = Annotated[float, typer.Option(help="Least overlap of neighbouring tiles (grid).")]
Layout = Annotated[Literal["grid", "halves"], typer.Option(help="Native windows, or two squares resized.")]
MinVisible = Annotated[float, typer.Option(help="Least visible share of a box that becomes a target.")]
MinSide = Annotated[float, typer.Option(help="Least shorter side of a target, in tile pixels.")]
EmptyRatio = Annotated[
    str,
    typer.Option(metavar="SHARE|all", help="Empty training tiles kept, as a share of those with targets."),
]
Clahe = Annotated[float, typer.Option(help="Probability of CLAHE on lightness, per copy.")]
Blur = Annotated[float, typer.Option(help="Probability of Gaussian or motion blur, per copy.")]
Copies = Annotated[int, typer.Option(help="Changed copies tried per image.")]
AugmentSplits = Annotated[str, typer.Option(metavar="train[,val]", help="Splits that get copies.")]
Seed = Annotated[int, typer.Option(help="Decides splits, empty tiles and copies.")]
Workers = Annotated[int | None, typer.Option(help="Processes; the result does not depend on it.  [default: cores]")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another dataset in --out.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


# --- options to values -----------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def cores(workers: int | None) -> int:
    """``--workers``, or the cores that this process may use. Raises UsageError."""
    from dtld_tools.errors import UsageError

    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UsageError(f"--workers: got {workers}, expected 1 or more")
    return workers


def quiet(context: typer.Context) -> bool:
    """Whether ``--quiet`` stands on the line."""
    return (context.obj or {}).get("quiet", False)


def run(context: typer.Context, workers: int | None, overwrite: bool, strict: bool = False) -> Run:
    """How to carry a plan out."""
    from dtld_tools.pipeline import Run

    return Run(cores(workers), overwrite, strict, quiet(context))


def selection(
    labels: list[Path], root: Path, rules: Path | None, cities: str, limit: int | None, follow_symlinks: bool
) -> Selection:
    """Which frames of which label files."""
    from dtld_tools.pipeline import Selection

    return Selection(tuple(labels), root, rules, _names(cities), limit, follow_symlinks)


def split_spec(
    val: float, test: float, by: GroupBy, val_cities: str, test_cities: str, split_file: Path | None
) -> SplitSpec:
    """Which sequences go where."""
    from dtld_tools.split import SplitSpec

    return SplitSpec(val, test, by, _names(val_cities), _names(test_cities), split_file)


def tile_spec(layout: Layout, size: int, overlap: float, min_visible: float, min_side: float) -> TileSpec:
    """How frames become images."""
    from dtld_tools.types import TileSpec

    return TileSpec(layout, size, overlap, min_visible, min_side)


def augment_spec(clahe: float, blur: float, copies: int, splits: str) -> AugmentSpec:
    """Which copies are made."""
    from dtld_tools.augment import AugmentSpec

    chosen: tuple[Split, ...] = _names(splits)
    return AugmentSpec(clahe, blur, copies, chosen)


def empty_ratio(text: str) -> float | None:
    """``--empty-ratio``: a share, or None for all. Raises UsageError."""
    from dtld_tools.errors import UsageError

    try:
        ratio = None if text == "all" else float(text)
    except ValueError:
        ratio = -1
    if ratio is not None and not 0 <= ratio < float("inf"):
        raise UsageError(f"--empty-ratio: got {text!r}, expected a share such as 0.1, or all")
    return ratio
