"""A teacher's layout with fewer channels and blocks, born with the teacher's weights and trained: ``kd prune``.

In: a trained detector. Out: OUT, a run as any other, and beside it OUT.yaml, the layout that plain Ultralytics builds.
Whole channels go, evenly over all layers, so that what is left is a YOLO of another width and no surgery is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ultralytics.nn.tasks import guess_model_scale

from kd.config import TrainConfig
from kd.errors import ModelError, UsageError
from kd.files import require_no_input, write_all
from kd.inheritance.weights import Scale
from kd.runs.record import CONFIG
from kd.scoring.evaluate import image_size
from kd.training.run import train
from kd.ultra.models import load_model

OF_A_BUILT = ("channels", "scale", "yaml_file")  # what Ultralytics adds to a yaml when it builds it


def prune(
    teacher: str,
    data: str | Path,
    out: str | Path,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    overwrite: bool = False,
    quiet: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    **values: Any,
) -> dict[str, Any]:
    """Train a student of a share of a teacher's channels and repeats, from weights computed from the teacher's.

    ``values`` are those of `kd.config.TrainConfig`; the image size is by default the teacher's. Returns the content of
    run.json. Raises what `kd.training.run.train` raises, ModelError for what is no trained detector, and UsageError for
    a share that takes nothing away.
    """
    scale, out = Scale(width, depth), Path(out)
    if scale == Scale():
        raise UsageError("--width: got 1, expected a share of the teacher's channels below it, such as 0.5, or --depth")
    if Path(teacher).suffix.lower() != ".pt":
        raise ModelError(f"{teacher}: teacher: got no checkpoint, expected a trained detector (.pt)")
    layout = out.with_name(f"{out.name}.yaml")
    if guess_model_scale(str(layout)):
        raise UsageError(f"--out: got {out}, in which Ultralytics reads a model's scale, expected another name")
    yolo = load_model(teacher)
    scaled = scale.apply(yolo.model.yaml)
    content = yaml.safe_dump({key: scaled[key] for key in scaled if key not in OF_A_BUILT}, sort_keys=False)
    values = {"imgsz": image_size(yolo)} | values
    config = TrainConfig(data=str(data), student=str(layout), inherit=teacher, out=str(out), **values)
    require_no_input("--out", [layout], [Path(teacher), Path(data)])
    earlier, run = _content(layout), _content(out / CONFIG)
    if earlier not in (None, content.encode()) and not (overwrite and run):
        raise UsageError(f"--out: got {out}, but {layout} is there with something else, expected another name")
    write_all({layout: content})
    try:
        return train(config, overwrite=overwrite, quiet=quiet, tell=tell)
    finally:
        if _content(out / CONFIG) == run:  # it has not begun, or what was there before is back
            layout.unlink() if earlier is None else write_all({layout: earlier})


def _content(file: Path) -> bytes | None:
    """What is in a file; None where none is there."""
    return file.read_bytes() if file.exists() else None
