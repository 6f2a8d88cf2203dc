"""The commands of `kd`: parse options, call one function, print. torch is imported inside the commands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperCommand

from kd.methods.facts import BUILT_IN, CHOICES
from kd.show import count, print_groups, print_json, print_scores, say, warn

app = typer.Typer(
    help="Distil a large YOLO teacher into a small YOLO student, and tell whether it helped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataOption = Annotated[Path, typer.Option(help="A YOLO dataset's data.yaml.", show_default=False)]
BatchOption = Annotated[int, typer.Option(help="Images per step.")]
SeveralOption = Annotated[
    str | None,
    typer.Option("--device", metavar="cpu|0|0,1", help="Processor, GPU, or several GPUs.  [default: a GPU if any]"),
]
DeviceOption = Annotated[str | None, typer.Option(metavar="cpu|0", help="Processor or GPU.  [default: a GPU if any]")]
SizeOption = Annotated[
    int | None, typer.Option("--imgsz", help="Image size in pixels, a multiple of 32.  [default: as trained]")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad-labels", help="Go on without images or labels that cannot be used, and count them.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


#: Fields of a run's configuration -> the options that they come from, where those have other names.
OPTIONS_OF = {
    "teachers": {"teacher"}, "teacher_weights": {"teacher"}, "methods": {"method", "weight", "balance"},
    "fgfi": {"fgfi", "priors"}, "schedules": {"schedule"},
}  # fmt: skip


@app.command(epilog="Example: kd train --data tiles/data.yaml --student yolov5n --teacher teacher/weights/best.pt")
def train(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="A YOLO dataset's data.yaml.")] = None,
    student: Annotated[
        str | None,
        typer.Option(metavar="M", help="A .pt, a .yaml, or a name such as yolov5n (fresh weights)."),
    ] = None,
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
            help=f"What to imitate: {CHOICES}; give it again for several. "
            f"Or {BUILT_IN}, Ultralytics' own distillation.  [default: fgfi]",
        ),
    ] = None,
    weight: Annotated[float | None, typer.Option(help="Weight of the one method (lambda).")] = None,
    balance: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="In place of weights: each method's gradient in the features becomes R (such as 0.1) times that of "
            "the task loss, measured on the first 16 batches.",
        ),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="How much the methods count in the course of the run: constant, warmup (rising over the first tenth "
            "of the epochs), cosine (falling to 0), no-closing (off in the last epochs, those without mosaic); give it "
            "again for several, which multiply.  [default: constant]",
        ),
    ] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder of images, at any depth, that the methods see and the task loss does not: each step takes "
            "as many as its batch has, and about twice as long.",
        ),
    ] = None,
    fgfi: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Where and how fgfi imitates: threshold=0.5 of a box's best anchor, assigned=true (the best over all "
            "levels), mask=boxes (cells inside boxes, no anchors), soft=true (cells by the teacher's score), kernel=3 "
            "(of the adapter).",
        ),
    ] = None,
    priors: Annotated[
        Path | None,
        typer.Option(
            help="JSON of dtld inspect --anchors: fgfi's anchor priors by stride, in pixels of the training image "
            "(--imgsz).  [default: YOLOv5's]"
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    imgsz: Annotated[int, typer.Option(help="Image size in pixels, a multiple of 32.")] = 640,
    batch: BatchOption = 16,
    device: SeveralOption = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights and data order.")] = 0,
    freeze: Annotated[int, typer.Option(metavar="N", help="Keep the first N layers as they are.")] = 0,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("run"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out, which was cut off, as it was started; no other option is needed.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    allow_weak_teacher: Annotated[
        bool, typer.Option("--allow-weak-teacher", help="Distil from a teacher that the check would refuse.")
    ] = False,
    skip_bad_labels: SkipOption = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Train on images that val or test has too, as coco128 does.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tensorboard|mlflow|wandb",
            help="Log the run there too, through Ultralytics; may be given again.  [default: nowhere]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any Ultralytics training argument.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a teacher, a plain student, or with --teacher a distilled one."""
    from kd.config import TrainConfig
    from kd.distillation.balance import named_weights
    from kd.errors import UsageError
    from kd.options import train_values
    from kd.training.run import train as run
    from kd.training.run_folder import own_config
    from kd.ultra.session import DEFAULT_CFG_DICT

    options = {
        "data": data, "student": student, "teacher": teacher, "combine": combine, "teacher-imgsz": teacher_imgsz,
        "method": method, "weight": weight, "balance": balance, "schedule": schedule, "unlabeled": unlabeled,
        "fgfi": fgfi, "priors": priors, "epochs": epochs, "imgsz": imgsz, "batch": batch, "device": device,
        "seed": seed, "freeze": freeze, "skip-bad-labels": skip_bad_labels, "set": settings,
    }  # fmt: skip
    asked = train_values(options, DEFAULT_CFG_DICT)
    if resume and not overwrite:
        given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
        told = {field: value for field, value in asked.items() if given & OPTIONS_OF.get(field, {field})}
        config = own_config(out, **told)
    else:
        for option, value in (("--data", data), ("--student", student)):
            if value is None:
                raise UsageError(f"{option}: got none, expected one: only --resume --out RUN goes without")
        config = TrainConfig(**asked, out=str(out))
    result = run(
        config,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        allow_weak_teacher=allow_weak_teacher,
        allow_overlap=allow_overlap,
        also_read=[priors] if priors else [],
        tell=warn,
        logs=tuple(log or ()),
        quiet=_quiet(context) or as_json,
    )
    if as_json or dry_run:
        print_json(result)
    else:
        for split, scores in result["metrics"]["last"].items():
            print_scores(f"{split}, last epoch", scores)
        if config.balance:
            say(f"balanced weights: {named_weights(result['kd']['balanced_weights'])}")
        say(f"{out}: {count(result['epochs'], 'epoch')} in {result['wall_time_s']:.0f} s on {result['device']}")
        say(f"weights: {out / 'weights' / 'best.pt'}, {out / 'weights' / 'last.pt'}")


