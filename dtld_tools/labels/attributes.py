"""The attributes of a light: v2.0 names them, v1.0 writes them as the digits of a class number."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dtld_tools.errors import LabelError
from dtld_tools.labels.documents import short

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
_DIRECTION = {"1": "front", "2": "back", "3": "left", "4": "right"}
_RELEVANCE = {
    "0": ("not_relevant", "not_occluded"),
    "1": ("relevant", "not_occluded"),
    "2": ("not_relevant", "not_occluded"),
    "3": ("relevant", "not_occluded"),
    "4": ("not_relevant", "occluded"),
}
_ORIENTATION = dict.fromkeys("1368", "horizontal") | dict.fromkeys("2479", "vertical")
_TRAM_MOUNTINGS = frozenset("6789")
_ASPECTS = {"1": "one_aspect", "2": "two_aspects", "3": "three_aspects", "4": "four_aspects"}
_STATE = {"0": "off", "1": "red", "2": "yellow", "3": "red_yellow", "4": "green", "5": "unknown"}
_PICTOGRAM = {"0": "circle", "1": "arrow_straight", "2": "arrow_left", "3": "arrow_straight_left"}
_PICTOGRAM |= {"4": "arrow_right", "8": "pedestrian", "9": "bicycle"}
_DIGITS: tuple[Collection[str], ...] = (_DIRECTION, _RELEVANCE, _ORIENTATION, _ASPECTS, _STATE, _PICTOGRAM)


def attributes_from_class_id(class_id: Any, where: str = "class_id") -> dict[str, str]:
    """The v2.0 attributes of a v1.0 class number, read from the right: leading digits may be absent.

    >>> attributes_from_class_id(112340)["state"], attributes_from_class_id(2340)["direction"]
    ('green', 'unknown')
    """
    digits = _digits(class_id)
    if isinstance(class_id, bool) or len(digits) != 6 or not digits.lstrip().isdecimal():
        raise LabelError(f"{where}: got {short(class_id)}, expected a number of up to six digits such as 112340")
    direction, relevance, mounting, lamps, state, mask = tuple(digits)
    relevance, occlusion = _RELEVANCE.get(relevance, ("unknown", "unknown"))
    return {
        "direction": _DIRECTION.get(direction, "unknown"),
        "relevance": relevance,
        "occlusion": occlusion,
        "orientation": _ORIENTATION.get(mounting, "unknown"),
        "aspects": _ASPECTS.get(lamps, "unknown"),
        "state": _STATE.get(state, "unknown"),
        "pictogram": "tram" if mounting in _TRAM_MOUNTINGS else _PICTOGRAM.get(mask, "unknown"),
    }


def has_unlisted_digit(class_id: int) -> bool:
    """Whether some digit of a v1.0 class number, other than an absent one, means nothing that is listed."""
    return any(digit not in (" ", *known) for digit, known in zip(_digits(class_id), _DIGITS, strict=True))


def _digits(class_id: Any) -> str:
    """Six characters, blank where a leading digit is absent."""
    return str(class_id).rjust(6)
