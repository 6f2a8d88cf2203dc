"""A YOLO data.yaml in, its images with the boxes of their label files out, as frames.

Entries and label files are found as Ultralytics finds them, but below ROOT; images are not opened here.
Invariant: every line of every label file is a light, those of a label file without an image among them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dtld_tools.dataset.data_yaml import read_data_yaml
from dtld_tools.errors import DatasetError
from dtld_tools.importing.imported import Classes, Imported, Sequences, is_plain, refuse_names
from dtld_tools.labels.documents import short
from dtld_tools.types import SPLITS, Box, Frame, Light, Split
from schemas.lists import ListError, read_list

# What Ultralytics takes for an image, by its ending.
IMAGE_SUFFIXES = (
    ".tif", ".tiff", ".bmp", ".png", ".avif", ".jpg", ".dng", ".jp2", ".jpeg", ".heif", ".webp", ".mpo", ".heic",
)  # fmt: skip
OTHER_NAMES: dict[Split, tuple[str, ...]] = {"train": (), "val": ("valid", "validation"), "test": ()}
LARGEST_SHARE = 2  # of a coordinate: beyond it stand pixels, not shares of an image


def import_yolo(path: Path, root: Path, sequence_of: Sequences) -> Imported:
    """The images of a data.yaml as frames, in the split that it names them for. Raises DatasetError.

    A light's id is the number of its line in the label file, from 1.
    """
    document = read_data_yaml(path)
    classes = Classes(_class_names(document, path))
    label_files = LabelFiles(classes, _keypoint_columns(document, path))
    splits, folders = _images(document, path, root)
    labels = {name: Path(label_of(os.path.abspath(root / name))) for name in splits}
    lights = {name: label_files.read(label) if label.is_file() else None for name, label in labels.items()}
    without = sum(found is None for found in lights.values())
    notes = [f"{without} images have no label file: they are frames without objects"] if without else []
    known, others = set(labels.values()), []
    for folder, split in folders.items():
        for label in _labels_beside(folder, known):
            known.add(label)
            try:
                found = label_files.read(label)
            except DatasetError:  # a list of classes, say
                others.append(label)
                continue
            name = _image_of(label, folder, root)
            if name in splits:
                raise DatasetError(f"{label}: its image {name} has its labels in {labels[name]}; move them there")
            lights[name], splits[name] = found, [split]
    if others:
        notes.append(
            f"{len(others)} texts among the label files are neither an image's nor labels, such as {others[0]}"
        )
    frames = [Frame(name, sequence_of(name), None, lights[name] or (), in_shares=True) for name in sorted(lights)]
    is_divided = len({split for named in splits.values() for split in named}) > 1
    return Imported("yolo", classes, tuple(frames), splits if is_divided else {}, tuple(notes))


def label_of(image: str) -> str:
    """Where a trainer of YOLO datasets looks for the labels of an image, as Ultralytics has it.

    >>> label_of("/a/images/b/images/train/c.d.jpg")
    '/a/images/b/labels/train/c.d.txt'
    """
    return "/labels/".join(image.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"


# --- data.yaml -------------------------------------------------------------------------------------------


def _class_names(document: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """``names`` as a list or as a mapping from 0, 1, ...; without them class_0 to class_<nc - 1>, as in Ultralytics."""
    names, count = document.get("names"), document.get("nc")
    if names is None and type(count) is int and 0 < count <= 2**15:
        return tuple(f"class_{number}" for number in range(count))
    listed = names
    if isinstance(names, dict):
        if any(type(key) is not int for key in names) or sorted(names) != list(range(len(names))):
            raise DatasetError(f"{path}: names: got the numbers {short(list(names))}, expected 0, 1, ... without a gap")
        listed = [names[number] for number in range(len(names))]
    if not isinstance(listed, list) or any(type(name) not in (str, int) for name in listed):
        raise DatasetError(
            f"{path}: names: got {short(names)}, expected texts, in quotes if need be, as a list or as a mapping"
        )
    if count is not None and count != len(listed):
        raise DatasetError(f"{path}: nc: got {short(count)} with {len(listed)} names, expected as many; correct either")
    found = tuple(map(str, listed))
    refuse_names(found, f"{path}: names")
    return found


def _keypoint_columns(document: Mapping[str, Any], path: Path) -> int:
    """How many columns of a label line are keypoints."""
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 10_000 for n in shape)):
        raise DatasetError(f"{path}: kpt_shape: got {short(shape)}, expected [keypoints, 2 or 3]")
    return shape[0] * shape[1]


def _images(document: Mapping[str, Any], path: Path, root: Path) -> tuple[dict[str, list[Split]], dict[Path, Split]]:
    """Images by their paths below ROOT, and the folders that are entries, with their splits. Raises DatasetError."""
    base = _base(document, path, root)
    images: dict[str, list[Split]] = {}
    folders: dict[Path, Split] = {}
    for split in SPLITS:
        key = next((key for key in (split, *OTHER_NAMES[split]) if document.get(key)), split)
        entries = document.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str) or not entry.strip() or "\0" in entry:
                raise DatasetError(f"{path}: {key}: got {short(entry)}, expected a path or a list of paths")
            place = _place(base, entry)
            if place is None:
                raise DatasetError(
                    f"{path}: {key}: got {entry}, which is not below {base}; expected images there, or no {key}"
                )
            if place.is_dir():
                folders.setdefault(place, split)
            for image in _images_at(place, root):
                name = _below(image, root, f"{path}: {key}")
                named = images.setdefault(name, [])
                if split not in named:
                    named.append(split)
    if not images:
        raise DatasetError(f"{path}: train, val, test: got no images below {base}, expected some")
    if document.get("train") and not any("train" in named for named in images.values()):
        raise DatasetError(f"{path}: train: got no images below {base}, expected some, or no train")
    return images, folders


def _base(document: Mapping[str, Any], path: Path, root: Path) -> Path:
    """The folder that ``path`` names, below ROOT or absolute; ROOT without the key, or where nothing is there."""
    given = document.get("path")
    if given is not None and (not isinstance(given, str) or "\0" in given):
        raise DatasetError(f"{path}: path: got {short(given)}, expected a folder")
    return root / given if given and (root / given).is_dir() else root


def _place(base: Path, entry: str) -> Path | None:
    # Roboflow writes ../train/images and means train/images; Ultralytics takes it so, too.
    found = (place for place in (base / entry, base / entry.removeprefix("../")) if place.exists())
    return next((Path(os.path.abspath(place)) for place in found), None)


def _images_at(place: Path, root: Path) -> Iterator[Path]:
    """The images of an entry: a folder's to any depth, hidden ones left out, or those that a list names."""
    if place.is_dir():
        found = glob.iglob(f"{glob.escape(str(place))}/**/*.*", recursive=True)
        yield from (Path(name) for name in found if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
        return
    try:
        listed = read_list(place, [suffix[1:] for suffix in IMAGE_SUFFIXES], may_be_gone=True)
    except (OSError, ListError) as error:
        raise DatasetError(f"{place}: {error}") from error
    yield from (image if image.is_absolute() or image.is_file() else root / image for image in listed)


def _below(image: Path, root: Path, where: str) -> str:
    """An image's path below ROOT, links not followed."""
    path, top = os.path.abspath(image), os.path.abspath(root)
    name = PurePosixPath(os.path.relpath(path, top))
    if not is_plain(name):
        raise DatasetError(f"{where}: got {path}, expected images below --root {top} whose names can be printed")
    return name.as_posix()


# --- label files -----------------------------------------------------------------------------------------


class LabelFiles:
    """Reads label files: ``class xc yc w h``, or a polygon ``class x y x y x y ...``, in shares of the image's size."""

    def __init__(self, classes: Classes, keypoint_columns: int) -> None:
        self._attributes = classes.attributes()
        self._pose = 5 + keypoint_columns if keypoint_columns else 0

    def read(self, path: Path) -> tuple[Light, ...]:
        """The lights of a file; an empty line is none. Raises DatasetError that names the line."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise DatasetError(f"{path}: {reason}, expected lines 'class xc yc w h'") from error
        lights = []
        for number, line in enumerate(lines, 1):
            if fields := line.split():
                try:
                    class_id, box = self._light(fields)
                except ValueError as error:
                    raise DatasetError(f"{path}: line {number}: {error}") from None
                lights.append(Light(box, self._attributes[class_id], number, ""))
        return tuple(lights)

    def _light(self, fields: Sequence[str]) -> tuple[int, Box]:
        try:
            values = list(map(float, fields))
        except ValueError:
            raise ValueError(f"got {short(' '.join(fields))}, expected numbers 'class xc yc w h'") from None
        columns = len(values)
        is_polygon = columns >= 7 and columns % 2 == 1 and not self._pose
        if not is_polygon and columns != (self._pose or 5):
            expected = f"{self._pose}, a box and its keypoints" if self._pose else "5, 'class xc yc w h', or a polygon"
            raise ValueError(f"got {columns} columns, expected {expected}")
        class_id, shares = values[0], values[1:] if is_polygon else values[1:5]
        if not (class_id.is_integer() and 0 <= class_id < len(self._attributes)):
            raise ValueError(f"got class {fields[0]}, expected 0 to {len(self._attributes) - 1}, those of names")
        for text, share in zip(fields[1:], shares, strict=False):
            if not abs(share) <= LARGEST_SHARE:  # NaN is not smaller than anything
                raise ValueError(f"got {text}, expected shares of the image's width and height, from 0 to 1")
        if is_polygon:
            xs, ys = shares[::2], shares[1::2]
            return int(class_id), Box(min(xs), min(ys), max(xs), max(ys))
        xc, yc, w, h = shares
        return int(class_id), Box(xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2)


def _labels_beside(folder: Path, known: Collection[Path]) -> Iterator[Path]:
    """The label files of a folder of images that are not known as those of an image."""
    labels = _labels_of(folder)
    if labels == folder.absolute():  # beside the images lie other texts, too
        return
    found = map(Path, glob.iglob(f"{glob.escape(str(labels))}/**/*.txt", recursive=True))
    yield from sorted(set(found).difference(known))


def _image_of(label: Path, folder: Path, root: Path) -> str:
    """Where the image of a label file should lie, below ROOT."""
    return _below(folder / label.relative_to(_labels_of(folder)).with_suffix(".jpg"), root, str(label))


def _labels_of(folder: Path) -> Path:
    """Where the label files of a folder of images lie."""
    return Path(label_of(f"{folder.absolute()}/x.jpg")).parent
