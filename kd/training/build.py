"""From a configuration to a trainer of Ultralytics', set up by nothing but its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.config import TrainConfig
from kd.errors import KdError, RunError
from kd.training.builtin import builtin_settings, builtin_trainer
from kd.training.disk import writing
from kd.training.trainer import Trainer, trainer_class
from kd.ultra import session


def build_trainer(
    config: TrainConfig, model: str, out: Path, last: Path | None = None, logs: tuple[str, ...] = ()
) -> Trainer:
    """A trainer that fills ``out``; of ``model`` as Ultralytics takes it, or going on from the checkpoint ``last``."""
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
    if config.backbone:  # which the trainer loads
        del overrides["pretrained"]
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
        return translated(build, out)


def translated(work: Callable[[], Any], out: Path) -> Any:
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
