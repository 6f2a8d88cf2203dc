"""The files that a user hands us in, the dataset that they describe out, if it is one of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from dtld_tools.errors import DatasetError
from dtld_tools.importing.coco_frames import import_coco
from dtld_tools.importing.imported import Crowd, Form, Imported, Sequences, dataset_name
from dtld_tools.importing.yolo import import_yolo
from dtld_tools.types import Split


def form_of(path: Path) -> Form | None:
    """Which kind of dataset a file describes; None for a label file of DTLD, and for what cannot be read.

    DTLD's v1.0 is a YAML list, and a data.yaml has keys; its v2.0 has no annotations or categories, as COCO has.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            text = path.read_bytes()
            return "coco" if any(key in text for key in (b'"annotations"', b'"categories"')) else None
        if suffix not in (".yaml", ".yml"):
            return None
        with path.open("rb") as stream:
            events = yaml.parse(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            first = next((event for event in events if isinstance(event, yaml.NodeEvent)), None)
        return "yolo" if isinstance(first, yaml.MappingStartEvent) else None
    except (OSError, yaml.YAMLError):
        return None


def read_import(
    form: Form, files: Sequence[tuple[Path, Split | None]], root: Path, sequence_from: str | None, crowd: Crowd
) -> Imported:
    """The dataset of a data.yaml, or of COCO JSON files and the splits they are; the images lie below ROOT.

    Raises DatasetError.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: is no folder, expected --root to be the one below which the images lie")
    sequence_of = Sequences(dataset_name(root), sequence_from)
    if form == "coco":
        return import_coco(files, root, sequence_of, crowd)
    ((path, _),) = files
    return import_yolo(path, root, sequence_of)
