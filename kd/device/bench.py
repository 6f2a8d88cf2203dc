"""What models cost and what they are worth on the machine at hand: time, memory, size and accuracy, side by side.

In: checkpoints and exported files of one dataset's classes. Out: a dict that goes to JSON as it is, `bench.json`
(schemas/device.schema.json).
Invariant: every model has a process of its own, they run in turns and never at once, and all are loaded and checked
before anything is timed.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm
from ultralytics import YOLO
from ultralytics.utils.torch_utils import get_cpu_info

from kd.config import require_number
from kd.device.timed import Timed, Timing, account, end_with_parent, processors, start, turn
from kd.errors import KdError, ModelError, UsageError
from kd.files import sha256
from kd.scoring.evaluate import image_size, images_of, require_known_classes, require_same_channels, score
from kd.scoring.predict import model_title
from kd.ultra import model_files, session
from kd.ultra.data import SPLITS, hash_data, resolve_data, spread
from kd.ultra.exported import SUFFIXES, Exported, is_exported, load_runnable, size_bytes
from kd.ultra.labels import check_splits

PER_TURN = 5  # timed images
IMAGES = 100  # of the split that are looked at in turn
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "engine": "tensorrt", "ncnn": "ncnn"}  # their packages
# What decides how fast INT8 and bfloat16 are, by the kernel's names for x86 and ARM.
FEATURES = (
    "avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model that was loaded: as Ultralytics has it, and as another process will."""

    yolo: YOLO
    timed: Timed

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.timed.spec)

    @property
    def format(self) -> str:
        """``pt``, ``onnx``, ``openvino``, ..."""
        if not isinstance(self.yolo, Exported):
            return "pt"
        file = self.path.name.lower()
        return next(name for name, suffix in SUFFIXES.items() if name != "-" and file.endswith(suffix))

    @property
    def title(self) -> str:
        """A name without the format's ending."""
        if not isinstance(self.yolo, Exported):
            return model_title(self.path)
        return self.path.name[: -len(SUFFIXES[self.format])]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Its hash, its size, and the hash of the checkpoint that it is, or was made of."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file()) or [self.path]
        hashes = [sha256(path) for path in files]
        whole = hashes[0] if self.path.is_file() else hashlib.sha256("".join(hashes).encode()).hexdigest()
        card = self.timed.card
        return {
            "sha256": whole,
            "checkpoint_sha256": card.own.get("sha256") if card else whole,
            "bytes": size_bytes(self.path),
        }


