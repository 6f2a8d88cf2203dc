"""Checkpoints of the official YOLOv5 repository, releases 6.x and 7.0: read without unpickling, written in its form.

In: a .pt or model yaml of that repository, or the name of a classic model. Out: Ultralytics' YOLO around the network.
Invariant: of a file nothing is made but tensors, plain values and the layers named here.
"""

from __future__ import annotations

import contextlib
import pickletools
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.serialization import add_safe_globals
from ultralytics import YOLO
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils import DEFAULT_CFG_DICT

from kd.config import CLASSIC
from kd.errors import ModelError
from kd.ultra.classic import network
from schemas.strict import StrictError, read_yaml

NAMES: dict[str, type] = {
    f"{layer.__module__}.{layer.__name__}": layer
    for layer in (*network.OFFICIAL.values(), network.Detect, network.Model)
} | {"models.yolo.DetectionModel": network.Model}  # release 7.0's name
LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.Upsample, nn.MaxPool2d, nn.Sequential, nn.ModuleList)
_ARRAY, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]  # a best_fitness may be either
ALLOWED: dict[str, Any] = {
    **NAMES,
    **{f"{layer.__module__}.{layer.__name__}": layer for layer in LAYERS},
    **{f"numpy.{core}.multiarray._reconstruct": _ARRAY for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _SCALAR for core in ("core", "_core")},
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.dtypes.Float64DType": type(np.dtype(np.float64)),
}

add_safe_globals(
    [(layer, name) for name, layer in NAMES.items()]
)  # for Ultralytics, which reads what a run has written


def is_classic(spec: str) -> bool:
    """Whether a model's name or file is that of a classic YOLOv5: a name, a .pt or a yaml of the official form."""
    path = Path(spec)
    if spec.startswith(CLASSIC):
        return True
    if path.suffix.lower() == ".pt":
        return any(name.startswith("models.") for name in globals_in(path))
    if path.suffix.lower() in {".yaml", ".yml"}:
        with contextlib.suppress(OSError, ValueError):  # StrictError is one
            return network.is_classic_yaml(read_yaml(path))
    return False


class ClassicYOLO(YOLO):
    """Ultralytics' YOLO around a classic model, from what `is_classic` knows. Raises ModelError."""

    def _new(self, cfg: str, task: str | None = None, verbose: bool = False) -> None:
        self._take(network.Model(read_architecture(cfg)), {}, cfg)

    def _load(self, weights: str, task: str | None = None) -> None:
        model, checkpoint = read_checkpoint(weights)
        self._take(model, checkpoint, weights)
        self.ckpt_path = weights

    def _take(self, model: network.Model, checkpoint: dict[str, Any], source: str) -> None:
        trained = checkpoint.get("train_args") or checkpoint.get("opt") or {}  # ours, or release 7.0's
        kept = {key: trained[key] for key in ("imgsz", "single_cls") if key in trained}
        self.model, self.ckpt, self.model_name, self.task = model, checkpoint, source, "detect"
        self.overrides = {**kept, "model": source, "task": self.task}
        model.args, model.task = {**DEFAULT_CFG_DICT, **self.overrides}, self.task


def read_architecture(spec: str) -> dict[str, Any]:
    """The official model yaml that a name or file stands for. Raises ModelError."""
    if not spec.startswith(CLASSIC):
        try:
            return read_yaml(Path(spec))
        except (OSError, StrictError) as error:
            raise ModelError(f"{spec}: {error}") from error
    found = network.named_yaml(spec.removesuffix(".yaml"))
    if found is None:
        names = ", ".join(f"{CLASSIC}yolov5{scale}" for scale in network.SCALES)
        raise ModelError(f"{spec}: got no classic model of this name, expected one of: {names}")
    return found


def read_checkpoint(spec: str) -> tuple[network.Model, dict[str, Any]]:
    """The network of an official checkpoint, in float32 and eval mode, and all that the file holds.

    Raises ModelError for a file that wants any other class than those of the detectors n, s, m, l and x, or holds
    something else.
    """
    path = Path(spec)
    foreign = sorted(name for name in globals_in(path) if name not in ALLOWED and not _is_plain(name))
    if foreign:
        raise ModelError(
            f"{spec}: got a checkpoint of the official YOLOv5 repository that wants {foreign[0]}, expected a detector "
            f"of releases 6.x or 7.0 (n, s, m, l or x, with SiLU): other classes are not loaded"
        )
    add_safe_globals([(found, name) for name, found in ALLOWED.items()])
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = checkpoint.get("ema") or checkpoint["model"]
        if not isinstance(model, network.Model) or not isinstance(model.model[-1], network.Detect):
            raise TypeError(f"a {type(model).__name__}")
        model.names = check_class_names(model.names)
        model.yaml.setdefault("channels", model.yaml.get("ch", 3))
    except Exception as error:  # whatever a damaged file makes of it
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelError(
            f"{spec}: got no usable model ({text}), expected a checkpoint of the official YOLOv5 repository, 6.x or 7.0"
        ) from error
    return model.float().eval().requires_grad_(True), checkpoint


def globals_in(path: Path) -> set[str]:
    """The classes and functions that a .pt asks for, as ``module.name``; none where it is no archive of torch's."""
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            operations = pickletools.genops(archive.read(record))
            return {argument.replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"}
    except Exception:  # the load that follows says what is amiss
        return set()


def _is_plain(name: str) -> bool:
    """Whether torch itself decides about a name: its tensors, and Python's plain containers."""
    module = name.rpartition(".")[0]
    return module in {
        "torch",
        "torch._utils",
        "torch.serialization",
        "collections",
        "builtins",
        "__builtin__",
        "_codecs",
    }


@contextlib.contextmanager
def official_names() -> Iterator[None]:
    """Have pickle find the classes of `NAMES` where they say that they are: in modules that exist in here alone."""
    modules = {name: ModuleType(name) for name in ("models", "models.yolo", "models.common")}
    for name, layer in NAMES.items():
        module, _, attribute = name.rpartition(".")
        setattr(modules[module], attribute, layer)
    hidden = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
