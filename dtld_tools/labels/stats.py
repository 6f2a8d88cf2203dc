"""Parsed labels in, counts and a chart out: what `dtld inspect` says about label files.

No pixel is read; with a root, the frames' headers are, for missing images and boxes outside.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dtld_tools.errors import ImageError, UsageError
from dtld_tools.files import whole_file
from dtld_tools.labels.attributes import VOCABULARY
from dtld_tools.labels.collapse import Rules
from dtld_tools.labels.locate import locate
from dtld_tools.labels.parse import Labels
from dtld_tools.pixels.images import image_size
from dtld_tools.types import Frame, Light
from schemas.cache import keep_matplotlib_inside

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
DTLD_FRAME_WH = (2048, 1024)  # assumed for boxes outside where no frame is at hand


def inspect_labels(labels: Labels, rules: Rules, root: Path | None = None) -> dict[str, Any]:
    """Counts of frames, lights, sequences, cities, attributes, classes and problems, ready for JSON."""
    lights = [light for frame in labels.frames for light in frame.lights]
    boxes_xyxy = _boxes(lights)
    attributes: dict[str, Counter[str]] = {name: Counter() for name in VOCABULARY}
    combinations: Counter[tuple[tuple[str, str], ...]] = Counter()
    classes = Counter(dict.fromkeys(rules.class_names, 0))
    # Lights share their attribute mappings (parse): each is looked at once, however many lights have it.
    identities = [id(light.attributes) for light in lights]
    one_of_each = dict(zip(identities, lights, strict=True))
    for identity, count in Counter(identities).items():
        light = one_of_each[identity]
        combinations[tuple(sorted(light.attributes.items()))] += count
        class_id = rules.class_of(light)
        classes["drop" if class_id is None else rules.class_names[class_id]] += count
    for combination, count in combinations.items():
        for name, value in combination:
            attributes.setdefault(name, Counter())[value] += count
    problems = Counter(labels.problems) + Counter(equal_boxes=_equal_boxes(labels.frames))
    problems += _box_and_file_problems(labels.frames, boxes_xyxy, root)
    return {
        "frames": len(labels.frames),
        "lights": len(lights),
        "sequences": len({frame.sequence for frame in labels.frames}),
        "cities": dict(sorted(Counter(frame.sequence.city for frame in labels.frames).items())),
        "attribute_combinations": len(combinations),
        "attributes": {name: dict(counts.most_common()) for name, counts in attributes.items()},
        "classes": dict(classes),
        "box_width_px": _quantiles(boxes_xyxy[:, 2] - boxes_xyxy[:, 0]),
        "box_height_px": _quantiles(boxes_xyxy[:, 3] - boxes_xyxy[:, 1]),
        "problems": dict(sorted(problems.items())),
        "unlisted_values": dict(labels.unlisted),
    }


def plot_labels(labels: Labels, rules: Rules, path: Path) -> None:
    """Draw sizes, places in the frame, states and classes as one picture. Raises UsageError on an unknown ending."""
    keep_matplotlib_inside()
    from matplotlib import rc_context

    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot: got the ending {path.suffix!r}, expected {', '.join(PLOT_SUFFIXES)}")
    # Values and names are shown as they are: '$' begins no formula, and a glyph that the font lacks is no news.
    with whole_file(path) as whole, rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _draw_labels(labels, rules).savefig(whole, dpi=120)


def _draw_labels(labels: Labels, rules: Rules) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.patches import Rectangle

    lights = [light for frame in labels.frames for light in frame.lights]
    names = (*rules.class_names, "drop")
    by_class: dict[str, list[Light]] = {name: [] for name in names}
    for light in lights:
        class_id = rules.class_of(light)
        by_class["drop" if class_id is None else names[class_id]].append(light)
    by_class = {name: members for name, members in by_class.items() if members or name != "drop"}
    colours = dict(zip(by_class, ("#1b7f4d", "#c2571a", "#5b5b8c", "#8c5b7a", "#777777"), strict=False))

    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(f"{len(labels.frames):,} frames, {len(lights):,} lights", fontsize=14)
    sizes, heat, states, pictograms = figure.subplots(2, 2).flat
    bins = _size_bins([light.box.width for light in lights])
    sizes.hist(
        [[light.box.width for light in members] for members in by_class.values()],
        bins=bins,
        stacked=True,
        label=[f"{name} ({len(members):,})" for name, members in by_class.items()],
        color=[colours.get(name, "#777777") for name in by_class],
    )
    sizes.set(xscale="log", xlabel="width of the box, px", ylabel="lights", title="How wide are the lights?")
    sizes.set_xticks([5, 10, 20, 40, 80, 160, 320], labels=["5", "10", "20", "40", "80", "160", "320"])
    sizes.set_xlim(bins[0], bins[-1])
    sizes.minorticks_off()
    sizes.legend(frameon=False)

    width, height = DTLD_FRAME_WH
    for name, members in by_class.items():
        centres = [((m.box.x1 + m.box.x2) / 2, (m.box.y1 + m.box.y2) / 2) for m in members]
        if centres:
            heat.scatter(*zip(*centres, strict=True), s=12, alpha=0.6, lw=0, color=colours.get(name, "#777777"))
    heat.add_patch(Rectangle((0, 0), width, height, fill=False, color="#999999", lw=1))
    heat.set(xlim=(-0.05 * width, 1.05 * width), ylim=(1.05 * height, -0.05 * height), aspect="equal")
    heat.set(title="Where in the frame are they?", xlabel="x, px", ylabel="y, px")
    _bars(states, by_class, "state", colours)
    _bars(pictograms, by_class, "pictogram", colours)
    return figure


def frames_called(name: str, labels: Labels, root: Path) -> list[Path]:
    """The frames below ``root`` whose file has this name: what a picture of that name might replace."""
    called = [frame.image_path for frame in labels.frames if frame.image_path.rpartition("/")[2] == name]
    return [path for path in (locate(frame, root, follow_symlinks=True) for frame in called) if path]


def _boxes(lights: Sequence[Light]) -> np.ndarray:
    """[N, 4] corners of the lights' boxes, as labelled."""
    corners = chain.from_iterable([light.box for light in lights])
    return np.fromiter(corners, np.float64, 4 * len(lights)).reshape(-1, 4)


