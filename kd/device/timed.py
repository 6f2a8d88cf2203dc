"""One model in a process of its own: what a single image takes there, its memory, and in what it calculates.

In: a model that was loaded and tried before, and images on disk. Out: milliseconds, MiB, a word about its numbers.
Invariant: it runs as `kd evaluate` and `kd predict` run it, by Ultralytics' AutoBackend, on full squares.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.onnx import ONNXBackend

from kd.scoring.predict import CONFIDENCE, read_image
from kd.ultra import memory, session
from kd.ultra.exported import Card, Exported
from kd.ultra.models import load_model

WARM_UP = 3  # images at the start that do not count
KINDS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "INT8", "u8": "INT8"}  # as OpenVINO has them
QUANTIZED = {8: "INT8", 16: "float16", 32: "float32"}  # by what Ultralytics writes into the metadata
QUANTIZING = frozenset({"QuantizeLinear", "QLinearConv", "ConvInteger"})  # ONNX's operators


class Timing(NamedTuple):
    """Milliseconds of one image: the network's forward pass alone; with letterbox before and NMS after it."""

    network_ms: float
    whole_ms: float


@dataclass(frozen=True)
class Timed:
    """What a process is to run; of an exported file with its card, so that it is loaded there but once."""

    spec: str
    imgsz: int
    threads: int
    device: str | None
    card: Card | None = field(compare=False)


@dataclass(frozen=True)
class Running:
    """A model that is loaded."""

    yolo: YOLO
    before_mib: float  # resident memory of the process before the model and its runtime

    @property
    def backend(self) -> AutoBackend:
        """What runs it, there from the first image on."""
        return self.yolo.predictor.model


def end_with_parent() -> None:
    """Let this process end as soon as the one that began it has, however that ended."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if parent := multiprocessing.parent_process():
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


def start(timed: Timed, image: Path) -> None:
    """Load a model in this process, which has no more threads from then on, and warm it up."""
    confine(timed.threads)
    for _ in range(WARM_UP):
        _run(timed, image)


def turn(timed: Timed, images: Sequence[Path]) -> list[Timing]:
    """Run it on images one by one. The first does not count: caches hold what another model left there."""
    return [_run(timed, image) for image in images][1:]


def account(timed: Timed) -> dict[str, Any]:
    """What a process that has run says of itself: ``{device, precision, peak_mib, model_mib}``.

    ``peak_mib`` is the high-water mark of its resident memory, Python and torch included, and ``model_mib`` by how much
    that is above what it was before the model and its runtime; None where the system does not say.
    """
    running = _running(timed)
    peak = memory.resident_mib("VmHWM")
    device = running.yolo.predictor.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision(running.backend, timed.spec),
        "peak_mib": round(peak, 1) or None,
        "model_mib": round(peak - running.before_mib, 1) if peak else None,
    }


def confine(threads: int) -> None:
    """Let this process calculate with so many threads.

    OpenVINO and others follow the processors that the process may use; ONNX Runtime looks at all of the machine's and
    has to be told.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors()[:threads])
    AutoBackend._BACKEND_MAP = {**AutoBackend._BACKEND_MAP, "onnx": partial(_onnx_backend, threads)}


def processors() -> list[int]:
    """The processors that this process may use, the first of each core before those that share one with it."""

    def shares_a_core(number: int) -> bool:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
        except OSError:
            return False
        return int(re.findall(r"\d+", siblings)[0]) != number

    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda number: (shares_a_core(number), number))


@lru_cache(1)
def _running(timed: Timed) -> Running:
    before = memory.resident_mib("VmRSS")
    with session.silence():
        yolo = Exported(Path(timed.spec).resolve(), timed.card) if timed.card else load_model(timed.spec)
    return Running(yolo, before)


def _run(timed: Timed, image: Path) -> Timing:
    yolo, picture = _running(timed).yolo, read_image(image)
    torch.set_num_threads(timed.threads)  # Ultralytics sets its own number as it loads
    options = {"imgsz": timed.imgsz, "device": timed.device, "conf": CONFIDENCE, "rect": False}
    with session.silence():
        speed = yolo.predict(picture, **options, save=False, verbose=False)[0].speed
    return Timing(speed["inference"], sum(speed.values()))


def _onnx_backend(threads: int, *args: Any, **options: Any) -> ONNXBackend:
    import onnxruntime

    of_session = onnxruntime.SessionOptions()
    of_session.intra_op_num_threads = threads
    return ONNXBackend(*args, **options, session_options=of_session)


# ---------------------------------------------------------------- precision


def precision(backend: AutoBackend, spec: str) -> str | None:
    """In what a model calculates, the most frequent first: 'float32', 'INT8 + bfloat16'; None where that is not known.

    Of OpenVINO it is what its convolutions run in here, which a float32 file does not decide; of ONNX and TorchScript
    what the file asks for; of a checkpoint what its weights are; of other formats what Ultralytics was asked to write.
    """
    if backend.format in PRECISIONS:
        return PRECISIONS[backend.format](backend, spec)
    return QUANTIZED.get(backend.metadata.get("args", {}).get("quantize"))


def _of_weights(backend: AutoBackend, _: str) -> str:
    return str(next(backend.backend.model.parameters()).dtype).removeprefix("torch.")


def _of_input(backend: AutoBackend, _: str) -> str:
    return "float16" if backend.fp16 else "float32"


def _of_graph(backend: AutoBackend, spec: str) -> str:
    import onnx

    kind = _of_input(backend, spec)
    nodes = onnx.load(spec, load_external_data=False).graph.node
    return f"INT8 + {kind}" if any(node.op_type in QUANTIZING for node in nodes) else kind


def _of_convolutions(backend: AutoBackend, _: str) -> str | None:
    layers = [layer.get_rt_info() for layer in backend.ov_compiled_model.get_runtime_model().get_ops()]
    found = [layer["runtimePrecision"].value for layer in layers if "Convolution" in layer["layerType"].value]
    counts = Counter(KINDS.get(name, name) for name in found)
    return " + ".join(name for name, _ in counts.most_common()) or None


PRECISIONS: dict[str, Callable[[AutoBackend, str], str | None]] = {
    "pt": _of_weights,
    "onnx": _of_graph,
    "openvino": _of_convolutions,
    "torchscript": _of_input,
}
