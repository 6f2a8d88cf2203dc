"""What a teacher adds to a student's loss."""

import kd.ultra  # noqa: F401  before any module here imports Ultralytics
