"""The environment variables of the libraries underneath, set before they are imported.

Invariant: with it, Ultralytics, OpenVINO, NNCF and MNN reach no network, Ultralytics and MNN install nothing, and
Ultralytics unpickles no code.
"""

from __future__ import annotations

import os
import sys

from schemas.cache import cache_dir, keep_matplotlib_inside

WORLD = "KD_WORLD_SIZE"  # holds torchrun's WORLD_SIZE in its first process
# How often a thread of GNU's OpenMP, which torch has on Linux, looks for its next piece of work before it sleeps: some
# 75 us. By default it looks 300,000 times and keeps, beside other work, a core from the very thread that it waits for.
SPINS = "3000"


def prepare() -> None:
    """Set the environment; what the user has set for Matplotlib, torch, OpenCV and OpenMP stays."""
    os.environ.update(
        YOLO_OFFLINE="1",  # no analytics, no update check, no downloads
        YOLO_AUTOINSTALL="0",  # never pip-install what a checkpoint names
        YOLO_CONFIG_DIR=str(cache_dir()),  # settings.json, fonts
        ULTRALYTICS_SAFE_LOAD="1",  # checkpoints through the restricted unpickler, yaml models without eval
    )
    # torch makes this folder with the first optimizer, whether it compiles or not; else among the temporary files.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torchinductor"))
    # What reports is not there, which its users allow for. OpenVINO, when it is imported, and NNCF do to Google
    # Analytics; MNN's converter pip-installs its cloud's client when it is imported and asks a server for credentials.
    for name in ("openvino_telemetry", "MNN.tools.utils.log"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: a video that cannot be read gets one line, of ours
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    keep_matplotlib_inside()


def lead_ranks() -> None:
    """Let Ultralytics see a single process in the first one that torchrun has started, not rank 0 of several.

    `kd train` checks and scores in it as in a process of its own, and starts the rank below it (kd/training/ranks.py).
    """
    if os.environ.get("RANK") == "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ[WORLD] = os.environ.pop("WORLD_SIZE")
