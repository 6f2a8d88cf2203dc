"""Distil a large YOLO teacher into a small YOLO student, and tell whether it helped.

The command line is `kd`; the same as a library: `kd.training.run.train`, `kd.scoring.evaluate.evaluate`,
`kd.scoring.predict.predict`. Importing this package sets the environment that Ultralytics, torch and Matplotlib read
while they are imported, and imports none of them.
"""

from kd.environment import prepare

prepare()
