"""Distil a large YOLO teacher into a small YOLO student, and tell whether it helped.

The command line is `kd`; the same as a library: `kd.train.train`, `kd.evaluate.evaluate`, `kd.predict.predict`.
"""

from kd.cache import keep_matplotlib

keep_matplotlib()  # several modules import it, in whatever order
