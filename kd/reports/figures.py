"""The report's pictures: mAP against GFLOPs (the paper's Figure 2), and detections side by side (its Figure A1).

In: arms of runs, published rows; a pair whose weights and images are there. Out: PNG and SVG as bytes.
Invariant: nothing is drawn that is not in a table, and test images are taken by their place in the list, never chosen
by what is detected in them.
"""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # not pyplot: no global state, no display
from matplotlib.transforms import Bbox, ScaledTranslation

from kd.errors import DataError
from kd.reports.published import Published
from kd.runs.arms import Arm, Contrast, epochs_of
from kd.runs.record import Run, title
from schemas.text import one_line

INK, PAPER = "#1a1a1a", "#ffffff"  # the page sets its own colours for these two
GREY, TEACHER = "#808080", "#7a5cd6"
PLAINS = ((GREY, "o"), ("#5f6b7a", "X"), ("#a08c7a", "h"))
# Okabe and Ito's, the readable ones, each with a mark of its own; then once more with another's.
COLOURS = ("#0f9d6b", "#e07000", "#2f86d1", "#cc5fa3", "#b08900", "#17a2b8")
ARMS = tuple(zip(COLOURS * 2, "^vD<>pD<>p^v", strict=True))
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
NAME = 120  # characters of a name in a figure
CONFIDENCE = 0.25  # least one of a detection that is drawn
MARK = 7  # half the side of a mark, with some air, in pixels of the canvas
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kd",
    "font.family": "DejaVu Sans",
    "text.color": INK,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
Place = tuple[Any, tuple[float, float]]  # a transform of Matplotlib's, and the point it takes


# ---------------------------------------------------------------- Figure 2


