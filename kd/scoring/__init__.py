"""How good a detector is: evaluation on images, on full frames, and predictions to look at."""

import kd.ultra  # noqa: F401  before any module here imports Ultralytics
