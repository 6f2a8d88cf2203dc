"""What a detector misses and why, on the images or the whole frames of a split: one page, and the same as figures.

In: one or two models and a data.yaml. Out: an HTML page that stands alone, and a dict that goes to JSON as it is.
Invariant: detections, truth and matching are those of `kd evaluate`; nothing is written until all is known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.analysis.label_errors import as_coco
from kd.analysis.measure import measure
from kd.analysis.page import to_page
from kd.analysis.sources import plain_images, whole_frames
from kd.config import SINGLE_CLASS, require_number
from kd.errors import DataError, ModelError, UsageError
from kd.files import require_no_input, require_writable, write_all
from kd.scoring.detection_metrics import Detections
from kd.scoring.evaluate import (
    channels_of,
    image_size,
    images_of,
    require_known_classes,
    require_same_channels,
    require_same_classes,
)
from kd.scoring.frames import Frame
from kd.scoring.full_frame import detect, merge
from kd.scoring.predict import CONFIDENCE
from kd.ultra.data import resolve_data
from kd.ultra.exported import load_runnable
from kd.ultra.labels import check_splits, usable_images
from kd.ultra.memory import enough_memory, fewer
from kd.ultra.session import check_device

if TYPE_CHECKING:
    from ultralytics import YOLO


def analyse(
    data: str | Path,
    models: Sequence[str | Path],
    out: str | Path,
    *,
    label_errors: str | Path | None = None,
    split: str = "test",
    full_frame: bool = False,
    imgsz: int | None = None,
    conf: float = CONFIDENCE,
    batch: int = 16,
    device: str | None = None,
    skip_bad_labels: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Say what one or two detectors miss, and why: what ``kd analyse`` prints, and writes as a page to ``out``.

    ``conf`` is the threshold from which on a detection counts; what errors cost, and the curves, are of all
    detections. ``label_errors`` takes the labels that are likely wrong as COCO JSON. With ``full_frame`` tiles are
    merged to frames, as `kd.scoring.full_frame.evaluate_frames` does. Returns ``{data, split, full_frame, out,
    label_errors}`` and the figures of `kd.analysis.measure.measure`, in which each model has its ``model``, ``title``
    and ``imgsz``. Raises ModelError, DataError and UsageError.
    """
    files = {"--out": Path(out)} | ({"--label-errors": Path(label_errors)} if label_errors is not None else {})
    _require_options(files, models, conf, [Path(data), *map(Path, models)])
    if full_frame and skip_bad_labels:
        raise UsageError("--skip-bad-labels: got it with --full-frame, expected all tiles of a frame: mend them")
    check_device(device)
    require_number("batch", batch)
    content = resolve_data(data, split)
    _require_none_of_dataset(files.get("--label-errors"), content["path"])
    images = images_of(content, data, split)
    yolos = [load_runnable(str(model), device, tell) for model in models]
    names = _names(yolos, content, data, full_frame)
    sizes = [image_size(yolo, imgsz) for yolo in yolos]
    single = names is SINGLE_CLASS
    needed = () if full_frame else (split,)
    check_splits(
        data, content, [split], needed=needed, skip_bad=skip_bad_labels, single_cls=single, tell=tell, quiet=quiet
    )
    if full_frame:
        frames = whole_frames(content, split, images)
    else:
        images = usable_images(content, split, single) if skip_bad_labels else images
        frames = plain_images(content, split, images, single, tell)
    if not any(frame.counted.any() for frame in frames):
        raise DataError(f"{data}: split '{split}': got {len(frames)} frames without one object, expected some")
    found = []
    for model, yolo, size in zip(models, yolos, sizes, strict=True):
        with enough_memory(model, batch, size, lambda: fewer(batch)):
            options = {"imgsz": size, "batch": batch, "device": device, "quiet": quiet, "single_cls": single}
            found.append(_detections(yolo, frames, content, **options))
    analysis = measure(frames, found, names, conf)
    titles = titles_of(models)
    figures: dict[str, Any] = {
        "data": str(data),
        "split": split,
        "full_frame": full_frame,
        "out": str(out),
        "label_errors": None if label_errors is None else str(label_errors),
        **analysis.figures,
        "models": [
            {"model": str(model), "title": title, "imgsz": size, **row}
            for model, title, size, row in zip(models, titles, sizes, analysis.figures["models"], strict=True)
        ],
    }
    written: dict[Path, bytes | str] = {files["--out"]: to_page(figures, analysis)}
    if label_errors is not None:
        written[files["--label-errors"]] = as_coco(frames, analysis.suspected, names)
    write_all(written)
    return figures


