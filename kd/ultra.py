"""The one door to Ultralytics: imports it offline and quiet, loads models safely, checks settings and devices.

In: model names and paths. Out: `YOLO` detectors, or one-line errors.
Invariant: nothing here reaches the network, runs code from a checkpoint, or touches the user's own settings of
Ultralytics; every other module of kd imports this one first, so that the environment is set in time.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kd.cache import cache_dir
from kd.config import GRID_PX
from kd.errors import KdError, ModelError, UsageError

EXTRA_MISSING = "kd needs its extra: pip install 'dtld-kd[kd]'"


def _prepare_environment() -> None:
    """Set what Ultralytics reads while it is imported; put a font where it looks before downloading one."""
    os.environ.update(
        YOLO_OFFLINE="1",  # no analytics, no update check, no downloads
        YOLO_AUTOINSTALL="0",  # never pip-install what a checkpoint names
        YOLO_CONFIG_DIR=str(cache_dir()),  # settings.json, fonts
        ULTRALYTICS_SAFE_LOAD="1",  # checkpoints through the restricted unpickler, yaml models without eval
    )
    # torch makes this folder with the first optimizer, whether it compiles or not; else among the temporary files.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torchinductor"))
    config = cache_dir() / "Ultralytics"  # Ultralytics appends its own name
    fonts = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    try:
        config.mkdir(parents=True, exist_ok=True)
        for name in ("Arial.ttf", "Arial.Unicode.ttf"):
            if not (config / name).exists():
                partial = config / f"{name}.{os.getpid()}"
                shutil.copyfile(fonts / "DejaVuSans.ttf", partial)
                partial.replace(config / name)
    except OSError as error:
        raise KdError(
            f"{cache_dir()}: got {error.strerror}, expected a writable cache folder: set XDG_CACHE_HOME"
        ) from error


def _import_ultralytics() -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    logger = logging.getLogger("ultralytics")
    try:
        import torch  # noqa: F401  before Ultralytics, which sets OMP_NUM_THREADS=1 for whatever loads OpenMP later

        logger.addFilter(_nothing)  # its first import announces a new settings file
        import ultralytics.utils as utils
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in {"torch", "torchvision", "ultralytics"}:
            raise KdError(EXTRA_MISSING) from error
        raise
    finally:
        logger.removeFilter(_nothing)
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)  # or every process started from here would have one thread
    off = dict.fromkeys(
        ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "vscode_msg"), False
    )
    here = {"runs_dir": "runs", "weights_dir": "weights", "datasets_dir": "datasets"}
    wanted = {**off, **{key: str(cache_dir() / name) for key, name in here.items()}}
    if any(utils.SETTINGS.get(key) != value for key, value in wanted.items()):
        utils.SETTINGS.update(wanted)
    for handler in utils.LOGGER.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # stdout belongs to the commands' own output


def _nothing(_: logging.LogRecord) -> bool:
    return False


_prepare_environment()
_import_ultralytics()

import torch  # noqa: E402
from ultralytics import RTDETR, YOLO  # noqa: E402
from ultralytics.cfg import check_cfg  # noqa: E402
from ultralytics.data import dataset as label_reader  # noqa: E402
from ultralytics.nn import tasks as networks  # noqa: E402
from ultralytics.nn.modules.head import Detect  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK, ROOT  # noqa: E402
from ultralytics.utils.callbacks import get_default_callbacks  # noqa: E402
from ultralytics.utils.checks import check_yolov5u_filename  # noqa: E402
from ultralytics.utils.metrics import ap_per_class, smooth  # noqa: E402, F401  for kd.detection_metrics
from ultralytics.utils.torch_utils import get_cpu_info, select_device  # noqa: E402

from kd import model_files  # noqa: E402

TORCH_THREADS = torch.get_num_threads()
LOGS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wb"}  # package -> Ultralytics' module for it


def _read_labels_anew() -> None:
    """Keep Ultralytics from its pickles of labels beside the data.

    It would run code from one that came with the data, and runs beside each other delete and overwrite one another's.
    """

    def load(path: Path) -> dict:
        raise FileNotFoundError(path)

    def save(prefix: str, path: Path, x: dict, version: str) -> None:
        x["version"] = version  # read by the caller

    label_reader.load_dataset_cache_file, label_reader.save_dataset_cache_file = load, save


_read_labels_anew()
# It reads ULTRALYTICS_SAFE_LOAD when it is first imported, which may have been before kd was.
networks.SAFE_LOAD = True


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hold back Ultralytics' log lines below errors, and with them its progress bars."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextlib.contextmanager
def narrate(quiet: bool) -> Iterator[None]:
    """Let Ultralytics speak on stderr; silence it when ``quiet`` or when nobody is watching (no terminal)."""
    if quiet or not sys.stderr.isatty():
        with silence():
            yield
    else:
        with contextlib.redirect_stdout(sys.stderr):
            yield


def load_model(spec: str, tasks: Collection[str] = ("detect",)) -> YOLO:
    """The detector that ``spec`` names: a .pt, a .yaml, or a model name such as ``yolov5n`` or ``yolo26n``.

    A name or a .yaml gives that architecture with fresh weights, drawn from torch's global generator; names
    are those of the Ultralytics package (``yolov5n`` is its yolov5.yaml at scale n), never a download.
    Checkpoints go through the restricted unpickler. Raises ModelError, also for a model of none of the ``tasks``.
    """
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".pt":
        require_safe(spec)
        source, kind = str(path.resolve()), "a checkpoint that Ultralytics 8 wrote"
    elif suffix in {".yaml", ".yml"} and model_files.is_there(path):
        with silence():
            model_files.require_model_yaml(spec)
        source, kind = spec, "a model yaml of Ultralytics 8"
    else:
        source, kind = _packaged(spec), "a model yaml of Ultralytics 8"
    try:
        with silence():
            by_name = suffix != ".pt" and "rtdetr" in path.stem  # of a checkpoint YOLO sees it for itself
            yolo = (RTDETR if by_name else YOLO)(source)
    except Exception as error:  # whatever a damaged file makes of parser, unpickler or constructor
        raise ModelError(f"{spec}: got no usable model ({first_line(error)}), expected {kind}") from error
    model_files.require_detector(yolo.model, spec)
    if yolo.task not in tasks:
        head = type(yolo.model.model[-1]).__name__
        raise ModelError(f"{spec}: got a model for {yolo.task} ({head} head), expected a detector")
    if suffix == ".pt":
        model_files.require_running(yolo.model, spec)
    return yolo


def require_student(yolo: YOLO, spec: str) -> None:
    """Raise ModelError unless the seam can train this detector: a plain DetectionModel with a Detect head.

    Of a checkpoint the module must be what its yaml makes, since Ultralytics' trainer builds that.
    """
    head = yolo.model.model[-1]
    if type(yolo.model) is not DetectionModel or not isinstance(head, Detect):
        raise ModelError(
            f"{spec}: student: got a {type(yolo.model).__name__} with a {type(head).__name__} head, expected a "
            f"YOLO detector with a Detect head, from yolov3 to yolo26"
        )
    if Path(spec).suffix.lower() == ".pt":
        with silence():
            model_files.require_unchanged(yolo.model, spec)


def grid_px(yolo: YOLO) -> int:
    """What image sides have to be multiples of: the largest stride, and at least 32."""
    strides = getattr(yolo.model, "stride", None)
    return max(GRID_PX, int(max(strides))) if strides is not None and len(strides) else GRID_PX


def require_safe(spec: str) -> None:
    """Raise ModelError for what is no file, and for files that Ultralytics would take for others or cannot load."""
    path = Path(spec)
    model_files.require_archive(spec)
    if _is_classic(path):
        raise ModelError(
            f"{spec}: got a classic anchor-based YOLOv5 checkpoint, expected an anchor-free one of Ultralytics "
            f"8 (yolov5nu.pt is such), or the model name yolov5n for that architecture with fresh weights"
        )
    if check_yolov5u_filename(str(path.resolve()), verbose=False) != str(path.resolve()):
        raise ModelError(
            f"{spec}: got a file name that Ultralytics reads as {path.stem}u.pt, expected another: rename it"
        )


def _is_classic(path: Path) -> bool:
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip archive or a damaged one: the load that follows says so
        return False
    return any(name.startswith("models.") for name in foreign)


def _packaged(spec: str) -> str:
    """A model name as the yaml that Ultralytics finds in its own package, the scale letter kept.

    >>> _packaged("yolov5n")
    'yolov5n.yaml'
    """
    stem = spec.removesuffix(".yaml").removesuffix(".yml")
    known = {path.stem for path in (ROOT / "cfg" / "models").rglob("*.yaml")}
    if stem not in known and re.sub(r"^(yolov?\d+)[nslmx](?=$|-)", r"\1", stem) not in known:
        scaled = {f"{name}{scale}" for name in known if re.fullmatch(r"yolov?\d+", name) for scale in "nsmlx"}
        if found := model_files.what_it_is(spec):
            raise ModelError(f"{spec}: {found}")
        near = get_close_matches(stem, sorted(known | scaled), n=3) or ["yolov5n", "yolo11s", "yolo26n"]
        raise ModelError(
            f"{spec}: got neither a file nor a model name that Ultralytics knows, expected a .pt, a .yaml, or a "
            f"name such as {', '.join(near)}"
        )
    return f"{stem}.yaml"


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, as ASCII and cut short."""
    text = str(error).encode("ascii", "ignore").decode().replace("ERROR", "").strip()
    return f"{type(error).__name__}: {text.splitlines()[0].strip()[:160]}" if text else type(error).__name__


