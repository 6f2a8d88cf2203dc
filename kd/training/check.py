"""What is looked at before a run beside models and data: options that leave nothing to do, and an OUT that is read.

In: a TrainConfig, the view of its data. Out: nothing, or an error that names the option.
Invariant: nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kd.config import TrainConfig
from kd.errors import RunError, UsageError
from kd.methods.facts import ON_FEATURES, ON_HEADS
from kd.ultra import session
from kd.ultra.data import SPLITS, image_files, label_file


def require_closing(config: TrainConfig) -> None:
    """Raise UsageError where `no-closing` would leave nothing of the distillation, or all of it."""
    closing = {**session.DEFAULT_CFG_DICT, **dict(config.settings)}["close_mosaic"]
    if "no-closing" in config.schedules and not 0 < closing < config.epochs:
        raise UsageError(
            f"--schedule no-closing: got {closing} closing epochs of {config.epochs}, expected at least 1 and not all: "
            f"give --set close_mosaic=N or more --epochs"
        )


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
