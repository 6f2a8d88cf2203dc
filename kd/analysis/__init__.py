"""What a detector misses, what it invents, and what each kind of error costs: one page to look at."""

import kd.ultra  # noqa: F401  before any module here imports Ultralytics
