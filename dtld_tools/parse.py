"""Label files in, frames out: the only expert in DTLD's label formats and in where its images lie.

v2.0 is JSON with named attributes, v1.0 is YAML with a six-digit class number; both become the same `Light`.
Strict in structure (a missing key or a wrong type is an error that names its place), lenient in values (an
unlisted attribute value is kept and counted as a problem). A frame's identity is City/Route/Sequence/file,
whatever stale folders a label file writes before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import yaml

from dtld_tools.errors import LabelError
from dtld_tools.types import Box, Frame, Light, LightId, SequenceId

#: Every attribute of v2.0 and its listed values; ``reflection`` came with v2.0 and may be missing.
VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "direction": ("front", "back", "left", "right"),
    "relevance": ("relevant", "not_relevant"),
    "occlusion": ("occluded", "not_occluded"),
    "orientation": ("vertical", "horizontal"),
    "aspects": ("one_aspect", "two_aspects", "three_aspects", "four_aspects", "unknown"),
    "state": ("red", "yellow", "red_yellow", "green", "off", "unknown"),
    "pictogram": (
        "circle",
        "arrow_left",
        "arrow_right",
        "arrow_straight",
        "arrow_straight_left",
        "tram",
        "pedestrian",
        "bicycle",
        "pedestrian_bicycle",
        "unknown",
    ),
    "reflection": ("reflected", "not_reflected"),
}
OPTIONAL_ATTRIBUTES = ("reflection",)

# v1.0: what each digit of class_id means (DTLD_FORMAT.md of the official parser, tag v1.0). Masks 5 and 7
# (arrows right + straight, all three) have no v2.0 name and stay unknown.
_V1_DIRECTION = {"1": "front", "2": "back", "3": "left", "4": "right"}
_V1_RELEVANCE = {
    "0": ("not_relevant", "not_occluded"),
    "1": ("relevant", "not_occluded"),
    "2": ("not_relevant", "not_occluded"),
    "3": ("relevant", "not_occluded"),
    "4": ("not_relevant", "occluded"),
}
_V1_ORIENTATION = dict.fromkeys("1368", "horizontal") | dict.fromkeys("2479", "vertical")
_V1_TRAM_MOUNTINGS = frozenset("6789")
_V1_ASPECTS = {"1": "one_aspect", "2": "two_aspects", "3": "three_aspects", "4": "four_aspects"}
_V1_STATE = {"0": "off", "1": "red", "2": "yellow", "3": "red_yellow", "4": "green", "5": "unknown"}
_V1_PICTOGRAM = {
    "0": "circle",
    "1": "arrow_straight",
    "2": "arrow_left",
    "3": "arrow_straight_left",
    "4": "arrow_right",
    "8": "pedestrian",
    "9": "bicycle",
}

_V1_DIGITS = (_V1_DIRECTION, _V1_RELEVANCE, _V1_ORIENTATION, _V1_ASPECTS, _V1_STATE, _V1_PICTOGRAM)

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
    for path in paths:
        reader.read(Path(path))
    frames = tuple(frame for _, (frame, _) in sorted(reader.frames.items()))
    return Labels(frames, dict(sorted(reader.problems.items())), dict(sorted(reader.unlisted.items())))


def locate(image_path: str, root: Path, *, follow_symlinks: bool = False) -> Path | None:
    """Find a frame's file below ``root``, also where a city's archive was unpacked one level deeper.

    None if it is missing. Raises LabelError if the file lies outside ``root`` through a symbolic link.
    """
    for candidate in candidates(image_path, root):
        if candidate.is_file():
            if not follow_symlinks and not candidate.resolve().is_relative_to(root.resolve()):
                raise LabelError(
                    f"{candidate}: a symbolic link leads to {candidate.resolve()}, expected a file below {root}; "
                    "pass --follow-symlinks if that is meant"
                )
            return candidate
    return None


def candidates(image_path: str, root: Path) -> tuple[Path, Path]:
    """The places where a frame may lie: ROOT/City/Route/... and ROOT/City/City/Route/..."""
    city = image_path.split("/", 1)[0]
    return root / image_path, root / city / image_path


class _Reader:
    """Collects frames over several label files; equal attribute sets share one mapping (620 in all of DTLD)."""

    def __init__(self) -> None:
        self.frames: dict[str, tuple[Frame, Path]] = {}
        self.problems: Counter[str] = Counter()
        self.unlisted: Counter[str] = Counter()
        # Problems of the frame at hand: they count with the frame, once, however many files repeat it.
        self._of_frame: Counter[str] = Counter()
        self._unlisted_of_frame: Counter[str] = Counter()
        self._shared: dict[tuple[str, ...], tuple[Mapping[str, str], Counter[str], Counter[str]]] = {}

    def read(self, path: Path) -> None:
        images, frame_of, at = _load(path)
        if not images:
            raise LabelError(f"{path}: holds no frames, expected at least one; is this the right file?")
        for index, image in enumerate(images):
            self._of_frame.clear()
            self._unlisted_of_frame.clear()
            frame = frame_of(self, image, f"{path.name}: {at}[{index}]")
            known = self.frames.get(frame.image_path)
            if known is None:
                self.frames[frame.image_path] = (frame, path)
                self.problems.update(self._of_frame)
                self.unlisted.update(self._unlisted_of_frame)
            elif known[0].lights != frame.lights:
                raise LabelError(
                    f"{path.name}: {at}[{index}]: {frame.image_path} has other lights in {known[1].name}, "
                    "expected the same; name one of the two label files only"
                )
            elif known[1] == path:
                self.problems["duplicate_frames"] += 1

    def frame_v2(self, image: Any, where: str) -> Frame:
        image = _mapping(image, where)
        lights = _list(_get(image, "labels", where), f"{where}.labels")
        return self._frame(image, "image_path", lights, self._light_v2, f"{where}.labels", where)

    def frame_v1(self, image: Any, where: str) -> Frame:
        image = _mapping(image, where)
        lights = _list(_get(image, "objects", where), f"{where}.objects")
        return self._frame(image, "path", lights, self._light_v1, f"{where}.objects", where)

    def _frame(
        self,
        image: Mapping,
        path_key: str,
        lights: Sequence[Any],
        light_of: Callable[[Any, LightId, str], Light],
        lights_at: str,
        where: str,
    ) -> Frame:
        image_path = _image_path(_get(image, path_key, where), f"{where}.{path_key}")
        timestamp = image.get("time_stamp")
        if timestamp is not None:
            timestamp = _number(timestamp, f"{where}.time_stamp")
        seen: Counter[int] = Counter()
        parsed = []
        for index, light in enumerate(lights):
            at = f"{lights_at}[{index}]"
            number = _get(_mapping(light, at), "unique_id", at)
            if type(number) is not int:
                raise LabelError(f"{at}.unique_id: got {number!r}, expected a whole number")
            seen[number] += 1
            repetition = seen[number]
            parsed.append(light_of(light, number if repetition == 1 else f"{number}#{repetition}", at))
            if repetition > 1:
                self._of_frame["duplicate_ids"] += 1
        return Frame(image_path, SequenceId(*image_path.split("/")[:3]), timestamp, tuple(parsed))

    def _light_v2(self, light: Mapping, light_id: LightId, where: str) -> Light:
        box = Box.from_xywh(*(_number(_get(light, key, where), f"{where}.{key}") for key in "xywh"))
        attributes = _mapping(_get(light, "attributes", where), f"{where}.attributes")
        return Light(box, self._share(attributes, where), light_id, str(light.get("track_id", "")))

    def _light_v1(self, light: Mapping, light_id: LightId, where: str) -> Light:
        keys = ("x", "y", "width", "height")
        box = Box.from_xywh(*(_number(_get(light, key, where), f"{where}.{key}") for key in keys))
        class_id = _get(light, "class_id", where)
        attributes = attributes_from_class_id(class_id, f"{where}.class_id")
        if any(d != " " and d not in known for d, known in zip(_digits(class_id), _V1_DIGITS, strict=True)):
            self._of_frame["unlisted_values"] += 1
            self._unlisted_of_frame[f"class_id={class_id}"] += 1
        return Light(box, self._share(attributes, where), light_id, str(light.get("track_id", "")))

    def _share(self, attributes: Mapping[str, Any], where: str) -> Mapping[str, str]:
        try:
            key = (*attributes, *attributes.values())
            shared, missing, unlisted = self._shared[key]
        except (KeyError, TypeError):  # TypeError: an unhashable value, which _checked refuses by name
            shared, missing, unlisted = self._shared[key] = self._checked(attributes, where)
        self._of_frame.update(missing)
        self._unlisted_of_frame.update(unlisted)
        return shared

    @staticmethod
    def _checked(attributes: Mapping[str, Any], where: str) -> tuple[Mapping, Counter[str], Counter[str]]:
        for name, value in attributes.items():
            if not isinstance(value, str):
                expected = ", ".join(VOCABULARY.get(str(name), ("a text",)))
                raise LabelError(f"{where}.attributes.{name}: got {value!r}, expected {expected}")
        problems: Counter[str] = Counter()
        required = [name for name in VOCABULARY if name not in OPTIONAL_ATTRIBUTES]
        if missing := [name for name in required if name not in attributes]:
            problems["missing_attributes"] = len(missing)
        unlisted = Counter(
            f"{name}={value}" for name, value in attributes.items() if value not in VOCABULARY.get(name, ())
        )
        # "unknown" is listed for three attributes; elsewhere v1.0's absent digits give it, which is no surprise.
        unlisted = Counter({key: n for key, n in unlisted.items() if not key.endswith("=unknown")})
        if unlisted:
            problems["unlisted_values"] = sum(unlisted.values())
        return MappingProxyType(dict(attributes)), problems, unlisted


def attributes_from_class_id(class_id: Any, where: str = "class_id") -> dict[str, str]:
    """The v2.0 attributes of a v1.0 class number, read from the right: leading digits may be absent.

    >>> attributes_from_class_id(112340)["state"], attributes_from_class_id(2340)["direction"]
    ('green', 'unknown')
    """
    digits = _digits(class_id)
    if isinstance(class_id, bool) or len(digits) != 6 or not digits.lstrip().isdecimal():
        raise LabelError(f"{where}: got {class_id!r}, expected a number of up to six digits such as 112340")
    direction, relevance, mounting, lamps, state, mask = digits
    relevance, occlusion = _V1_RELEVANCE.get(relevance, ("unknown", "unknown"))
    return {
        "direction": _V1_DIRECTION.get(direction, "unknown"),
        "relevance": relevance,
        "occlusion": occlusion,
        "orientation": _V1_ORIENTATION.get(mounting, "unknown"),
        "aspects": _V1_ASPECTS.get(lamps, "unknown"),
        "state": _V1_STATE.get(state, "unknown"),
        "pictogram": "tram" if mounting in _V1_TRAM_MOUNTINGS else _V1_PICTOGRAM.get(mask, "unknown"),
    }


def _digits(class_id: Any) -> str:
    """Six characters, blank where a leading digit is absent."""
    return str(class_id).rjust(6)


def _load(path: Path) -> tuple[list, Callable[[_Reader, Any, str], Frame], str]:
    """The list of images in a label file, the function that reads one, and what to call the list."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise LabelError(f"{path}: {error.strerror or error}, expected a label file (.json or .yml)") from error
    if not text.strip():
        raise LabelError(f"{path}: the file is empty, expected DTLD labels; copy it again")
    suffix = path.suffix.lower()
    if suffix == ".json":
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise LabelError(f"{path}: {error}, expected a whole v2.0 JSON file; copy it again") from error
        images = _get(_mapping(document, path.name), "images", path.name)
        return _list(images, f"{path.name}: images"), _Reader.frame_v2, "images"
    if suffix in (".yml", ".yaml"):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            document = yaml.load(text, Loader=loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise LabelError(f"{path}: {reason}; expected a whole v1.0 YAML file; copy it again") from error
        return _list(document, path.name), _Reader.frame_v1, "frames"
    raise LabelError(f"{path}: got the ending {suffix!r}, expected .json (v2.0) or .yml (v1.0)")


def _image_path(text: Any, where: str) -> str:
    """City/Route/Sequence/file out of a relative or a stale absolute path."""
    if not isinstance(text, str) or "\0" in text:
        raise LabelError(f"{where}: got {text!r}, expected a path ending in City/Route/Sequence/file")
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise LabelError(f"{where}: got {text!r}, which leaves the dataset's root; expected a path without '..'")
    if len(parts) < 4:
        raise LabelError(f"{where}: got {text!r}, expected a path ending in City/Route/Sequence/file")
    return "/".join(parts[-4:])


def _get(mapping: Mapping, key: str, where: str) -> Any:
    try:
        return mapping[key]
    except KeyError:
        found = ", ".join(map(str, mapping)) or "nothing"
        raise LabelError(f"{where}: missing key '{key}'; found {found}") from None


def _mapping(value: Any, where: str) -> Mapping:
    if not isinstance(value, dict):
        raise LabelError(f"{where}: got {_short(value)}, expected an object with named keys")
    return value


def _list(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise LabelError(f"{where}: got {_short(value)}, expected a list")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or abs(value) > _MAX_NUMBER or math.isnan(value):
        raise LabelError(f"{where}: got {_short(value)}, expected a finite number")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
