"""Quantisation-aware distillation: a float detector teaches its own INT8 form, which trains as it will be rounded.

In: a checkpoint's detector and its training data. Out: the same detector with NNCF's quantisers around its weights and
activations, as `kd.device.writing.write` makes an OpenVINO file of it.
Invariant: one seed gives one result on a CPU, also where the training was killed and begun again.

The batch norms are folded first, so nothing of the network but its weights and the quantisers' ranges moves. What the
head does after its convolutions stays float, as in kd/device/int8.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.nn.modules.head import Detect, v10Detect

from kd.config import TrainConfig
from kd.device.images import Images
from kd.device.int8 import quiet_log
from kd.distillation.criterion import Distillation
from kd.distillation.links import link_teachers
from kd.errors import ModelError
from kd.files import sha256, whole_file
from kd.ultra import session
from kd.ultra.data import hash_data, resolve_data, ultralytics_view

METHODS = (("logits", 1.0), ("box", 1.0))  # what the float form is imitated in, beside the labels
STATE = ".distil.pt"  # behind the name of the output
BATCH = 16
RATE = 3e-5  # Adam's, small: weights shall find their rounding, not another minimum
LAST_RATE = 0.05  # of it, at the end of a half cosine
LONGEST_GRADIENT = 10.0  # Ultralytics' own bound
AUGMENTED = {"mosaic": 0.0}  # otherwise as Ultralytics trains; what is calibrated on are whole images


def train_int8(
    yolo: YOLO,
    checkpoint: Path,
    data: str | Path,
    images: Images,
    epochs: int,
    state: Path,
    *,
    seed: int = 0,
    quiet: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train the INT8 form of a detector and put it in its place in ``yolo``; returns the distillation term per epoch.

    ``checkpoint`` is where the detector comes from, ``images`` of ``data`` calibrate it, and all of its training images
    train it. After every epoch ``state`` is written, and what is there of the same work is gone on from; of other work,
    ``tell`` gets a line. Raises ModelError for a head that is none of YOLOv8's kind.
    """
    require_distillable(yolo.model, checkpoint)
    view = {**resolve_data(data, "train"), "val": [], "test": []}
    course = Course(sha256(checkpoint), hash_data(data, view), images.imgsz, len(images), epochs, seed)
    args = get_cfg(
        overrides={"task": "detect", "mode": "train", "imgsz": images.imgsz, **AUGMENTED}
        | {"single_cls": bool(yolo.overrides.get("single_cls"))}
    )
    with session.silence(), eager():
        network = with_quantizers(yolo.model, images)
        before, network.args = network.args, args
        loss = _Loss(network, checkpoint, data, images.imgsz)
        terms = _train(network, loss, _loader(view, args), course, state, quiet, tell)
    network.args = before
    yolo.model = network.eval()
    return terms


@dataclass(frozen=True)
class Course:
    """What decides the result, beside the versions of the libraries."""

    sha256: str  # of the checkpoint
    data_sha256: str
    imgsz: int
    images: int  # calibrated on
    epochs: int
    seed: int


def require_distillable(network: nn.Module, checkpoint: Path) -> None:
    """Raise ModelError for a detector whose head is none of YOLOv8's kind."""
    head = network.model[-1]
    if type(head) not in (Detect, v10Detect) or head.cv2 is None:
        raise ModelError(
            f"--distil: {checkpoint}: got a {type(head).__name__} head, expected one of YOLO from v5u on: leave it out"
        )


