"""A teacher's file and a student's architecture in, a checkpoint of the student with inherited weights out.

Invariant: the checkpoint is a plain one of Ultralytics, or of the official YOLOv5; `kd train --student` and any other
tool start from it as from pretrained weights.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from kd.config import require_number
from kd.distillation.teacher import anchors_of, load_detector
from kd.errors import DataError, ModelError, UsageError
from kd.files import require_no_input, require_writable, sha256, write_all
from kd.inheritance.images import training_images
from kd.inheritance.inherit import inherit, require_head
from kd.scoring.evaluate import image_size, require_same_channels, score
from kd.ultra import classic, models, session
from kd.ultra.data import image_files, resolve_data

IMAGES = 300  # looked at, at most
FASTER = torch.channels_last
BATCH = 32  # images of 192 px; the same number of pixels at other sizes


@dataclass(frozen=True)
class Scale:
    """A layout by another one: ``width`` times the channels, ``depth`` times the repeats."""

    width: float = 1.0
    depth: float = 1.0

    def __str__(self) -> str:
        return f"width {self.width:g}, depth {self.depth:g}"

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1):
                raise UsageError(f"--{name}: got {value:g}, expected a share of the teacher's above 0 and up to 1")

    def apply(self, layout: dict[str, Any]) -> dict[str, Any]:
        """A model yaml at this scale; its scale letter stays, since Ultralytics builds some blocks by it."""
        layout = deepcopy(layout)
        if classic.is_classic_yaml(layout):
            scaled = (("depth_multiple", self.depth), ("width_multiple", self.width))
            return layout | {key: layout.get(key, 1.0) * share for key, share in scaled}
        letter = layout.get("scale") or next(iter(layout.get("scales", {})), "")
        usual = [layout.pop("depth_multiple", 1.0), layout.pop("width_multiple", 1.0), float("inf")]
        depth, width, most = layout.get("scales", {}).get(letter, usual)
        layout["scales"] = {letter: [depth * self.depth, width * self.width, most]}
        return layout


def inherit_weights(
    teacher: str,
    architecture: str | Scale,
    data: str | Path,
    out: str | Path,
    *,
    imgsz: int | None = None,
    images: int = IMAGES,
    seed: int = 0,
    device: str | None = None,
    slicing: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a student's first weights, from a teacher of its family: what ``kd inherit`` prints.

    ``architecture`` is a .yaml, a name, or the teacher's own at another scale. Its classes are those of ``data``, of
    whose training images ``images`` at most are looked at, without their labels. ``imgsz`` in pixels is by default that
    of the teacher's training; ``seed`` draws what is not inherited; ``slicing`` takes evenly spaced channels as they
    are, for comparison. Returns ``{teacher, teacher_sha256, student, data, out, imgsz, params}`` and what
    `write_first_weights` says. Raises ModelError, DataError or UsageError.
    """
    out = Path(out)
    if out.suffix != ".pt":
        raise UsageError(f"--out: got {out}, expected a file that ends in .pt")
    require_number("images", images)
    require_no_input("--out", [out], [Path(teacher), Path(str(architecture)), Path(data)])
    require_writable("--out", out)
    target = session.check_device(device)
    view = resolve_data(data)
    if Path(teacher).suffix.lower() != ".pt":
        raise ModelError(f"{teacher}: teacher: got no checkpoint, expected a trained detector (.pt)")
    source = load_detector(teacher)
    require_same_channels(source, view["channels"], data)
    imgsz = image_size(source, imgsz)
    student = str(architecture) if isinstance(architecture, str) else f"{architecture} of {teacher}"
    layout = _layout(source.model.yaml, architecture)
    try:
        network = fresh_student(layout, view["names"], seed, source.model)
        files, scoring = image_files(view["train"]), {"device": device, "quiet": quiet}
        account = write_first_weights(
            out, network, source.model, data, files, imgsz, target, scoring, images=images, slicing=slicing
        )
    except ModelError as error:
        raise ModelError(f"{student}: {error}") from error
    return {
        "teacher": teacher,
        "teacher_sha256": sha256(Path(teacher)),
        "student": student,
        "data": str(data),
        "out": str(out),
        "imgsz": imgsz,
        "params": sum(p.numel() for p in network.parameters()),
        **account,
    }


