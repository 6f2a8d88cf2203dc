"""Ultralytics, imported offline and quiet, with its models, data, settings and devices as kd reads them.

Each package of kd whose modules import Ultralytics imports this one first. Replaced in Ultralytics are the files that
it caches labels in, its choice of an unpickler and the time that its NMS may take (here), and how it reads images and
labels (kd/ultra/labels.py). That unpickler is told of four classes of torchvision more, those of the MobileNets in
kd/models.
Invariant: nothing here reaches the network, runs code from a checkpoint or from a file of labels, or touches the
user's own settings of Ultralytics.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from kd.errors import KdError
from kd.files import whole_file
from schemas.cache import cache_dir

EXTRA_MISSING = "kd needs its extra: pip install 'dtld-kd[kd]'"


def _place_fonts() -> None:
    """Put a font where Ultralytics looks before downloading one."""
    config = cache_dir() / "Ultralytics"  # Ultralytics appends its own name
    fonts = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    try:
        for name in ("Arial.ttf", "Arial.Unicode.ttf"):
            if not (config / name).exists():
                with whole_file(config / name) as partial:
                    shutil.copyfile(fonts / "DejaVuSans.ttf", partial)
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
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:  # not those of other programs
            handler.setStream(sys.stderr)  # stdout belongs to the commands' own output


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _keep_safe() -> None:
    """Keep Ultralytics from unpickling: labels cached next to the data, and checkpoints without restriction.

    A cache would run code if it came with the data, and concurrent runs delete and overwrite one another's. Nor does it
    install the packages that an export wants.
    """
    import torch
    from torchvision.models import mobilenetv2, mobilenetv3
    from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation
    from ultralytics.data import dataset as label_reader
    from ultralytics.nn import tasks as networks
    from ultralytics.utils import checks

    def load(path: Path) -> dict:
        raise FileNotFoundError(path)

    def save(prefix: str, path: Path, x: dict, version: str) -> None:
        x["version"] = version  # read by the caller

    label_reader.load_dataset_cache_file, label_reader.save_dataset_cache_file = load, save
    # It reads their environment variables when it is first imported, which may have been before kd was.
    networks.SAFE_LOAD, checks.AUTOINSTALL = True, False
    blocks = [mobilenetv2.InvertedResidual, mobilenetv3.InvertedResidual, Conv2dNormActivation, SqueezeExcitation]
    torch.serialization.add_safe_globals(blocks)


def _take_time() -> None:
    """Keep Ultralytics from giving up: past two seconds and 0.05 s an image, its NMS takes those left for empty.

    On a machine with other work that lowers scores. Where torchvision is loaded, as it is above, it is also quick.
    """
    from ultralytics.utils import nms

    nms.non_max_suppression = partial(nms.non_max_suppression, max_time_img=math.inf)


_place_fonts()
_import_ultralytics()
_keep_safe()
_take_time()
