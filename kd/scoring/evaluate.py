"""How well a detector does on a split of a YOLO dataset.

In: a model and a data.yaml. Out: a dict of metrics, each a share of 1, that goes to JSON as it is.
Invariant: the numbers are those of Ultralytics' own validator at its defaults, and nothing is left behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from kd.config import NUMBERS, SINGLE_CLASS, require_number, require_side
from kd.errors import DataError, ModelError
from kd.ultra import model_files
from kd.ultra.data import SPLITS, image_files, resolve_data, write_data
from kd.ultra.exported import Exported, load_runnable, require_side_of
from kd.ultra.labels import check_splits
from kd.ultra.memory import enough_memory, fewer
from kd.ultra.models import grid_px
from kd.ultra.session import TORCH_THREADS, check_device, silence

if TYPE_CHECKING:
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionValidator


def evaluate(
    data: str | Path,
    model: str | Path,
    *,
    split: str = "test",
    imgsz: int | None = None,
    batch: int = 16,
    device: str | None = None,
    skip_bad_labels: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> dict:
    """Score a checkpoint or an exported file on a split: what ``kd evaluate`` prints.

    ``imgsz`` (pixels of the longer side) is by default the one that the model was trained at; ``skip_bad_labels``
    leaves out what cannot be used, and ``tell`` gets a line about it. Returns ``{model, data, split, imgsz, images,
    skipped, instances, map50, map50_95, precision, recall, per_class}``; see `score`. Raises ModelError where there is
    no detector, DataError where there is no such split, nothing labelled in it, or an image that cannot be used.
    """
    check_device(device)
    require_number("batch", batch)
    yolo = load_runnable(str(model), device, tell)
    imgsz = image_size(yolo, imgsz)
    content = resolve_data(data, split)
    images_of(content, data, split)
    require_known_classes(yolo, content["names"], data)
    require_same_channels(yolo, content["channels"], data)
    merged = bool(yolo.overrides.get("single_cls"))
    options = {"skip_bad": skip_bad_labels, "single_cls": merged, "tell": tell, "quiet": quiet}
    check_splits(data, content, [split], needed=[split], **options)
    with enough_memory(model, batch, imgsz, lambda: fewer(batch)):
        metrics = score(yolo, data, split=split, imgsz=imgsz, batch=batch, device=device, quiet=quiet)
    return {"model": str(model), "data": str(data), "split": split, "imgsz": imgsz, **metrics}


def score(
    yolo: YOLO,
    data: str | Path,
    *,
    split: str,
    imgsz: int,
    batch: int = 16,
    device: str | None = None,
    quiet: bool = False,
    single_cls: bool = False,
    classes: Sequence[int] | int | None = None,
    rect: bool = True,
) -> dict:
    """The metrics of one split by Ultralytics' validator.

    ``single_cls`` scores all classes as one, ``item``, as is always done with a model that was trained so; it may be
    a model of the data's classes too. ``classes`` leaves out objects of all others. Without ``rect`` a checkpoint sees
    images padded to squares, as an exported file does.

    Returns ``{images, skipped, instances, map50, map50_95, precision, recall, per_class: {name: {map50, map50_95}}}``.
    A class without an instance in the split has None, not 0: it was not missed, it was not there. The means are over
    the classes that were there; ``skipped`` counts the images that cannot be used. The model is left as it was.
    Raises DataError for a split that does not exist, ModelError when the classes of model and data differ.
    """
    content = resolve_data(data, split)
    images = images_of(content, data, split)
    names = require_known_classes(yolo, content["names"], data, single_cls)
    require_same_channels(yolo, content["channels"], data)
    objects = {"single_cls": names is SINGLE_CLASS, "classes": classes}
    validator = validate(
        yolo, content, images, split=split, imgsz=imgsz, batch=batch, device=device, quiet=quiet, objects=objects,
        rect=rect,
    )  # fmt: skip
    return _metrics(validator, names, len(images))


def validate(
    yolo: YOLO,
    view: Mapping[str, Any],
    images: Sequence[Path],
    *,
    split: str,
    imgsz: int,
    batch: int,
    device: str | None,
    quiet: bool,
    objects: Mapping[str, Any] | None = None,
    validator: Callable[..., DetectionValidator] | None = None,
    rect: bool = True,
) -> DetectionValidator:
    """Run Ultralytics' validator, or a class made from it, over some images; the only place of kd that does.

    ``view`` is that of a data.yaml, for the classes, ``split`` a name for the images, and ``objects`` are the settings
    that decide which objects there are. What Ultralytics reads is a data.yaml of kd's own. Raises ModelError for
    classes without a name.
    """
    if not isinstance(yolo, Exported):
        model_files.require_names(yolo.model, yolo.model_name or "model")
    make = validator or yolo.task_map[yolo.task]["validator"]
    with (
        silence(),
        tempfile.TemporaryDirectory(prefix="kd-evaluate-") as scratch,
        tqdm(desc=f"evaluate {split}", unit="batch", leave=False, disable=quiet or None) as bar,
    ):
        run = make(
            save_dir=Path(scratch),
            # rect is the default of YOLO.val, though not of its validator.
            args={
                "mode": "val", "task": yolo.task, "data": str(write_data(Path(scratch), view, images)),
                "split": split, "imgsz": imgsz,
                "batch": batch, "device": device, "rect": rect, "plots": False, "workers": 2,
                **(objects or {}),
            },
        )  # fmt: skip
        run.add_callback("on_val_start", lambda v: bar.reset(total=len(v.dataloader)))
        # Ultralytics leaves a core idle on CPUs, which halves the speed of two.
        run.add_callback("on_val_start", lambda _: torch.set_num_threads(TORCH_THREADS))
        run.add_callback("on_val_batch_end", lambda v: bar.update())
        run(model=yolo.model)
    return run


def images_of(content: Mapping[str, Any], data: str | Path, split: str) -> list[Path]:
    """The images of a split of what `resolve_data` gave. Raises DataError where the data has no such split."""
    if not content.get(split):
        there = ", ".join(name for name in SPLITS if content.get(name))
        raise DataError(f"{data}: split '{split}': got none, expected one of: {there}; choose with --split")
    return image_files(content[split])


def require_known_classes(
    yolo: YOLO, names: Mapping[int, str], data: str | Path, single_cls: bool = False
) -> Mapping[int, str]:
    """The classes to score by: the dataset's, or that of `single_cls`. Raises ModelError for a model of others."""
    if not (single_cls or yolo.overrides.get("single_cls")):
        require_same_classes(yolo, names, data)
        return names
    if list(yolo.names.values()) != list(names.values()):
        require_same_classes(yolo, SINGLE_CLASS, data)
    return SINGLE_CLASS


