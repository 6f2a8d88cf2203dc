"""From a configuration to a run folder: checks first, then Ultralytics' training loop, then the figures.

In: a TrainConfig. Out: RUN with weights, results.csv, config.json (written at the start) and run.json (written at
the end; schemas/run.schema.json).
Invariant: a refused run leaves no folder, run.json exists exactly when the run is complete, and nothing but a folder
with a config.json of ours is ever deleted.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils.torch_utils import get_flops, strip_optimizer

from kd.config import SINGLE_CLASS, TrainConfig, require_side
from kd.distillation.balance import medians
from kd.distillation.criterion import term
from kd.distillation.links import link_teachers
from kd.distillation.teacher import check_worth, probe_levels
from kd.distillation.unlabeled import check_unlabeled
from kd.errors import KdError, RunError, UsageError
from kd.files import sha256
from kd.locks import hold
from kd.methods.fgfi import fgfi_masks
from kd.reports.model_card import model_card
from kd.runs.record import epochs_done, optimizer_of
from kd.scoring.evaluate import score
from kd.training.builtin import builtin_settings, builtin_trainer, nearest_own
from kd.training.check import require_closing, require_outside, require_trainable
from kd.training.disk import writing
from kd.training.ranks import require_alone
from kd.training.resume import aside, finish, load_sidecar, settle, sidecar_of
from kd.training.run_folder import (
    CONFIG,
    RUN,
    clear,
    replacing,
    require_free,
    require_same,
    require_unfinished,
    settle_earlier,
    write_json,
    write_text,
)
from kd.training.trainer import Trainer, trainer_class
from kd.ultra import models, session
from kd.ultra.data import SPLITS, hash_data, resolve_data
from kd.ultra.labels import Found, check_splits
from kd.ultra.overlap import require_apart


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_weak_teacher: bool = False,
    allow_overlap: bool = False,
    also_read: Iterable[Path] = (),
    tell: Callable[[str], None] = lambda line: None,
    logs: tuple[str, ...] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a student, distilled when the configuration names teachers; returns the content of run.json.

    ``resume`` continues a run that was cut off, with the same configuration, or starts it again when it has no
    checkpoint yet; ``overwrite`` replaces an earlier run, which comes back unless the new one is finished, and must
    hold nothing that is read, be it in the configuration or in ``also_read``; ``dry_run`` writes nothing and returns
    the plan: levels, adapters, the terms and fgfi's mask on one batch, the teachers' scores. ``allow_overlap`` lets val
    and test have training images; ``tell`` gets a line of what is left out or kept. ``logs`` are packages to log the
    run to (`session.LOGS`); ``quiet`` silences Ultralytics.
    Raises ModelError, DataError, UsageError, RunError or DistillationError.
    """
    started = time.monotonic()
    require_alone()
    if resume and overwrite:
        raise UsageError("--resume: got it with --overwrite, expected one of them")
    session.check_settings(dict(config.settings))
    session.check_logs(logs)
    require_closing(config)
    if resume and config.built_in:
        raise UsageError("--resume: got it with built-in, expected a method of kd: start anew with --overwrite")
    device = session.check_device(config.device)
    out = Path(config.out).resolve()
    with contextlib.nullcontext() if dry_run else hold(out):
        if not dry_run:
            settle_earlier(out)
        if resume:
            require_unfinished(out)
        elif not dry_run:
            require_free(out, overwrite)
        asked = _checked(config, allow_overlap or resume, tell, quiet)  # a run resumes with the data that it began with
        if overwrite:
            require_outside(out, config, asked.data, also_read)
        if resume:
            asked.record["kd"] = require_same(out, asked.record)
        elif config.distils:
            _add_worths(config, asked.record["kd"]["teachers"], allow_weak_teacher)
        if dry_run:
            return _plan(config, asked.model, asked.record)
        with replacing(out, tell) if overwrite else contextlib.nullcontext():
            result = _carry_out(config, asked, out, device, started=started, resume=resume, logs=logs, quiet=quiet)
        settle_earlier(out)
        return result


@dataclass(frozen=True)
class _Asked:
    """What a run is asked to do, once all of it has been found possible."""

    record: dict[str, Any]  # of config.json
    data: dict[str, Any]  # as `kd.ultra.data.resolve_data` has it
    model: str  # what Ultralytics builds the student from
    found: dict[str, Found]  # by split
    shared: dict[str, int]  # images of val and test that train has too


