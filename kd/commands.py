"""The commands of `kd`: parse options, call one function, print. torch is imported inside the commands alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from kd.device_commands import app as device_app
from kd.scoring_commands import app as scoring_app
from kd.shared_options import DeviceOption, JsonOption, RayAddressOption, SizeOption, is_given
from kd.shared_options import is_quiet as _quiet
from kd.show import (
    count,
    print_bench,
    print_cached,
    print_inherited,
    print_json,
    print_report,
    print_run,
    print_sweep,
    say,
    warn,
)
from kd.train_options import Batch, TrainOptions
from schemas.option_groups import grouped

if TYPE_CHECKING:
    from kd.sweeps.executors import Cluster

app = typer.Typer(
    help="Distil a large YOLO teacher into a small YOLO student, and tell whether it helped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(epilog="Example: kd train --data tiles/data.yaml --student yolov5n --teacher teacher/weights/best.pt")
@grouped
def train(context: typer.Context, options: TrainOptions, as_json: JsonOption = False) -> None:
    """Train a teacher, a plain student, or with --teacher a distilled one."""
    from kd.environment import lead_ranks

    lead_ranks()  # before Ultralytics is imported
    from kd.config import TrainConfig
    from kd.errors import UsageError
    from kd.options import OF_THE_FOLDER, train_values
    from kd.training.run import train as run
    from kd.training.run_folder import own_config
    from kd.ultra.session import DEFAULT_CFG_DICT

    given = {
        name.replace("_", "-"): value
        for name, value in vars(options).items()
        if name not in OF_THE_FOLDER and is_given(context, name)
    }
    values = train_values(given, DEFAULT_CFG_DICT)
    if options.resume and not options.overwrite:
        config = own_config(options.out, **values)
    else:
        for name in ("data", "student"):
            if name not in values:
                raise UsageError(f"--{name}: got none, expected one: only --resume --out RUN goes without")
        config = TrainConfig(**values, out=str(options.out))
    result = run(
        config,
        resume=options.resume,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        allow_weak_teacher=options.allow_weak_teacher,
        allow_overlap=options.allow_overlap,
        also_read=[options.priors] if options.priors else [],
        tell=warn,
        logs=tuple(options.log or ()),
        quiet=_quiet(context) or as_json,
    )
    if as_json or options.dry_run:
        print_json(result)
    elif result:  # {} in a process of torchrun's but the first
        print_run(options.out, result)


@app.command(epilog="Example: kd inherit teacher/weights/best.pt --width 0.5 --data tiles/data.yaml --out student.pt")
def inherit(
    context: typer.Context,
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="A trained detector of the student's family.", show_default=False)
    ],
    data: Annotated[
        Path, typer.Option(help="A YOLO dataset's data.yaml: its training images and class names.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="W.pt", help="The student to write.", show_default=False)],
    student: Annotated[
        str | None, typer.Option(metavar="M", help="Its architecture: a .yaml, or a name such as yolov8n.")
    ] = None,
    width: Annotated[
        float | None, typer.Option(help="In place of a student: the teacher's layout with this share of its channels.")
    ] = None,
    depth: Annotated[float | None, typer.Option(help="With this share of its repeated blocks.")] = None,
    imgsz: SizeOption = None,
    images: Annotated[int, typer.Option(metavar="N", help="Training images to look at; fewer large ones.")] = 300,
    seed: Annotated[int, typer.Option(help="Decides what is not inherited.")] = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a student its first weights from a trained teacher: no labels, no training; kd train --student goes on."""
    from kd.errors import UsageError
    from kd.inheritance.weights import Scale, inherit_weights

    scaled = width is not None or depth is not None
    if student and scaled:
        raise UsageError("--student: got it with --width or --depth, expected one of them")
    if not student and not scaled:
        raise UsageError("--student: got none, expected one, or --width: a share of the teacher's channels")
    architecture = student or Scale(1.0 if width is None else width, 1.0 if depth is None else depth)
    quiet = _quiet(context) or as_json
    found = inherit_weights(
        teacher, architecture, data, out, imgsz=imgsz, images=images, seed=seed, device=device, quiet=quiet
    )
    print_json(found) if as_json else print_inherited(found)


