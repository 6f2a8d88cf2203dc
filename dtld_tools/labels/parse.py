"""Label files in, frames out: the only expert in DTLD's label formats.

v2.0 is JSON with named attributes, v1.0 is YAML with a six-digit class number; both become the same `Light`.
Strict in structure (a missing key or a wrong type is an error that names its place), lenient in values (an
unlisted attribute value is kept and counted as a problem). A frame's identity is City/Route/Sequence/file,
whatever stale folders a label file writes before it. A file is read image by image: no more than one of them
exists as dicts at a time, and equal parts of frames are one object.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec

from dtld_tools.errors import LabelError
from dtld_tools.labels.attributes import OPTIONAL_ATTRIBUTES, VOCABULARY, attributes_from_class_id, has_unlisted_digit
from dtld_tools.labels.documents import as_list, as_object, get, json_items, json_value, short, yaml_items
from dtld_tools.types import Box, Frame, Light, LightId, SequenceId, numbered

_MAX_ID = 2**63 - 1  # what JSON writers take
_MAX_NUMBER = 1e15  # beyond any coordinate and any time stamp in microseconds; keeps box arithmetic finite


@dataclass(frozen=True, slots=True)
class Labels:
    """What label files hold: frames sorted by image path, and how many of each kind of problem."""

    frames: tuple[Frame, ...]
    problems: Mapping[str, int]
    unlisted: Mapping[str, int]  # "state=purple" -> n


def read_labels(paths: Iterable[Path]) -> Labels:
    """Read v2.0 JSON and v1.0 YAML files into one sorted list of frames.

    A frame that stands in several files counts once; its lights must agree. Raises LabelError.
    """
    reader = _Reader()
    collecting = gc.isenabled()
    gc.disable()  # a million new objects and not one cycle: looking for cycles takes longer than reading
    try:
        for path in paths:
            reader.read(Path(path))
    finally:
        gc.freeze()  # nor at the next look, nor at the end of the process, nor in a forked worker's memory
        if collecting:
            gc.enable()
    frames = tuple(reader.frames[path][0] for path in sorted(reader.frames))
    return Labels(frames, dict(sorted(reader.problems.items())), dict(sorted(reader.unlisted.items())))


class _Attributes(NamedTuple):
    """Attributes that lights share, and what is wrong with them."""

    values: Mapping[str, str]
    problems: Mapping[str, int]
    unlisted: Mapping[str, int]


class _Reader:
    """Collects frames over several label files; what frames have in common is held once.

    Places in errors grow from within (`.x: got ...`, `.labels[3].x: got ...`): none is spelled out before it is needed.
    """

    def __init__(self) -> None:
        self.frames: dict[str, tuple[Frame, Path]] = {}
        self.problems: Counter[str] = Counter()
        self.unlisted: Counter[str] = Counter()
        # Problems of the frame at hand: they count with the frame, once, however many files repeat it.
        self._of_frame: Counter[str] = Counter()
        self._unlisted_of_frame: Counter[str] = Counter()
        # By JSON text, by class_id, and by names and values: 620 sets in all of DTLD.
        self._attributes: dict[Any, _Attributes] = {}
        self._keys = 0  # how many keys the lights of the frame at hand have in all, the known ones
        self._folders: dict[str, tuple[str, SequenceId]] = {}  # as written -> City/Route/Sequence/
        self._texts: dict[str, str] = {}
        self._floats: dict[float, float] = {0.0: 0.0}  # so that no -0.0 comes first and stands for both

    def read(self, path: Path) -> None:
        suffix = path.suffix.lower()
        if suffix == ".json":
            version, items, image_of = _V2, json_items(path, _V2.images), _image_of_json
        elif suffix in (".yml", ".yaml"):
            version, items, image_of = _V1, yaml_items(path), partial(_image_of, version=_V1)
        else:
            got = "a folder" if path.is_dir() else f"the ending {suffix!r}"
            raise LabelError(
                f"{path}: got {got}, expected .json (v2.0) or .yml (v1.0); dtld convert also takes a YOLO dataset's "
                "data.yaml, or a COCO JSON"
            )
        index = -1
        for index, item in enumerate(items):
            try:
                frame = self._frame(image_of(item), version)
                if version is _V2 and item.count(b":") != 8 + self._keys:
                    json_value(item)  # not the usual keys alone: refuses one that stands there twice
                self._add(frame, path)
            except LabelError as error:
                raise LabelError(f"{path.name}: {version.images}[{index}]{error}") from None
        if index < 0:
            raise LabelError(f"{path}: holds no frames, expected at least one; is this the right file?")

    def _add(self, frame: Frame, path: Path) -> None:
        known, its_path = self.frames.setdefault(frame.image_path, (frame, path))
        if known is frame:
            if self._of_frame:
                self.problems.update(self._of_frame)
                self.unlisted.update(self._unlisted_of_frame)
        elif known.lights != frame.lights:
            raise LabelError(
                f": {frame.image_path} has other lights in {its_path.name}, "
                "expected the same; name one of the two label files only"
            )
        elif its_path == path:
            self.problems["duplicate_frames"] += 1

    def _frame(self, image: _Image, version: _Version) -> Frame:
        if self._of_frame:
            self._of_frame, self._unlisted_of_frame = Counter(), Counter()
        path, sequence = self._place(image.image_path, version)
        share, share_text, keys = self._floats.setdefault, self._texts.setdefault, 0
        lights: list[Light] = []
        light_ids = self._light_ids([light.unique_id for light in image.labels])
        for light, light_id in zip(image.labels, light_ids, strict=True):
            try:
                attributes, problems, unlisted = self._share(light.attributes, version)
            except LabelError as error:
                raise LabelError(f".{version.lights}[{len(lights)}]{error}") from None
            if problems:
                self._of_frame.update(problems)
                self._unlisted_of_frame.update(unlisted)
            x1, y1 = light.x, light.y
            x2, y2 = x1 + light.w, y1 + light.h
            box = Box(share(x1, x1), share(y1, y1), share(x2, x2), share(y2, y2))
            keys += 7 + len(attributes)
            lights.append(Light(box, attributes, light_id, share_text(light.track_id, light.track_id)))
        self._keys = keys
        return Frame(path, sequence, image.time_stamp, tuple(lights), disparity_path=image.disparity_image_path)

    def _place(self, written: Any, version: _Version) -> tuple[str, SequenceId]:
        """City/Route/Sequence/file and the sequence of a path as written. Raises LabelError."""
        folder, _, name = written.rpartition("/") if isinstance(written, str) else ("", "", "")
        if "\\" in name or "\0" in name or not name.strip("."):
            folder = ""  # not a plain name: nothing to be learnt for or from other files of its folder
        if folder not in self._folders:
            path = path_below_root(written, f".{version.path}")
            sequence = SequenceId(*path.split("/")[:3])
            if not folder:
                return path, sequence
            self._folders[folder] = (f"{sequence}/", sequence)
        place, sequence = self._folders[folder]
        return place + name, sequence

    def _light_ids(self, unique_ids: Sequence[int]) -> Sequence[LightId]:
        """The ids of a frame's lights, a repeated one with its number; repetitions count as problems."""
        if len(set(unique_ids)) == len(unique_ids):
            return unique_ids
        light_ids = numbered(unique_ids)
        self._of_frame["duplicate_ids"] += len(unique_ids) - len(set(unique_ids))
        return light_ids

    def _share(self, written: Any, version: _Version) -> _Attributes:
        """The one object for attributes as JSON text, as a dict, or as a class_id. Raises LabelError."""
        if type(written) is not msgspec.Raw:
            return self._of_class_id(written) if version is _V1 else self._of_dict(written)
        text = bytes(written)
        found = self._attributes.get(text)
        if found is None:
            found = self._attributes[text] = self._of_dict(json_value(text))
        return found

    def _of_dict(self, attributes: Any) -> _Attributes:
        try:
            key = (*as_object(attributes, ".attributes"), *attributes.values())
            return self._attributes[key]
        except (KeyError, TypeError):  # TypeError: an unhashable value, which _checked refuses by name
            return self._attributes.setdefault(key, _checked(attributes))

    def _of_class_id(self, class_id: Any) -> _Attributes:
        if isinstance(class_id, str) and len(class_id) <= 6 and class_id.isdecimal():
            class_id = int(class_id)  # written as 002340: the digits count, not the octal number of YAML 1.1
        found = self._attributes.get(class_id) if type(class_id) is int else None
        if found is None:
            found = self._of_dict(attributes_from_class_id(class_id, ".class_id"))
            if has_unlisted_digit(class_id):
                found = _Attributes(found.values, {"unlisted_values": 1}, {f"class_id={class_id}": 1})
            self._attributes[class_id] = found
        return found


