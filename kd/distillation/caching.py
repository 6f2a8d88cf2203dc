"""`kd cache`: what a teacher finds in the training images of a dataset, once for all runs that learn from it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from kd.distillation.cache import ask, require_some
from kd.distillation.cache_file import TeacherCache
from kd.distillation.teacher import load_detector
from kd.errors import DistillationError, ModelError, UsageError
from kd.files import require_no_input
from kd.scoring.evaluate import image_size
from kd.ultra import session
from kd.ultra.data import image_files, resolve_data
from kd.ultra.depth import require_8_bit
from schemas.cluster import ClusterError, joined

PARTS = 4  # of the images for each core of a cluster: a slow node holds up no more than one


def cache_teacher(
    teacher: str,
    data: str | Path,
    out: str | Path,
    *,
    imgsz: int | None = None,
    device: str | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    quiet: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write what a teacher says about the training images of ``data``: what ``kd cache`` prints.

    ``imgsz`` in pixels is by default that of the teacher's training. Ray's nodes, of the cluster at ``ray_address`` or
    of one that is started here, see teacher and images under the same paths. ``tell`` gets a line of images that cannot
    be read. Returns ``{teacher, teacher_sha256, data, out, imgsz, images, rows, bytes, seconds}``; images of equal
    content count once. Raises ModelError, DataError, DistillationError or UsageError.
    """
    out, started = Path(out), time.monotonic()
    if out.suffix != ".npz":
        raise UsageError(f"--out: got {out}, expected a file that ends in .npz")
    if Path(teacher).suffix.lower() != ".pt":
        raise ModelError(f"{teacher}: teacher: got no checkpoint, expected a trained detector (.pt)")
    require_no_input("--out", [out], [Path(teacher), Path(data)])
    found_device = session.check_device(device)
    view = resolve_data(data)
    images = image_files(view["train"])
    require_8_bit(str(data), images)
    imgsz = image_size(load_detector(teacher), imgsz)
    try:
        if executor == "ray":
            cache = _ask_over(ray_address, teacher, images, imgsz, view["channels"], device, tell)
        else:
            cache = ask(teacher, images, imgsz, view["channels"], found_device, quiet, tell)
    finally:
        torch.set_num_threads(session.TORCH_THREADS)
    require_some(cache, teacher)
    cache.write(out)
    return {
        "teacher": teacher,
        "teacher_sha256": cache.teacher_sha256,
        "data": str(data),
        "out": str(out),
        "imgsz": imgsz,
        **cache.size(out),
        "seconds": round(time.monotonic() - started, 1),
    }


def _ask_over(
    address: str | None,
    teacher: str,
    images: Sequence[Path],
    imgsz: int,
    channels: int,
    device: str | None,
    tell: Callable[[str], None],
) -> TeacherCache:
    """What `ask` makes, by the nodes of a cluster: images in parts of equal size, a core and any GPU for each."""
    try:
        with joined(address, len(os.sched_getaffinity(0))) as ray:
            there = ray.cluster_resources()
            gpus = 0 if device == "cpu" or not there.get("GPU") else 1
            ask_part = ray.remote(num_cpus=1, num_gpus=gpus)(_ask_part)
            size = math.ceil(len(images) / (PARTS * max(1, int(there.get("GPU" if gpus else "CPU", 1)))))
            parts = [list(images[i : i + size]) for i in range(0, len(images), size)]
            where = str(Path(teacher).resolve()), imgsz, channels, "0" if gpus else "cpu"
            try:
                found = ray.get([ask_part.remote(part, *where) for part in parts])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise DistillationError(f"Ray: {' '.join(str(error).split())}: give the same command again") from error
    except ClusterError as error:
        raise UsageError(str(error)) from error
    for line in (line for _, lines in found for line in lines):
        tell(line)
    return TeacherCache.joined([cache for cache, _ in found])


def _ask_part(
    images: list[Path], teacher: str, imgsz: int, channels: int, device: str
) -> tuple[TeacherCache, list[str]]:
    """A part of the images, on a core of a node."""
    torch.set_num_threads(1)
    lines: list[str] = []
    return ask(teacher, images, imgsz, channels, session.check_device(device), True, lines.append), lines