def device_bench(
    models: Sequence[str | Path],
    data: str | Path,
    *,
    split: str = "test",
    threads: int | None = None,
    rounds: int = 20,
    device: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Time, weigh and score checkpoints and exported files on this machine: what ``kd device-bench`` does.

    In each of ``rounds`` every model runs on the same images of the split, one by one at batch 1: one that does not
    count and five that do. ``threads`` is by default torch's number. Scores are those of `kd evaluate`, but with every
    image padded to a square, as files take them. Returns what schemas/device.schema.json describes. Raises UsageError,
    ModelError and DataError before anything is timed, and KdError for what fails later or where a runtime is missing.
    """
    session.check_device(device)
    require_number("rounds", rounds)
    count = _threads(threads)
    content = resolve_data(data, split)
    images = images_of(content, data, split)
    loaded = [_load(str(spec), content, data, count, device, tell) for spec in models]
    if not loaded:
        raise UsageError("MODEL: got none, expected at least one checkpoint or exported file")
    merged = [bool(model.yolo.overrides.get("single_cls")) for model in loaded]
    if any(merged) and not all(merged):
        tell(f"{loaded[merged.index(True)].path}: trained with single_cls, so its mAP is of one class, others' of all")
    check_splits(data, content, [split], needed=[split], single_cls=all(merged), tell=tell, quiet=quiet)
    if busy := _busy():
        tell(busy)
    timings, accounts = _measure([model.timed for model in loaded], spread(images, IMAGES), rounds, quiet)
    options = {"split": split, "device": device, "quiet": quiet, "rect": False}
    scores = [score(model.yolo, data, imgsz=model.timed.imgsz, **options) for model in loaded]
    rows = [_row(*each) for each in zip(loaded, _names(loaded), timings, accounts, scores, strict=True)]
    return {
        "data": str(data),
        "data_sha256": hash_data(data, {**dict.fromkeys(SPLITS, ()), split: content[split]}),
        "split": split,
        "images": scores[0]["images"],
        "instances": scores[0]["instances"],
        "threads": count,
        "runs": rounds * PER_TURN,
        "hardware": hardware(),
        "versions": _versions(model.format for model in loaded),
        "models": [{**row, "speed": round(rows[0]["median_ms"] / row["median_ms"], 3)} for row in rows],
    }


def hardware() -> dict[str, Any]:
    """This machine: ``{processor, features, cores, system}``."""
    try:
        known = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        known = set()
    return {
        "processor": get_cpu_info(),
        "features": [name for name in FEATURES if name in known],
        "cores": len(processors()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _busy() -> str | None:
    """A line where more threads wait for processors than there are, before any of ours does."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, len(processors())
    if load <= cores:
        return None
    return f"got a load average of {load:.1f} on {cores} cores: other programs run, and times are longer and less even"


def _threads(asked: int | None) -> int:
    """How many threads there will be. Raises UsageError where there are not so many processors for them."""
    there = len(processors())
    if asked is None:
        return min(session.TORCH_THREADS, there)
    if not 1 <= asked <= there:
        raise UsageError(f"--threads: got {asked}, expected 1 to {there}, the processors that this process may use")
    if asked < there and not hasattr(os, "sched_setaffinity"):
        raise UsageError(f"--threads: got {asked}, expected {there}: this system lets a process take all processors")
    return asked


def _load(
    spec: str,
    content: Mapping[str, Any],
    data: str | Path,
    threads: int,
    device: str | None,
    tell: Callable[[str], None],
) -> Model:
    """A model that runs here and knows the data's classes. Raises ModelError, and KdError for a missing runtime."""
    if not is_exported(spec) and not model_files.is_there(Path(spec)):
        raise ModelError(f"{spec}: no such file, expected a checkpoint (.pt) or what kd export or kd quantize wrote")
    yolo = load_runnable(spec, device, tell)
    require_known_classes(yolo, content["names"], data)
    require_same_channels(yolo, content["channels"], data)
    card = yolo.card if isinstance(yolo, Exported) else None
    return Model(yolo, Timed(spec, image_size(yolo), threads, device, card))


def _names(models: Sequence[Model]) -> list[str]:
    """What each model is called: its title, or its path where models of other checkpoints have the same."""
    origins = {(model.title, model.identity["checkpoint_sha256"]) for model in models}
    shared = Counter(title for title, _ in origins)
    return [model.title if shared[model.title] == 1 else model.timed.spec for model in models]


def _row(
    model: Model, name: str, times: Sequence[Timing], own: Mapping[str, Any], scores: Mapping[str, Any]
) -> dict[str, Any]:
    network, whole = zip(*times, strict=True)
    return {
        "model": model.timed.spec,
        "name": name,
        "format": model.format,
        "imgsz": model.timed.imgsz,
        **model.identity,
        **own,
        "median_ms": round(median(network), 3),
        "p95_ms": round(float(np.percentile(network, 95)), 3),
        "whole_median_ms": round(median(whole), 3),
        "whole_p95_ms": round(float(np.percentile(whole, 95)), 3),
        "map50": scores["map50"],
        "map50_95": scores["map50_95"],
    }


def _measure(
    models: Sequence[Timed], images: Sequence[Path], rounds: int, quiet: bool
) -> tuple[list[list[Timing]], list[dict[str, Any]]]:
    """The timed runs of each model, and what each process says of itself in the end.

    Every other round goes backwards, so that no model always runs after the same one.
    """
    timings: list[list[Timing]] = [[] for _ in models]
    with contextlib.ExitStack() as stack:
        ask = [stack.enter_context(_process(model)) for model in models]
        for one in ask:
            one(start, images[0])
        for i in tqdm(range(rounds), desc="device-bench", unit="round", leave=False, disable=quiet or None):
            shown = [images[(i * PER_TURN + k) % len(images)] for k in range(1 + PER_TURN)]
            order = range(len(models))
            for k in reversed(order) if i % 2 else order:
                timings[k] += ask[k](turn, shown)
        return timings, [one(account) for one in ask]


@contextlib.contextmanager
def _process(model: Timed) -> Iterator[Callable[..., Any]]:
    """A process for one model; what is given has it call a function with the model, and waits for the result."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent) as pool:

        def ask(function: Callable[..., Any], *args: Any) -> Any:
            try:
                return pool.submit(function, model, *args).result()
            except KdError:
                raise
            except BrokenProcessPool as error:
                raise KdError(
                    f"{model.spec}: its process has ended while it ran, expected it to go on: was there memory for it?"
                ) from error
            except Exception as error:  # runtimes fail in ways of their own
                raise KdError(
                    f"{model.spec}: got {session.first_line(error)} while it ran, expected it to go on: try kd evaluate"
                ) from error

        yield ask


def _versions(formats: Iterable[str]) -> dict[str, str]:
    """Of this package and its own, and of the runtimes of these formats as far as they say."""
    packages = {RUNTIMES[name] for name in formats if name in RUNTIMES}
    found = {name: str(getattr(sys.modules.get(name), "__version__", "")).partition("-")[0] for name in packages}
    return {**session.versions(), **{name: version for name, version in sorted(found.items()) if version}}
