"""The commands of `dtld`: parse options, call one function, print. Stages are imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dtld_tools import options
from dtld_tools.show import print_export, print_inspection, print_json, print_report, print_verdict, say
from schemas.option_groups import grouped

app = typer.Typer(
    help="DriveU Traffic Light Data to a clean, leak-free, traceable YOLO dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(epilog="Example: dtld sample demo/raw --frames 48 --labels both")
def sample(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="A new folder for the tree.", show_default=False)],
    frames: Annotated[int, typer.Option(min=1, max=100_000, help="How many frames to draw.")] = 48,
    seed: Annotated[int, typer.Option(max=options.LARGEST, help="Another seed draws other streets.")] = 0,
    labels: Annotated[Literal["v1", "v2", "both"], typer.Option(help="Which label format to write.")] = "v2",
    disparity: Annotated[bool, typer.Option("--disparity", help="Also write each frame's disparity image.")] = False,
    workers: options.Workers = None,
) -> None:
    """Draw a synthetic DTLD tree: raw 16-bit Bayer frames of street scenes, with labels."""
    from dtld_tools.synthetic.sample import sample as draw

    made = draw(
        out,
        frames,
        seed,
        labels,
        workers=options.cores(workers),
        progress=not options.quiet(context),
        disparity=disparity,
    )
    say(f"{out}: {made['frames']} frames, {made['lights']} lights, {made['sequences']} sequences")


@app.command(epilog="Example: dtld inspect demo/raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json --plot labels.png")
@grouped
def inspect(
    context: typer.Context,
    labels: options.Labels,
    *,
    root: Annotated[Path | None, typer.Option(help="Look for missing images below this folder.")] = None,
    rules: options.Rules = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the counts as a picture.")] = None,
    anchors: Annotated[
        int | None,
        typer.Option(min=1, max=100, metavar="K", help="Fit K anchor priors per stride to lights in tiles."),
    ] = None,
    tiling: options.Tiling,
    as_json: options.Json = False,
) -> None:
    """Count what label files hold: frames, lights, attributes, classes, problems.

    The options of tiling go with --anchors, whose --json is what `kd train --priors` takes.
    """
    from dtld_tools.files import refuse_inputs
    from dtld_tools.labels.collapse import load_rules, rules_file
    from dtld_tools.labels.parse import read_labels
    from dtld_tools.labels.stats import frames_called, inspect_labels, plot_labels

    if anchors is None:
        options.refuse_without("--anchors", context, *vars(tiling))
    if plot:
        refuse_inputs(plot, [*labels, rules_file(rules)], option="--plot")
    parsed, table = read_labels(labels), load_rules(rules)
    if plot and root:
        refuse_inputs(plot, frames_called(plot.name, parsed, root), option="--plot")
    found = inspect_labels(parsed, table, root)
    if anchors is not None:
        from dtld_tools.planning.anchors import inspect_anchors

        found |= inspect_anchors(parsed, table, root, tiling.spec(), anchors)
    if plot:
        plot_labels(parsed, table, plot)
    print_json(found) if as_json else print_inspection(found)


@app.command(epilog="Example: dtld convert raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json --root raw --out full")
@grouped
def convert(
    context: typer.Context,
    labels: options.Sources,
    root: options.Root,
    out: options.Out,
    *,
    rules: options.Rules = None,
    image_format: options.Format = "jpg",
    splits: options.Splitting,
    frames: options.Frames,
    distances: options.Distances,
    work: options.StrictWork,
    follow_symlinks: options.Symlinks = False,
    as_json: options.Json = False,
) -> None:
    """Decode raw frames and write them, whole, as a YOLO dataset; or import a dataset of others.

    An import keeps the images' bytes, and its own splits unless --val, --test or the like is given. Where COCO has a
    file for each split, LABELS is that of train, the others are --val-labels and --test-labels.
    """
    from dtld_tools.pipeline import stages as pipeline

    report = pipeline.convert(
        frames.selection(labels, root, rules, follow_symlinks, distances.stereo(context)),
        out,
        splits.given(context),
        image_format=image_format if options.is_given(context, "image_format") else None,
        seed=work.seed,
        run=work.run(context),
    )
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld tile full --out tiles --layout grid --tile-size 640")
@grouped
def tile(
    context: typer.Context,
    dataset: options.Dataset,
    out: options.Out,
    *,
    tiles: options.Tiles,
    work: options.StrictWork,
    as_json: options.Json = False,
) -> None:
    """Cut a dataset of whole frames into tiles with clipped boxes."""
    from dtld_tools.pipeline import stages as pipeline

    spec, run = tiles.spec(), work.run(context)
    report = pipeline.tile(dataset, out, spec, **tiles.kept(), seed=work.seed, run=run)
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld augment tiles --out augmented --clahe 0.5 --blur 0.3 --splits train,val")
@grouped
def augment(
    context: typer.Context,
    dataset: options.Dataset,
    out: options.Out,
    *,
    copies: options.Copies,
    splits: options.AugmentSplits = "train",
    work: options.Work,
    as_json: options.Json = False,
) -> None:
    """Add copies with CLAHE on lightness and blur; the originals stay as they are."""
    from dtld_tools.pipeline import stages as pipeline

    report = pipeline.augment(dataset, out, copies.spec(splits), seed=work.seed, run=work.run(context))
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld split tiles --out resplit --split-by city --seed 1")
@grouped
def split(
    context: typer.Context,
    dataset: options.Dataset,
    out: options.Out,
    *,
    splits: options.Splitting,
    work: options.Work,
    as_json: options.Json = False,
) -> None:
    """Split a dataset anew, by whole sequences, routes or cities."""
    from dtld_tools.pipeline import stages as pipeline

    report = pipeline.split(dataset, out, splits.spec(), seed=work.seed, run=work.run(context))
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld prepare raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json --root raw --out tiles")
@grouped
def prepare(
    context: typer.Context,
    labels: options.Sources,
    root: options.Root,
    out: options.Out,
    *,
    preset: options.Preset = None,
    rules: options.Rules = None,
    image_format: options.Format = "jpg",
    splits: options.Splitting,
    frames: options.Frames,
    distances: options.Distances,
    tiles: options.Tiles,
    copies: options.Copies,
    augment_splits: options.AugmentSplits = "train",
    work: options.StrictWork,
    follow_symlinks: options.Symlinks = False,
    as_json: options.Json = False,
) -> None:
    """convert, tile and augment in one pass: each frame is decoded once, nothing lies in between."""
    from dtld_tools.pipeline import stages as pipeline

    report = pipeline.prepare(
        frames.selection(labels, root, rules, follow_symlinks, distances.stereo(context)),
        out,
        splits.given(context),
        tiles.spec(),
        copies.spec(augment_splits),
        **tiles.kept(),
        image_format=image_format if options.is_given(context, "image_format") else None,
        seed=work.seed,
        run=work.run(context),
    )
    print_report(out, report, as_json)


@app.command(epilog="Example: dtld preview tiles --out sheet.png --count 9 --split test")
def preview(
    dataset: options.Dataset,
    out: Annotated[Path, typer.Option(help="The picture to write (.png).", show_default=False)],
    count: Annotated[int, typer.Option(min=1, max=100, help="How many images.")] = 16,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Of which split.")] = "train",
) -> None:
    """Draw a contact sheet of images with their boxes."""
    from dtld_tools.export.preview import preview as draw

    shown = draw(dataset, out, count=count, split=split)
    say(f"{out}: {shown['images']} images with {shown['boxes']} boxes")


@app.command(epilog="Example: dtld validate tiles --near-duplicates")
def validate(
    context: typer.Context,
    dataset: Annotated[
        Path,
        typer.Argument(help="A dataset made by dtld; for --near-duplicates, any YOLO dataset.", show_default=False),
    ],
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Also find nearly identical images in different splits.")
    ] = False,
    distance: Annotated[
        int,
        typer.Option(help="How many of the 64 bits of their hashes may differ; 10 finds more, some of it by chance."),
    ] = 6,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Prove a dataset from its files alone; exit 1 with each defect named.

    On a YOLO dataset that dtld did not make, --near-duplicates is all that is looked for.
    """
    from dtld_tools.validation.validate import validate as prove

    if not near_duplicates:
        options.refuse_without("--near-duplicates", context, "distance")
    found = prove(
        dataset,
        distance=distance if near_duplicates else None,
        workers=options.cores(workers),
        quiet=options.quiet(context),
    )
    print_verdict(dataset, found, as_json)
    if found["defects"] or found.get("near_duplicates"):
        raise typer.Exit(1)