def _checked(config: TrainConfig, allow_overlap: bool, tell: Callable[[str], None], quiet: bool) -> _Asked:
    """Look at everything that a run reads. Raises ModelError, DataError, UsageError or DistillationError."""
    data = resolve_data(config.data)
    found = _check(config, data, tell, quiet)
    shared = require_apart(config.data, data, allow_overlap)
    names = SINGLE_CLASS if config.view.get("single_cls") else data["names"]
    student = models.load_model(config.student)
    models.require_student(student, config.student)
    require_side("imgsz", config.imgsz, models.grid_px(student))
    pretrained = dict(config.settings).get("pretrained")
    if isinstance(pretrained, str):  # Ultralytics would download what is not there
        models.require_safe(pretrained)
        models.load_model(pretrained)
    require_trainable(config, len(student.model.model))
    record = {
        "config": config.to_json(),
        "data_sha256": hash_data(config.data, data),
        "student_sha256": _file_hash(config.student),
        "kd": _kd(config, student.model, names) if config.distils else None,
    }
    if config.unlabeled:
        record["kd"]["unlabeled"] = check_unlabeled(config.unlabeled, data)
    return _Asked(record, data, student.overrides["model"], found, shared)


def _add_worths(config: TrainConfig, teachers: list[dict[str, Any]], allow_weak: bool) -> None:
    """Score the teachers, and write into their part of config.json what they are worth. Raises DistillationError."""
    worths = check_worth(
        config.teachers,
        config.student,
        config.data,
        imgsz=config.imgsz,
        teacher_imgsz=config.teacher_imgsz,
        batch=config.batch,
        device=config.one_device,
        allow_weak=allow_weak,
        **config.view,
    )
    for teacher, worth in zip(teachers, worths, strict=True):
        teacher["worth"] = worth.to_json()


def _carry_out(
    config: TrainConfig,
    asked: _Asked,
    out: Path,
    device: Any,
    *,
    started: float,
    resume: bool,
    logs: tuple[str, ...],
    quiet: bool,
) -> dict[str, Any]:
    """Train, score and describe; returns the content of run.json. Raises RunError or DistillationError."""
    record, last, best = asked.record, out / "weights" / "last.pt", out / "weights" / "best.pt"
    try:
        settle(last)
        resumed = last.exists()
        state = load_sidecar(sidecar_of(last), mmap=True) if resumed and _epoch(last) >= 0 else {}
        if not resumed or state.get("stop") is False:
            write_json(out / CONFIG, record)  # of a resumed run with the places where its inputs are now
            trainer = _trainer(config, asked.model, out, last if resumed else None, logs)
            trainer.started = started
            with session.narrate(quiet):
                _translated(trainer.train, out)
        if not best.exists():
            raise RunError(f"{out}: training: got no best.pt, expected finite scores: lower the learning rate")
        for checkpoint in (last, best):  # a run that was cut off after its last epoch has this still to do
            if _epoch(checkpoint) >= 0:
                with session.silence(), writing(checkpoint):
                    strip_optimizer(checkpoint, str(aside(checkpoint)))
                aside(checkpoint).replace(checkpoint)
        if config.balance:
            record["kd"]["balanced_weights"] = medians(load_sidecar(sidecar_of(last), mmap=True)["balance"])
        result = {
            **record,
            "images": {split: one.images for split, one in asked.found.items()},
            **_counts("skipped", {split: one.skipped for split, one in asked.found.items()}),
            **_counts("repeated_labels", {split: one.repeated for split, one in asked.found.items()}),
            **_counts("shared_images", asked.shared),
            "metrics": {path.stem: _metrics(path, config, asked.data, quiet) for path in (last, best)},
            **_size(last, config.imgsz),
            "versions": versions(),
            "device": session.device_name(device, len((config.device or "").split(","))),
            "epochs": epochs_done(out),
            "resumed": resumed,
            "wall_time_s": round(state.get("seconds", 0.0) + time.monotonic() - started, 1),
        }
        write_text(out / "README.md", model_card(result))
        write_json(out / RUN, result)
        finish(last)
    except BaseException:
        if not last.exists() and not resume:  # nothing to resume: leave no trace
            clear(out)
        raise
    finally:
        torch.set_num_threads(session.TORCH_THREADS)
    return result


def _check(config: TrainConfig, data: dict[str, Any], tell: Callable[[str], None], quiet: bool) -> dict[str, Found]:
    """What each split of the data has; of train, what the setting `fraction` leaves. Raises DataError."""
    options = {"fraction": dict(config.settings).get("fraction", 1.0), "skip_bad": config.skip_bad_labels}
    return check_splits(
        config.data, data, SPLITS, needed=("train", "val"), tell=tell, quiet=quiet, **options, **config.view
    )


def _counts(key: str, by_split: dict[str, int]) -> dict[str, dict[str, int]]:
    """What run.json has of it: the splits with any, or no such key."""
    some = {split: count for split, count in by_split.items() if count}
    return {key: some} if some else {}


def versions() -> dict[str, str]:
    """What made a run: this package, Python, torch, Ultralytics."""
    try:
        own = importlib.metadata.version("dtld-kd")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "dtld-kd": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
    }