def _checked(attributes: Mapping[str, Any]) -> _Attributes:
    for name, value in attributes.items():
        if not isinstance(value, str):
            expected = ", ".join(VOCABULARY.get(str(name), ("a text",)))
            raise LabelError(f".attributes.{name}: got {short(value)}, expected {expected}")
    problems: Counter[str] = Counter()
    if missing := VOCABULARY.keys() - {*OPTIONAL_ATTRIBUTES, *attributes}:
        problems["missing_attributes"] = len(missing)
    # "unknown" is listed for three attributes; elsewhere v1.0's absent digits give it, which is no surprise.
    odd = ((name, value) for name, value in attributes.items() if value not in (*VOCABULARY.get(name, ()), "unknown"))
    unlisted = Counter(f"{name}={value}" for name, value in odd)
    if unlisted:
        problems["unlisted_values"] = sum(unlisted.values())
    return _Attributes(MappingProxyType(dict(attributes)), problems, unlisted)


def path_below_root(text: Any, where: str) -> str:
    """City/Route/Sequence/file out of a relative or a stale absolute path. Raises LabelError."""
    if not isinstance(text, str) or "\0" in text:
        raise LabelError(f"{where}: got {short(text)}, expected a path ending in City/Route/Sequence/file")
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise LabelError(f"{where}: got {short(text)}, which leaves the dataset's root; expected a path without '..'")
    if len(parts) < 4:
        raise LabelError(f"{where}: got {short(text)}, expected a path ending in City/Route/Sequence/file")
    return "/".join(parts[-4:])


