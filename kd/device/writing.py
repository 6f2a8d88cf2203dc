"""Files of other runtimes, as `kd export` and `kd quantize` write them: their names, packages, metadata and place.

In: a checkpoint that is loaded. Out: what Ultralytics' exporters make of it, moved to where it belongs as a whole.
Invariant: nothing of the user's is replaced but an earlier export, and the checkpoint's folder is only read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from kd.errors import KdError, ModelError, UsageError
from kd.files import require_no_input, require_writable, sha256
from kd.locks import hold
from kd.scoring.predict import CONFIDENCE
from kd.ultra import model_files, session
from kd.ultra.exported import KEY, SUFFIXES, missing, read_metadata
from kd.ultra.models import load_model
from schemas.strict import StrictError, read_json

# Ultralytics has more, left out here: those that are INT8 alone and calibrate on images (edgetpu, imx, axelera, deepx,
# qnn, hailo, xilinx), and those that fetch files while they export (saved_model, pb).
FORMATS = (
    "onnx", "openvino", "engine", "ncnn", "torchscript", "litert", "coreml", "coreai", "paddle", "mnn", "executorch",
    "rknn", "ascend",
)  # fmt: skip
FOLDERS = tuple(name for name in FORMATS if SUFFIXES[name].startswith("_") or name in {"coreml", "coreai"})
NEEDS = {"onnx": ("onnx", "onnxslim", "onnxruntime"), "openvino": ("openvino",)}  # of the extra
NEEDS_INT8 = {"onnx": NEEDS["onnx"], "openvino": ("openvino", "nncf")}


def load_checkpoint(path: Path) -> YOLO:
    """The detector in a .pt. Raises ModelError for what is none."""
    if not model_files.what_it_is(str(path)) and not model_files.is_there(path):
        raise ModelError(f"{path}: no such file, expected a checkpoint, such as weights/best.pt of a run")
    model_files.require_archive(str(path))
    yolo = load_model(str(path))
    model_files.require_names(yolo.model, str(path))
    return yolo


def require_place(out: Path, format: str, checkpoint: Path) -> None:
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


def require_packages(format: str, for_int8: bool = False) -> None:
    """Raise KdError for a package of the extra that a format needs and that is not installed."""
    for name in (NEEDS_INT8 if for_int8 else NEEDS).get(format, ()):
        if find_spec(name) is None:
            raise missing(f"--format {format}", ModuleNotFoundError(name=name))


def describe(yolo: YOLO, checkpoint: Path, out: Path, data: str | Path | None) -> dict[str, Any]:
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


def write(yolo: YOLO, format: str, imgsz: int, stem: Path, metadata: dict[str, Any]) -> Path:
    """Export to a file or folder beside ``stem``. Ultralytics writes beside where it believes the checkpoint to be."""
    yolo.model.pt_path = f"{stem}.kd-checkpoint"  # it replaces the ending wherever that stands in the path

    def add(exporter: Any) -> None:
        exporter.metadata.update({KEY: json.dumps(metadata), "description": f"{stem.name}, exported by kd"})

    yolo.add_callback("on_export_start", add)
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


@contextlib.contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A hidden folder on the file system of ``out``, whose own folder need not be there yet.

    No other process has it meanwhile, and what a killed one left there is gone. Raises RunError where one is at work.
    """
    folder = out.absolute().with_name(f".{out.name}.kd")
    scratch = folder / "scratch"
    try:
        with hold(folder, f"{out}: another process is writing it"):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # where a killed process made it, it is still there
            folder.rmdir()


def place(made: Path, out: Path, scratch: Path) -> None:
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