def write_first_weights(
    out: Path,
    student: nn.Module,
    teacher: nn.Module,
    data: str | Path,
    files: Sequence[Path],
    imgsz: int,
    device: torch.device,
    scoring: dict[str, Any],
    *,
    images: int = IMAGES,
    slicing: bool = False,
) -> dict[str, Any]:
    """Give ``student`` its weights on ``device``, from training images of ``data``, write them and score them.

    ``files`` are the images to train on, ``scoring`` further options of `kd.scoring.evaluate.score`. Returns
    ``{images, seconds, reproduced: {layer: share of variance}, copied, fresh}``, the last two with convolutions by
    name, and ``{map50, map50_95}``, the scores of val before any training. Raises ModelError or DataError.
    """
    if teacher.yaml.get("channels", 3) != 3:
        raise DataError(f"{data}: channels: got {teacher.yaml['channels']}, expected 3")
    started = time.monotonic()
    try:
        seen = training_images(data, files, imgsz, images).to(device, memory_format=FASTER)
        batches = list(seen.split(max(1, BATCH * 192**2 // imgsz**2)))
        models_there = (model.to(device, memory_format=FASTER) for model in (student, teacher.float().eval()))
        found = inherit(*models_there, batches, solving=not slicing)
    finally:
        student.to("cpu", memory_format=torch.contiguous_format)
        torch.set_num_threads(session.TORCH_THREADS)
    seconds = time.monotonic() - started
    write_all({out: checkpoint(student, imgsz)})
    scores = score(models.load_model(str(out)), data, split="val", imgsz=imgsz, **scoring)
    return {
        "images": len(seen),
        "seconds": round(seconds, 1),
        "reproduced": {layer: round(share, 4) for layer, share in found.by_stage().items()},
        "copied": found.copied,
        "fresh": found.fresh,
        "map50": scores["map50"],
        "map50_95": scores["map50_95"],
    }


def _layout(of_teacher: dict[str, Any], architecture: str | Scale) -> dict[str, Any]:
    """The student's model yaml. Raises ModelError."""
    if isinstance(architecture, Scale):
        return architecture.apply(of_teacher)
    if Path(architecture).suffix.lower() == ".pt":
        raise ModelError(
            f"{architecture}: student: got a checkpoint, expected a .yaml or a name: what it has learned would be lost"
        )
    yolo = models.load_model(architecture)
    models.require_student(yolo, architecture)
    return yolo.model.yaml


def fresh_student(
    layout: dict[str, Any], names: dict[int, str], seed: int, teacher: nn.Module
) -> DetectionModel | classic.Model:
    """A model of this layout with fresh weights and these classes, in evaluation mode; a classic one has the anchors of
    its ``teacher``. Raises ModelError.
    """
    make, layout = (classic.Model if classic.is_classic_yaml(layout) else DetectionModel), deepcopy(layout)
    if make is classic.Model and (anchors := anchors_of(teacher)):
        layout = classic.with_anchors(layout, anchors.values())
    require_head(layout)
    try:
        with session.silence(), torch.random.fork_rng():
            torch.manual_seed(seed)
            network = make(layout, nc=len(names), verbose=False)
    except Exception as error:  # blocks that cannot be of any width refuse in ways of their own
        raise ModelError(
            f"got no network ({session.first_line(error)}), expected widths that its blocks can have: "
            f"choose another --width"
        ) from error
    network.names = dict(names)
    return network.eval()


def checkpoint(network: nn.Module, imgsz: int) -> bytes:
    """A checkpoint as training writes one: the model in 16 bit, a classic one in the official form, and its purpose."""
    network = deepcopy(network).half()
    network.args, network.task = {"task": "detect", "imgsz": imgsz}, "detect"
    for parameter in network.parameters():
        parameter.requires_grad = False
    file = io.BytesIO()
    with classic.official_names():
        torch.save({"epoch": -1, "model": network, "train_args": {"task": "detect", "imgsz": imgsz}}, file)
    return file.getvalue()
