"""The commands of `kd`: parse options, call one function, print. torch is imported inside the commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    help="Distil a large YOLO teacher into a small YOLO student, and tell whether it helped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataOption = Annotated[Path, typer.Option(help="A YOLO dataset's data.yaml.", show_default=False)]
BatchOption = Annotated[int, typer.Option(help="Images per step.")]
DeviceOption = Annotated[str | None, typer.Option(metavar="cpu|0", help="Processor or GPU.  [default: a GPU if any]")]
SizeOption = Annotated[int | None, typer.Option("--imgsz", help="Image size in pixels.  [default: as trained]")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command(epilog="Example: kd train --data tiles/data.yaml --student yolov5n --teacher teacher/weights/best.pt")
def train(
    context: typer.Context,
    data: DataOption,
    student: Annotated[
        str,
        typer.Option(
            metavar="M", help="A .pt, a .yaml, or a name such as yolov5n (fresh weights).", show_default=False
        ),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T[=WEIGHT]",
            help="A trained detector to imitate; give it again for several, whose weights are taken as shares. Without "
            "one, a plain run.",
        ),
    ] = None,
    combine: Annotated[
        Literal["mean", "best"],
        typer.Option(help="Several teachers: their mean, or for each image the one whose scores are highest on it."),
    ] = "mean",
    teacher_imgsz: Annotated[
        int | None,
        typer.Option(metavar="N", help="Image size in pixels that teachers see.  [default: the student's]"),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="What to imitate: fgfi, cwd, pkd or score-l2 (features), logits, box or ld (what the head says); give "
            "it again for several.  [default: fgfi]",
        ),
    ] = None,
    weight: Annotated[float | None, typer.Option(help="Weight of the one method (lambda).")] = None,
    priors: Annotated[
        Path | None,
        typer.Option(
            help="JSON of dtld inspect --anchors: fgfi's anchor priors by stride, in pixels of the training image "
            "(--imgsz).  [default: YOLOv5's]"
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    imgsz: Annotated[int, typer.Option(help="Image size in pixels.")] = 640,
    batch: BatchOption = 16,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights and data order.")] = 0,
    freeze: Annotated[int, typer.Option(metavar="N", help="Keep the first N layers as they are.")] = 0,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("run"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was cut off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    allow_weak_teacher: Annotated[
        bool, typer.Option("--allow-weak-teacher", help="Distil from a teacher that the check would refuse.")
    ] = False,
    log: Annotated[
        list[Literal["tensorboard", "mlflow", "wandb"]] | None,
        typer.Option(help="Log the run there too, through Ultralytics; may be given again.  [default: nowhere]"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any Ultralytics training argument.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a teacher, a plain student, or with --teacher a distilled one."""
    from kd.config import FgfiConfig, TrainConfig, parse_methods, parse_settings, parse_teachers, read_priors
    from kd.train import train as run
    from kd.ultra import DEFAULT_CFG_DICT

    teachers, teacher_weights = parse_teachers(teacher or ())
    config = TrainConfig(
        data=str(data),
        student=student,
        out=str(out),
        teachers=teachers,
        teacher_weights=teacher_weights,
        combine=combine,
        teacher_imgsz=teacher_imgsz,
        methods=parse_methods(method or ["fgfi"], weight),
        epochs=epochs,
        imgsz=imgsz,
        batch=batch,
        device=device,
        seed=seed,
        freeze=freeze,
        settings=parse_settings(settings or [], DEFAULT_CFG_DICT),
        fgfi=FgfiConfig(priors=read_priors(priors) if priors else None),
    )
    result = run(
        config,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        allow_weak_teacher=allow_weak_teacher,
        logs=tuple(log or ()),
        quiet=_quiet(context) or as_json,
    )
    if as_json or dry_run:
        _print_json(result)
    else:
        for split, scores in result["metrics"]["last"].items():
            _print_scores(f"{split}, last epoch", scores)
        print(f"{out}: {_count(result['epochs'], 'epoch')} in {result['wall_time_s']:.0f} s on {result['device']}")
        print(f"weights: {out / 'weights' / 'best.pt'}, {out / 'weights' / 'last.pt'}")


@app.command(epilog="Example: kd evaluate --data tiles/data.yaml --model student/weights/best.pt --split test")
def evaluate(
    context: typer.Context,
    data: DataOption,
    model: Annotated[Path, typer.Option(help="A trained detector (.pt).", show_default=False)],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    imgsz: SizeOption = None,
    batch: BatchOption = 16,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a detector: mAP50, mAP50-95, precision, recall, per class."""
    from kd.evaluate import evaluate as score

    found = score(data, model, split=split, imgsz=imgsz, batch=batch, device=device, quiet=_quiet(context) or as_json)
    _print_json(found) if as_json else _print_scores(f"{model}, {split}", found)


@app.command(
    epilog="Example: kd predict tiles/images/test --model plain/weights/best.pt --model kd/weights/best.pt --out a1.png"
)
def predict(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    model: Annotated[
        list[Path], typer.Option(help="A trained detector; give it twice to compare.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The picture to write (.png).", show_default=False)],
    imgsz: SizeOption = None,
    conf: Annotated[float, typer.Option(min=0, max=1, help="Least confidence of a detection.")] = 0.25,
    limit: Annotated[int, typer.Option(min=1, help="Images taken from a folder.")] = 6,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw detections, of two models side by side, with mean inference times."""
    from kd.predict import predict as draw

    found = draw(
        images, model, out, imgsz=imgsz, conf=conf, device=device, limit=limit, quiet=_quiet(context) or as_json
    )
    if as_json:
        _print_json(found)
        return
    for row in found["models"]:
        detections = _count(row["detections"], "detection")
        print(f"{row['name']}: {detections}, {row['mean_ms']:.1f} ms per image on {found['device']}")
    print(f"{out}: {_count(found['images'], 'image')}")


@app.command(epilog="Example: kd report runs --out report.md")
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with runs, at any depth.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="The Markdown file to write; the same as .html, and pictures, go beside it.")
    ] = Path("report.md"),
    published: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML, JSON or CSV of published rows to show beside, marked as theirs."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Images in Figure A1; 0 leaves it out.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Collect runs into the paper's tables and figures, as Markdown and HTML."""
    from kd.report import report as write

    written = write(folder, out, published=published, images=images)
    if as_json:
        _print_json(written)
        return
    runs, pairs = _count(written["runs"], "run"), _count(written["pairs"], "pair")
    left = f", {written['unfinished']} unfinished or failed" if written["unfinished"] else ""
    print(f"{out}: {runs}, {pairs} of a distilled and a plain run{left}; the same as {written['html']}")


def _quiet(context: typer.Context) -> bool:
    return (context.obj or {}).get("quiet", False)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))


def _print_scores(title: str, scores: dict[str, Any]) -> None:
    """A line for all classes, and one for each."""
    width = max(map(len, ("all", *scores["per_class"]))) + 2
    print(f"{title}: {_count(scores['images'], 'image')}, {_count(scores['instances'], 'object')}")
    print(f"  {'':<{width}}{'mAP50':>8}{'mAP50-95':>10}{'precision':>11}{'recall':>8}")
    print(
        f"  {'all':<{width}}{_share(scores['map50']):>8}{_share(scores['map50_95']):>10}"
        f"{_share(scores['precision']):>11}{_share(scores['recall']):>8}"
    )
    for name, row in scores["per_class"].items():
        print(f"  {name:<{width}}{_share(row['map50']):>8}{_share(row['map50_95']):>10}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
