"""DriveU Traffic Light Data (DTLD) to a clean, leak-free, traceable YOLO dataset.

The command line is `dtld`; the same as a library are the names of ``__all__`` (docs/api.md). Importing this package
loads nothing else: a public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtld_tools.errors import DtldError as DtldError
    from dtld_tools.export.createml import to_createml as to_createml
    from dtld_tools.export.export import to_coco as to_coco
    from dtld_tools.export.export import to_yolo as to_yolo
    from dtld_tools.export.preview import preview as preview
    from dtld_tools.export.voc import to_voc as to_voc
    from dtld_tools.export.webdataset import to_webdataset as to_webdataset
    from dtld_tools.labels.parse import read_labels as read_labels
    from dtld_tools.pipeline.stages import Run as Run
    from dtld_tools.pipeline.stages import Selection as Selection
    from dtld_tools.pipeline.stages import augment as augment
    from dtld_tools.pipeline.stages import convert as convert
    from dtld_tools.pipeline.stages import prepare as prepare
    from dtld_tools.pipeline.stages import split as split
    from dtld_tools.pipeline.stages import tile as tile
    from dtld_tools.pipeline.workers import Executor as Executor
    from dtld_tools.pixels.augment import AugmentSpec as AugmentSpec
    from dtld_tools.planning.split import SplitSpec as SplitSpec
    from dtld_tools.synthetic.sample import sample as sample
    from dtld_tools.types import TileSpec as TileSpec
    from dtld_tools.validation.validate import validate as validate

_MODULE_OF = {
    "AugmentSpec": "dtld_tools.pixels.augment",
    "DtldError": "dtld_tools.errors",
    "Executor": "dtld_tools.pipeline.workers",
    "Run": "dtld_tools.pipeline.stages",
    "Selection": "dtld_tools.pipeline.stages",
    "SplitSpec": "dtld_tools.planning.split",
    "TileSpec": "dtld_tools.types",
    "augment": "dtld_tools.pipeline.stages",
    "convert": "dtld_tools.pipeline.stages",
    "prepare": "dtld_tools.pipeline.stages",
    "preview": "dtld_tools.export.preview",
    "read_labels": "dtld_tools.labels.parse",
    "sample": "dtld_tools.synthetic.sample",
    "split": "dtld_tools.pipeline.stages",
    "tile": "dtld_tools.pipeline.stages",
    "to_coco": "dtld_tools.export.export",
    "to_createml": "dtld_tools.export.createml",
    "to_voc": "dtld_tools.export.voc",
    "to_webdataset": "dtld_tools.export.webdataset",
    "to_yolo": "dtld_tools.export.export",
    "validate": "dtld_tools.validation.validate",
}
__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # a type checker that saw it would let a misspelt name pass

    def __getattr__(name: str) -> Any:
        """A public name, from its module (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULE_OF[name]), name)
