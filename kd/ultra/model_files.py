"""What a named model is, looked at before Ultralytics builds it and before anything trains what was built.

In: a path or name, a model yaml, a loaded module. Out: nothing, or a ModelError that says what was found.
Invariant: architectures are measured on torch's meta device, so a yaml that asks for terabytes costs a few megabytes.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry
from ultralytics.nn.autobackend import check_class_names
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import BaseModel, _initialize_yolo_model, guess_model_scale

from kd.errors import ModelError
from kd.ultra import classic
from schemas.strict import StrictError, read_yaml

MODEL = "a .pt of PyTorch, a model .yaml, or a model name such as yolov5n or yolo26n"
EXPORTS = {
    ".onnx": "ONNX", ".torchscript": "TorchScript", ".engine": "TensorRT", ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow", ".mlpackage": "Core ML", ".mlmodel": "Core ML", ".mnn": "MNN", ".xml": "OpenVINO",
    ".hef": "Hailo", ".pte": "ExecuTorch", "_openvino_model": "OpenVINO", "_saved_model": "TensorFlow",
    "_web_model": "TensorFlow.js", "_paddle_model": "Paddle", "_ncnn_model": "NCNN", "_imx_model": "Sony IMX",
    "_rknn_model": "RKNN", "_executorch_model": "ExecuTorch", "_ascend_model": "Ascend", ".aimodel": "Core AI",
}  # fmt: skip
WEIGHTS_ALONE = (".pth", ".ckpt", ".safetensors", ".bin", ".weights", ".h5", ".keras", ".npz")

MAX_PARAMETERS = 500_000_000  # 2 GB in float32; Ultralytics' largest detector, yolov5x-p6, has 141 million
MAX_LAYER_VALUES = 500_000_000  # of one layer's output for one image of 256 px; yolov5x-p6's largest has 1.3 million
MAX_MODULES = 50_000  # Ultralytics' detectors have up to 1,300
MAX_NUMBER = 100_000  # in a model yaml: channels, repeats, classes
MAX_MULTIPLE = 10  # of depth and width; Ultralytics' largest is 2
MAX_WORD = 200  # characters in a row of a model yaml

TORCHVISION = ("mobilenet_v2", "mobilenet_v3_small")  # whose classes a checkpoint may hold (kd/ultra/__init__.py)

BLANK_PX = 256  # side of the image that a loaded module is tried on; Ultralytics measures strides on it too


def what_it_is(spec: str) -> str | None:
    """Of a path that holds something, or that can only be meant as one, what it is and what to give instead.

    >>> what_it_is("best.onnx"), what_it_is("yolov9z")
    ('got an export (ONNX), expected a .pt of PyTorch, ...: give the .pt that it was exported from', None)
    """
    if not spec.strip():
        return f"got an empty name, expected {MODEL}"
    path, name = Path(spec), Path(spec).name.lower()
    export = next((form for ending, form in EXPORTS.items() if name.endswith(ending)), None)
    if export:
        return f"got an export ({export}), expected {MODEL}: give the .pt that it was exported from"
    if name.endswith(WEIGHTS_ALONE):
        return f"got weights without their model, expected {MODEL}: kd loads what Ultralytics 8 saved as .pt"
    if re.match(r"[a-z][a-z0-9+.-]*://", spec.lower()):
        return f"got an address, expected {MODEL}: kd downloads nothing, fetch the file first"
    if is_there(path, folder=True):
        best = path / "weights" / "best.pt"
        hint = f"give {best}" if is_there(best) else "give the .pt inside, such as weights/best.pt of a run"
        return f"got a folder, expected {MODEL}: {hint}"
    if is_there(path):
        return f"got a file that is neither .pt nor .yaml, expected {MODEL}"
    return f"no such file, expected {MODEL}" if len(path.parts) > 1 else None


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Whether a file, or a folder, is there; False for what no path can be, too."""
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError):
        return False


def require_archive(spec: str) -> None:
    """Raise ModelError for what is no file that ends in .pt."""
    path = Path(spec)
    if is_there(path, folder=True) or (is_there(path) and path.suffix.lower() not in (".pt", ".yaml", ".yml")):
        raise ModelError(f"{spec}: {what_it_is(spec)}")
    if is_there(path) and path.suffix.lower() != ".pt":
        raise ModelError(f"{spec}: got a model yaml, expected weights: a .pt that Ultralytics 8 saved")
    if not is_there(path):
        raise ModelError(
            f"{spec}: no such file, expected a .pt or .yaml file, or a model name such as yolov5n or yolo26n"
        )


