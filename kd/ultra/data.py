"""A YOLO dataset as kd and Ultralytics see it: its data.yaml resolved, its images listed, its content hashed.

In: the path of a data.yaml. Out: a checked view, paths of images and of their labels, or one-line errors.
Invariant: there is one reader. Ultralytics is given what was found here (`ultralytics_view`), and never reads the
file of the user, of which it would run what stands under `download`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ultralytics.data.utils import IMG_FORMATS, check_class_names, img2label_paths

from kd.errors import DataError
from kd.ultra import session
from schemas.lists import ListError, read_list
from schemas.strict import StrictError, read_yaml
from schemas.text import one_line

SPLITS = ("train", "val", "test")
OTHER_NAMES = {"train": ("training",), "val": ("valid", "validation"), "test": ("testing",)}  # seen in the wild
# V3Det, the largest set of labelled boxes, has 13,204 classes, ImageNet-21k 21,843. Each is a channel of the head in
# every cell of every level; ten million are 100 s and 2.4 GB before anything is trained.
MAX_CLASSES = 2**15
MAX_CHANNELS = 64  # of an image; hyperspectral cameras have more, but OpenCV reads no such files
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode's control characters, halves of pairs, ends of lines


def resolve_data(data_yaml: str | Path, split: str | None = None) -> dict[str, Any]:
    """A checked view of a data.yaml: ``{path, names: {id: name}, channels, train: [Path], val: ..., test: ...}``.

    Entries are existing folders or image lists, resolved as Ultralytics does: below ``path``, or beside the file where
    there is no such key. A split that the file does not name is an empty list; every named one holds at least one
    image, and train and val are there. With a ``split`` that one alone is looked at: the others are as named. The view
    has ``kpt_shape`` where the file does: labels of poses are read by it. Raises DataError.
    """
    file = Path(data_yaml)
    content = _read(file)
    root = _root(file, content.get("path"))
    view: dict[str, Any] = {"path": root, "names": _names(file, content), "channels": _channels(file, content)}
    if content.get("kpt_shape") is not None:
        view["kpt_shape"] = _kpt_shape(file, content["kpt_shape"])
    _require_read_alike(file, content)
    for name in SPLITS:
        view[name] = _entries(
            file, name, content.get(name), root, looked_at=split in (None, name) or not content.get(split)
        )
    for name in ("train", "val") if split is None else (split,):
        if not view[name] and (split is None or _nothing(content, name) != "got nothing"):
            raise DataError(f"{file}: {name}: {_nothing(content, name)}, expected a folder or list of images")
    for name in SPLITS if split is None else (split,):
        if view[name] and not image_files(view[name]):
            places = ", ".join(map(str, view[name]))
            raise DataError(f"{file}: {name}: got no images in {places}, expected .jpg, .png or the like")
    return view


def ultralytics_view(view: Mapping[str, Any]) -> dict[str, Any]:
    """The view as Ultralytics' own reader of a data.yaml would return it."""
    places = {split: [str(entry) for entry in view[split]] for split in SPLITS if view[split]}
    return {**view, "nc": len(view["names"]), "names": dict(view["names"]), "path": Path(view["path"]), **places}


def write_data(folder: Path, view: Mapping[str, Any], images: Iterable[Path]) -> Path:
    """Write a data.yaml whose splits all are these images, with the view's classes; returns its path."""
    listing, file = folder / "images.txt", folder / "data.yaml"
    listing.write_text("".join(f"{image}\n" for image in images), encoding="utf-8")
    content = {key: view[key] for key in ("names", "channels", "kpt_shape") if key in view}
    content |= dict.fromkeys(SPLITS, str(listing))
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return file


# ---------------------------------------------------------------- the file


def _read(file: Path) -> dict[Any, Any]:
    if not file.is_file():
        raise DataError(f"{file}: no such file, expected the data.yaml of a YOLO dataset")
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise DataError(f"{file}: got a file that ends in '{file.suffix}', expected a data.yaml")
    try:
        content = read_yaml(file)
    except StrictError as error:
        raise DataError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: got a {type(content).__name__}, expected a mapping with train, val and names")
    return content


