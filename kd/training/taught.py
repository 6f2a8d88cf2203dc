"""Runs that learn from cached detections (soft-labels): whether teacher and cache fit, and the cache made if need be.

In: a configuration and the view of its data. Out: a file of what the teacher says about the training images, and an
account of it for config.json and run.json.
Invariant: a cache that is there is never written over.
"""

from __future__ import annotations

from typing import Any

import torch

from kd.config import TrainConfig
from kd.distillation.cache import StudentClasses, ask, require_fits, require_some
from kd.distillation.cache_file import TeacherCache
from kd.distillation.teacher import load_detector, require_branches
from kd.errors import DistillationError
from kd.files import require_writable, sha256
from kd.scoring.evaluate import require_same_channels
from kd.training.disk import writing
from kd.ultra.labels import usable_images, used_images


def require_askable(config: TrainConfig, data: dict[str, Any]) -> None:
    """Raise ModelError or DistillationError where teacher, or the cache that ``--teacher-cache`` names, do not fit;
    UsageError where that could not be written.

    ``data`` is from `kd.ultra.data.resolve_data`.
    """
    (teacher,) = config.teachers
    yolo = load_detector(teacher)
    require_branches(yolo.model, teacher)
    require_same_channels(yolo, data["channels"], config.data)
    StudentClasses.of(data["names"], list(yolo.names.values()), config.view, teacher)
    if not config.teacher_cache:
        return
    if config.cache_file.exists():
        _read(config, data)
    else:
        require_writable("--teacher-cache", config.cache_file)


def taught(config: TrainConfig, data: dict[str, Any], device: torch.device, quiet: bool) -> dict[str, Any]:
    """Ask the teacher unless it has been; returns an account of the file. Raises as `require_askable` does."""
    if not config.cache_file.exists():
        images = used_images(data, "train", config.fraction)
        found = ask(config.teachers[0], images, config.seen_imgsz, data["channels"], device, quiet)
        require_some(found, config.teachers[0])
        with writing(config.cache_file):
            found.write(config.cache_file)
    return {"sha256": sha256(config.cache_file), **_read(config, data).size(config.cache_file)}


def require_unchanged(config: TrainConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise DistillationError where a run that goes on would learn from another cache than it began with."""
    if before["sha256"] != now["sha256"]:
        raise DistillationError(
            f"{config.cache_file}: got another cache than the run began with, expected {before['sha256'][:12]}...: "
            f"bring it back, or name where it is by --teacher-cache"
        )


def _read(config: TrainConfig, data: dict[str, Any]) -> TeacherCache:
    cache = TeacherCache.read(config.cache_file)
    images = usable_images(data, "train", bool(config.view.get("single_cls")), config.fraction)
    require_fits(cache, config.cache_file, config.teachers[0], config.seen_imgsz, images)
    return cache