def _kd(config: TrainConfig, student: torch.nn.Module, names: dict[int, str]) -> dict[str, Any]:
    """What is learned from whom; a teacher that is no model, shares no level or cannot be compared is refused here."""
    config = nearest_own(config) if config.built_in else config
    channels = probe_levels(student)
    teachers = [
        {
            "sha256": _file_hash(link.teacher.spec),
            "weight": link.share,
            "levels": [
                {
                    "stride": own,
                    "teacher_stride": theirs,
                    "student_channels": channels[own],
                    "teacher_channels": link.teacher.levels[theirs],
                }
                for own, theirs in link.levels.items()
            ],
            "adapter_params": sum(p.numel() for p in link.adapters.parameters()),
            "worth": None,
        }
        for link in link_teachers(config, student, names, torch.device("cpu"))
    ]
    return {"teachers": teachers}


def _file_hash(spec: str) -> str | None:
    path = Path(spec)
    return sha256(path) if path.is_file() else None


def _epoch(checkpoint: Path) -> int:
    """The epoch, from 0, that an unfinished checkpoint was written after; -1 for a finished one; else RunError."""
    try:
        with session.silence():
            return int(torch_safe_load(str(checkpoint), safe_only=True)[0]["epoch"])
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise RunError(
            f"{checkpoint}: got no checkpoint of Ultralytics ({type(error).__name__}), expected the one that kd wrote: "
            f"bring it back, or start anew with --overwrite"
        ) from error


def _trainer(config: TrainConfig, model: str, out: Path, last: Path | None, logs: tuple[str, ...] = ()) -> Trainer:
    overrides = {
        "task": "detect",
        "mode": "train",
        "model": model,
        "data": str(Path(config.data).resolve()),
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "batch": config.batch,
        "device": config.device,
        "seed": config.seed,
        "freeze": config.freeze or None,
        "plots": False,
        **dict(config.settings),
        "save_dir": str(out),
    }
    if config.built_in:
        overrides |= builtin_settings(config)
    if last:
        kept = ("data", "device", "save_dir")  # the rest comes from the checkpoint, optimizer choices included
        overrides = {key: overrides[key] for key in kept} | {"resume": str(last)}
    make = builtin_trainer if config.built_in else trainer_class

    def build() -> Trainer:
        with writing(out / "args.yaml"):
            return make(config, logs)(overrides=overrides)

    with session.silence():
        return _translated(build, out)


def _translated(work: Callable[[], Any], out: Path) -> Any:
    """Do the work; what Ultralytics or torch raise becomes one line of ours, the original as its cause."""
    try:
        with writing(out):  # what of it has no name
            return work()
    except KdError:
        raise
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{out}: training: got {type(error).__name__}: {line}, expected it to go on: --debug shows where"
        ) from error


def _metrics(checkpoint: Path, config: TrainConfig, data: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Scores of a checkpoint on val, and on test where there is one."""
    yolo = models.load_model(str(checkpoint))
    return {
        split: score(
            yolo,
            config.data,
            split=split,
            imgsz=config.imgsz,
            batch=config.batch,
            device=config.one_device,
            quiet=quiet,
            **config.view,
        )
        for split in ("val", "test")
        if data[split]
    }


def _size(checkpoint: Path, imgsz: int) -> dict[str, Any]:
    """What a checkpoint says of itself: the optimizer it was trained with, parameters, GFLOPs."""
    yolo = models.load_model(str(checkpoint))
    model = yolo.model
    return {
        "optimizer": optimizer_of(yolo.ckpt["train_args"]),
        "params": sum(p.numel() for p in model.parameters()),
        "gflops": round(get_flops(model, imgsz), 3) or None,  # None: Ultralytics could not measure
    }


def _plan(config: TrainConfig, model: str, record: dict[str, Any]) -> dict[str, Any]:
    """What a run would do, from the first batch of a trainer that is set up in a folder of its own and dropped."""
    with tempfile.TemporaryDirectory(prefix="kd-plan-") as scratch, session.silence():
        trainer = _trainer(replace(config, device=config.one_device), model, Path(scratch), None)
        _translated(trainer._setup_train, Path(scratch))
        steps = len(trainer.train_loader)
        plan = {**record, "out": config.to_json()["out"], "steps_per_epoch": steps}
        plan["optimizer"] = optimizer_of(vars(trainer.args))
        if trainer.distillation:
            plan["first_batch"] = _first_batch(trainer)
    torch.set_num_threads(session.TORCH_THREADS)
    return plan


def _first_batch(trainer: Trainer) -> dict[str, Any]:
    """Boxes, mask shares by stride, unweighted terms and the teachers' shares of the first training batch."""
    distillation, config = trainer.distillation, trainer.config
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    with torch.no_grad():
        inputs = distillation.inputs(trainer.model.train()(batch["img"]), batch)
        batches = distillation.weighted_batches(inputs)
        terms = {name: float(term(name, batches, config)) for name, _ in config.methods}
    plan = {"boxes": len(batch["bboxes"]), "terms": terms, "shares": [round(share, 4) for share, _ in batches]}
    if "fgfi" in terms:
        masks = {s: mask for b in inputs for s, mask in zip(b.student, fgfi_masks(b, config), strict=True)}
        plan["mask_share"] = {str(stride): round(float(masks[stride].float().mean()), 4) for stride in sorted(masks)}
    return plan
