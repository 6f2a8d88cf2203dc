"""The commands of `dtld`: parse options, call one function, print. Stages are imported inside the commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dtld_tools.show import print_inspection, print_json, print_report

if TYPE_CHECKING:
    from dtld_tools.augment import AugmentSpec
    from dtld_tools.pipeline import Run, Selection
    from dtld_tools.split import GroupBy, SplitSpec
    from dtld_tools.types import Layout, Split, TileSpec

app = typer.Typer(
    help="DriveU Traffic Light Data to a clean, leak-free, traceable YOLO dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# --- options shared by several commands ----------------------------------------------------------------------

LabelsArgument = Annotated[list[Path], typer.Argument(help="Label files: v2.0 .json or v1.0 .yml.", show_default=False)]
DatasetArgument = Annotated[Path, typer.Argument(help="A dataset made by dtld.", show_default=False)]
RootOption = Annotated[Path, typer.Option(help="The folder that holds City/Route/Sequence/...", show_default=False)]
OutOption = Annotated[Path, typer.Option(help="The folder to write the dataset into.", show_default=False)]
RulesOption = Annotated[Path | None, typer.Option(help="A rule table (JSON or YAML) in place of the two classes.")]
FormatOption = Annotated[Literal["jpg", "png"], typer.Option(help="JPEG (quality 95) or PNG (lossless).")]
ValOption = Annotated[float, typer.Option(help="Share of the frames for validation.")]
TestOption = Annotated[float, typer.Option(help="Share of the frames for test.")]
SplitByOption = Annotated[
    Literal["sequence", "route", "city"], typer.Option(help="What is never divided between splits.")
]
ValCitiesOption = Annotated[str, typer.Option(metavar="A,B", help="Cities for validation; decides before shares.")]
TestCitiesOption = Annotated[str, typer.Option(metavar="A,B", help="Cities for test; decides before shares.")]
SplitFileOption = Annotated[Path | None, typer.Option(help="Lines 'City/Route/Sequence split'; decides alone.")]
CitiesOption = Annotated[str, typer.Option(metavar="A,B", help="Only frames of these cities.")]
LimitOption = Annotated[int | None, typer.Option(help="Only the first N frames in sorted order.")]
SymlinksOption = Annotated[bool, typer.Option("--follow-symlinks", help="Allow links that lead out of --root.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first frame that cannot be read.")]
TileSizeOption = Annotated[int, typer.Option(help="Side of a tile in pixels.")]
OverlapOption = Annotated[float, typer.Option(help="Least overlap of neighbouring tiles (grid).")]
LayoutOption = Annotated[Literal["grid", "halves"], typer.Option(help="Native windows, or two squares resized.")]
MinVisibleOption = Annotated[float, typer.Option(help="Least visible share of a box that becomes a target.")]
MinSideOption = Annotated[float, typer.Option(help="Least shorter side of a target, in tile pixels.")]
EmptyRatioOption = Annotated[
    str,
    typer.Option(metavar="SHARE|all", help="Empty training tiles kept, as a share of those with targets."),
]
ClaheOption = Annotated[float, typer.Option(help="Probability of CLAHE on lightness, per copy.")]
BlurOption = Annotated[float, typer.Option(help="Probability of Gaussian or motion blur, per copy.")]
CopiesOption = Annotated[int, typer.Option(help="Changed copies tried per image.")]
AugmentSplitsOption = Annotated[str, typer.Option(metavar="train[,val]", help="Splits that get copies.")]
SeedOption = Annotated[int, typer.Option(help="Decides splits, empty tiles and copies.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes; the result does not depend on it.  [default: cores]")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace another dataset in --out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


# --- commands --------------------------------------------------------------------------------------------


@app.command(epilog="Example: dtld sample demo/raw --frames 48 --labels both")
def sample(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="A new folder for the tree.", show_default=False)],
    frames: Annotated[int, typer.Option(min=1, help="How many frames to draw.")] = 48,
    seed: Annotated[int, typer.Option(help="Another seed draws other streets.")] = 0,
    labels: Annotated[Literal["v1", "v2", "both"], typer.Option(help="Which label format to write.")] = "v2",
    workers: WorkersOption = None,
) -> None:
    """Draw a synthetic DTLD tree: raw 16-bit Bayer frames of street scenes, with labels."""
    from dtld_tools.sample import sample as draw

    made = draw(out, frames, seed, labels, workers=_cores(workers), progress=not _quiet(context))
    print(f"{out}: {made['frames']} frames, {made['lights']} lights, {made['sequences']} sequences")


@app.command(epilog="Example: dtld inspect demo/raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json --plot labels.png")
def inspect(
    labels: LabelsArgument,
    root: Annotated[Path | None, typer.Option(help="Look for missing images below this folder.")] = None,
    rules: RulesOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the counts as a picture.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count what label files hold: frames, lights, attributes, classes, problems."""
    from dtld_tools.collapse import load_rules
    from dtld_tools.parse import VOCABULARY, read_labels
    from dtld_tools.stats import inspect_labels, plot_labels

    parsed, table = read_labels(labels), load_rules(rules, VOCABULARY)
    found = inspect_labels(parsed, table, root)
    if plot:
        plot_labels(parsed, table, plot)
    print_json(found) if as_json else print_inspection(found)


