"""A detector in INT8, calibrated on training images, judged in the runtime that runs it: what ``kd quantize`` does.

In: a .pt and the data that it was trained on. Out: one file or folder, such as x_int8_openvino_model/.
Invariant: what is said of its score and its speed was measured on that file itself, beside the float one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from kd.config import require_number
from kd.device.aware import STATE, eager, require_distillable, train_int8
from kd.device.images import Images, training_images
from kd.device.int8 import QUANTIZERS, Recipe, describe_as, recipes
from kd.device.writing import describe, load_checkpoint, place, require_packages, require_place, workplace, write
from kd.errors import UsageError
from kd.scoring.evaluate import image_size, score
from kd.scoring.predict import model_title
from kd.ultra.data import resolve_data, write_data
from kd.ultra.exported import SUFFIXES, load_exported, run_blank, size_bytes
from kd.ultra.labels import check_splits

IMAGES = 300  # to calibrate on, which is NNCF's own number
MOST_LOST = 0.003  # of mAP50-95
ROUNDS = 40  # of float and INT8 in turns


def quantize(
    model: str | Path,
    data: str | Path,
    *,
    format: str = "openvino",
    out: str | Path | None = None,
    imgsz: int | None = None,
    distil: int | None = None,
    quiet: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a checkpoint as an INT8 file for OpenVINO (a folder) or ONNX Runtime.

    At most 300 training images of ``data``, evenly picked, calibrate it, and the file is scored on them beside the
    float one: what stays in float is the least that keeps mAP50-95 within 0.3 points (`kd.device.int8.recipes`), and
    if nothing does, what loses least, of which ``tell`` gets a line, as of a file that is slower here than the float
    one. ``out`` is by default named after the model, in the current folder.

    With ``distil`` epochs the INT8 form is trained first, with the float one for a teacher (`kd.device.aware`), and
    only the box decoding stays float; for OpenVINO alone. What a killed process has trained lies in ``OUT.distil.pt``
    and is gone on from.

    Returns ``{model, out, format, imgsz, images, bytes, kept_float, float, int8, tried, seconds, metadata}``, where
    ``float`` and ``int8`` are ``{bytes, map50_95, ms}``, ms of one image through the network alone, and ``tried`` has
    each ``{kept_float, map50_95}``; after ``distil`` also ``distilled``, the distillation term per epoch. Raises
    UsageError, ModelError, DataError, RunError where another process writes ``out``, and KdError for what fails in an
    exporter: then ``out`` is as it was.
    """
    if format not in QUANTIZERS:
        raise UsageError(f"--format: got {format!r}, expected one of {', '.join(QUANTIZERS)}")
    if distil is not None:
        require_number("distil", distil)
        if format != "openvino":
            raise UsageError(f"--distil: got it with --format {format}, expected openvino, whose rounding it trains in")
    begun, checkpoint = perf_counter(), Path(model)
    yolo = load_checkpoint(checkpoint)
    if distil:
        require_distillable(yolo.model, checkpoint)
    imgsz = image_size(yolo, imgsz)
    out = Path(out or f"{model_title(model)}_int8{SUFFIXES[format]}")
    require_place(out, format, checkpoint)
    require_packages(format, for_int8=True)
    paths = training_images(yolo, data, IMAGES)
    metadata = describe(yolo, checkpoint, out, data)
    with workplace(out) as scratch:
        judged = write_data(scratch, resolve_data(data, "train"), paths)
        learned = data if distil else judged
        view, merged = resolve_data(learned, "train"), bool(yolo.overrides.get("single_cls"))
        check_splits(learned, view, ["train"], needed=["train"], single_cls=merged, tell=tell)

        def judge(file: Path) -> float:
            exported = load_exported(str(file), "cpu")
            return score(exported, judged, split="train", imgsz=imgsz, device="cpu", quiet=quiet)["map50_95"]

        def quantized(recipe: Recipe) -> Path:
            file = scratch / f"{ladder.index(recipe)}{SUFFIXES[format]}"
            return QUANTIZERS[format](made, images, recipe, yolo.model, file)

        stem = out.name.removesuffix(SUFFIXES[format])
        made = write(yolo, format, imgsz, scratch / stem, metadata)
        images = Images(paths, imgsz, title=None if quiet else "calibrate")
        base, ladder = judge(made), recipes(yolo.model, format)
        if distil:
            state = out.with_name(f"{out.name}{STATE}")
            terms = train_int8(yolo, checkpoint, data, images, distil, state, quiet=quiet, tell=tell)
            (scratch / "trained").mkdir()
            with eager():
                trained = write(yolo, format, imgsz, scratch / "trained" / stem, metadata)
            tried = [Tried(judge(trained), ladder[0], trained)]
        else:
            tried = climb(ladder, base, quantized, judge)
        reached, recipe, file = max(tried, key=lambda each: each.map50_95)
        metadata["int8"] = {"images": len(paths), "float": recipe.title, **({"distilled": distil} if distil else {})}
        describe_as(file, metadata)
        slow, fast = _milliseconds([made, file], torch.from_numpy(next(iter(Images(paths[:1], imgsz)))))
        sizes = [size_bytes(path) for path in (made, file)]
        place(file, out, scratch)
        if distil:
            state.unlink()
    if base <= MOST_LOST:
        tell(
            f"{model}: mAP50-95 is {100 * base:.1f} on training images, and what INT8 costs is not seen: train it first"
        )
    if base - reached > MOST_LOST:
        tell(f"{out}: mAP50-95 is {100 * (base - reached):.1f} points below the float file's on training images")
    if fast > slow:
        tell(f"{out}: INT8 takes {fast:.1f} ms here, float {slow:.1f}: on this processor it saves size alone")
    return {
        "model": str(model),
        "out": str(out),
        "format": format,
        "imgsz": imgsz,
        "images": len(paths),
        "bytes": sizes[1],
        "kept_float": recipe.title,
        "float": {"bytes": sizes[0], "map50_95": base, "ms": slow},
        "int8": {"bytes": sizes[1], "map50_95": reached, "ms": fast},
        "tried": [{"kept_float": each.recipe.title, "map50_95": each.map50_95} for each in tried],
        "seconds": round(perf_counter() - begun, 2),
        "metadata": metadata,
        **({"distilled": terms} if distil else {}),
    }


class Tried(NamedTuple):
    """An INT8 file, how it was made and what it scores."""

    map50_95: float
    recipe: Recipe
    file: Path


def climb(
    ladder: Sequence[Recipe], base: float, quantized: Callable[[Recipe], Path], judge: Callable[[Path], float]
) -> list[Tried]:
    """Quantise by one recipe after the other until one keeps the float file's score; returns what was tried."""
    tried: list[Tried] = []
    for recipe in ladder:
        file = quantized(recipe)
        tried.append(Tried(judge(file), recipe, file))
        if base - tried[-1].map50_95 <= MOST_LOST:
            break
    return tried


def _milliseconds(files: list[Path], image: torch.Tensor) -> list[float]:
    """The median time that each file takes for one image on the CPU, in turns."""
    backends = [run_blank(file, "cpu") for file in files]
    times: list[list[float]] = [[] for _ in files]
    for _ in range(ROUNDS):
        for backend, of_file in zip(backends, times, strict=True):
            begun = perf_counter()
            backend(image)
            of_file.append(1000 * (perf_counter() - begun))
    return [median(of_file[ROUNDS // 4 :]) for of_file in times]
