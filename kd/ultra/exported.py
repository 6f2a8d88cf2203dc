"""Exported files of a detector, such as x.onnx or x_openvino_model/, for what scores and draws checkpoints, too.

In: a file or folder that `kd export` has written, or another export by Ultralytics. Out: Ultralytics' YOLO around it.
Invariant: what a file says of itself is read without running it, and it runs on a blank image before on any other.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastjsonschema
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.engine.exporter import export_formats
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend

import schemas
from kd.config import NUMBERS
from kd.errors import KdError, ModelError, UsageError
from kd.files import sha256
from kd.ultra import model_files, session
from kd.ultra.models import load_model
from schemas.strict import StrictError, load_json

KEY = "kd"  # of the metadata
EXTRA = "pip install 'dtld-kd[device]'"
IN_EXTRA = frozenset({"nncf", "onnx", "onnxruntime", "onnxslim", "openvino"})
SUFFIXES = dict(zip(export_formats()["Argument"], export_formats()["Suffix"], strict=True))
ENDINGS = tuple(suffix for suffix in SUFFIXES.values() if suffix != ".pt")


@dataclass(frozen=True)
class Card:
    """What an exported file says of itself; ``own`` is what `kd export` adds (schemas/export.schema.json), or {}."""

    names: dict[int, str]
    imgsz: int  # longer side in pixels
    channels: int
    is_rtdetr: bool
    is_dynamic: bool  # takes images of any size
    has_nms: bool  # by Ultralytics' nms=True: gives what is left at its own threshold
    size_bytes: int
    own: dict[str, Any]


class Exported(YOLO):
    """Ultralytics' YOLO around an exported file that `load_exported` has tried."""

    def __init__(self, path: Path, card: Card) -> None:
        super(YOLO, self).__init__(
            str(path), task="detect"
        )  # YOLO's own turns what holds an RT-DETR into another class
        self.card = card

    @property
    def names(self) -> dict[int, str]:
        """The class names in the file."""
        return self.card.names

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Ultralytics' classes for the task, which are others for an RT-DETR."""
        return (RTDETR if self.card.is_rtdetr else YOLO).task_map.fget(self)


def load_runnable(spec: str, device: str | None = None, tell: Callable[[str], None] = lambda line: None) -> YOLO:
    """What ``spec`` names, as `kd.ultra.models.load_model` has it, or an exported file, tried on the device.

    ``tell`` gets a line where the checkpoint of an export is another one by now, and where an export by Ultralytics
    drops detections itself. Raises ModelError, and KdError where the file's runtime is not installed.
    """
    if not is_exported(spec):
        return load_model(spec)
    yolo = load_exported(spec, device)
    if line := stale(spec, yolo.card):
        tell(line)
    if yolo.card.has_nms:
        tell(f"{spec}: got an export with NMS inside, which drops scores below a threshold: its mAP is lower for that")
    return yolo


def is_exported(spec: str) -> bool:
    """Whether this is the name of an export, as Ultralytics tells formats apart.

    >>> is_exported("best.onnx"), is_exported("best_openvino_model/"), is_exported("best.pt")
    (True, True, False)
    """
    return Path(spec).name.lower().endswith(ENDINGS)


def load_exported(spec: str, device: str | None = None) -> Exported:
    """An exported file that has run on a blank image. Raises ModelError, and KdError where its runtime is missing."""
    path = Path(spec).resolve()
    if not model_files.is_there(path) and not model_files.is_there(path, folder=True):
        raise ModelError(f"{spec}: no such file or folder, expected one that kd export wrote")
    if not read_metadata(path):
        raise ModelError(
            f"{spec}: got an export without class names in its metadata, expected a whole file that kd export or "
            f"Ultralytics wrote: export it again"
        )
    try:
        if path.name.lower().endswith(SUFFIXES["ncnn"]):
            _require_survival(path)
        backend = run_blank(path, device)
    except ModuleNotFoundError as error:
        raise missing(spec, error) from error
    except Exception as error:  # a runtime fails in ways of its own
        raise ModelError(
            f"{spec}: got an export that does not run ({session.first_line(error)}), expected a whole file of a "
            f"detector: export it again"
        ) from error
    with session.silence():
        yolo = Exported(path, _card(spec, path, backend))
    if yolo.card.own.get("single_cls"):
        yolo.overrides["single_cls"] = True
    return yolo


def read_metadata(path: Path) -> dict[str, Any]:
    """What an export by Ultralytics says of itself, without running it; {} for what is none, or only half of one."""
    found = _read_mnn(path) if path.suffix.lower() == ".mnn" else BaseBackend.read_metadata(path)
    return found if isinstance(found, dict) and found.get("names") else {}


