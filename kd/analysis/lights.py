"""The lights that count, one after the other over all frames, and which of them are found, group by group.

In: frames with their truth. Out: the groups that each light belongs to, and recall with its interval in each.
Invariant: in every grouping each light that counts is in exactly one group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from kd.scoring.frames import Frame

SIDES_PX = (8, 16, 32, 64, 128)  # bounds of the shorter side, each bin without its upper one
DISTANCES_M = (25, 50, 75, 100)
UNKNOWN = "unknown"
Z975 = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True, slots=True, eq=False)
class Lights:
    """K lights that count: the frame of each, its place there, its class, and its group in each grouping."""

    frames: np.ndarray
    places: np.ndarray
    class_ids: np.ndarray
    boxes_xyxy: np.ndarray
    groups: dict[str, np.ndarray]  # name -> values [K], texts
    orders: dict[str, list[str]]  # name -> its values that occur, in the order to show them

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, slots=True, eq=False)
class Critical:
    """What to call the lights that matter most, by which rule they are told, and which of the K they are."""

    what: str
    rule: str
    chosen: np.ndarray


def lights_of(frames: Sequence[Frame], names: Mapping[int, str]) -> Lights:
    """All lights that count, by class, shorter side, place in the frame, and what frames.jsonl knows of them.

    A city or an attribute that is the same for all lights makes no groups.
    """
    rows = [(f, int(i)) for f, frame in enumerate(frames) for i in np.flatnonzero(frame.counted)]
    where = np.array(rows, int).reshape(-1, 2)
    boxes = np.array([frames[f].boxes_xyxy[i] for f, i in rows], float).reshape(-1, 4)
    class_ids = np.array([frames[f].class_ids[i] for f, i in rows], int)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf)
    sizes = np.array([frames[f].size_wh for f, _ in rows], float).reshape(-1, 2)
    thirds = ((boxes[:, :2] + boxes[:, 2:]) / 2 / sizes * 3).astype(int).clip(0, 2)
    attributes = [frames[f].attributes[i] if frames[f].attributes else {} for f, i in rows]
    distances = np.array([frames[f].distances_m[i] if len(frames[f].distances_m) else np.nan for f, i in rows], float)

    found: dict[str, tuple[list[str], list[str]]] = {  # name -> values, and those that there may be
        "class": ([names[int(c)] for c in class_ids], list(names.values())),
        "shorter side": _binned(sides, SIDES_PX, "px"),
        "place": (
            [f"{('top', 'middle', 'bottom')[y]} {('left', 'centre', 'right')[x]}" for x, y in thirds],
            [f"{y} {x}" for y in ("top", "middle", "bottom") for x in ("left", "centre", "right")],
        ),
    }
    if np.isfinite(distances).any():
        found["distance"] = _binned(distances, DISTANCES_M, "m")
    optional = {"city": [frames[f].city or UNKNOWN for f, _ in rows]}
    for name in dict.fromkeys(name for row in attributes for name in row):
        optional[name] = [str(row.get(name, UNKNOWN)) for row in attributes]
    for name, values in optional.items():
        if len(set(values)) > 1:
            found[name if name not in found else f"{name} (label)"] = (values, sorted(set(values)))
    return Lights(
        where[:, 0],
        where[:, 1],
        class_ids,
        boxes,
        {name: np.array(values, object) for name, (values, _) in found.items()},
        {name: [value for value in order if value in set(values)] for name, (values, order) in found.items()},
    )


def recall_by_group(lights: Lights, found: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """Recall in each group of each grouping, of which lights are found [K]: ``{grouping: {group: row}}``."""
    return {
        name: {value: recall_row(found[values == value]) for value in lights.orders[name]}
        for name, values in lights.groups.items()
    }


def recall_row(found: np.ndarray) -> dict[str, Any]:
    """``{objects, found, recall, interval95}``; recall is None where there is no object.

    >>> recall_row(np.array([True, True, False, True]))["recall"]
    0.75
    """
    hits, count = int(found.sum()), len(found)
    return {
        "objects": count,
        "found": hits,
        "recall": hits / count if count else None,
        "interval95": wilson(hits, count),
    }


def wilson(hits: int, count: int) -> list[float] | None:
    """Wilson's 95 % interval of a share (JASA, 1927), which holds for few, for none and for all; None of nothing.

    >>> [round(end, 3) for end in wilson(9, 10)]
    [0.596, 0.982]
    """
    if not count:
        return None
    share, part = hits / count, Z975**2 / count
    middle, reach = share + part / 2, Z975 * math.sqrt(share * (1 - share) / count + part / count / 4)
    return [max(0.0, (middle - reach) / (1 + part)), min(1.0, (middle + reach) / (1 + part))]


def critical(frames: Sequence[Frame], lights: Lights, names: Mapping[int, str]) -> Critical:
    """The lights that a car is judged by: red and relevant ones.

    By the attributes ``state`` and ``relevance`` where frames.jsonl has them, and else by the class names: the word
    ``red`` in them, and ``relevant``. Where neither tells, all lights.
    """
    pairs = zip(lights.frames, lights.places, strict=True)
    attributes = [frames[f].attributes[i] if frames[f].attributes else {} for f, i in pairs]
    words = [_words(names[int(class_id)]) for class_id in lights.class_ids]
    every = [_words(name) for name in names.values()]
    chosen, rules, kinds = np.ones(len(lights), bool), [], []
    if any("state" in its for its in attributes):
        chosen &= np.array(["red" in _words(its.get("state", "")) for its in attributes], bool)
        rules.append("attribute state: red or red_yellow")
        kinds.append("red")
    elif any("red" in its for its in every):
        chosen &= np.array(["red" in its for its in words], bool)
        rules.append("class name with the word red")
        kinds.append("red")
    if any("relevance" in its for its in attributes):
        chosen &= np.array([its.get("relevance") == "relevant" for its in attributes], bool)
        rules.append("attribute relevance: relevant")
        kinds.append("relevant")
    elif any("relevant" in its and "not" not in its for its in every):
        chosen &= np.array(["relevant" in its and "not" not in its for its in words], bool)
        rules.append("class name with the word relevant, without not")
        kinds.append("relevant")
    what = f"{' and '.join(kinds)} lights" if kinds else "objects"
    return Critical(what, "; ".join(rules) or "no class or attribute tells which are red or relevant: all", chosen)


def _words(text: str) -> set[str]:
    """The words of a name, in small letters; ``not_relevant`` is ``{"not", "relevant"}``."""
    return set(re.findall(r"[^\W_]+", text.lower()))


def _binned(values: np.ndarray, bounds: Sequence[int], unit: str) -> tuple[list[str], list[str]]:
    """A bin's name for each value, NaN being unknown, and all names in their order."""
    inner = [f"{low} to {high} {unit}" for low, high in pairwise(bounds)]
    order = [f"below {bounds[0]} {unit}", *inner, f"{bounds[-1]} {unit} and more", UNKNOWN]
    which = np.where(np.isnan(values), len(bounds) + 1, np.searchsorted(bounds, values, side="right"))
    return [order[i] for i in which], order
