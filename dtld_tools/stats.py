"""Parsed labels in, counts and a chart out: what `dtld inspect` says about label files.

No pixel is read; with a root, the frames' headers are, for missing images and boxes outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dtld_tools.collapse import Rules
from dtld_tools.errors import ImageError, UsageError
from dtld_tools.geometry import clip_boxes
from dtld_tools.images import image_size
from dtld_tools.parse import VOCABULARY, Labels, locate
from dtld_tools.types import Box, Frame, Light

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
DTLD_FRAME_WH = (2048, 1024)  # assumed for boxes outside where no frame is at hand


def inspect_labels(labels: Labels, rules: Rules, root: Path | None = None) -> dict[str, Any]:
    """Counts of frames, lights, sequences, cities, attributes, classes and problems, ready for JSON."""
    lights = [light for frame in labels.frames for light in frame.lights]
    attributes = {name: Counter() for name in VOCABULARY}
    combinations: Counter[tuple[tuple[str, str], ...]] = Counter()
    classes = Counter(dict.fromkeys(rules.class_names, 0))
    for light in lights:
        combinations[tuple(sorted(light.attributes.items()))] += 1
        class_id = rules.class_of(light)
        classes["drop" if class_id is None else rules.class_names[class_id]] += 1
    for combination, count in combinations.items():
        for name, value in combination:
            attributes.setdefault(name, Counter())[value] += count
    problems = Counter(labels.problems) + _box_and_file_problems(labels.frames, root)
    return {
        "frames": len(labels.frames),
        "lights": len(lights),
        "sequences": len({frame.sequence for frame in labels.frames}),
        "cities": dict(sorted(Counter(frame.sequence.city for frame in labels.frames).items())),
        "attribute_combinations": len(combinations),
        "attributes": {name: dict(counts.most_common()) for name, counts in attributes.items()},
        "classes": dict(classes),
        "box_width_px": _quantiles([light.box.width for light in lights]),
        "box_height_px": _quantiles([light.box.height for light in lights]),
        "problems": dict(sorted(problems.items())),
        "unlisted_values": dict(labels.unlisted),
    }


def plot_labels(labels: Labels, rules: Rules, path: Path) -> None:
    """Draw sizes, places in the frame, states and classes as one picture. Raises UsageError on an unknown ending."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot: got the ending {path.suffix!r}, expected {', '.join(PLOT_SUFFIXES)}")
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
    heat.add_patch(_outline(width, height))
    heat.set(xlim=(-0.05 * width, 1.05 * width), ylim=(1.05 * height, -0.05 * height), aspect="equal")
    heat.set(title="Where in the frame are they?", xlabel="x, px", ylabel="y, px")
    _bars(states, by_class, "state", colours)
    _bars(pictograms, by_class, "pictogram", colours)
    figure.savefig(path, dpi=120)


def _box_and_file_problems(frames: Iterable[Frame], root: Path | None) -> Counter[str]:
    problems: Counter[str] = Counter()
    for frame in frames:
        width, height = DTLD_FRAME_WH
        if root is not None:
            path = locate(frame.image_path, root, follow_symlinks=True)
            problems["missing_images"] += path is None
            try:
                width, height = image_size(path) if path else DTLD_FRAME_WH
            except ImageError:
                problems["unreadable_images"] += 1
        inside = clip_boxes([light.box for light in frame.lights], Box(0, 0, width, height))
        for light, box in zip(frame.lights, inside, strict=True):
            if light.box.area <= 0:
                problems["degenerate_boxes"] += 1
            elif box is None:
                problems["boxes_outside_frame"] += 1
            elif box != light.box:
                problems["boxes_over_the_edge"] += 1
    return +problems


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Nearest-rank quantiles, so that each is a value that occurs."""
    ordered = sorted(values)
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in shares.items() if ordered}


def _size_bins(widths: Sequence[float]) -> list[float]:
    largest = max([*widths, 80.0])
    bins = [4.0]
    while bins[-1] < largest:
        bins.append(bins[-1] * 1.25)
    return bins


def _outline(width: int, height: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), width, height, fill=False, color="#999999", lw=1)


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