def run_blank(path: Path, device: str | None = None) -> AutoBackend:
    """Load an exported detector and run it once on zeros; TypeError for what it cannot be."""
    with session.silence():
        backend = AutoBackend(str(path), device=session.check_device(device), verbose=False)
        if not all(type(side) is int and 1 <= side <= NUMBERS["imgsz"][1] for side in backend.imgsz):
            raise TypeError(f"image sides of {backend.imgsz}")
        if backend.task != "detect":
            raise TypeError(f"a model for {backend.task}")
        found = backend(torch.zeros(1, backend.channels, *backend.imgsz).to(backend.device))
    output = found[0] if isinstance(found, (list, tuple)) else found
    chosen = backend.end2end or _is_rtdetr(backend) or _has_nms(backend)  # of boxes: their best score and its class
    columns = 6 if chosen else 4 + len(backend.names)
    if output.ndim != 3 or columns not in output.shape[1:]:
        raise TypeError(f"outputs of {list(output.shape)} for {len(backend.names)} classes")
    return backend


def _require_survival(path: Path) -> None:
    """Run a file that may end its process, as NCNN does with half of one, in another. OSError where that died."""
    code = f"from pathlib import Path; from {__name__} import run_blank; run_blank(Path({str(path)!r}), 'cpu')"
    if subprocess.run([sys.executable, "-c", code], capture_output=True).returncode not in {0, 1}:
        raise OSError("its runtime crashed")


def stale(spec: str, card: Card) -> str | None:
    """A line where the checkpoint that an export names is there and has changed."""
    name = card.own.get("checkpoint", "")
    path = Path(spec).resolve().parent / name
    if not name.endswith(".pt") or not model_files.is_there(path) or sha256(path) == card.own["sha256"]:
        return None
    return f"{spec}: got an export of what {path} was before, expected one of what it is now: export it again"


def missing(where: str, error: ModuleNotFoundError) -> KdError:
    """The error for a package that an export needs."""
    package = (error.name or str(error)).partition(".")[0]
    install = EXTRA if package in IN_EXTRA else "see Ultralytics' page on this format"
    return KdError(f"{where}: got no package {package}, expected it to be installed: {install}")


def require_side_of(card: Card, imgsz: int) -> None:
    """Raise UsageError for another image size than the one for which a file was exported, where it takes no other."""
    if imgsz != card.imgsz and not card.is_dynamic:
        raise UsageError(
            f"--imgsz: got {imgsz}, expected {card.imgsz}, for which the file was made: leave it out, or export again"
        )


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _read_mnn(path: Path) -> Any:
    """What Ultralytics put into an .mnn: JSON in the first field, a string, of the root table of a FlatBuffer; or {}.

    Layout: https://flatbuffers.dev/internals, and ``bizCode`` of table Net in MNN's schema/default/MNN.fbs.
    """
    try:
        content = path.read_bytes()
        (root,) = struct.unpack_from("<I", content, 0)
        (fields,) = struct.unpack_from("<i", content, root)  # back to the offsets of the table's fields
        (first,) = struct.unpack_from("<H", content, root - fields + 4)
        (step,) = struct.unpack_from("<I", content, root + first)
        (length,) = struct.unpack_from("<I", content, root + first + step)
        begin = root + first + step + 4
        return load_json(content[begin : begin + length])
    except (OSError, struct.error, StrictError):
        return {}


def _card(spec: str, path: Path, backend: AutoBackend) -> Card:
    sides = backend.imgsz
    return Card(
        names=backend.names,
        imgsz=max(sides),
        channels=backend.channels,
        is_rtdetr=_is_rtdetr(backend),
        is_dynamic=bool(backend.dynamic),
        has_nms=_has_nms(backend),
        size_bytes=size_bytes(path),
        own=_own(spec, backend.metadata),
    )


def _is_rtdetr(backend: AutoBackend) -> bool:
    return backend.metadata.get("head") == "RTDETRDecoder"


def _has_nms(backend: AutoBackend) -> bool:
    return bool(backend.metadata.get("args", {}).get("nms"))


def _own(spec: str, metadata: dict[str, Any]) -> dict[str, Any]:
    if KEY not in metadata:
        return {}
    check = fastjsonschema.compile(schemas.load("export"), use_default=False)
    try:
        return check(load_json(str(metadata[KEY]).encode()))
    except (StrictError, fastjsonschema.JsonSchemaValueException) as error:
        raise ModelError(f"{spec}: metadata: {KEY}: {error}; export it again") from error
