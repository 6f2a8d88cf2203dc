"""A checkpoint as a file for another runtime, by Ultralytics' exporters, checked against the checkpoint.

In: a .pt and the name of a format. Out: one file or folder whose metadata says what it needs to be used.
Invariant: what lies at ``out`` has given the checkpoint's outputs; the checkpoint's folder is only read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics import YOLO
from ultralytics.engine.exporter import export_formats
from ultralytics.nn.modules.head import RTDETRDecoder

from kd.device.images import Images, training_images
from kd.device.writing import (
    FORMATS,
    describe,
    load_checkpoint,
    place,
    require_packages,
    require_place,
    workplace,
    write,
)
from kd.errors import KdError, UsageError
from kd.scoring.evaluate import channels_of, image_size
from kd.scoring.predict import model_title
from kd.ultra import session, signals
from kd.ultra.exported import SUFFIXES, missing, run_blank, size_bytes

FLOAT32 = frozenset({"onnx", "openvino", "torchscript"})  # checked in it; others take what the processor has
IMAGES = 8  # that a file is checked on


@dataclass(frozen=True)
class Difference:
    """How far a file's raw outputs are from its checkpoint's: boxes in pixels of the image, scores as shares of 1."""

    images: int
    max_px: float
    mean_px: float
    max_score: float

    def within(self, exact: bool) -> bool:
        """Whether they are equal: in float32 at every place, of runtimes that may use 16 bits, on average.

        The boxes of a yolov8n at 320 px move by 0.8 px on average in bfloat16, and by up to 17 px where nothing is.
        """
        if exact:
            return self.max_px <= 0.05 and self.max_score <= 0.001
        return self.mean_px <= 1.0 and self.max_score <= 0.05  # False for what is no number, too


TOLERANCES = {True: "0.05 px and 0.001 at every place", False: "1 px on average and 0.05 at every place"}


def export(
    model: str | Path,
    *,
    format: str = "onnx",
    imgsz: int | None = None,
    out: str | Path | None = None,
    data: str | Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a checkpoint as a file or folder of another format: what ``kd export`` does.

    The file takes one image of ``imgsz`` x ``imgsz`` pixels (by default as trained) and gives boxes before NMS. ``out``
    is by default named after the model, in the current folder. Its raw outputs are held against the checkpoint's on
    training images of ``data``, else on noise (`Difference.within`); a format that runs on its device alone is not
    checked, and ``tell`` gets a line about it. Returns ``{model, out, format, imgsz, bytes, checked, seconds,
    metadata}``. Raises UsageError, ModelError and DataError, RunError where another process writes
    ``out``, and KdError for what fails in an exporter or in the check: then ``out`` is as it was.
    """
    if format not in FORMATS:
        raise UsageError(f"--format: got {format!r}, expected one of {', '.join(FORMATS)}")
    begun, checkpoint = perf_counter(), Path(model)
    yolo = load_checkpoint(checkpoint)
    imgsz = image_size(yolo, imgsz)
    out = Path(out or f"{model_title(model)}{SUFFIXES[format]}")
    require_place(out, format, checkpoint)
    require_packages(format)
    images = _images(yolo, data, imgsz)
    metadata = describe(yolo, checkpoint, out, data)
    with workplace(out) as scratch:
        made = write(yolo, format, imgsz, scratch / out.name.removesuffix(SUFFIXES[format]), metadata)
        checked = None
        if _runs_here(format):
            checked = _difference(yolo, made, images, format)
            if not checked.within(format in FLOAT32):
                raise KdError(
                    f"{out}: got boxes that differ from those of {model} by up to {checked.max_px:.3g} px (on average "
                    f"{checked.mean_px:.3g}) and scores by {checked.max_score:.3g}, expected at most "
                    f"{TOLERANCES[format in FLOAT32]}: nothing was written"
                )
        else:
            tell(f"{out}: not checked against {model}, for only its device runs a file of this format")
        size = size_bytes(made)
        place(made, out, scratch)
    return {
        "model": str(model),
        "out": str(out),
        "format": format,
        "imgsz": imgsz,
        "bytes": size,
        "checked": checked
        and {**vars(checked), "data": data and str(data), "tolerance": TOLERANCES[format in FLOAT32]},
        "seconds": round(perf_counter() - begun, 2),
        "metadata": metadata,
    }


def _runs_here(format: str) -> bool:
    table = export_formats()
    at = table["Argument"].index(format)
    return (table["CPU"][at] or table["GPU"][at]) and (format not in {"coreml", "coreai"} or sys.platform == "darwin")


def _difference(yolo: YOLO, made: Path, images: Tensor, format: str) -> Difference:
    """Run a checkpoint and what was made of it on images [M, C, H, W] in 0..1."""
    network = yolo.model.eval()
    network.end2end = False  # the head that kd scores, and Ultralytics exports
    queries = isinstance(network.model[-1], RTDETRDecoder)

    def rows(output: Any) -> Tensor:
        """One image's boxes xywh in pixels and class scores [N, 4 + K]; of queries the best score and its class."""
        found = (output[0] if isinstance(output, (list, tuple)) else output)[0].float().cpu()
        if not queries:
            return found.T
        return torch.cat((found[:, :4] * images.shape[-1], found[:, 4:]), 1)

    try:
        backend = run_blank(made, None if format == "engine" else "cpu")  # GPUs calculate float32 in TF32
        run = _in_float32(made) if format == "openvino" else lambda image: backend(image.to(backend.device))
        theirs = [rows(run(image[None])) for image in images]
    except ModuleNotFoundError as error:
        raise missing(f"--format {format}", error) from error
    except Exception as error:
        raise KdError(
            f"--format {format}: got a file that does not run here ({session.first_line(error)}), expected one that "
            f"can be checked: nothing was written"
        ) from error
    with torch.inference_mode():
        ours = [rows(network(image[None])) for image in images]
    if queries:  # they come in the order of scores that may be equal, so that the last ones may be others
        ours = [found[: len(found) // 2] for found in ours]
        theirs = [b[torch.cdist(a, b).argmin(1)] for a, b in zip(ours, theirs, strict=True)]
    apart = (torch.stack(ours) - torch.stack(theirs)).abs()  # [M, N, 4 + K]
    boxes, scores = apart[..., :4], apart[..., 4:]
    return Difference(len(images), float(boxes.max()), float(boxes.mean()), float(scores.max()))


def _in_float32(folder: Path) -> Callable[[Tensor], Tensor]:
    """An OpenVINO folder in float32, which by itself takes bfloat16 where the processor has it."""
    import openvino

    with signals.keep_signal_stack():
        compiled = openvino.Core().compile_model(next(folder.glob("*.xml")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: torch.from_numpy(compiled(image.numpy())[0])


def _images(yolo: YOLO, data: str | Path | None, imgsz: int) -> Tensor:
    """What a file is checked on [M, C, imgsz, imgsz] in 0..1: training images, evenly picked, or without any noise."""
    channels = channels_of(yolo)
    if data is None:
        return torch.rand(1, channels, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    paths = training_images(yolo, data, IMAGES, ": leave --data out")
    return torch.from_numpy(np.concatenate(list(Images(paths, imgsz))))
