"""`kd cache`: what a teacher finds in the training images of a dataset, once for all runs that learn from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd.distillation.cache import ask
from kd.distillation.teacher import load_detector
from kd.errors import ModelError, UsageError
from kd.files import require_no_input
from kd.scoring.evaluate import image_size
from kd.ultra import session
from kd.ultra.data import image_files, resolve_data
from kd.ultra.depth import require_8_bit


def cache_teacher(
    teacher: str,
    data: str | Path,
    out: str | Path,
    *,
    imgsz: int | None = None,
    device: str | None = None,
    quiet: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write what a teacher says about the training images of ``data``: what ``kd cache`` prints.

    ``imgsz`` in pixels is by default that of the teacher's training; ``tell`` gets a line of images that cannot be
    read. Returns ``{teacher, teacher_sha256, data, out, imgsz, images, rows, bytes, seconds}``; images of equal content
    count once. Raises ModelError, DataError, DistillationError or UsageError.
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
        cache = ask(teacher, images, imgsz, view["channels"], found_device, quiet, tell)
    finally:
        torch.set_num_threads(session.TORCH_THREADS)
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