def channels_of(yolo: YOLO) -> int:
    """The image channels that a model takes: those of its first convolution."""
    if isinstance(yolo, Exported):
        return yolo.card.channels
    return next(part.in_channels for part in yolo.model.modules() if isinstance(part, torch.nn.Conv2d))


def require_same_channels(yolo: YOLO, channels: int, data: str | Path) -> None:
    """Raise ModelError unless the model takes images of as many channels as the dataset's are read with."""
    if channels_of(yolo) != channels:
        raise ModelError(
            f"{yolo.model_name or 'model'}: channels: got a model of {channels_of(yolo)}, expected {channels} as "
            f"{data} has them: give a model trained on this dataset"
        )


def require_same_classes(yolo: YOLO, names: Mapping[int, str], data: str | Path) -> None:
    """Raise ModelError unless the model's classes are those of the dataset, in the same order.

    A model of COCO and ``{0: "relevant"}`` of data.yaml give
    ModelError: yolo11n.pt: classes: got 80 (person, bicycle, car, ...), expected those of data.yaml: 1 (relevant); ...
    """
    got, expected = list(yolo.names.values()), list(names.values())
    if got != expected:
        raise ModelError(
            f"{yolo.model_name or 'model'}: classes: got {_listing(got)}, expected those of {data}: "
            f"{_listing(expected)}; give a model trained on this dataset"
        )


def image_size(yolo: YOLO, imgsz: int | None = None) -> int:
    """The longer image side in pixels at which a model is run: the given one, else as it was trained or exported.

    Raises UsageError for a side that is no multiple of the model's largest stride, which Ultralytics would round up,
    and for one that an exported file does not take.
    """
    if isinstance(yolo, Exported):
        require_side_of(yolo.card, imgsz or yolo.card.imgsz)
    if imgsz is not None:
        require_side("imgsz", imgsz, grid_px(yolo))
        return imgsz
    return -(-trained_imgsz(yolo) // grid_px(yolo)) * grid_px(yolo)


def trained_imgsz(yolo: YOLO) -> int:
    """The image size a checkpoint was trained at, or a file exported for, in pixels; 640 where it names none.

    Raises ModelError for what is no size.
    """
    imgsz = yolo.card.imgsz if isinstance(yolo, Exported) else yolo.overrides.get("imgsz", 640)
    sides = imgsz if isinstance(imgsz, (list, tuple)) and imgsz else [imgsz]
    if not all(type(side) is int and 1 <= side <= NUMBERS["imgsz"][1] for side in sides):
        raise ModelError(
            f"{yolo.model_name or 'model'}: got {str(imgsz)[:60]} as the image size that it was trained at, expected "
            f"pixels: give --imgsz"
        )
    return max(sides)


def _metrics(validator: object, names: Mapping[int, str], images: int) -> dict:
    found, box = validator.metrics, validator.metrics.box
    row = {int(class_id): i for i, class_id in enumerate(box.ap_class_index)}
    some = bool(row)
    return {
        "images": validator.seen,
        "skipped": images - validator.seen,
        "instances": int(found.nt_per_class.sum()),
        "map50": float(box.map50) if some else None,
        "map50_95": float(box.map) if some else None,
        "precision": float(box.mp) if some else None,
        "recall": float(box.mr) if some else None,
        "per_class": {
            name: {
                "map50": float(box.ap50[row[class_id]]) if class_id in row else None,
                "map50_95": float(box.ap[row[class_id]]) if class_id in row else None,
            }
            for class_id, name in names.items()
        },
    }


def _listing(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
