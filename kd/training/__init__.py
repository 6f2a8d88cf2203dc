"""The training of a student: checks, the run and its folder, the seam into Ultralytics, resuming, costs."""

import kd.ultra  # noqa: F401  before any module here imports Ultralytics
