"""data.yaml, by which a trainer finds the images and the names of the classes: written, read, its names checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from dtld_tools.errors import DatasetError
from dtld_tools.files import UNFINISHED, write_atomically
from dtld_tools.types import SPLITS
from schemas import strict
from schemas.strict import StrictError


def read_data_yaml(path: Path) -> Mapping[str, Any]:
    """Any YOLO dataset's data.yaml. Raises DatasetError."""
    document = _document(path, "a YOLO dataset's data.yaml", "a YOLO dataset's data.yaml")
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: got no keys, expected train, val, test and names")
    return document


def read_class_names(root: Path) -> tuple[str, ...]:
    """The class names of data.yaml in the order of their numbers. Raises DatasetError."""
    path = root / "data.yaml"
    document = _document(path, "a dataset made by dtld convert or prepare", "a dataset's data.yaml")
    names = document.get("names") if isinstance(document, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not is_names(names):
        raise DatasetError(f"{path}: got no class names numbered from 0; expected a dataset's data.yaml")
    return tuple(names[index] for index in range(len(names)))


def _document(path: Path, instead_of_none: str, instead_of_this: str) -> Any:
    try:
        return strict.read_yaml(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected {instead_of_none}") from error
    except StrictError as error:
        raise DatasetError(f"{path}: {error}; expected {instead_of_this}") from error


def is_names(names: Any) -> TypeGuard[dict[int, str]]:
    """Whether it is {number: text} with the numbers 0, 1, ...; ``true`` is no 1, though equal to it."""
    return (
        isinstance(names, dict)
        and all(type(number) is int and isinstance(name, str) for number, name in names.items())
        and sorted(names) == list(range(len(names)))
    )


def write_data_yaml(out: Path, class_names: Sequence[str]) -> None:
    """Without a ``path`` key, Ultralytics resolves the folders beside the file, so the dataset can be moved."""
    document = {split: f"images/{split}" for split in SPLITS} | {"names": dict(enumerate(class_names))}
    write_atomically(out / "data.yaml", yaml_text(document).encode(), out / UNFINISHED)


def yaml_text(document: Mapping[str, Any]) -> str:
    """A data.yaml that `schemas.strict` and PyYAML read alike.

    >>> yaml_text({"names": {0: "go", 1: "1e3", 2: "off"}})
    "names:\\n  0: go\\n  1: '1e3'\\n  2: 'off'\\n"
    """
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Puts a text into quotes that YAML 1.2 takes for a number, and 1.1, PyYAML's, does not: ``1e3``."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_text = strict.word(text) == text
    except StrictError:
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _represent_text)
