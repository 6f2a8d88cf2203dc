"""Distil a large YOLO teacher into a small YOLO student, and tell whether it helped.

The command line is `kd`; the same as a library are the names of ``__all__`` (docs/api.md). Importing this package sets
the environment that Ultralytics, torch and Matplotlib read while they are imported, and imports none of them: a public
name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kd.environment import prepare

prepare()

if TYPE_CHECKING:
    from kd.analysis.analyse import analyse as analyse
    from kd.config import TrainConfig as TrainConfig
    from kd.device.bench import device_bench as device_bench
    from kd.device.export import export as export
    from kd.device.quantize import quantize as quantize
    from kd.errors import KdError as KdError
    from kd.methods.fgfi_config import FgfiConfig as FgfiConfig
    from kd.reports.report import report as report
    from kd.runs.compare import compare as compare
    from kd.scoring.evaluate import evaluate as evaluate
    from kd.scoring.full_frame import evaluate_frames as evaluate_frames
    from kd.scoring.predict import predict as predict
    from kd.sweeps.executors import Cluster as Cluster
    from kd.sweeps.sweep import sweep as sweep
    from kd.training.bench import bench as bench
    from kd.training.run import train as train

_MODULE_OF = {
    "Cluster": "kd.sweeps.executors",
    "FgfiConfig": "kd.methods.fgfi_config",
    "KdError": "kd.errors",
    "TrainConfig": "kd.config",
    "analyse": "kd.analysis.analyse",
    "bench": "kd.training.bench",
    "compare": "kd.runs.compare",
    "device_bench": "kd.device.bench",
    "evaluate": "kd.scoring.evaluate",
    "evaluate_frames": "kd.scoring.full_frame",
    "export": "kd.device.export",
    "predict": "kd.scoring.predict",
    "quantize": "kd.device.quantize",
    "report": "kd.reports.report",
    "sweep": "kd.sweeps.sweep",
    "train": "kd.training.run",
}
__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # a type checker that saw it would let a misspelt name pass

    def __getattr__(name: str) -> Any:
        """A public name, from its module (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULE_OF[name]), name)