def check_settings(settings: dict[str, Any]) -> None:
    """Raise UsageError unless Ultralytics takes each setting's value, by its own rules of type and range."""
    try:
        with silence():
            check_cfg({**DEFAULT_CFG_DICT, **settings})
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"--set: {text}") from error
    if str(settings.get("cache")).lower() == "disk":
        raise UsageError("--set cache: got disk, which writes a file beside every image, expected ram: --set cache=ram")


def check_logs(names: Collection[str]) -> None:
    """Raise UsageError for what a run cannot be logged to, KdError where the package is not installed."""
    for name in names:
        if name not in LOGS:
            raise UsageError(f"--log: got {name!r}, expected {', '.join(LOGS)}")
        if importlib.util.find_spec(name) is None:
            raise KdError(f"--log {name}: got no package {name}, expected it to be installed: pip install {name}")


def callbacks(names: Collection[str]) -> dict[str, list[Any]]:
    """Ultralytics' own callbacks, with those that log to the named packages; its settings stay as they are."""
    found = get_default_callbacks()
    for name in names if RANK in (-1, 0) else ():
        for event, callback in importlib.import_module(f"ultralytics.utils.callbacks.{LOGS[name]}").callbacks.items():
            found[event].append(callback)
    return found


def check_device(device: str | None) -> torch.device:
    """The device that Ultralytics finds for cpu, mps, a GPU's number, or None for the best one; else UsageError."""
    try:
        with silence():
            return select_device(device or "", verbose=False)
    except ValueError as error:
        raise UsageError(
            f"--device: got {device!r}, expected cpu, or the number of a GPU that is there: "
            f"{torch.cuda.device_count()} are"
        ) from error
    finally:
        torch.set_num_threads(TORCH_THREADS)  # choosing the CPU takes one core away


def device_name(device: torch.device, count: int = 1) -> str:
    """'NVIDIA H100', '2 x NVIDIA H100' or 'AMD EPYC 7B13, 2 threads': what figures were taken on."""
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}" if count > 1 else torch.cuda.get_device_name(device)
    return f"{get_cpu_info()}, {TORCH_THREADS} threads" if device.type == "cpu" else device.type
