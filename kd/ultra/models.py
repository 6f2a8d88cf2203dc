"""Models by name or file, loaded safely: a detector, or one line that says what was found.

Invariant: a checkpoint goes through a restricted unpickler, a yaml is read without eval, a name is no download.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from ultralytics import RTDETR, YOLO
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel
from ultralytics.utils import ROOT
from ultralytics.utils.checks import check_yolov5u_filename

from kd.config import CLASSIC, GRID_PX
from kd.errors import ModelError
from kd.ultra import classic, model_files, session
from schemas.strict import read_yaml

SHIPPED = Path(__file__).parents[1] / "models"  # model yamls of our own


def load_model(spec: str, tasks: Collection[str] = ("detect",)) -> YOLO:
    """The detector that ``spec`` names: a .pt, a .yaml, or a model name such as ``yolov5n`` or ``yolo26n``.

    A name or a .yaml gives that architecture with fresh weights, drawn from torch's global generator; names are
    those of kd/models and of the Ultralytics package (``yolov5n`` is its yolov5.yaml at scale n), never a download;
    ``classic/`` before a name, and files of the official YOLOv5 repository, give anchor-based models
    (`kd.ultra.classic`). Checkpoints go through a restricted unpickler. Raises ModelError, also for a model of none of
    the ``tasks``.
    """
    path = Path(spec)
    suffix = path.suffix.lower()
    if spec.startswith(CLASSIC):
        classic.read_architecture(spec)  # which names there are
        source, kind = spec if suffix == ".yaml" else f"{spec}.yaml", "a classic model"
    elif suffix == ".pt":
        require_safe(spec)
        source, kind = str(path.resolve()), "a checkpoint that Ultralytics 8 wrote"
    elif suffix in {".yaml", ".yml"} and model_files.is_there(path):
        with session.silence():
            model_files.require_model_yaml(spec)
        source, kind = spec, "a model yaml of Ultralytics 8"
    else:
        source, kind = _packaged(spec), "a model yaml of Ultralytics 8"
    try:
        with session.silence():
            by_name = suffix != ".pt" and is_rtdetr(spec)  # of a checkpoint YOLO sees it for itself
            make = classic.ClassicYOLO if classic.is_classic(spec) else RTDETR if by_name else YOLO
            yolo = make(source)
    except ModelError:
        raise
    except Exception as error:  # whatever a damaged file makes of parser, unpickler or constructor
        raise ModelError(f"{spec}: got no usable model ({session.first_line(error)}), expected {kind}") from error
    model_files.require_detector(yolo.model, spec)
    if yolo.task not in tasks:
        head = type(yolo.model.model[-1]).__name__
        raise ModelError(f"{spec}: got a model for {yolo.task} ({head} head), expected a detector")
    if suffix == ".pt":
        model_files.require_running(yolo.model, spec)
    return yolo


def require_student(yolo: YOLO, spec: str) -> None:
    """Raise ModelError unless the seam can train this detector: a plain or classic one with a Detect head, an RT-DETR.

    Of a checkpoint the module must be what its yaml makes, since Ultralytics' trainer builds that.
    """
    head = yolo.model.model[-1]
    plain = type(yolo.model) in (DetectionModel, classic.Model) and isinstance(head, Detect)
    if not plain and type(yolo.model) is not RTDETRDetectionModel:
        raise ModelError(
            f"{spec}: student: got a {type(yolo.model).__name__} with a {type(head).__name__} head, expected a "
            f"YOLO detector with a Detect head, from yolov3 to yolo26, or an RT-DETR"
        )
    if Path(spec).suffix.lower() == ".pt":
        with session.silence():
            model_files.require_unchanged(yolo.model, spec)


def is_rtdetr(spec: str) -> bool:
    """Whether this is an RT-DETR: a file by what it holds, one of Ultralytics' architectures by its name.

    Raises ModelError for a checkpoint that holds no detector.
    """
    path = Path(spec)
    if path.suffix.lower() == ".pt":
        return isinstance(load_model(spec).model, RTDETRDetectionModel)
    if path.suffix.lower() in {".yaml", ".yml"} and model_files.is_there(path):
        with contextlib.suppress(OSError, ValueError):  # StrictError is one
            return model_files.has_decoder(read_yaml(path))
    return "rtdetr" in path.stem


def grid_px(yolo: YOLO) -> int:
    """What image sides have to be multiples of: the largest stride, and at least 32."""
    strides = getattr(yolo.model, "stride", None)
    return max(GRID_PX, int(max(strides))) if strides is not None and len(strides) else GRID_PX


def require_safe(spec: str) -> None:
    """Raise ModelError for what is no file, and for a file that Ultralytics would take for another."""
    path = Path(spec)
    model_files.require_archive(spec)
    if classic.is_classic(spec):
        return  # kd reads it
    if check_yolov5u_filename(str(path.resolve()), verbose=False) != str(path.resolve()):
        raise ModelError(
            f"{spec}: got a file name that Ultralytics reads as {path.stem}u.pt, expected another: rename it"
        )


def _packaged(spec: str) -> str:
    """A model name as a yaml of ours, or one that Ultralytics finds in its own package, the scale letter kept.

    >>> _packaged("yolov5n"), Path(_packaged("yolov8p")).relative_to(SHIPPED).name
    ('yolov5n.yaml', 'yolov8p.yaml')
    """
    stem = spec.removesuffix(".yaml").removesuffix(".yml")
    own = {path.stem: str(path) for path in SHIPPED.glob("*.yaml")}
    if stem in own:
        return own[stem]
    known = {path.stem for path in (ROOT / "cfg" / "models").rglob("*.yaml")}
    if stem not in known and re.sub(r"^(yolov?\d+)[nslmx](?=$|-)", r"\1", stem) not in known:
        scaled = {f"{name}{scale}" for name in known if re.fullmatch(r"yolov?\d+", name) for scale in "nsmlx"}
        if found := model_files.what_it_is(spec):
            raise ModelError(f"{spec}: {found}")
        near = get_close_matches(stem, sorted(known | scaled | own.keys()), n=3) or ["yolov5n", "yolo11s", "yolo26n"]
        raise ModelError(
            f"{spec}: got neither a file nor a model name that kd or Ultralytics knows, expected a .pt, a .yaml, or "
            f"a name such as {', '.join(near)}"
        )
    return f"{stem}.yaml"