def titles_of(models: Sequence[str | Path]) -> list[str]:
    """Names to know models by: of their runs, or files, with as much of the path as tells them apart.

    >>> titles_of(["plain/seed0/weights/last.pt", "kd/seed0/weights/last.pt"]), titles_of(["a/yolo.onnx"])
    (['plain/seed0', 'kd/seed0'], ['yolo.onnx'])
    """
    every = [Path(model).resolve() for model in models]
    paths = [path.parents[1] if path.parent.name == "weights" and path.suffix == ".pt" else path for path in every]
    if len(set(paths)) < len(paths):  # two files of one run
        paths = every
    shared = len(Path(os.path.commonpath(paths)).parts) if len(paths) > 1 else len(paths[0].parts) - 1
    tails = [path.parts[min(shared, len(path.parts) - 1) :] for path in paths]
    return ["/".join(tail[-2:] if len({t[-2:] for t in tails}) == len(tails) else tail) for tail in tails]


def _detections(yolo: YOLO, frames: Sequence[Frame], content: Mapping[str, Any], **options: Any) -> list[Detections]:
    """What a model finds in each frame, merged where the frame has several images, in falling confidence."""
    on_images = detect(yolo, [view for frame in frames for view in frame.views], content, **options)
    return [merge(frame, [on_images[view.image] for view in frame.views]) for frame in frames]


def _names(yolos: Sequence[YOLO], content: Mapping[str, Any], data: str | Path, full_frame: bool) -> Mapping[int, str]:
    """The classes to judge by. Raises ModelError for a model of others, or of images that cannot be shown."""
    for yolo in yolos:
        require_same_channels(yolo, content["channels"], data)
        if channels_of(yolo) not in (1, 3):
            raise ModelError(
                f"{yolo.model_name or 'model'}: got a model of {channels_of(yolo)} channels, expected 3, or 1 for "
                f"grey: pictures have no more"
            )
    if full_frame:
        for yolo in yolos:
            require_same_classes(yolo, content["names"], data)
        return content["names"]
    first, *others = [require_known_classes(yolo, content["names"], data) for yolo in yolos]
    if any(other is not first for other in others):
        raise ModelError(
            "--model: got one that knows all objects as one class and one that tells classes apart, expected two alike"
        )
    return first


def _require_options(
    files: Mapping[str, Path], models: Sequence[str | Path], conf: float, read: Sequence[Path]
) -> None:
    if not 1 <= len(models) <= 2:
        raise UsageError(f"--model: got {len(models)} models, expected one or two (give --model once or twice)")
    if not 0 < conf < 1:
        raise UsageError(f"--conf: got {conf}, expected a confidence between 0 and 1")
    for option, suffix in (("--out", ".html"), ("--label-errors", ".json")):
        if option in files and files[option].suffix.lower() != suffix:
            raise UsageError(f"{option}: got {files[option]}, expected a file name that ends in {suffix}")
    for option, file in files.items():
        require_writable(option, file)
        require_no_input(option, [file], read)


def _require_none_of_dataset(label_errors: Path | None, root: Path) -> None:
    """Raise UsageError for a JSON file that the dataset has: its labels or a report may be in it."""
    if label_errors is not None and label_errors.exists() and root.resolve() in label_errors.resolve().parents:
        raise UsageError(
            f"--label-errors: got {label_errors}, which is there already, in the dataset, expected a new file there "
            f"or one elsewhere: choose another name"
        )
