"""A checkpoint as a file for another runtime, by Ultralytics' exporters, checked against the checkpoint.

In: a .pt and the name of a format. Out: one file or folder whose metadata says what it needs to be used.
Invariant: what lies at ``out`` has given the checkpoint's outputs; the checkpoint's folder is only read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.engine.exporter import export_formats
from ultralytics.nn.modules.head import RTDETRDecoder

from kd.errors import DataError, KdError, ModelError, UsageError
from kd.files import require_no_input, require_writable, sha256
from kd.scoring.evaluate import channels_of, image_size, images_of, require_same_channels, require_same_classes
from kd.scoring.predict import CONFIDENCE, model_title, read_image
from kd.ultra import model_files, session
from kd.ultra.data import resolve_data
from kd.ultra.exported import KEY, SUFFIXES, missing, read_metadata, run_blank
from kd.ultra.models import load_model
from schemas.strict import StrictError, read_json

# Ultralytics has more, left out here: those that are INT8 alone and calibrate on images (edgetpu, imx, axelera, deepx,
# qnn, hailo, xilinx), and those that fetch files while they export (saved_model, pb).
FORMATS = (
    "onnx", "openvino", "engine", "ncnn", "torchscript", "litert", "coreml", "coreai", "paddle", "mnn", "executorch",
    "rknn", "ascend",
)  # fmt: skip
FLOAT32 = frozenset({"onnx", "torchscript"})  # what other runtimes calculate in is up to the processor
FOLDERS = tuple(name for name in FORMATS if SUFFIXES[name].startswith("_") or name in {"coreml", "coreai"})
NEEDS = {"onnx": ("onnx", "onnxslim", "onnxruntime"), "openvino": ("openvino",)}  # of the extra
IMAGES = 8  # that a file is checked on


@dataclass(frozen=True)
class Difference:
    """How far a file's raw outputs are from its checkpoint's: boxes in pixels of the image, scores as shares of 1."""

    images: int
    max_px: float
    mean_px: float
    max_score: float

    def within(self, exact: bool) -> bool:
        """Whether they are equal: of float32 runtimes at every place, of others, which may use 16 bits, on average.

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
    metadata}``. Raises UsageError, ModelError and DataError, and KdError for what fails in an exporter or in the check:
    then ``out`` is as it was.
    """
    if format not in FORMATS:
        raise UsageError(f"--format: got {format!r}, expected one of {', '.join(FORMATS)}")
    begun, checkpoint = perf_counter(), Path(model)
    if not model_files.what_it_is(str(model)) and not model_files.is_there(checkpoint):
        raise ModelError(f"{model}: no such file, expected a checkpoint, such as weights/best.pt of a run")
    model_files.require_archive(str(model))
    yolo = load_model(str(model))
    model_files.require_names(yolo.model, str(model))
    imgsz = image_size(yolo, imgsz)
    out = Path(out or f"{model_title(model)}{SUFFIXES[format]}")
    _require_place(out, format, checkpoint)
    _require_packages(format)
    images = _images(yolo, data, imgsz)
    metadata = _metadata(yolo, checkpoint, out, data)
    near = next(place for place in out.absolute().parents if place.exists())
    with tempfile.TemporaryDirectory(prefix=".kd-export-", dir=near) as scratch:
        made = _write(yolo, format, imgsz, Path(scratch) / out.name.removesuffix(SUFFIXES[format]), metadata)
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
        size = sum(file.stat().st_size for file in (made, *made.rglob("*")) if file.is_file())
        _place(made, out, Path(scratch))
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


def _require_place(out: Path, format: str, checkpoint: Path) -> None:
    """Raise UsageError where the export would have a name of another format, or replace something else."""
    suffix = SUFFIXES[format]
    if not out.name.endswith(suffix) or out.name == suffix:
        raise UsageError(f"--out: got {out}, expected a name that ends in {suffix}: by it runtimes know a format")
    require_no_input("--out", [out], [checkpoint])
    if out.exists() and out.is_dir() != (format in FOLDERS):
        raise UsageError(f"--out: got {out}, a {'folder' if out.is_dir() else 'file'}, expected another name")
    if out.is_dir() and not read_metadata(out):
        raise UsageError(f"--out: got {out}, a folder that is no earlier export, expected another name")
    require_writable("--out", out.with_name(f".{suffix}"))


def _require_packages(format: str) -> None:
    for name in NEEDS.get(format, ()):
        if find_spec(name) is None:
            raise missing(f"--format {format}", ModuleNotFoundError(name=name))


def _runs_here(format: str) -> bool:
    table = export_formats()
    at = table["Argument"].index(format)
    return (table["CPU"][at] or table["GPU"][at]) and (format not in {"coreml", "coreai"} or sys.platform == "darwin")


def _metadata(yolo: YOLO, checkpoint: Path, out: Path, data: str | Path | None) -> dict[str, Any]:
    """What the file says of itself beside what Ultralytics writes (schemas/export.schema.json)."""
    trained_on = data or (yolo.ckpt.get("train_args") or {}).get("data")
    found = {
        "checkpoint": Path(os.path.relpath(checkpoint.resolve(), out.resolve().parent)).as_posix(),
        "sha256": sha256(checkpoint),
        "threshold": CONFIDENCE,
        "tiles": _tiles(trained_on),
        "single_cls": bool(yolo.overrides.get("single_cls")),
    }
    return {key: value for key, value in found.items() if value}


def _tiles(data: Any) -> dict[str, Any] | None:
    """How dtld cut the frames of a dataset, by the report.json beside its data.yaml; None where there is none."""
    if not isinstance(data, (str, Path)):
        return None
    try:
        tiles = read_json(Path(data).parent / "report.json")["configuration"]["tiles"]
        return {key: tiles[key] for key in ("layout", "size_px", "overlap")}
    except (OSError, StrictError, LookupError, TypeError):
        return None


def _write(yolo: YOLO, format: str, imgsz: int, stem: Path, metadata: dict[str, Any]) -> Path:
    """Export to a file or folder beside ``stem``. Ultralytics writes beside where it believes the checkpoint to be."""
    yolo.model.pt_path = f"{stem}.kd-checkpoint"  # it replaces the ending wherever that stands in the path

    def describe(exporter: Any) -> None:
        exporter.metadata.update({KEY: json.dumps(metadata), "description": f"{stem.name}, exported by kd"})

    yolo.add_callback("on_export_start", describe)
    try:
        with session.silence(logging.CRITICAL), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            return Path(yolo.export(format=format, imgsz=imgsz))
    except ModuleNotFoundError as error:
        raise missing(f"--format {format}", error) from error
    except Exception as error:  # of Ultralytics, of a converter, of a runtime
        raise KdError(
            f"--format {format}: got {session.first_line(error)} from Ultralytics' exporter, expected a file: see its "
            f"page on this format for what it needs"
        ) from error
    finally:
        torch.set_num_threads(session.TORCH_THREADS)


def _difference(yolo: YOLO, made: Path, images: Tensor, format: str) -> Difference:
    """Run a checkpoint and what was made of it on images [M, C, H, W] in 0..1."""
    network = yolo.model.eval()
    network.end2end = False  # the head that kd scores, and Ultralytics exports
    queries = isinstance(network.model[-1], RTDETRDecoder)

    def rows(output: Any) -> Tensor:
        """One image's boxes xywh in pixels and class scores [N, 4 + K]."""
        found = (output[0] if isinstance(output, (list, tuple)) else output)[0].float().cpu()
        if not queries:
            return found.T
        return torch.cat((found[:, :4] * images.shape[-1], found[:, 4:]), 1)

    try:
        backend = run_blank(made, None if format == "engine" else "cpu")  # GPUs calculate float32 in TF32
        theirs = [rows(backend(image[None].to(backend.device))) for image in images]
    except ModuleNotFoundError as error:
        raise missing(f"--format {format}", error) from error
    except Exception as error:
        raise KdError(
            f"--format {format}: got a file that does not run here ({session.first_line(error)}), expected one that "
            f"can be checked: nothing was written"
        ) from error
    with torch.inference_mode():
        ours = [rows(network(image[None])) for image in images]
    if queries:  # its queries come in the order of scores that may be equal
        theirs = [b[torch.cdist(a, b).argmin(1)] for a, b in zip(ours, theirs, strict=True)]
    apart = (torch.stack(ours) - torch.stack(theirs)).abs()  # [M, N, 4 + K]
    boxes, scores = apart[..., :4], apart[..., 4:]
    return Difference(len(images), float(boxes.max()), float(boxes.mean()), float(scores.max()))


