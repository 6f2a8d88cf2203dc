"""Where kd, and what it runs on, write outside of what the user names."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where kd writes outside a run, and nowhere else: ``dtld-kd`` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtld-kd"


def keep_matplotlib() -> None:
    """Let Matplotlib, before it is imported, have its settings and its list of fonts there, unless the user says."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))
