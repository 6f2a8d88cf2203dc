"""From a checkpoint to the file that a device runs."""

import kd.ultra  # noqa: F401  before any module here imports Ultralytics
