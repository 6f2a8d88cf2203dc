"""The options that several commands of `dtld` share, and how their texts become the values of the stages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from dtld_tools.pipeline.stages import Run, Selection
    from dtld_tools.pixels.augment import AugmentSpec
    from dtld_tools.planning.split import GroupBy, SplitSpec
    from dtld_tools.types import Layout, Split, TileSpec

LARGEST = 2**63 - 1  # what a whole number in report.json may be
MOST_WORKERS = 1024  # more than any machine's cores; each is a process

Labels = Annotated[list[Path], typer.Argument(help="Label files: v2.0 .json or v1.0 .yml.", show_default=False)]
Dataset = Annotated[Path, typer.Argument(help="A dataset made by dtld.", show_default=False)]
Root = Annotated[Path, typer.Option(help="The folder that holds City/Route/Sequence/...", show_default=False)]
Out = Annotated[Path, typer.Option(help="The folder to write the dataset into.", show_default=False)]
Rules = Annotated[Path | None, typer.Option(help="A rule table (JSON or YAML) in place of the two classes.")]
Format = Annotated[Literal["jpg", "png"], typer.Option(help="JPEG (quality 95) or PNG (lossless).")]
Val = Annotated[float, typer.Option(help="Share of the frames for validation.")]
Test = Annotated[float, typer.Option(help="Share of the frames for test.")]
SplitBy = Annotated[Literal["sequence", "route", "city"], typer.Option(help="What is never divided between splits.")]
ValLabels = Annotated[
    list[Path] | None, typer.Option(help="A label file whose sequences are the validation split; repeatable.")
]
TestLabels = Annotated[
    list[Path] | None, typer.Option(help="A label file whose sequences are the test split; repeatable.")
]
ValCities = Annotated[str, typer.Option(metavar="A,B", help="Cities for validation; decides before shares.")]
TestCities = Annotated[str, typer.Option(metavar="A,B", help="Cities for test; decides before shares.")]
SplitFile = Annotated[Path | None, typer.Option(help="Lines 'City/Route/Sequence split'; decides alone.")]
Cities = Annotated[str, typer.Option(metavar="A,B", help="Only frames of these cities.")]
Limit = Annotated[int | None, typer.Option(max=LARGEST, help="Only the first N frames in sorted order.")]
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


def _take_preset(context: typer.Context, name: str | None) -> str | None:
    if name:
        context.default_map = PRESETS[name]  # an option on the line decides before it
    return name


PRESETS: dict[str, dict[str, object]] = {
    # The seed paper: 24,520 / 800 / 4,345 images of 5 cities, which it does not name; halves resized to 640 px,
    # CLAHE and blur on training and validation images.
    "paper": {
        "layout": "halves",
        "tile_size": 640,
        "empty_ratio": "all",
        "val": 800 / 29665,
        "test": 4345 / 29665,
        "max_images": "train=24520,val=800,test=4345",
        "augment_splits": "train,val",
    }
}
Preset = Annotated[
    Literal["paper"] | None,
    typer.Option(is_eager=True, callback=_take_preset, help="Other defaults: the seed paper's dataset."),
]
MaxImages = Annotated[
    str, typer.Option(metavar="train=N[,val=N]", help="At most so many originals of a split, drawn by the seed.")
]
MaskPartial = Annotated[
    bool, typer.Option("--mask-partial", help="Paint slivers over: lights seen, but left unlabelled.")
]
Seed = Annotated[int, typer.Option(min=-LARGEST, max=LARGEST, help="Decides splits, empty tiles and copies.")]
Workers = Annotated[int | None, typer.Option(help="Processes; the result does not depend on it.  [default: cores]")]
ExecutorKind = Annotated[
    Literal["local", "ray"], typer.Option("--executor", help="Processes of this machine, or a Ray cluster.")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running cluster, such as auto.  [default: this machine]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another dataset in --out.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


# --- options to values -----------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def split_names(texts: list[str] | None) -> tuple[Split, ...]:
    """``--split``, given once or several times, as names in the order of train, val, test. Raises UsageError."""
    from dtld_tools.errors import UsageError
    from dtld_tools.types import SPLITS

    chosen = [name for text in texts or [",".join(SPLITS)] for name in _names(text)]
    if not chosen or not set(chosen) <= set(SPLITS):
        raise UsageError(f"--split: got {', '.join(chosen) or 'nothing'}, expected some of {', '.join(SPLITS)}")
    return tuple(split for split in SPLITS if split in chosen)


def refuse_without(needed: str, context: typer.Context, *names: str) -> None:
    """Raise UsageError if one of these parameters was given, though it matters only with the option ``needed``."""
    from dtld_tools.errors import UsageError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')}: got it without {needed}, expected both or neither")


def cores(workers: int | None) -> int:
    """``--workers``, or the cores that this process may use. Raises UsageError."""
    from dtld_tools.errors import UsageError

    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers: got {workers}, expected 1 to {MOST_WORKERS}")
    return workers


def quiet(context: typer.Context) -> bool:
    """Whether ``--quiet`` stands on the line."""
    return (context.obj or {}).get("quiet", False)


def run(
    context: typer.Context,
    workers: int | None,
    executor: Literal["local", "ray"],
    ray_address: str | None,
    overwrite: bool,
    strict: bool = False,
) -> Run:
    """How to carry a plan out."""
    from dtld_tools.pipeline.stages import Run
    from dtld_tools.pipeline.workers import Executor

    return Run(Executor(cores(workers), executor, ray_address), overwrite, strict, quiet(context))


def selection(
    labels: list[Path], root: Path, rules: Path | None, cities: str, limit: int | None, follow_symlinks: bool
) -> Selection:
    """Which frames of which label files."""
    from dtld_tools.pipeline.stages import Selection

    return Selection(tuple(labels), root, rules, _names(cities), limit, follow_symlinks)


def split_spec(
    val: float,
    test: float,
    by: GroupBy,
    val_cities: str,
    test_cities: str,
    split_file: Path | None,
    val_labels: list[Path] | None = None,
    test_labels: list[Path] | None = None,
) -> SplitSpec:
    """Which sequences go where."""
    from dtld_tools.planning.split import SplitSpec

    cities = _names(val_cities), _names(test_cities)
    return SplitSpec(val, test, by, *cities, split_file, tuple(val_labels or ()), tuple(test_labels or ()))


def tile_spec(
    layout: Layout, size: int, overlap: float, min_visible: float, min_side: float, mask_partial: bool = False
) -> TileSpec:
    """How frames become images."""
    from dtld_tools.types import TileSpec

    return TileSpec(layout, size, overlap, min_visible, min_side, mask_partial)


def augment_spec(clahe: float, blur: float, copies: int, splits: str) -> AugmentSpec:
    """Which copies are made."""
    from dtld_tools.pixels.augment import AugmentSpec

    chosen: tuple[Split, ...] = _names(splits)
    return AugmentSpec(clahe, blur, copies, chosen)


def empty_ratio(text: str) -> float | None:
    """``--empty-ratio``: a share, or None for all. Raises UsageError."""
    from dtld_tools.errors import UsageError

    try:
        ratio = None if text == "all" else float(text)
    except ValueError:
        ratio = -1
    if ratio is not None and not 0 <= ratio <= 1e6:
        raise UsageError(f"--empty-ratio: got {text!r}, expected a share such as 0.1, or all")
    return ratio


def max_images(text: str) -> dict[Split, int]:
    """``--max-images``: split -> number. Raises UsageError."""
    from dtld_tools.errors import UsageError
    from dtld_tools.types import SPLITS

    most: dict[Split, int] = {}
    for part in _names(text):
        split, _, number = part.partition("=")
        if split not in SPLITS or split in most or not number.isdecimal() or len(number) > len(str(LARGEST)) - 1:
            raise UsageError(f"--max-images: got {part[:100]!r}, expected each split once, as in train=24520,val=800")
        most[split] = int(number)
    return most
