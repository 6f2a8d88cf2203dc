"""INT8 by the runtimes' own quantisers: NNCF's for OpenVINO, ONNX Runtime's for ONNX.

In: a float file of `kd.device.writing` and images. Out: the same network with weights and activations in 8 bits.
Box decoding, DFL, sigmoids and what else the head does after its convolutions stay float: one scale for pixels and
scores would round all scores to 0.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from ultralytics.nn.modules import DFL, RTDETRDecoder
from ultralytics.nn.modules.conv import Conv

from kd.device.images import Images
from kd.ultra.exported import KEY
from kd.ultra.signals import keep_signal_stack


@dataclass(frozen=True)
class Recipe:
    """What stays in float beside the box decoding: convolutions by their names in the network, ``title`` for people.

    ``narrow`` is for weights of 7 bits. Processors without VNNI add products of 8 bits up in 16, which overflows.
    """

    title: str
    floats: frozenset[str] = frozenset()
    narrow: bool = False


def recipes(network: nn.Module, format: str) -> list[Recipe]:
    """What to try for a detector, the fastest first."""
    last, head = f"model.{len(network.model) - 1}", network.model[-1]
    blocks = tuple(name for name, part in head.named_modules() if isinstance(part, (Conv, DFL)))
    of_head = [name for name, part in head.named_modules() if isinstance(part, nn.Conv2d)]
    outputs = frozenset(f"{last}.{name}" for name in of_head if not name.startswith(tuple(f"{at}." for at in blocks)))
    first = {next(name for name, part in network.named_modules() if isinstance(part, nn.Conv2d))}
    every = frozenset(f"{last}.{name}" for name in of_head)
    found = [Recipe("the box decoding"), Recipe("the head's last convolutions", outputs)]
    if format == "onnx":
        found.insert(1, Recipe("the box decoding, weights in 7 bits", narrow=True))
    found += [Recipe("the head's last and the network's first convolutions", outputs | first)]
    return [*found, Recipe("the head and the first convolution", every | first)] if every > outputs else found


def quantize_openvino(made: Path, images: Images, recipe: Recipe, network: nn.Module, out: Path) -> Path:
    """Write the INT8 form of a float OpenVINO folder as folder ``out``."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    file = next(made.glob("*.xml"))
    model = openvino.Core().read_model(file)
    head = f"__module.model.{len(network.model) - 1}"

    def stays_float(operation: Any) -> bool:
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        where = name.partition("/")[0]
        if kind.endswith("Convolution") and where != f"{head}.dfl.conv":
            return where.removeprefix("__module.") in recipe.floats
        return kind == "Sigmoid" or where == head or where.startswith(f"{head}.dfl")

    keep = [
        op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() != "Constant" and stays_float(op)
    ]
    with quiet_log(), contextlib.redirect_stdout(io.StringIO()):  # its progress bars; torch looks for a compiler
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER if isinstance(network.model[-1], RTDETRDecoder) else None,
            ignored_scope=nncf.IgnoredScope(names=keep),
        )
    out.mkdir()
    openvino.save_model(quantized, out / file.name, compress_to_fp16=False)
    shutil.copy(made / "metadata.yaml", out)
    return out


def quantize_onnx(made: Path, images: Images, recipe: Recipe, network: nn.Module, out: Path) -> Path:
    """Write the INT8 form of a float ONNX file as file ``out``.

    Activations are unsigned. Signed ones, the default, are slower than float where SiLU stands between convolutions:
    a yolov8n takes 1.5 times as long as in float, with unsigned ones 0.6 times (1.32.0, AMD EPYC with VNNI).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    graph = onnx.load(made).graph
    head = f"/model.{len(network.model) - 1}/"

    def stays_float(node: Any) -> bool:
        if node.op_type == "Conv" and "/dfl/" not in node.name:
            return node.input[1].removesuffix(".weight") in recipe.floats
        return node.op_type not in {"Conv", "Gemm", "MatMul"} or node.name.startswith(head)

    with quiet_log():
        quantize_static(
            made,
            out,
            _Reader(graph.input[0].name, images),
            nodes_to_exclude=[node.name for node in graph.node if stays_float(node)],
            per_channel=True,
            reduce_range=recipe.narrow,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return out


Quantizer = Callable[[Path, Images, Recipe, nn.Module, Path], Path]
QUANTIZERS: dict[str, Quantizer] = {"openvino": quantize_openvino, "onnx": quantize_onnx}


def describe_as(made: Path, metadata: dict[str, Any]) -> None:
    """Replace what `kd export` adds to the metadata of a file that is not in its place yet."""
    if made.is_dir():
        file = made / "metadata.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        file.write_text(
            yaml.safe_dump(content | {KEY: json.dumps(metadata)}, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        return
    import onnx

    model = onnx.load(made)
    next(entry for entry in model.metadata_props if entry.key == KEY).value = json.dumps(metadata)
    onnx.save(model, made)


class _Reader:
    """Images as ONNX Runtime's calibration takes them, one at a time and None at the end."""

    def __init__(self, name: str, images: Images) -> None:
        self._name, self._images = name, iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {self._name: image}


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Hold back what the two log: ONNX Runtime recommends a preparation that Ultralytics' export has done.

    NNCF runs models in OpenVINO, so the signal stack is kept, too.
    """
    logging.disable(logging.WARNING)
    try:
        with keep_signal_stack():
            yield
    finally:
        logging.disable(logging.NOTSET)