def _require_read_alike(file: Path, content: dict[Any, Any]) -> None:
    """Raise DataError where Ultralytics, whose YAML is version 1.1, reads a word otherwise: `off` as False."""
    try:
        theirs = yaml.load(file.read_bytes().decode("utf-8-sig"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except Exception as error:  # a date that is none, a number that is too long
        raise DataError(
            f"{file}: got what Ultralytics cannot read ({session.first_line(error)}), expected text in quotes"
        ) from error
    for key in ("path", *SPLITS, "nc", "names", "channels", "kpt_shape"):
        pair = _difference(content.get(key), theirs.get(key))
        if pair:
            raise DataError(
                f"{file}: {key}: got {pair[0]!r} without quotes, which Ultralytics takes for {pair[1]!r}, expected "
                f"what both read alike: put it in quotes"
            )


def _difference(ours: Any, theirs: Any) -> tuple[Any, Any] | None:
    """The first two values that differ as text, or None."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and len(ours) == len(theirs):
        ours, theirs = ([part for pair in sorted(side.items(), key=str) for part in pair] for side in (ours, theirs))
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return next(filter(None, map(_difference, ours, theirs)), None)
    return None if str(ours) == str(theirs) else (ours, theirs)


def _root(file: Path, path: Any) -> Path:
    if path is None:
        return file.resolve().parent
    try:
        if isinstance(path, str) and Path(path).is_dir():
            return Path(path).resolve()
    except (OSError, ValueError):  # a name that is too long, or none at all
        pass
    raise DataError(
        f"{file}: path: got {one_line(repr(path), 200)}, expected an existing folder (absolute, or relative to where "
        f"you are), or no such key when the images lie beside the file"
    )


def _nothing(content: Mapping[Any, Any], split: str) -> str:
    other = next((name for name in OTHER_NAMES[split] if name in content), None)
    return f"got nothing, but a key '{other}': call it {split}" if other else "got nothing"


def _entries(file: Path, split: str, value: Any, root: Path, looked_at: bool) -> list[Path]:
    if not value:
        return []
    paths = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry.strip():
            raise DataError(f"{file}: {split}: got {entry!r}, expected a path or a list of paths")
        try:
            path = (root / entry).resolve()
            if not path.exists() and entry.startswith("../") and entry is value:
                path = (root / entry[3:]).resolve()  # Roboflow's way, which Ultralytics forgives outside of lists
            there = path.exists() or not looked_at
        except (OSError, ValueError, RuntimeError):  # too long, NUL, half of a pair, links in a circle
            there = False
        if not there:
            raise DataError(
                f"{file}: {split}: got {one_line(entry, 120)}, expected an existing folder or list: nothing is at "
                f"{one_line(root / entry, 200)}"
            )
        if path.is_file() and path.suffix[1:].lower() in IMG_FORMATS:
            raise DataError(
                f"{file}: {split}: got the image {one_line(entry, 120)}, expected its folder, or a list of images"
            )
        paths.append(path)
    return paths


def _names(file: Path, content: Mapping[Any, Any]) -> dict[int, str]:
    """The classes by id, in the order of the ids. Raises DataError."""

    def refuse(what: str) -> DataError:
        return DataError(f"{file}: names: {what}")

    names, nc = content.get("names"), _nc(file, content.get("nc"))
    if isinstance(names, str):
        raise refuse(f"got the text {names[:60]!r}, expected a list: names: [{one_line(names, 60)}]")
    if names is None and nc is not None:
        return {i: f"class_{i}" for i in range(nc)}
    if not isinstance(names, dict | list) or not names:
        raise refuse(f"got {'nothing' if not names else repr(names)[:60]}, expected class names as a list or a mapping")
    if len(names) > MAX_CLASSES:
        raise refuse(f"got {len(names)} classes, expected at most {MAX_CLASSES}")
    if nc is not None and nc != len(names):
        raise refuse(f"got {len(names)} names with nc: {nc}, expected as many: correct either, or leave nc out")
    for name in names if isinstance(names, list) else names.values():
        if isinstance(name, bool | list | dict) or name is None:
            raise refuse(f"got {repr(name)[:60]}, expected a text: put the name in quotes")
        if not str(name).strip() or any(unicodedata.category(letter) in UNPRINTABLE for letter in str(name)):
            raise refuse(f"got {repr(name)[:60]}, expected a name that can be printed in a line")
    try:
        if isinstance(names, dict) and len({int(key) for key in names if not isinstance(key, bool)}) < len(names):
            raise ValueError("two equal ids")
        found = check_class_names(names)
        if min(found) < 0:
            raise ValueError(f"the id {min(found)}")
    except Exception as error:
        raise refuse(
            f"got {session.first_line(error)}, expected class names as a list or as a mapping from 0, 1"
        ) from error
    by_name: dict[str, int] = {}
    for key in sorted(found):
        if found[key] in by_name:
            raise refuse(
                f"got {found[key]!r} for the classes {by_name[found[key]]} and {key}, expected different names"
            )
        by_name[found[key]] = key
    return {key: found[key] for key in sorted(found)}


def _nc(file: Path, nc: Any) -> int | None:
    if nc is None:
        return None
    try:
        number = float(nc)  # as Ultralytics does: 10.0 and '10' are 10
        if isinstance(nc, bool) or number != int(number) or number < 1:
            raise ValueError(nc)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{file}: nc: got {repr(nc)[:60]}, expected the number of classes") from None
    if number > MAX_CLASSES:
        raise DataError(f"{file}: nc: got {int(number)}, expected at most {MAX_CLASSES} classes")
    return int(number)


def _channels(file: Path, content: Mapping[Any, Any]) -> int:
    channels = content.get("channels", 3)
    if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
        raise DataError(f"{file}: channels: got {repr(channels)[:60]}, expected 3 of colour images, or 1 of grey ones")
    return channels


def _kpt_shape(file: Path, shape: Any) -> list[int]:
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise DataError(f"{file}: kpt_shape: got {repr(shape)[:60]}, expected [keypoints, 2 or 3]")
    if not 0 <= shape[0] <= 10_000 or shape[1] not in (2, 3):
        raise DataError(f"{file}: kpt_shape: got {shape}, expected [keypoints, 2 or 3]")
    return shape


# ---------------------------------------------------------------- the images


def image_files(entries: Sequence[Path]) -> list[Path]:
    """The images behind a split's entries in Ultralytics' order: folders searched to any depth, lists line by line.

    Hidden files are left out, and links to folders followed. Raises DataError for what is amiss with a list, and for
    names that no list could hold.
    """
    files: list[str] = []
    for entry in entries:
        if entry.is_dir():
            found = glob.iglob(str(Path(glob.escape(str(entry))) / "**" / "*.*"), recursive=True)
            files += [file for file in found if file.rpartition(".")[2].lower() in IMG_FORMATS]
        else:
            try:
                files += (os.path.join(os.getcwd(), image) for image in read_list(entry, IMG_FORMATS))
            except ListError as error:
                raise DataError(f"{entry}: {error}") from error
    for file in files:
        if not _is_line(file):
            raise DataError(f"{file!r}: got a name that is no UTF-8, or more than a line, expected another: rename it")
    return [Path(file) for file in sorted(files)]


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` files, evenly spaced over all of them."""
    step = max(len(files) / count, 1)
    return [files[int(i * step)] for i in range(min(len(files), count))]


def _is_line(text: str) -> bool:
    try:
        return len(text.encode().splitlines()) == 1 == len(text.splitlines())
    except UnicodeEncodeError:  # a name of bytes that are no UTF-8
        return False


def label_file(image: Path) -> Path:
    """Where Ultralytics looks for an image's labels: the last ``/images/`` becomes ``/labels/``."""
    return Path(img2label_paths([image])[0])


def size_of(file: Path) -> int | None:
    """The bytes of a file, None for a link to nowhere."""
    return file.stat().st_size if file.exists() else None


def hash_data(data_yaml: str | Path, data: Mapping[str, Any]) -> str:
    """SHA-256 over a dataset: the data.yaml, then each image's name and size and its label file, in sorted order.

    Pixels are not read: it tells datasets apart, and whether labels or images came or went, in milliseconds.
    """
    digest = hashlib.sha256(Path(data_yaml).read_bytes())
    for split in SPLITS:
        for image in sorted(image_files(data[split])):
            digest.update(f"{split} {image.name} {size_of(image)}\n".encode())
            label = label_file(image)
            digest.update(label.read_bytes() if label.is_file() else b"-")
    return digest.hexdigest()
