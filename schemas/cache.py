"""The one folder that either tool writes outside of what the user names."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``dtld-kd`` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtld-kd"


def keep_matplotlib_inside() -> None:
    """Have Matplotlib, before its import, keep settings and its list of fonts there, unless the user has set where."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))
