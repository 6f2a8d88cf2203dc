"""A teacher's file and a student's architecture in, a checkpoint of the student with inherited weights out.

Invariant: the checkpoint is a plain one of Ultralytics; `kd train --student` and any other tool start from it as from
pretrained weights.
"""

from __future__ import annotations

import io
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from kd.distillation.teacher import load_detector
from kd.errors import DataError, ModelError, UsageError
from kd.files import require_no_input, sha256, write_all
from kd.inheritance.images import training_images
from kd.inheritance.inherit import inherit
from kd.scoring.evaluate import image_size, score
from kd.ultra import models, session
from kd.ultra.data import resolve_data

BATCH = 32  # images of 192 px; the same number of pixels at other sizes


def inherit_weights(
    teacher: str,
    student: str,
    data: str | Path,
    out: str | Path,
    *,
    imgsz: int | None = None,
    device: str | None = None,
    slicing: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a student's first weights, from a teacher of its family: what ``kd inherit`` prints.

    ``student`` is an architecture, a .yaml or a name; its classes are those of ``data``, whose training images are
    looked at without their labels. ``imgsz`` in pixels is by default that of the teacher's training; ``slicing`` takes
    evenly spaced channels as they are, for comparison. Returns ``{teacher, teacher_sha256, student, data, out, imgsz,
    images, params, seconds, explained: {layer: share of variance}, copied, fresh, map50, map50_95}`` with the scores of
    val before any training. Raises ModelError, DataError or UsageError.
    """
    out = Path(out)
    if out.suffix != ".pt":
        raise UsageError(f"--out: got {out}, expected a file that ends in .pt")
    require_no_input("--out", [out], [Path(teacher), Path(student), Path(data)])
    target = session.check_device(device)
    view = resolve_data(data)
    if view["channels"] != 3:
        raise DataError(f"{data}: channels: got {view['channels']}, expected 3")
    source = load_detector(teacher)
    imgsz = image_size(source, imgsz)
    network = fresh_student(student, view["names"])
    started = time.monotonic()
    try:
        images = training_images(data, view, imgsz).to(target)
        batches = list(images.split(max(1, BATCH * 192**2 // imgsz**2)))
        found = inherit(network.to(target), source.model.float().eval().to(target), batches, solving=not slicing)
    except ModelError as error:
        raise ModelError(f"{student}: {error}") from error
    finally:
        torch.set_num_threads(session.TORCH_THREADS)
    seconds = time.monotonic() - started
    write_all({out: checkpoint(network.cpu(), imgsz)})
    scores = score(models.load_model(str(out)), data, split="val", imgsz=imgsz, device=device, quiet=quiet)
    return {
        "teacher": teacher,
        "teacher_sha256": sha256(Path(teacher)),
        "student": student,
        "data": str(data),
        "out": str(out),
        "imgsz": imgsz,
        "images": len(images),
        "params": sum(p.numel() for p in network.parameters()),
        "seconds": round(seconds, 1),
        "explained": {layer: round(share, 4) for layer, share in found.by_stage().items()},
        "copied": found.copied,
        "fresh": found.fresh,
        "map50": scores["map50"],
        "map50_95": scores["map50_95"],
    }


def fresh_student(spec: str, names: dict[int, str]) -> DetectionModel:
    """The architecture with fresh weights and these classes, in evaluation mode. Raises ModelError."""
    if Path(spec).suffix.lower() == ".pt":
        raise ModelError(f"{spec}: student: got a checkpoint, expected a .yaml or a name: its weights would be lost")
    yolo = models.load_model(spec)
    models.require_student(yolo, spec)
    with session.silence(), torch.random.fork_rng():
        torch.manual_seed(0)  # of what is not inherited
        network = DetectionModel(yolo.model.yaml, nc=len(names), verbose=False)
    network.names = dict(names)
    return network.eval()


def checkpoint(network: nn.Module, imgsz: int) -> bytes:
    """A checkpoint as Ultralytics writes one after training: the model in 16 bit, and what it was made for."""
    network = deepcopy(network).half()
    network.args, network.task = {"task": "detect", "imgsz": imgsz}, "detect"
    for parameter in network.parameters():
        parameter.requires_grad = False
    file = io.BytesIO()
    torch.save({"epoch": -1, "model": network, "train_args": {"task": "detect", "imgsz": imgsz}}, file)
    return file.getvalue()
