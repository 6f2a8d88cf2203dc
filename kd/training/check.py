"""All that is looked at before anything is written: options, data, models, and an OUT that is read.

In: a TrainConfig. Out: what the run starts from, or an error that names the option or file.
Invariant: nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd.config import SINGLE_CLASS, TrainConfig, require_side
from kd.errors import RunError, UsageError
from kd.methods.facts import ON_FEATURES, ON_HEADS
from kd.training.classic import require_for_classic
from kd.training.record import Checked, config_json
from kd.training.rtdetr import require_for_rtdetr
from kd.training.start import require_source
from kd.training.taught import require_askable
from kd.ultra import models, session
from kd.ultra.backbone import load_backbone
from kd.ultra.data import SPLITS, image_files, label_file, resolve_data
from kd.ultra.labels import check_splits
from kd.ultra.overlap import require_apart


def check_options(config: TrainConfig, resume: bool, overwrite: bool, logs: Collection[str]) -> None:
    """Look at the options alone, at no file. Raises UsageError, or KdError for a package that is not installed."""
    if resume and overwrite:
        raise UsageError("--resume: got it with --overwrite, expected one of them")
    session.check_settings(dict(config.settings))
    session.check_logs(logs)
    require_closing(config)
    if resume and config.built_in:
        raise UsageError("--resume: got it with built-in, expected a method of kd: start anew with --overwrite")


def check(config: TrainConfig, allow_overlap: bool, tell: Callable[[str], None], quiet: bool) -> Checked:
    """Look at everything that a run reads. Raises ModelError, DataError, UsageError or DistillationError.

    ``tell`` gets a line of what is left out of the data; of train counts what the setting `fraction` leaves.
    """
    data = resolve_data(config.data)
    options = {"fraction": config.fraction, "skip_bad": config.skip_bad_labels, **config.view}
    found = check_splits(config.data, data, SPLITS, needed=("train", "val"), tell=tell, quiet=quiet, **options)
    shared = require_apart(config.data, data, allow_overlap)
    names = SINGLE_CLASS if config.view.get("single_cls") else data["names"]
    student = models.load_model(config.student)
    models.require_student(student, config.student)
    require_side("imgsz", config.imgsz, models.grid_px(student))
    require_for_rtdetr(config, student.model)
    if config.inherit:
        require_source(config, student.model)
    if config.cached:
        require_askable(config, data)
    require_pretrained(config, student.model)
    require_for_classic(config, student.model)
    require_trainable(config, len(student.model.model))
    return Checked(config_json(config, data, student.model, names), data, student.overrides["model"], found, shared)


def require_closing(config: TrainConfig) -> None:
    """Raise UsageError where `no-closing` would leave nothing of the distillation, or all of it."""
    closing = {**session.DEFAULT_CFG_DICT, **dict(config.settings)}["close_mosaic"]
    if "no-closing" in config.schedules and not 0 < closing < config.epochs:
        raise UsageError(
            f"--schedule no-closing: got {closing} closing epochs of {config.epochs}, expected at least 1 and not all: "
            f"give --set close_mosaic=N or more --epochs"
        )


def require_pretrained(config: TrainConfig, student: nn.Module) -> None:
    """Raise ModelError where first weights by `--set pretrained` are no model; Ultralytics would download some.

    torchvision's weights are loaded into ``student``.
    """
    weights = dict(config.settings).get("pretrained")
    if config.backbone:
        load_backbone(student, config.backbone)
    elif isinstance(weights, str):
        models.require_safe(weights)
        models.load_model(weights)


def require_trainable(config: TrainConfig, layers: int) -> None:
    """Raise UsageError when --freeze leaves nothing to train, or nothing that a method could reach."""
    if config.freeze >= layers:
        raise UsageError(
            f"--freeze: got {config.freeze}, expected less than the {layers} layers of {config.student}, head included"
        )
    features = [name for name, _ in config.methods if name in ON_FEATURES and config.distils]
    if features and config.freeze == layers - 1:
        raise UsageError(
            f"--freeze: got {config.freeze}, all layers but the head, with {', '.join(features)}, expected less, or "
            f"methods that teach the head: {', '.join(ON_HEADS)}"
        )


def require_outside(out: Path, config: TrainConfig, data: Mapping[str, Any], others: Iterable[Path]) -> None:
    """Raise RunError where ``out``, which is to be replaced, holds what the run reads, or what its links lead to."""
    for option, path in _inputs(config, data, others):
        if any(place.is_relative_to(out) for place in _places(path)):
            raise RunError(
                f"{out}: got {option} {path} in it, expected a run without what the new one reads: choose another --out"
            )


def _inputs(config: TrainConfig, data: Mapping[str, Any], others: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Every path that a run reads, with the option that names it."""
    images = [image for split in SPLITS for image in image_files(data[split])]
    entries = [entry for split in SPLITS for entry in data[split]]
    for path in (Path(config.data), *entries, *images, *map(label_file, images)):
        yield "--data", path
    given = [("--student", config.student), *(("--teacher", teacher) for teacher in config.teachers)]
    others_given = (("--inherit", config.inherit), ("--teacher-cache", config.teacher_cache))
    given += [(option, path) for option, path in others_given if path]
    given += [(f"--set {key}", value) for key, value in config.settings if isinstance(value, str)]
    for option, path in (*given, *(("--priors", path) for path in others)):
        yield option, Path(path)
    if config.unlabeled:
        for path in (Path(config.unlabeled), *image_files([Path(config.unlabeled)])):
            yield "--unlabeled", path


def _places(path: Path) -> list[Path]:
    """Where a file lies, and where it is led to; nowhere if there is none."""
    try:
        return [path.absolute(), path.resolve()] if path.exists() else []
    except (OSError, ValueError):  # a setting's text that could not be a path
        return []