def gflops_figure(
    arms: Sequence[Arm], teachers: Sequence[Arm], published: Sequence[Published], split: str
) -> tuple[bytes, bytes] | None:
    """A faint dot per run, a mark per mean over seeds, lines through a family's sizes; hollow marks are published.

    Arms of one student stand side by side at its GFLOPs, so that marks do not hide each other; a dotted line is the
    best teacher's mean. Returns PNG and SVG; None where no arm has both GFLOPs and a score.
    """
    arms = [arm for arm in arms if arm[0].record["gflops"] and _scores(arm)]
    rows = [row for row in published if row.gflops]
    if not arms:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5), layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.subplots()
        kinds = _kinds(arms)
        widths = [_x(arm) for arm in arms] + [row.gflops for row in rows if row.gflops]
        frame(axes, widths, "GFLOPs per image", f"mAP50-95 on {split} images, %, last checkpoint")
        scores = [100 * score for arm in arms for score in _scores(arm)] + [row.map50_95 for row in rows]
        room = 0.08 * (max(scores) - min(scores)) or 2
        axes.set_ylim(max(-room / 4, min(scores) - room), max(scores) + room)  # below 0 no more than a mark needs
        places = _draw_arms(axes, kinds, teachers)
        places += _draw_published(axes, rows)
        _draw_best_teacher(axes, [arm for arm in teachers if arm in arms])
        labels = axes.get_legend_handles_labels()[1]
        columns = 2 if max(map(len, labels)) < 50 else 1
        figure.set_figheight(4.6 + 0.2 * -(-len(labels) // columns))
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
        canvas.draw()
        _draw_names(axes, arms, places)
        return encoded(figure)


def encoded(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as PNG and SVG, the same bytes for the same figure."""
    images = [io.BytesIO(), io.BytesIO()]
    figure.savefig(images[0], dpi=160, format="png")
    figure.savefig(images[1], format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return images[0].getvalue(), images[1].getvalue()


def _kinds(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Arms of one kind together, whatever their student: what the legend calls them -> arms by GFLOPs."""
    vary = len({run.config["epochs"] for arm in arms for run in arm}) > 1
    groups: dict[tuple, list[Arm]] = {}
    for arm in sorted(arms, key=lambda arm: arm[0].record["gflops"]):
        run = arm[0]
        settings = {key: value for key, value in run.config["settings"].items() if key != "pretrained"}  # a size's own
        asked = [settings, *(run.config[key] for key in ("freeze", "imgsz", "batch")), run.config.get("fgfi")]
        epochs = epochs_of(arm)
        name = plain(f"{run.method} from {run.teacher}") if run.taught else "without distillation"
        name += f", {' to '.join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))} epochs" if vary else ""
        groups.setdefault((run.taught, name, json.dumps(asked, sort_keys=True)), []).append(arm)
    named: dict[str, list[Arm]] = {}
    for (_, name, _), members in sorted(groups.items(), key=lambda item: item[0]):
        again = sum(other.startswith(name) for other in named)
        named[f"{name} ({again + 1})" if again else name] = members  # other options: the tables say which
    return named


def frame(axes: Any, widths: Sequence[float], xlabel: str, ylabel: str) -> None:
    """Axes with room around what stands on the x axis, logarithmic where that spans more than a factor of 3."""
    low, high = min(widths), max(widths)
    if high > 3 * low:
        axes.set_xscale("log")
        axes.set_xticks([tick for tick in TICKS if low / 2 <= tick <= high * 2], minor=False)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(low / 2, high * 2)
    else:
        reach = max(0.35 * (high - low), 0.25 * high)
        axes.set_xlim(max(0, low - reach), high + reach)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25, color=GREY, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")


def _draw_arms(axes: Any, kinds: dict[str, list[Arm]], teachers: Sequence[Arm]) -> list[Place]:
    """Draw arms; returns where their marks are."""
    looks, plain_looks, places = iter(ARMS * len(kinds)), iter(PLAINS * len(kinds)), []
    for i, (name, members) in enumerate(kinds.items()):
        colour, marker = next(looks if members[0][0].taught else plain_looks)
        offset = 0 if len(kinds) == 1 else 11 * (i / (len(kinds) - 1) - 0.5) / 72  # inches
        place = axes.transData + ScaledTranslation(offset, 0, axes.figure.dpi_scale_trans)
        for arm in members:
            dots = [100 * score for score in _scores(arm)]
            axes.plot([_x(arm)] * len(dots), dots, ".", ms=4, color=colour, alpha=0.45, mew=0, transform=place)
        for family in dict.fromkeys(_family(arm) for arm in members):
            line = [(_x(arm), _mean(arm)) for arm in members if _family(arm) == family]
            axes.plot(*zip(*line, strict=True), "-", lw=1.2, color=colour, alpha=0.6, transform=place)
        marks = [(_x(arm), _mean(arm)) for arm in members]
        axes.plot(*zip(*marks, strict=True), marker, ms=7.5, color=colour, transform=place, zorder=3, label=name)
        places += [(place, mark) for mark in marks]
        square = [(_x(arm), _mean(arm)) for arm in members if arm in teachers]
        if square:
            axes.plot(
                *zip(*square, strict=True), "s", ms=12, mfc="none", mec=TEACHER, mew=1.4, transform=place, zorder=4
            )
    return places


def _draw_published(axes: Any, rows: Sequence[Published]) -> list[Place]:
    for taught, marker, words in ((False, "o", "without"), (True, "^", "with")):
        for source in dict.fromkeys(row.source for row in rows):
            mine = [row for row in rows if row.source == source and bool(row.teacher) == taught]
            if mine:
                points = [row.gflops for row in mine], [row.map50_95 for row in mine]
                label = plain(f"published, {words} distillation: {_short(source)}")
                axes.plot(*points, marker, ms=8, mfc="none", mec=INK, mew=1, label=label, zorder=2)
    return [(axes.transData, (row.gflops, row.map50_95)) for row in rows if row.gflops]


def _draw_best_teacher(axes: Any, teachers: Sequence[Arm]) -> None:
    if teachers:
        best = max(teachers, key=_mean)
        axes.plot([], [], "s", ms=9, mfc="none", mec=TEACHER, mew=1.4, label="a teacher")
        label = plain(f"best teacher, {best[0].student}: {_mean(best):.1f}")
        axes.axhline(_mean(best), color=TEACHER, lw=1, ls=":", label=label)


def _draw_names(axes: Any, arms: Sequence[Arm], places: Sequence[Place]) -> None:
    """A student's name above its highest dot, higher where it would hide marks or other names."""
    marks = [place.transform(point) for place, point in places]
    taken = [Bbox([mark - MARK, mark + MARK]) for mark in marks]
    thread = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 3, "shrinkB": 2}
    tops: dict[str, tuple[float, float]] = {}
    for arm in sorted(arms, key=_x):
        x, y = tops.get(arm[0].student, (_x(arm), 0))
        tops[arm[0].student] = (x, max(y, 100 * max(_scores(arm))))
    for name, top in tops.items():
        word = axes.annotate(plain(name), top, (0, 0), textcoords="offset points", ha="center", fontsize=9)
        word.set_in_layout(False)
        for lift in range(8, 120, 4):
            word.set_position((0, lift))
            box = word.get_window_extent().padded(1)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        if lift > 16:
            axes.annotate("", top, (0, lift), textcoords="offset points", arrowprops=thread)
    top = axes.transData.inverted().transform((0, max(box.y1 for box in taken) + MARK))[1]
    axes.set_ylim(top=max(top, axes.get_ylim()[1]))


def inline(svg: bytes, words: str) -> str:
    """An SVG to stand within a page: no prologue, black and white are the page's own ink and paper."""
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.decode("utf-8"), flags=re.S)
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    return text.replace("<svg", f'<svg role="img" aria-label="{words}"', 1).strip()


def plain(words: str) -> str:
    """Words on one line, in which a dollar is a dollar and opens no formula."""
    return one_line(words, NAME).replace("$", r"\$")


def _short(words: str) -> str:
    return words if len(words) <= 40 else f"{words[:38].rstrip()}..."


def _family(arm: Arm) -> str:
    """'yolov5' of yolov5n, yolov5s, ...: sizes of one design, which a line may join."""
    return re.sub(r"(?<=\d)[ntsmlbcex]u?$", "", arm[0].student)


def _x(arm: Arm) -> float:
    return arm[0].record["gflops"]


def _scores(arm: Arm) -> list[float]:
    return [score for run in arm if (score := run.scores()["map50_95"]) is not None]


def _mean(arm: Arm) -> float:
    """Mean mAP50-95 in per cent, of an arm that has scores."""
    return 100 * fmean(_scores(arm))


# ---------------------------------------------------------------- Figure A1


def detections_figure(contrasts: Sequence[Contrast], runs: Sequence[Run], count: int) -> tuple[bytes, str] | str:
    """Plain, distilled and teacher beside each other on ``count`` images: a PNG and a caption, or why there is none.

    Taken for the first pair, of the arm that gains most, whose weights and images still exist; images with objects,
    evenly spaced over the split.
    """
    reason = "no pair's weights are there any more"
    by_epochs = sorted(contrasts, key=lambda contrast: (contrast.longer, -_gain(contrast)))  # of equal epochs first
    for pair in (pair for contrast in by_epochs for pair in contrast.pairs):
        weights = [_weights(pair.baseline), _weights(pair.run)]
        if not all(path.is_file() for path in weights):
            continue
        names = [f"{run.student}, {run.method}" for run in (pair.baseline, pair.run)]
        teacher = _teacher_weights(pair.run, runs)
        if teacher:
            weights.append(teacher)
            known = title(pair.run.sources[0])
            names.append("teacher" if known == "teacher" else f"teacher {known}")
        try:
            return _draw_detections(pair.run, weights, names, count)
        except Exception as error:  # whatever torch makes of what lies there: the tables do not depend on it
            reason = " ".join(str(error).split()) or type(error).__name__
    return reason


def _gain(contrast: Contrast) -> float:
    """The mean difference in mAP50-95."""
    scores = [[run.scores()["map50_95"] or 0.0 for run in pair] for pair in contrast.pairs]
    return statistics.fmean(own - base for own, base in scores) if scores else 0.0


def _draw_detections(run: Run, weights: Sequence[Path], names: Sequence[str], count: int) -> tuple[bytes, str]:
    from kd.scoring import predict
    from kd.ultra import data as dataset

    data = dataset.resolve_data(run.config["data"])
    split = "test" if data["test"] else "val"
    images = dataset.image_files(data[split])
    labels = map(dataset.label_file, images)
    labelled = [image for image, label in zip(images, labels, strict=True) if label.exists() and label.stat().st_size]
    if not labelled:
        raise DataError(f"{run.config['data']}: got no {split} image with objects, expected some")
    shown = dataset.spread(labelled, count)
    pictures = [predict.read_image(path) for path in shown]
    columns = [
        replace(predict.detect(path, pictures, quiet=True), name=name)
        for path, name in zip(weights, names, strict=True)
    ]
    page, image = predict.draw(columns, pictures, [path.name for path in shown], CONFIDENCE), io.BytesIO()
    page.save(image, format="PNG", optimize=True)
    times = "; ".join(f"{column.name} {fmean(column.times_ms):.1f} ms" for column in columns)
    return image.getvalue(), (
        f"{len(shown)} of {len(labelled)} {split} images with objects, evenly spaced, seed {run.seed}; mean "
        f"inference times on {columns[0].device}: {times}."
    )


def _weights(run: Run) -> Path:
    return run.folder / "weights" / "last.pt"


def teacher_runs(runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that taught others, by the folder that the others name; by its name where runs were moved."""
    taught = [spec for run in runs for spec in run.sources]
    places, names = {Path(spec).parent.parent for spec in taught}, set(map(title, taught))
    here = [run for run in runs if run.folder.resolve() in places]
    return here or [run for run in runs if _own_title(run) in names]


def _teacher_weights(run: Run, runs: Sequence[Run]) -> Path | None:
    """The first teacher's file, where it was or in the run of its name."""
    spec = Path(run.sources[0])
    moved = [other.folder / "weights" / spec.name for other in runs if _own_title(other) == title(str(spec))]
    return next((path for path in (spec, *moved) if path.is_file()), None)


def _own_title(run: Run) -> str:
    return title(str(run.folder.resolve() / "weights" / "best.pt"))