def require_model_yaml(spec: str) -> None:
    """Raise ModelError unless this is a plain model yaml of a sensible size, and the file that Ultralytics reads."""
    try:
        content = read_yaml(Path(spec))
    except StrictError as error:
        raise ModelError(f"{spec}: {error}") from error
    except OSError as error:
        raise ModelError(f"{spec}: {error.strerror}, expected a model yaml of Ultralytics 8") from error
    if re.fullmatch(r"yolov[58][nsmlx]6", Path(spec).stem):
        raise ModelError(f"{spec}: got a file name that Ultralytics reads as its own -p6 model, expected another")
    if not isinstance(content, dict):
        raise ModelError(f"{spec}: got no mapping, expected a model yaml of Ultralytics 8: nc, backbone, head")
    try:
        meta_model(content | {"scale": guess_model_scale(spec)}, spec)
    except ModelError:
        raise
    except Exception:
        return  # Ultralytics meets it too, and its words are passed on


def has_decoder(layout: Any) -> bool:
    """Whether a model yaml is that of an RT-DETR."""
    match layout:
        case {"head": [*_, [_, _, "RTDETRDecoder", *_]]}:
            return True
    return False


def meta_model(yaml: dict[str, Any], spec: str, nc: int | None = None) -> BaseModel:
    """The layers of a model yaml without their values, for ``nc`` classes where given; random states stay as they are.

    Raises ModelError for one that is too large or fetches weights, and whatever Ultralytics does for one that is wrong.
    """
    _require_sensible(yaml, spec)
    model = BaseModel()
    channels, anchored = yaml.get("channels", 3), classic.is_classic_yaml(yaml)
    with torch.device("meta"), _within_limits(spec):
        layout = classic.anchor_free(yaml) if anchored else deepcopy(yaml)
        _initialize_yolo_model(model, layout, channels, nc, verbose=False)
        head, model.model = model.model[-1], model.model[:-1]
        with contextlib.suppress(RuntimeError, NotImplementedError):  # what cannot run here may run elsewhere
            model.eval()(torch.zeros(1, channels, BLANK_PX, BLANK_PX))
        model.model.append(head)
        if anchored:
            classic.become_classic(model, yaml)
    return model


def _require_sensible(yaml: dict[str, Any], spec: str) -> None:
    rows = [yaml.get("backbone"), yaml.get("head")]
    scales = yaml.get("scales")
    multiples = [row[:2] for row in scales.values() if isinstance(row, list)] if isinstance(scales, dict) else []
    for number in _numbers([*multiples, yaml.get("depth_multiple"), yaml.get("width_multiple")]):
        if not 0 < number <= MAX_MULTIPLE:
            raise ModelError(f"{spec}: got {number:g} times the depth or width, expected up to {MAX_MULTIPLE} times")
    for number in _numbers([*rows, [value for value in yaml.values() if isinstance(value, (int, float, list, dict))]]):
        if abs(number) > MAX_NUMBER:
            raise ModelError(f"{spec}: got the number {number:g}, expected at most {MAX_NUMBER:,} in a model yaml")
    for word in (leaf for leaf in _leaves(rows) if isinstance(leaf, str)):
        if len(word) > MAX_WORD:
            raise ModelError(f"{spec}: got a word of {len(word)} characters in a layer, expected at most {MAX_WORD}")
    for row in (row for part in rows if isinstance(part, list) for row in part):
        if "TorchVision" in _leaves(row):
            _require_fresh(row, spec)


def _require_fresh(row: Any, spec: str) -> None:
    """Raise ModelError unless a row is a model of torchvision's that checkpoints may hold, without weights."""
    match row:
        case [_, 1, "TorchVision", [_, name, None | "None", True, *_]] if name in TORCHVISION:
            return
    raise ModelError(
        f"{spec}: got the layer TorchVision otherwise than as [channels, {' or '.join(TORCHVISION)}, None, True, ...], "
        f"expected it so: other weights than None would be downloaded, other models not be read again"
    )


