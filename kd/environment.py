"""What the libraries underneath read from the environment, and where they may write outside of what the user names.

Invariant: with it, Ultralytics reaches no network, installs nothing and unpickles no code.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where kd writes outside a run, and nowhere else: ``dtld-kd`` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtld-kd"


def prepare() -> None:
    """Set it; what the user has set for Matplotlib and torch stays."""
    os.environ.update(
        YOLO_OFFLINE="1",  # no analytics, no update check, no downloads
        YOLO_AUTOINSTALL="0",  # never pip-install what a checkpoint names
        YOLO_CONFIG_DIR=str(cache_dir()),  # settings.json, fonts
        ULTRALYTICS_SAFE_LOAD="1",  # checkpoints through the restricted unpickler, yaml models without eval
    )
    # torch makes this folder with the first optimizer, whether it compiles or not; else among the temporary files.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torchinductor"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))  # settings, and the list of fonts