def _images(yolo: YOLO, data: str | Path | None, imgsz: int) -> Tensor:
    """What a file is checked on [M, C, imgsz, imgsz] in 0..1: training images, evenly picked, or without any noise."""
    channels = channels_of(yolo)
    if data is None:
        return torch.rand(1, channels, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    content = resolve_data(data, "train")
    if not content.get("train"):
        raise DataError(f"{data}: train: got none, expected images to check the file on: leave --data out")
    require_same_classes(yolo, content["names"], data)
    require_same_channels(yolo, content["channels"], data)
    if channels != 3:
        raise DataError(f"{data}: got images of {channels} channels, expected 3: leave --data out")
    paths = images_of(content, data, "train")
    resize = LetterBox((imgsz, imgsz), auto=False)
    pictures = [resize(image=read_image(path))[..., ::-1] for path in paths[:: -(-len(paths) // IMAGES)]]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _place(made: Path, out: Path, scratch: Path) -> None:
    """Move what was made to ``out``, in place of an earlier export; the file system is the same."""
    out.parent.mkdir(parents=True, exist_ok=True)
    earlier = scratch / "earlier"
    if out.is_dir():
        out.rename(earlier)
    try:
        made.replace(out)
    except OSError:
        if earlier.exists():
            earlier.rename(out)
        raise