def _box_and_file_problems(frames: Sequence[Frame], boxes_xyxy: np.ndarray, root: Path | None) -> Counter[str]:
    """Counts of missing and unreadable images, and of boxes [N, 4] that are not wholly inside their frames."""
    problems: Counter[str] = Counter()
    sizes_wh = [DTLD_FRAME_WH] * len(frames)
    if root is not None:
        for index, frame in enumerate(frames):
            path = locate(frame.image_path, root, follow_symlinks=True)
            problems["missing_images"] += path is None
            problems["images_of_another_ending"] += (
                path is not None and path.name != frame.image_path.rpartition("/")[2]
            )
            try:
                sizes_wh[index] = image_size(path) if path else DTLD_FRAME_WH
            except ImageError:
                problems["unreadable_images"] += 1
    width, height = np.repeat(np.array(sizes_wh), [len(frame.lights) for frame in frames], axis=0).T  # [N] each
    x1, y1, x2, y2 = boxes_xyxy.T
    solid = (x2 > x1) & (y2 > y1)
    outside = solid & ((x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height))
    over = solid & ~outside & ((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height))
    problems["degenerate_boxes"] = int((~solid).sum())
    problems["boxes_outside_frame"] = int(outside.sum())
    problems["boxes_over_the_edge"] = int(over.sum())
    return +problems


def _equal_boxes(frames: Sequence[Frame]) -> int:
    """Lights whose box another light of their frame has under another number: equal rows, if of one class."""
    count = 0
    for frame in frames:
        boxes = {light.box for light in frame.lights}
        if len(boxes) < len(frame.lights):
            numbers = {(light.box, str(light.unique_id).partition("#")[0]) for light in frame.lights}
            count += len(numbers) - len(boxes)
    return count


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Nearest-rank quantiles, so that each is a value that occurs."""
    ordered = np.sort(values)
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: float(ordered[round(share * (len(ordered) - 1))]) for name, share in shares.items() if len(ordered)}


def _size_bins(widths: Sequence[float]) -> list[float]:
    largest = max([*widths, 80.0])
    bins = [4.0]
    while bins[-1] < largest:
        bins.append(bins[-1] * 1.25)
    return bins


def _bars(axes: Any, by_class: dict[str, list[Light]], attribute: str, colours: dict[str, str]) -> None:
    values = Counter(m.attributes.get(attribute, "missing") for members in by_class.values() for m in members)
    order = [value for value, _ in values.most_common()][::-1]
    left = [0] * len(order)
    for name, members in by_class.items():
        counts = Counter(member.attributes.get(attribute, "missing") for member in members)
        widths = [counts[value] for value in order]
        axes.barh(order, widths, left=left, color=colours.get(name, "#777777"))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:,}", va="center", fontsize=8)
    axes.set(title=f"By {attribute}", xlabel="lights")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
