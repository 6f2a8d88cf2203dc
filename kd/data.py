"""A YOLO dataset as Ultralytics sees it: its data.yaml resolved, its images listed, its content hashed.

In: the path of a data.yaml. Out: a checked view, paths of images and of their labels, or one-line errors.
Invariant: nothing is written, neither beside the data nor elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from kd import ultra  # isort: skip  sets Ultralytics' environment before the next import
from ultralytics.data.utils import IMG_FORMATS, check_class_names, img2label_paths

from kd.errors import DataError

SPLITS = ("train", "val", "test")


def resolve_data(data_yaml: str | Path) -> dict[str, Any]:
    """A checked view of a data.yaml: ``{path, names: {id: name}, train: [Path], val: ..., test: ...}``.

    Entries are existing folders, image lists (.txt) or images, resolved as Ultralytics does: below ``path``,
    or beside the file where there is no such key. A split that the file does not name is an empty list; every
    named one holds at least one image, and train and val are there. Raises DataError.
    """
    file = Path(data_yaml)
    if not file.is_file():
        raise DataError(f"{file}: no such file, expected the data.yaml of a YOLO dataset")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: got no YAML ({ultra.first_line(error)}), expected train, val and names") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: got a {type(content).__name__}, expected a mapping with train, val and names")
    root = _root(file, content.get("path"))
    view: dict[str, Any] = {"path": root, "names": _names(file, content)}
    for split in SPLITS:
        view[split] = _entries(file, split, content.get(split), root)
    for split in ("train", "val"):
        if not view[split]:
            raise DataError(f"{file}: {split}: got nothing, expected a folder or list of images")
    for split in SPLITS:
        if view[split] and not image_files(view[split]):
            places = ", ".join(map(str, view[split]))
            raise DataError(f"{file}: {split}: got no images in {places}, expected .jpg, .png or the like")
    return view


def _root(file: Path, path: Any) -> Path:
    if path is None:
        return file.resolve().parent
    if not isinstance(path, str) or not Path(path).is_dir():
        raise DataError(
            f"{file}: path: got {path!r}, expected an existing folder (absolute, or relative to where you are), "
            f"or no such key when the images lie beside the file"
        )
    return Path(path).resolve()


def _names(file: Path, content: dict) -> dict[int, str]:
    names = content.get("names")
    if names is None and isinstance(content.get("nc"), int):
        names = [f"class_{i}" for i in range(content["nc"])]
    try:
        if not names:
            raise ValueError("nothing")
        names = check_class_names(names)
    except Exception as error:
        raise DataError(
            f"{file}: names: got {ultra.first_line(error)}, expected class names as a list or as a mapping from 0, 1"
        ) from error
    return {int(key): str(name) for key, name in names.items()}


def _entries(file: Path, split: str, value: Any, root: Path) -> list[Path]:
    if not value:
        return []
    entries = value if isinstance(value, list) else [value]
    paths = []
    for entry in entries:
        if not isinstance(entry, str):
            raise DataError(f"{file}: {split}: got {entry!r}, expected a path or a list of paths")
        path = (root / entry).resolve()
        if not path.exists() and entry.startswith("../"):
            path = (root / entry[3:]).resolve()  # counted from a folder below: Ultralytics forgives it
        if not path.exists():
            raise DataError(f"{file}: {split}: got {entry}, expected an existing folder or list: nothing is at {path}")
        paths.append(path)
    return paths


def image_files(entries: list[Path]) -> list[Path]:
    """The images behind a split's entries, sorted: folders searched to any depth, lists read line by line."""
    files: list[Path] = []
    for entry in entries:
        if entry.is_dir():
            files += entry.rglob("*.*")
        elif entry.suffix == ".txt":
            lines = entry.read_text(encoding="utf-8-sig").split("\n")
            files += [entry.parent / line.strip() for line in lines if line.strip()]
        else:
            files.append(entry)
    return sorted(file for file in files if file.suffix[1:].lower() in IMG_FORMATS)


def label_file(image: Path) -> Path:
    """Where Ultralytics looks for an image's labels: the last ``/images/`` becomes ``/labels/``."""
    return Path(img2label_paths([image])[0])


def hash_data(data_yaml: str | Path, data: dict[str, Any]) -> str:
    """SHA-256 over a dataset: the data.yaml, then each image's name and size and its label file, in sorted order.

    Pixels are not read: it tells datasets apart, and whether labels or images came or went, in milliseconds.
    """
    digest = hashlib.sha256(Path(data_yaml).read_bytes())
    for split in SPLITS:
        for image in image_files(data[split]):
            digest.update(f"{split} {image.name} {image.stat().st_size}\n".encode())
            label = label_file(image)
            digest.update(label.read_bytes() if label.exists() else b"-")
    return digest.hexdigest()
