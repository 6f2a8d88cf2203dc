"""Runs that start from inherited weights (`--inherit`): whether the teacher fits, and what training starts from.

In: a configuration that names a teacher to inherit from, and what checking it has found. Out: RUN/weights/inherited.pt,
and an account of it for config.json and run.json.
Invariant: what training starts from depends on the teacher's and the data's content, image size and seed alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.config import SINGLE_CLASS, TrainConfig
from kd.distillation.teacher import load_detector
from kd.errors import ModelError
from kd.inheritance.inherit import require_family
from kd.inheritance.weights import fresh_student, write_first_weights
from kd.ultra import models, session
from kd.ultra.labels import usable_images

INHERITED = Path("weights", "inherited.pt")  # in a run's folder


def require_source(config: TrainConfig, student: nn.Module) -> None:
    """Raise ModelError for a teacher that the student cannot inherit from."""
    source = _source(config)
    try:
        require_family(student, source)
    except ModelError as error:
        raise ModelError(f"{config.inherit}: {error}: {config.student}") from error


def inherit_start(
    config: TrainConfig, data: dict[str, Any], out: Path, device: torch.device, quiet: bool
) -> dict[str, Any]:
    """Write the student's first weights; returns how they came about and their scores of val before any training.

    ``data`` is from `kd.ultra.data.resolve_data`. Raises ModelError or DataError.
    """
    names = SINGLE_CLASS if config.view.get("single_cls") else data["names"]
    teacher = _source(config)
    network = fresh_student(models.load_model(config.student).model.yaml, names, config.seed, teacher)
    files = usable_images(data, "train", bool(config.view.get("single_cls")), config.fraction)
    scoring = {"batch": config.batch, "device": config.one_device, "quiet": quiet, **config.view}
    return write_first_weights(out / INHERITED, network, teacher, config.data, files, config.imgsz, device, scoring)


def _source(config: TrainConfig) -> nn.Module:
    """The teacher's model; one that is named by its architecture alone, a control, has fresh weights by the seed."""
    with session.silence(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return load_detector(config.inherit).model