def with_quantizers(network: nn.Module, images: Images) -> nn.Module:
    """A copy of a detector that rounds as its INT8 file does, calibrated on images; its batch norms are folded.

    NNCF names an operation by its kind and turn. So it sees the forward pass that is trained, whose last operations are
    the head's convolutions: box decoding, DFL and sigmoids come after them, and get no quantisers. Nor do the products
    of attention blocks (YOLOv10, YOLO11, YOLO26): where they are traced for the file, height times width is one more of
    them, and would take the turn, and the quantiser, of the first.
    """
    with quiet_log():  # it makes torch look for a compiler
        import nncf
    nncf.set_log_level(logging.ERROR)
    network.end2end = False  # the head that kd scores, and Ultralytics exports
    network.fuse(verbose=False).float().eval()
    head = network.model[-1]
    head._inference = lambda preds: torch.cat((preds["boxes"], preds["scores"]), 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            quantized = nncf.quantize(
                network,
                nncf.Dataset(images, torch.from_numpy),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(types=["mul", "matmul"], validate=False),
            )
    finally:
        del head._inference
    del quantized.model[-1]._inference
    return quantized


class _Loss:
    """The task's loss of a batch and the distillation term, by Ultralytics' criterion and kd's methods."""

    def __init__(self, network: nn.Module, checkpoint: Path, data: str | Path, imgsz: int) -> None:
        """The teacher is the float detector of ``checkpoint``."""
        spec = str(checkpoint)
        config = TrainConfig(data=str(data), student=spec, out="", teachers=(spec,), methods=METHODS, imgsz=imgsz)
        links = link_teachers(config, network, network.names, torch.device("cpu"))
        self._network, self._criterion = network, Distillation(network, links, config)

    def __call__(self, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The loss per image and, as a number, the distillation term in it."""
        batch["img"] = batch["img"].float() / 255
        loss, items = self._criterion(self._network(batch["img"]), batch)
        return loss.sum() / len(batch["img"]), float(items["kd_loss"])


def _loader(view: dict[str, Any], args: Any) -> DataLoader:
    """Batches of augmented training images, loaded in this process: their order follows from the seed."""
    data = ultralytics_view(view)
    dataset = build_yolo_dataset(args, data["train"], BATCH, data, mode="train")
    return DataLoader(dataset, BATCH, shuffle=True, collate_fn=dataset.collate_fn)


def _train(
    network: nn.Module,
    loss: _Loss,
    loader: DataLoader,
    course: Course,
    state: Path,
    quiet: bool,
    tell: Callable[[str], None],
) -> list[float]:
    """Train all weights and ranges, from ``state`` on; returns the distillation term per epoch."""
    network.requires_grad_(False)
    frozen = {id(weight) for weight in network.model[-1].dfl.parameters()}
    weights = [weight for weight in network.parameters() if weight.is_floating_point() and id(weight) not in frozen]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=RATE)
    done = _load(state, course, tell)
    if done:
        network.load_state_dict(done["network"])
        optimizer.load_state_dict(done["optimizer"])
    terms: list[float] = done.get("terms", [])
    network.train()
    for epoch in range(len(terms), course.epochs):
        _seed(course.seed, epoch)
        found = []
        for step, batch in enumerate(tqdm(loader, f"epoch {epoch + 1}", leave=False, disable=quiet or None)):
            share = (epoch + step / len(loader)) / course.epochs
            optimizer.param_groups[0]["lr"] = RATE * max(LAST_RATE, (1 + math.cos(math.pi * share)) / 2)
            optimizer.zero_grad()
            value, term = loss(batch)
            value.backward()
            nn.utils.clip_grad_norm_(weights, LONGEST_GRADIENT)
            optimizer.step()
            found.append(term)
        terms = [*terms, float(np.mean(found))]
        content = {
            "course": asdict(course),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "terms": terms,
        }
        with whole_file(state) as partial:
            torch.save(content, partial)
    return terms


def _load(state: Path, course: Course, tell: Callable[[str], None]) -> dict[str, Any]:
    """What a killed process has left of this course, or nothing; tensors, numbers and text only, nothing runs."""
    if not state.exists():
        return {}
    try:
        found = torch.load(state, map_location="cpu", weights_only=True)
        if found["course"] == asdict(course):
            return found
        reason = "of another checkpoint, other data or other options"
    except Exception as error:
        reason = f"that cannot be read ({session.first_line(error)})"
    tell(f"{state}: got an unfinished distillation {reason}: it begins anew")
    return {}


def _seed(seed: int, epoch: int) -> None:
    """Let an epoch's order and augmentation follow from these alone."""
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """For all that runs a network of `with_quantizers`: NNCF rounds by torch's own operations, as without a compiler.

    By default it compiles others from C++ at the first image. That takes minutes, of which it waits one before it
    fails, and saves a fifth of the time of rounding (3.4.0).
    """
    with quiet_log():
        from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
        from nncf.torch.quantization.reference import ReferenceQuantizedFunctions

    compiled = QuantizedFunctionsCPU._loaded_namespace
    QuantizedFunctionsCPU._loaded_namespace = ReferenceQuantizedFunctions
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        QuantizedFunctionsCPU._loaded_namespace = compiled