@app.command(epilog="Example: dtld export tiles --format coco --out tiles.json --split val,test")
def export(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="A dataset made by dtld; for --format yolo, a COCO JSON file.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="The file to write (coco); a new folder; the folder for labels/ (yolo).", show_default=False),
    ],
    form: Annotated[
        Literal["coco", "voc", "createml", "webdataset", "yolo"],
        typer.Option("--format", help="What to make of a dataset; of a COCO JSON, YOLO label files."),
    ] = "coco",
    split: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Only images of these splits.  [default: all]")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images in a shard (webdataset).")] = 1000,
    crowd: Annotated[
        Literal["drop", "keep"], typer.Option(help="Boxes around many objects: left out, or objects too (yolo).")
    ] = "drop",
    as_json: options.Json = False,
) -> None:
    """Write a dataset's boxes in another format, with its images where that has them; or COCO's as YOLO label files."""
    from dtld_tools.export.createml import to_createml
    from dtld_tools.export.export import to_coco, to_yolo
    from dtld_tools.export.voc import to_voc
    from dtld_tools.export.webdataset import to_webdataset

    if form == "yolo":
        options.refuse_without("another --format than yolo", context, "split")
    else:
        options.refuse_without("--format yolo", context, "crowd")
    if form != "webdataset":
        options.refuse_without("--format webdataset", context, "shard_size")
    splits = options.split_names(split)
    match form:
        case "yolo":
            made = to_yolo(source, out, crowd)
        case "coco":
            made = to_coco(source, out, splits)
        case "voc":
            made = to_voc(source, out, splits)
        case "createml":
            made = to_createml(source, out, splits)
        case "webdataset":
            made = to_webdataset(source, out, splits, shard_size=shard_size)
    print_json(made) if as_json else print_export(made)