@app.command(epilog="Example: dtld convert raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json --root raw --out full")
def convert(
    context: typer.Context,
    labels: LabelsArgument,
    root: RootOption,
    out: OutOption,
    rules: RulesOption = None,
    image_format: FormatOption = "jpg",
    val: ValOption = 0.1,
    test: TestOption = 0.2,
    split_by: SplitByOption = "sequence",
    val_cities: ValCitiesOption = "",
    test_cities: TestCitiesOption = "",
    split_file: SplitFileOption = None,
    cities: CitiesOption = "",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    strict: StrictOption = False,
    follow_symlinks: SymlinksOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode raw frames and write them, whole, as a YOLO dataset."""
    from dtld_tools import pipeline

    report = pipeline.convert(
        _selection(labels, root, rules, cities, limit, follow_symlinks),
        out,
        _split_spec(val, test, split_by, val_cities, test_cities, split_file),
        image_format=image_format,
        seed=seed,
        run=_run(context, workers, overwrite, strict),
    )
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld tile full --out tiles --layout grid --tile-size 640")
def tile(
    context: typer.Context,
    dataset: DatasetArgument,
    out: OutOption,
    tile_size: TileSizeOption = 640,
    overlap: OverlapOption = 0.2,
    layout: LayoutOption = "grid",
    min_visible: MinVisibleOption = 0.4,
    min_side: MinSideOption = 2,
    empty_ratio: EmptyRatioOption = "0.1",
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut a dataset of whole frames into tiles with clipped boxes."""
    from dtld_tools import pipeline

    spec = _tile_spec(layout, tile_size, overlap, min_visible, min_side)
    run = _run(context, workers, overwrite, strict)
    report = pipeline.tile(dataset, out, spec, empty_ratio=_empty_ratio(empty_ratio), seed=seed, run=run)
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld augment tiles --out augmented --clahe 0.5 --blur 0.3 --splits train,val")
def augment(
    context: typer.Context,
    dataset: DatasetArgument,
    out: OutOption,
    clahe: ClaheOption = 0.5,
    blur: BlurOption = 0.3,
    copies: CopiesOption = 1,
    splits: AugmentSplitsOption = "train",
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add copies with CLAHE on lightness and blur; the originals stay as they are."""
    from dtld_tools import pipeline

    spec, run = _augment_spec(clahe, blur, copies, splits), _run(context, workers, overwrite)
    print_report(out, pipeline.augment(dataset, out, spec, seed=seed, run=run), as_json)


@app.command(epilog="Example: dtld split tiles --out resplit --split-by city --seed 1")
def split(
    context: typer.Context,
    dataset: DatasetArgument,
    out: OutOption,
    val: ValOption = 0.1,
    test: TestOption = 0.2,
    split_by: SplitByOption = "sequence",
    val_cities: ValCitiesOption = "",
    test_cities: TestCitiesOption = "",
    split_file: SplitFileOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Split a dataset anew, by whole sequences, routes or cities."""
    from dtld_tools import pipeline

    spec = _split_spec(val, test, split_by, val_cities, test_cities, split_file)
    report = pipeline.split(dataset, out, spec, seed=seed, run=_run(context, workers, overwrite))
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld prepare raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json --root raw --out tiles")
def prepare(
    context: typer.Context,
    labels: LabelsArgument,
    root: RootOption,
    out: OutOption,
    rules: RulesOption = None,
    image_format: FormatOption = "jpg",
    val: ValOption = 0.1,
    test: TestOption = 0.2,
    split_by: SplitByOption = "sequence",
    val_cities: ValCitiesOption = "",
    test_cities: TestCitiesOption = "",
    split_file: SplitFileOption = None,
    cities: CitiesOption = "",
    limit: LimitOption = None,
    tile_size: TileSizeOption = 640,
    overlap: OverlapOption = 0.2,
    layout: LayoutOption = "grid",
    min_visible: MinVisibleOption = 0.4,
    min_side: MinSideOption = 2,
    empty_ratio: EmptyRatioOption = "0.1",
    clahe: ClaheOption = 0.5,
    blur: BlurOption = 0.3,
    copies: CopiesOption = 1,
    augment_splits: AugmentSplitsOption = "train",
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    strict: StrictOption = False,
    follow_symlinks: SymlinksOption = False,
    as_json: JsonOption = False,
) -> None:
    """convert, tile and augment in one pass: each frame is decoded once, nothing lies in between."""
    from dtld_tools import pipeline

    report = pipeline.prepare(
        _selection(labels, root, rules, cities, limit, follow_symlinks),
        out,
        _split_spec(val, test, split_by, val_cities, test_cities, split_file),
        _tile_spec(layout, tile_size, overlap, min_visible, min_side),
        _augment_spec(clahe, blur, copies, augment_splits),
        empty_ratio=_empty_ratio(empty_ratio),
        image_format=image_format,
        seed=seed,
        run=_run(context, workers, overwrite, strict),
    )
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld preview tiles --out sheet.png --count 9 --split test")
def preview(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="The picture to write (.png).", show_default=False)],
    count: Annotated[int, typer.Option(min=1, max=100, help="How many images.")] = 16,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Of which split.")] = "train",
) -> None:
    """Draw a contact sheet of images with their boxes."""
    from dtld_tools.preview import preview as draw

    shown = draw(dataset, out, count=count, split=split)
    print(f"{out}: {shown['images']} images with {shown['boxes']} boxes")