@app.command(epilog="Example: kd cache --teacher teacher/weights/best.pt --data tiles/data.yaml --out teacher.npz")
def cache(
    context: typer.Context,
    teacher: Annotated[str, typer.Option(metavar="T", help="A trained detector (.pt).", show_default=False)],
    data: Annotated[Path, typer.Option(help="A YOLO dataset's data.yaml: its training images.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="The file to write.", show_default=False)],
    imgsz: SizeOption = None,
    device: DeviceOption = None,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    ray_address: RayAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a teacher once about all training images; kd train --method soft-labels --teacher-cache learns from it."""
    from kd.distillation.caching import cache_teacher

    _require_ray(executor, ray_address=ray_address)
    over: dict[str, Any] = {"executor": executor, "ray_address": ray_address}
    quiet = _quiet(context) or as_json
    found = cache_teacher(teacher, data, out, imgsz=imgsz, device=device, **over, quiet=quiet, tell=warn)
    print_json(found) if as_json else print_cached(found)


@app.command(epilog="Example: kd bench --student yolov5n --teacher yolov5s --imgsz 320 --batch 8 --device cpu")
@grouped
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
    batch: Batch = 16,
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
    print_json(found) if as_json else print_bench(f"{student} <- {teacher}", batch, steps, found)


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
        typer.Option(
            metavar="FILE",
            help="YAML, JSON or CSV of published rows to show beside, marked as theirs; paper: the seed paper's.  "
            "[default: the plan's]",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Images in Figure A1; 0 leaves it out.")] = 4,
    device: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A bench.json of kd device-bench, beside those in DIR; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Collect runs into the paper's tables and figures, as Markdown and HTML."""
    from kd.reports.report import report as write

    written = write(folder, out, published=published, images=images, device=device or ())
    print_json(written) if as_json else print_report(out, written)


class Baselines(TyperCommand):
    """A command whose ``--baseline`` takes all words up to the next option, as a shell's pattern gives them."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # gets no other
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


@dataclass(frozen=True)
class Place:
    """Where the runs of a sweep are carried out."""

    executor: Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")] = (
        "local"
    )
    ray_address: RayAddressOption = None
    ray_cpus: Annotated[
        int | None, typer.Option(metavar="N", help="Cores that a run takes of a cluster.  [default: 1]")
    ] = None
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="GPUs that it takes, or a share of one such as 0.5.  [default: what its device names]"
        ),
    ] = None

    def cluster(self) -> Cluster | None:
        """The cluster, None for this machine alone. Raises UsageError."""
        from kd.sweeps.executors import Cluster

        _require_ray(self.executor, ray_address=self.ray_address, ray_cpus=self.ray_cpus, ray_gpus=self.ray_gpus)
        if self.executor == "local":
            return None
        return Cluster(self.ray_address, 1 if self.ray_cpus is None else self.ray_cpus, self.ray_gpus)


@app.command(epilog="Example: kd sweep cpu --data bccd/data.yaml --out sweep")
@grouped
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
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Runs at once, which share the cores.  [default: 1; on Ray as many as fit]"
        ),
    ] = None,
    *,
    place: Place,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and the time they may take.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train teachers x students x methods x seeds by a plan; what is finished is not repeated."""
    from kd.errors import RunError
    from kd.sweeps.sweep import sweep as carry_out

    found = carry_out(
        plan,
        out,
        data=data,
        changes=changes or (),
        at_once=jobs,
        cluster=place.cluster(),
        dry_run=dry_run,
        quiet=_quiet(context) or as_json,
        **({"tell": lambda line: None} if as_json else {}),
    )
    print_json(found) if as_json else print_sweep(out, found)
    if found["failed"]:
        name, reason = next(iter(found["failed"].items()))
        raise RunError(
            f"{out}: got {len(found['failed'])} of {count(found['runs'], 'run')} failed, expected none "
            f"({name}: {reason}): see failures.json; the same command tries them again"
        )


def _require_ray(executor: str, **options: Any) -> None:
    """Raise UsageError for an option of Ray's without it."""
    from kd.errors import UsageError

    for name in (name for name, value in options.items() if value is not None and executor != "ray"):
        raise UsageError(f"--{name.replace('_', '-')}: is for --executor ray, which is not given")


for part in (scoring_app, device_app):
    app.add_typer(part)  # without a name: its commands are kd's own
