"""The commands of `kd` that run a detector over images; kd/commands.py takes them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kd.predict_options import TiledOptions
from kd.shared_options import DataOption, DeviceOption, JsonOption, SizeOption, is_given
from kd.shared_options import is_quiet as _quiet
from kd.show import print_analysis, print_groups, print_json, print_predictions, print_scores, print_tiled, warn
from kd.train_options import Batch, SkipBadLabels
from schemas.option_groups import grouped

app = typer.Typer()


@app.command(epilog="Example: kd evaluate --data tiles/data.yaml --model student/weights/best.pt --split test")
@grouped
def evaluate(
    context: typer.Context,
    data: DataOption,
    model: Annotated[Path, typer.Option(help="A trained detector (.pt), or an exported file.", show_default=False)],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    imgsz: SizeOption = None,
    batch: Batch = 16,
    device: DeviceOption = None,
    full_frame: Annotated[
        bool,
        typer.Option(
            "--full-frame",
            help="Map the tiles' detections back to the frames that dtld cut them from, merge them where tiles overlap "
            "and score whole frames: also per size and per city.",
        ),
    ] = False,
    skip_bad_labels: SkipBadLabels = False,
    as_json: JsonOption = False,
) -> None:
    """Score a detector: mAP50, mAP50-95, precision, recall, per class."""
    from kd.errors import UsageError

    options: dict[str, Any] = {"split": split, "imgsz": imgsz, "batch": batch, "device": device, "tell": warn}
    options["quiet"] = _quiet(context) or as_json
    if not full_frame:
        from kd.scoring.evaluate import evaluate as score

        found = score(data, model, **options, skip_bad_labels=skip_bad_labels)
    elif skip_bad_labels:
        raise UsageError("--skip-bad-labels: got it with --full-frame, expected all tiles of a frame: mend them")
    else:
        from kd.scoring.full_frame import evaluate_frames

        found = evaluate_frames(data, model, **options)
    if as_json:
        print_json(found)
        return
    print_scores(f"{model}, {split}", found)
    if full_frame:
        print_groups(found)


@app.command(
    epilog="Example: kd analyse --model plain/weights/best.pt --model kd/weights/best.pt --data tiles/data.yaml "
    "--out missed.html"
)
@grouped
def analyse(
    context: typer.Context,
    data: DataOption,
    model: Annotated[
        list[Path], typer.Option(help="A trained detector, or an exported file; twice to compare.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="PAGE.html", help="The page to write.", show_default=False)],
    label_errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="COCO JSON to write: labels that the models speak against."),
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    full_frame: Annotated[
        bool, typer.Option("--full-frame", help="Whole frames, of the tiles that dtld cut from them.")
    ] = False,
    conf: Annotated[float, typer.Option(min=0, max=1, help="Least confidence of a detection that counts.")] = 0.25,
    imgsz: SizeOption = None,
    batch: Batch = 16,
    device: DeviceOption = None,
    skip_bad_labels: SkipBadLabels = False,
    as_json: JsonOption = False,
) -> None:
    """Show what one or two detectors miss, and why: errors by kind, recall by group, pictures, in one HTML page."""
    from kd.analysis.analyse import analyse as look

    found = look(
        data,
        model,
        out,
        label_errors=label_errors,
        split=split,
        full_frame=full_frame,
        imgsz=imgsz,
        conf=conf,
        batch=batch,
        device=device,
        skip_bad_labels=skip_bad_labels,
        tell=warn,
        quiet=_quiet(context) or as_json,
    )
    print_json(found) if as_json else print_analysis(found)


@app.command(
    epilog="Example: kd predict tiles/images/test --model plain/weights/best.pt --model kd/weights/best.pt --out a1.png"
)
@grouped
def predict(
    context: typer.Context,
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, or folders of images; with --tiled also videos.", show_default=False),
    ],
    model: Annotated[
        list[Path], typer.Option(help="A trained detector, or an exported file; twice to compare.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The picture to write (.png), with --tiled a new folder for several frames.")
    ] = None,
    imgsz: SizeOption = None,
    conf: Annotated[float, typer.Option(min=0, max=1, help="Least confidence of a detection.")] = 0.25,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Images taken from a folder.  [default: 6, with --tiled all]")
    ] = None,
    device: DeviceOption = None,
    *,
    tiles: TiledOptions,
    as_json: JsonOption = False,
) -> None:
    """Draw detections, of two models side by side, with mean inference times; or with --tiled, find them in frames."""
    from kd.errors import UsageError

    common: dict[str, Any] = {"imgsz": imgsz, "conf": conf, "device": device, "quiet": _quiet(context) or as_json}
    if not tiles.tiled:
        from kd.scoring.predict import predict as draw

        for name in vars(tiles):
            if is_given(context, name):
                raise UsageError(f"--{name.replace('_', '-')}: got it without --tiled, expected both")
        if out is None:
            raise UsageError("--out: got none, expected the picture to write (.png)")
        found = draw(images, model, out, **common, limit=limit or 6, tell=warn)
        print_json(found) if as_json else print_predictions(out, found)
        return
    from kd.scoring.tiled import predict_frames
    from kd.scoring.tiles import Grid

    if len(model) > 1:
        raise UsageError(f"--model: got {len(model)} models with --tiled, expected one")
    found = predict_frames(
        images,
        model[0],
        **common,
        grid=Grid(tiles.tile_size, tiles.overlap),
        batch=tiles.batch,
        sparse=tiles.sparse,
        limit=limit,
        out=out,
        save_txt=tiles.save_txt,
        coco=tiles.coco,
        tell=warn,
    )
    print_json(found) if as_json else print_tiled(found)