@app.command(epilog="Example: kd evaluate --data tiles/data.yaml --model student/weights/best.pt --split test")
def evaluate(
    context: typer.Context,
    data: DataOption,
    model: Annotated[Path, typer.Option(help="A trained detector (.pt).", show_default=False)],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    imgsz: SizeOption = None,
    batch: BatchOption = 16,
    device: DeviceOption = None,
    full_frame: Annotated[
        bool,
        typer.Option(
            "--full-frame",
            help="Map the tiles' detections back to the frames that dtld cut them from, merge them where tiles overlap "
            "and score whole frames: also per size and per city.",
        ),
    ] = False,
    skip_bad_labels: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a detector: mAP50, mAP50-95, precision, recall, per class."""
    from kd.errors import UsageError

    options = {"split": split, "imgsz": imgsz, "batch": batch, "device": device, "tell": warn}
    if not full_frame:
        from kd.scoring.evaluate import evaluate as score

        options["skip_bad_labels"] = skip_bad_labels
    elif skip_bad_labels:
        raise UsageError("--skip-bad-labels: got it with --full-frame, expected all tiles of a frame: mend them")
    else:
        from kd.scoring.full_frame import evaluate_frames as score

    found = score(data, model, **options, quiet=_quiet(context) or as_json)
    if as_json:
        print_json(found)
        return
    print_scores(f"{model}, {split}", found)
    if full_frame:
        print_groups(found)


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
    from kd.scoring.predict import predict as draw

    found = draw(
        images, model, out, imgsz=imgsz, conf=conf, device=device, limit=limit, quiet=_quiet(context) or as_json
    )
    if as_json:
        print_json(found)
        return
    for row in found["models"]:
        detections = count(row["detections"], "detection")
        say(f"{row['name']}: {detections}, {row['mean_ms']:.1f} ms per image on {found['device']}")
    say(f"{out}: {count(found['images'], 'image')}")


@app.command(epilog="Example: kd bench --student yolov5n --teacher yolov5s --imgsz 320 --batch 8 --device cpu")
def bench(
    context: typer.Context,
    student: Annotated[str, typer.Option(metavar="M", help="As in kd train; no data are needed.", show_default=False)],
    teacher: Annotated[
        str,
        typer.Option(metavar="T", help="As in kd train; fresh weights cost what trained ones do.", show_default=False),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="As in kd train.  [default: every method that this pair allows]"),
    ] = None,
    imgsz: Annotated[int, typer.Option(help="Image size in pixels, a multiple of 32.")] = 640,
    batch: BatchOption = 16,
    device: DeviceOption = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Timed steps of each kind, in turns.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Time what distilling adds to a training step, and measure its memory."""
    from kd.options import parse_methods
    from kd.training.bench import bench as measure

    methods = parse_methods(method or [])
    quiet = _quiet(context) or as_json
    found = measure(
        student, teacher, methods=methods, imgsz=imgsz, batch=batch, device=device, steps=steps, quiet=quiet
    )
    if as_json:
        print_json(found)
        return
    say(
        f"{student} <- {teacher}, {found['imgsz']} px, batches of {batch} with {found['boxes']} boxes, "
        f"median of {count(steps, 'step')} on {found['device']}"
    )
    say(f"  {'':<20}{'ms':>9}{'(step - plain) / teacher':>27}{'peak MiB':>11}")
    for name, arm in found["arms"].items():
        share = "-" if arm["over_teacher"] is None else f"{arm['over_teacher']:.2f}"
        peak = "-" if arm["peak_mib"] is None else f"{arm['peak_mib']:.0f}"
        say(f"  {name:<20}{1000 * arm['seconds']:>9.1f}{share:>27}{peak:>11}")
    if found["mask_share"] is not None:
        say(f"fgfi's masks: {found['mask_share']:.2%} of its step")
    for name, reason in found["left_out"].items():
        say(f"left out: {name}: {reason}")


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
    from kd.reports.report import report as write

    written = write(folder, out, published=published, images=images)
    if as_json:
        print_json(written)
        return
    runs, pairs = count(written["runs"], "run"), count(written["pairs"], "pair")
    left = f", {written['unfinished']} unfinished or failed" if written["unfinished"] else ""
    say(f"{out}: {runs}, {pairs} of a distilled and a plain run{left}; the same as {written['html']}")


class Baselines(TyperCommand):
    """A command whose ``--baseline`` takes all words up to the next option, as a shell's pattern gives them."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its words."""
        words, taking = [], False
        for word in args:
            if taking and not word.startswith("-"):
                words += ["--baseline", word]
                continue
            taking = word == "--baseline"
            words += [] if taking else [word]
        return super().parse_args(ctx, words + (["--baseline"] if taking and "--baseline" not in words else []))


@app.command(cls=Baselines, epilog="Example: kd compare runs/fgfi --baseline runs/plain")
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Runs, or folders with runs at any depth.", show_default=False),
    ],
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUNS...",
            help="What RUNS are held against, as one arm against another.  [default: each distilled run's plain twin]",
        ),
    ] = None,
    checkpoint: Annotated[Literal["last", "best"], typer.Option(help="Whose scores; best was chosen on val.")] = "last",
    any_epochs: Annotated[
        bool, typer.Option("--any-epochs", help="Let epochs differ: for a plain student at equal wall-clock time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell whether distillation helped: paired by seed, mean difference, 95 % interval, signs, per class."""
    from kd.runs.compare import compare as pair_up
    from kd.runs.compare import lines

    found = pair_up(runs, baseline or (), checkpoint=checkpoint, any_epochs=any_epochs)
    for line in (*found["warnings"], *(line for result in found["comparisons"] for line in result["warnings"])):
        warn(line)
    if as_json:
        print_json(found)
    else:
        for line in lines(found):
            say(line)


@app.command(epilog="Example: kd sweep cpu --data bccd/data.yaml --out sweep")
def sweep(
    context: typer.Context,
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN.yaml", help="A plan, or a shipped one: paper, gpu, cpu, demo.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The folder of all its runs; given again, it is continued.", show_default=False)
    ],
    data: Annotated[Path | None, typer.Option(help="A YOLO dataset's data.yaml.  [default: the plan's]")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the plan, such as settings.epochs=10 or seeds=[0]."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at once, which share the cores.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and the time they may take.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train teachers x students x methods x seeds by a plan; what is finished is not repeated."""
    from kd.errors import RunError
    from kd.sweeps.sweep import sweep as carry_out

    told = {"tell": lambda line: None} if as_json else {}
    quiet = _quiet(context) or as_json
    found = carry_out(plan, out, data=data, changes=changes or (), at_once=jobs, dry_run=dry_run, quiet=quiet, **told)
    if as_json:
        print_json(found)
    elif dry_run:
        for row in found["plan"]:
            seconds = "" if row["seconds"] is None else f", about {row['seconds']:.0f} s"
            teacher = f", teacher {row['teacher']}" if row["teacher"] else ""
            say(f"{row['run']}: {row['state']}, epochs {row['epochs']}{teacher}{seconds}")
    if not as_json:
        left = "" if found["seconds_left"] is None else f", about {found['seconds_left'] / 60:.0f} min left"
        say(f"{out}: {count(found['runs'], 'run')}, {found['finished']} finished{left}")
    if found["failed"]:
        name, reason = next(iter(found["failed"].items()))
        raise RunError(
            f"{out}: got {len(found['failed'])} of {count(found['runs'], 'run')} failed, expected none "
            f"({name}: {reason}): see failures.json; the same command tries them again"
        )


def _quiet(context: typer.Context) -> bool:
    return (context.obj or {}).get("quiet", False)