@app.command(epilog="Example: dtld validate tiles")
def validate(
    context: typer.Context,
    dataset: DatasetArgument,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove a dataset from its files alone; exit 1 with each defect named."""
    from dtld_tools.validate import validate as prove

    found = prove(dataset, workers=_cores(workers), quiet=_quiet(context))
    for defect in found["defects"]:
        print(f"error: {dataset}: {defect}", file=sys.stderr)
    verdict = f"{len(found['defects'])} defects" if found["defects"] else "sound"
    if as_json:
        print_json(found)
    else:
        print(f"{dataset}: {verdict}; {found['images']} images, {found['targets']} targets, {found['frames']} frames")
    if found["defects"]:
        raise typer.Exit(1)


# --- options to values -----------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _cores(workers: int | None) -> int:
    from dtld_tools.errors import UsageError

    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UsageError(f"--workers: got {workers}, expected 1 or more")
    return workers


def _quiet(context: typer.Context) -> bool:
    return (context.obj or {}).get("quiet", False)


def _run(context: typer.Context, workers: int | None, overwrite: bool, strict: bool = False) -> Run:
    from dtld_tools.pipeline import Run

    return Run(_cores(workers), overwrite, strict, _quiet(context))


def _selection(
    labels: list[Path], root: Path, rules: Path | None, cities: str, limit: int | None, follow_symlinks: bool
) -> Selection:
    from dtld_tools.pipeline import Selection

    return Selection(tuple(labels), root, rules, _names(cities), limit, follow_symlinks)


def _split_spec(
    val: float, test: float, by: GroupBy, val_cities: str, test_cities: str, split_file: Path | None
) -> SplitSpec:
    from dtld_tools.split import SplitSpec

    return SplitSpec(val, test, by, _names(val_cities), _names(test_cities), split_file)


def _tile_spec(layout: Layout, size: int, overlap: float, min_visible: float, min_side: float) -> TileSpec:
    from dtld_tools.types import TileSpec

    return TileSpec(layout, size, overlap, min_visible, min_side)


def _augment_spec(clahe: float, blur: float, copies: int, splits: str) -> AugmentSpec:
    from dtld_tools.augment import AugmentSpec

    chosen: tuple[Split, ...] = _names(splits)
    return AugmentSpec(clahe, blur, copies, chosen)


def _empty_ratio(text: str) -> float | None:
    from dtld_tools.errors import UsageError

    try:
        ratio = None if text == "all" else float(text)
    except ValueError:
        ratio = -1
    if ratio is not None and not 0 <= ratio < float("inf"):
        raise UsageError(f"--empty-ratio: got {text!r}, expected a share such as 0.1, or all")
    return ratio