_Coordinate = Annotated[float, msgspec.Meta(ge=-_MAX_NUMBER, le=_MAX_NUMBER)]
_Id = Annotated[int, msgspec.Meta(ge=-_MAX_ID, le=_MAX_ID)]


class _Version(NamedTuple):
    """What a version of the label files calls things."""

    images: str
    path: str
    lights: str
    box: tuple[str, str, str, str]
    attributes: str
    disparity: str


_V1 = _Version("frames", "path", "objects", ("x", "y", "width", "height"), "class_id", "disp_path")
_V2 = _Version("images", "image_path", "labels", ("x", "y", "w", "h"), "attributes", "disparity_image_path")


class _Light(msgspec.Struct, gc=False):
    """A checked light of either version; msgspec makes it from JSON, `_light_of` from a dict."""

    x: _Coordinate
    y: _Coordinate
    w: _Coordinate
    h: _Coordinate
    unique_id: _Id
    attributes: msgspec.Raw  # or what `_light_of` found there: a dict, v1.0's class_id
    track_id: str = ""


class _Image(msgspec.Struct, gc=False):
    """A checked image of either version."""

    image_path: str
    labels: list[_Light]
    time_stamp: _Coordinate | None = None
    disparity_image_path: str = ""


_decoder = msgspec.json.Decoder(_Image)


def _image_of_json(text: bytes) -> _Image:
    """An image of a v2.0 file: at msgspec's speed where it is as expected, else an error that names what is not."""
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _image_of(json_value(text), _V2)


def _image_of(image: Any, version: _Version) -> _Image:
    """An image of either version out of plain values. Raises LabelError."""
    lights = as_list(get(as_object(image, ""), version.lights, ""), f".{version.lights}")
    path = get(image, version.path, "")
    timestamp = image.get("time_stamp")
    if timestamp is not None:
        timestamp = _number(timestamp, "time_stamp")
    checked: list[_Light] = []
    try:
        for light in lights:
            checked.append(_light_of(light, version))
    except LabelError as error:
        raise LabelError(f".{version.lights}[{len(checked)}]{error}") from None
    disparity = image.get(version.disparity)
    return _Image(path, checked, timestamp, disparity if isinstance(disparity, str) else "")


def _light_of(light: Any, version: _Version) -> _Light:
    unique_id = get(as_object(light, ""), "unique_id", "")
    if type(unique_id) is float and unique_id.is_integer() and abs(unique_id) <= 2**53:
        unique_id = int(unique_id)  # 1.0 is an integer to JSON and to the schema
    if type(unique_id) is not int or abs(unique_id) > _MAX_ID:
        raise LabelError(f".unique_id: got {short(unique_id)}, expected a whole number")
    x, y, w, h = (_number(get(light, key, ""), key) for key in version.box)
    track = light.get("track_id", "")
    if isinstance(track, (dict, list)):
        raise LabelError(f".track_id: got {short(track)}, expected a text")
    return _Light(x, y, w, h, unique_id, get(light, version.attributes, ""), str(track))


def _number(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _MAX_NUMBER:  # NaN is not smaller than anything
        raise LabelError(f".{key}: got {short(value)}, expected a finite number")
    return float(value)