@contextlib.contextmanager
def _within_limits(spec: str) -> Iterator[None]:
    """Raise ModelError as soon as the modules that are built inside, or what they give, are too many or too large."""
    seen = {"parameters": 0, "modules": 0}

    def count(kind: str, number: int, limit: int) -> None:
        seen[kind] = seen.get(kind, 0) + number
        if seen[kind] > limit:
            raise ModelError(f"{spec}: got a model of more than {limit:,} {kind}, expected a smaller one")

    def values(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() > MAX_LAYER_VALUES:
            raise ModelError(
                f"{spec}: got a layer that makes {output.numel():,} values of an image of {BLANK_PX} px, expected at "
                f"most {MAX_LAYER_VALUES:,}"
            )

    def sized(_: nn.Module, __: str, tensor: Tensor | None) -> None:
        count("parameters", 0 if tensor is None else tensor.numel(), MAX_PARAMETERS)

    hooks = [
        registry.register_module_parameter_registration_hook(sized),
        registry.register_module_buffer_registration_hook(sized),
        registry.register_module_module_registration_hook(lambda *_: count("modules", 1, MAX_MODULES)),
        registry.register_module_forward_hook(values),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_detector(model: Any, spec: str) -> None:
    """Raise ModelError unless what a checkpoint held is a network of Ultralytics that runs on an image."""
    if isinstance(model, DistillationModel):
        raise ModelError(
            f"{spec}: got a student and teacher in one, from a built-in run that was cut off, expected a student: such "
            f"a run cannot be gone on with, start it anew with --overwrite; the weights of a finished one are students"
        )
    if not isinstance(model, BaseModel) or not isinstance(getattr(model, "model", None), nn.Sequential):
        raise ModelError(f"{spec}: got a {type(model).__name__}, expected a detector that Ultralytics 8 saved")
    try:
        names = check_class_names(model.names)
    except Exception as error:  # of keys of any kind
        raise ModelError(f"{spec}: got no class names ({_reason(error)}), expected one for each class") from error
    if not isinstance(names, dict):
        raise ModelError(f"{spec}: got a {type(names).__name__} for class names, expected one for each class")


def require_names(model: BaseModel, spec: str) -> None:
    """Raise ModelError where a detector's head has more classes than it has names for: what it found had no name."""
    classes = getattr(model.model[-1], "nc", 0)
    if len(model.names) < classes:
        raise ModelError(
            f"{spec}: got {len(model.names)} class names for the {classes} classes of its head, expected one for each"
        )


def require_running(model: BaseModel, spec: str) -> None:
    """Raise ModelError unless the module takes a blank image from end to end."""
    try:
        weight = next(model.parameters())
        with torch.no_grad():
            model(torch.zeros(1, model.yaml.get("channels", 3), BLANK_PX, BLANK_PX).to(weight))
    except Exception as error:  # layers that do not fit each other fail in ways of their own
        raise ModelError(
            f"{spec}: got a model that does not run ({_reason(error)}), expected one whose layers fit each other"
        ) from error


def require_unchanged(model: BaseModel, spec: str) -> None:
    """Raise ModelError where a checkpoint's module is not what its own yaml makes, for Ultralytics trains the latter.

    Its trainer builds a model anew from the yaml and copies the tensors that fit; of a module that was pruned, folded
    or otherwise changed it would train another network. The number of classes may differ.
    """
    try:
        fresh = meta_model(model.yaml, spec, model.model[-1].nc)
    except ModelError:
        raise
    except Exception as error:  # as with any yaml
        raise ModelError(
            f"{spec}: student: got a checkpoint whose yaml makes no model ({_reason(error)}), expected one that "
            f"Ultralytics 8 saved"
        ) from error
    _widen_class_branches(fresh, model)
    difference = _difference(model, fresh)
    if difference:
        here, there = (sum(p.numel() for p in m.parameters()) for m in (model, fresh))
        raise ModelError(
            f"{spec}: student: got a module of {here:,} parameters that is not what its own yaml makes ({there:,}; "
            f"{difference}), expected an unchanged one, for Ultralytics trains what the yaml makes: write the changed "
            f"layout (of pruning, say) as a model .yaml and start from its weights by --set pretrained={spec}"
        )


def _widen_class_branches(fresh: nn.Module, model: nn.Module) -> None:
    """Give a fresh head the class branches of a model whose are of another width, as Ultralytics' `load` does.

    Their width follows the number of classes; those of a model that was tuned from 80 to 3 stay as wide as for 80.
    """
    head, source = fresh.model[-1], model.model[-1]
    if not (isinstance(head, Detect) and isinstance(source, Detect)):
        return
    if [b[0].conv.in_channels for b in head.cv2] != [b[0].conv.in_channels for b in source.cv2]:
        return
    for name in ("cv3", "one2one_cv3"):
        own, theirs = getattr(head, name, None), getattr(source, name, None)
        if own is not None and theirs is not None and own[0][-1].in_channels != theirs[0][-1].in_channels:
            setattr(head, name, theirs)


def _difference(model: nn.Module, fresh: nn.Module) -> str | None:
    """The first thing in which a module is not the fresh one: a shape, a tensor, a kind of layer."""
    own, made = ({name: list(tensor.shape) for name, tensor in m.state_dict().items()} for m in (model, fresh))
    for name in sorted(made.keys() | own.keys()):
        if own.get(name) != made.get(name):
            return f"{name} is {own.get(name, 'missing')}, not {made.get(name, 'there')}"
    kinds = {name: type(layer) for name, layer in fresh.model.named_modules()}
    for name, layer in model.model.named_modules():
        if type(layer) is not kinds.get(name, type(layer)):
            return f"model.{name} is {type(layer).__name__}, not {kinds[name].__name__}"
    return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves([*value, *value.values()])
    else:
        yield value


def _numbers(value: Any) -> Iterator[float]:
    """All numbers, those in quotes included: Ultralytics reads words of a row as Python would."""
    for leaf in _leaves(value):
        if isinstance(leaf, str) and len(leaf) <= MAX_WORD:
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                yield from (part for part in _leaves(ast.literal_eval(leaf)) if isinstance(part, (int, float)))
        elif isinstance(leaf, (int, float)):
            yield leaf
