"""A student's first weights from its teacher: channels chosen, convolutions solved, no gradient and no label."""

import kd.ultra  # noqa: F401  before any module here imports Ultralytics
