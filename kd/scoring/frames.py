"""The frames behind a tiled dataset: frames.jsonl and manifest.jsonl, read by their schemas.

In: the folder of a dataset that dtld made, and a split. Out: each frame with its lights and its original images.
Invariant: boxes are in frame pixels, never taken from rounded label files; augmented copies are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastjsonschema
import numpy as np

import schemas
from kd.errors import DataError
from schemas.strict import StrictError, load_json, read_json

# Real lights that no image has as a target: too small or too much cut off, or left out by a quota.
UNSEEN = ("min_side", "min_visible", "max_images")


@dataclass(frozen=True, slots=True)
class View:
    """An image of the dataset: a window of its frame, in frame pixels up to the frame's edge, times ``scale``.

    Of a window that is cut in memory, ``image`` is the frame's own.
    """

    image: Path
    window_xyxy: tuple[int, int, int, int]
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame with its truth: ``boxes_xyxy`` [M, 4] in frame pixels, ``class_ids`` [M], ``counted`` [M].

    A light that is not counted was dropped for a reason in `UNSEEN`: to find it is neither right nor wrong. One that
    has class and box of another is left out, as Ultralytics does with label rows; ``repeated`` counts those.
    ``attributes`` [M] and ``distances_m`` [M], NaN for none, are what frames.jsonl knows of the lights, or empty.
    """

    name: str
    city: str
    size_wh: tuple[int, int]
    boxes_xyxy: np.ndarray
    class_ids: np.ndarray
    counted: np.ndarray
    views: tuple[View, ...]
    repeated: int = 0
    attributes: tuple[Mapping[str, str], ...] = ()
    distances_m: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def unlabelled(cls, name: str, size_wh: tuple[int, int], views: tuple[View, ...]) -> Frame:
        """A frame of which no truth is known."""
        return cls(name, "", size_wh, np.empty((0, 4)), np.empty(0, int), np.empty(0, bool), views)


def read_frames(root: Path, split: str, images: Iterable[Path], classes: int) -> list[Frame]:
    """The frames of a split that have images, in the order of frames.jsonl.

    ``images`` are the split's files; the manifest's originals must be among them. ``classes`` is how many the
    dataset has. Raises DataError where a file is missing or damaged, or the two do not belong together.
    """
    files = {path.name: path for path in images}
    manifest = root / "manifest.jsonl"
    windows: dict[str, list[dict[str, Any]]] = {}
    named: set[str] = set()
    for line in _lines(manifest, "manifest"):
        if line["split"] == split and line["augmentation"] is None:
            if line["name"] not in files:
                raise DataError(
                    f"{manifest}: {line['name']}: got no such image in split '{split}' of data.yaml, "
                    f"expected every original: make the dataset again"
                )
            if line["name"] in named:
                raise DataError(f"{manifest}: {line['name']}: stands twice, expected once: make the dataset again")
            named.add(line["name"])
            windows.setdefault(line["frame"], []).append(line)
    frames = []
    for line in _lines(root / "frames.jsonl", "frame"):
        if line["split"] == split and (seen := windows.pop(line["frame"], None)):
            for reason in _contradictions(line, seen, classes):
                raise DataError(f"{root / 'frames.jsonl'}: {line['frame']}: {reason}")
            frames.append(_frame(line, seen, files))
    if windows:
        raise DataError(
            f"{manifest}: got images of {next(iter(windows))}, expected a frame of split '{split}' in "
            f"frames.jsonl: make the dataset again"
        )
    if not frames:
        raise DataError(f"{manifest}: got no original image of split '{split}', expected some; choose with --split")
    return frames


def require_names_of_report(root: Path, names: Mapping[int, str]) -> None:
    """Raise DataError if the report.json of dtld beside a data.yaml gives its classes other names, or in other order.

    The numbers in frames.jsonl and in the label files are those of the report.
    """
    path = root / "report.json"
    try:
        listed = list(read_json(path)["classes"])
    except (OSError, StrictError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: got no classes ({error}), expected the report of dtld: make the dataset again"
        ) from error
    if listed != [names[number] for number in sorted(names)]:
        raise DataError(
            f"{root / 'data.yaml'}: names: got {', '.join(map(str, names.values()))}, expected {', '.join(listed)} "
            "in this order, as in report.json: undo what was changed, or make the dataset again"
        )


def _contradictions(line: dict[str, Any], images: Sequence[dict[str, Any]], classes: int) -> Iterator[str]:
    """Contradictions between a frame's line and its images' lines: each is one that `dtld validate` finds, too."""
    width, height = line["width"], line["height"]
    listed = [light["id"] for light in (*line["lights"], *line["dropped"])]
    if len(set(listed)) < len(listed):
        yield "got a light twice, expected each once: see dtld validate"
    for light in (*line["lights"], *line["dropped"]):
        if light.get("class", 0) >= classes:
            yield f"got class {light['class']}, expected those of data.yaml, 0 to {classes - 1}"
        x1, y1, x2, y2 = light.get("box", (0, 0, width, height))
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            yield (
                f"light {light['id']}: got box {light['box']}, expected one inside {width} x {height} pixels: "
                "see dtld validate"
            )
    for image in images:
        x, y, w, h = (image["window"][key] for key in "xywh")
        if any(start > 0 and start + side > whole for start, side, whole in ((x, w, width), (y, h, height))):
            yield f"got {image['name']} at {x}, {y} with {w} x {h} pixels, expected it inside {width} x {height}"


def _frame(line: dict[str, Any], images: Sequence[dict[str, Any]], files: dict[str, Path]) -> Frame:
    width, height = line["width"], line["height"]
    unseen = [light for light in line["dropped"] if light["reason"] in UNSEEN and {"class", "box"} <= light.keys()]
    distinct = {(light["class"], *light["box"]): light for light in reversed(line["lights"])}  # the first one stays
    targets = list(reversed(distinct.values()))
    lights = [*targets, *unseen]
    views = []
    for image in images:
        x, y, w, h = (image["window"][key] for key in "xywh")
        views.append(View(files[image["name"]], (x, y, min(x + w, width), min(y + h, height)), image["scale"]))
    return Frame(
        name=line["frame"],
        city=line["city"],
        size_wh=(width, height),
        boxes_xyxy=np.array([light["box"] for light in lights], float).reshape(-1, 4),
        class_ids=np.array([light["class"] for light in lights], int),
        counted=np.arange(len(lights)) < len(targets),
        views=tuple(views),
        repeated=len(line["lights"]) - len(targets),
        attributes=tuple(light.get("attributes", {}) for light in lights),
        distances_m=np.array([light.get("distance_m", np.nan) for light in lights], float),
    )


def _lines(path: Path, schema: str) -> Iterator[dict[str, Any]]:
    check = fastjsonschema.compile(schemas.load(schema), use_default=False)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield check(load_json(line))
                except (StrictError, fastjsonschema.JsonSchemaValueException) as error:
                    reason = str(error).replace("data", "line", 1)
                    raise DataError(f"{path}: line {number}: {reason}; make the dataset again") from error
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}, expected a dataset of dtld prepare, tile or convert beside its data.yaml"
        ) from error
