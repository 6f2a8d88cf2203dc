"""The report's tables.

In: runs, grouped into arms; published rows. Out: Markdown.
Invariant: every figure is the last checkpoint's unless its column says best; a seed counts once in its arm, and a
difference is between runs of one seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from urllib.parse import quote

from kd.reports.markdown import gflops, table, text
from kd.reports.published import Published
from kd.runs.arms import Arm, Contrast, epochs_of
from kd.runs.record import Run
from kd.runs.statistics import LEAST_PAIRS, Differences, differences
from kd.show import count, percent, points

MANY_CLASSES = 8  # beyond this a column per class is no table any more
Column = tuple[str, Callable[[Arm], str]]


def class_names(runs: Iterable[Run]) -> list[str]:
    """The classes that runs were scored on, in their order; none where they are too many for a table."""
    names = list(dict.fromkeys(name for run in runs for name in run.scores()["per_class"]))
    return names if len(names) <= MANY_CLASSES else []


# ---------------------------------------------------------------- the paper's tables


def settings_line(arms: Sequence[Arm]) -> str:
    """What all arms were trained with: '30 epochs at 640 px, batch 16.'"""
    common = [form.format(_range(_values(arms, key))) for key, form in SETTINGS.items() if not _varies(arms, key)]
    return f"All models here: {', '.join(common)}." if common else ""


SETTINGS = {"epochs": "{} epochs", "imgsz": "{} px", "batch": "batch {}"}
HEADS = {"epochs": "epochs", "imgsz": "px", "batch": "batch"}


def plain_table(arms: Sequence[Arm], classes: Sequence[str], published: Sequence[Published]) -> str:
    """The paper's Table 2: a row per model trained without a teacher, the mean over its seeds."""
    mine = [arm for arm in arms if not arm[0].taught]
    scores = _size_and_scores(classes, published)
    columns = [("model", lambda arm: text(arm[0].student)), *_setup(mine, arms), *scores]
    return _beside(columns, mine, [row for row in published if row.teacher is None])


def distilled_table(
    arms: Sequence[Arm], contrasts: Sequence[Contrast], classes: Sequence[str], published: Sequence[Published]
) -> str:
    """The paper's Table 3: a row per student, teacher and method, and the mean difference to the plain twins."""
    mine = [arm for arm in arms if arm[0].taught]
    twins = {id(contrast.arm): contrast for contrast in contrasts if not contrast.longer}

    def gain(metric: str) -> Callable[[Arm], str]:
        return lambda arm: points(_differences(twins[id(arm)], metric).difference) if id(arm) in twins else "-"

    def what(key: str) -> Callable[[Arm], str]:
        return lambda arm: text(getattr(arm[0], key))

    who: list[Column] = [(key, what(key)) for key in ("student", "teacher", "method")]
    scores = _size_and_scores(classes, published)
    scores[4:4] = [("mAP50 to plain", gain("map50")), ("mAP50-95 to plain", gain("map50_95"))]  # before the classes
    return _beside([*who, *_setup(mine, arms), *scores], mine, [row for row in published if row.teacher])


def differences_table(contrasts: Sequence[Contrast]) -> str:
    """Paired differences: the mean, its 95 % interval by Student's t, and how many pairs went up."""
    rows = []
    for contrast in contrasts:
        run = contrast.arm[0]
        cells = [text(run.student), text(run.teacher), text(run.method), _baseline(contrast), str(len(contrast.pairs))]
        found = _differences(contrast, "map50_95")
        rows.append([*cells, *_figures(found), verdict(found), *_figures(_differences(contrast, "map50"))])
    head = ["student", "teacher", "method", "against", "pairs", "mAP50-95", "95 % interval", "up", "which is"]
    return table([*head, "mAP50", "95 % interval", "up"], rows)


def class_differences_table(contrasts: Sequence[Contrast], classes: Sequence[str]) -> str:
    """The same per class, mAP50-95 alone."""
    rows = [
        [
            text(contrast.arm[0].student), text(contrast.arm[0].teacher), text(contrast.arm[0].method),
            _baseline(contrast), text(name), *_figures(_differences(contrast, "map50_95", name)),
        ]
        for contrast in contrasts
        for name in classes
    ]  # fmt: skip
    return table(["student", "teacher", "method", "against", "class", "mAP50-95", "95 % interval", "up"], rows)


def verdict(found: Differences) -> str:
    """What paired differences show, and of how many pairs where those are too few.

    >>> verdict(differences([(0.4, 0.3)] * 5)), verdict(differences([(0.4, 0.3)] * 2))
    ('better', 'unproven: 2 pairs')
    """
    pairs = len(found.differences)
    return found.verdict if pairs >= LEAST_PAIRS else f"{found.verdict}: {count(pairs, 'pair')}"


def _differences(contrast: Contrast, metric: str, name: str | None = None) -> Differences:
    """Distilled against plain by seed, of one class or of all."""
    return differences([(_score(run, metric, name), _score(plain, metric, name)) for run, plain in contrast.pairs])


def _figures(found: Differences) -> list[str]:
    span = " to ".join(map(points, found.interval95)) if found.interval95 else "-"
    return [points(found.difference), span, f"{found.signs['up']} of {len(found.differences)}"]


def _baseline(contrast: Contrast) -> str:
    return f"plain, {_range(epochs_of(contrast.plain))} epochs" if contrast.longer else "plain"


# ---------------------------------------------------------------- the appendix


def runs_table(runs: Iterable[Run], home: Path) -> str:
    """Every run with its seed, last and best checkpoint, linked relatively from ``home``."""
    rows = []
    for run in runs:
        link = quote(os.fsencode(os.path.relpath(run.folder.resolve(), home.resolve())))
        shares = [run.scores(checkpoint)[metric] for checkpoint in ("last", "best") for metric in ("map50", "map50_95")]
        numbers = [run.seed, run.record["epochs"], run.config["imgsz"], run.config["batch"]]
        rows.append([
            f"[{text(run.name)}]({link})", text(run.student), text(run.teacher), text(run.method), *map(str, numbers),
            *map(percent, shares), f"{run.record['wall_time_s']:.0f}",
        ])  # fmt: skip
    head = ["run", "model", "teacher", "method", "seed", "epochs", "px", "batch"]
    return table([*head, "last mAP50", "last mAP50-95", "best mAP50", "best mAP50-95", "seconds"], rows)


def hardware_table(runs: Iterable[Run]) -> str:
    """Devices and versions, and how many runs each had."""
    machines: dict[tuple[str, str], int] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
        machines[run.record["device"], versions] = machines.get((run.record["device"], versions), 0) + 1
    return table(["device", "versions", "runs"], [[*map(text, machine), str(n)] for machine, n in machines.items()])


# ---------------------------------------------------------------- columns


def _setup(mine: Sequence[Arm], arms: Sequence[Arm]) -> list[Column]:
    """Columns of what arms do not have in common, and how many seeds each has."""
    varying = [key for key in SETTINGS if _varies(arms, key)]
    options = {id(arm): _options(arm[0]) for arm in mine}
    unlike = sorted({key for one in options.values() for key, value in one.items()
                     if any(other.get(key) != value for other in options.values())})  # fmt: skip

    def setting(key: str) -> Callable[[Arm], str]:
        return lambda arm: _range(_values([arm], key))

    columns: list[Column] = [(HEADS[key], setting(key)) for key in varying]
    if unlike:
        say = lambda arm: ", ".join(f"{key} {options[id(arm)].get(key, 'as usual')}" for key in unlike)  # noqa: E731
        columns.append(("options", lambda arm: text(say(arm))))
    return [*columns, ("seeds", lambda arm: str(len(arm)))]


def _options(run: Run) -> dict[str, str]:
    """Further options: ``{lr0: 0.01, freeze: 3}``."""
    flat = {**run.config["settings"], **({"freeze": run.config["freeze"]} if run.config["freeze"] else {})}
    return {key: json.dumps(value) for key, value in flat.items()}


def _size_and_scores(classes: Sequence[str], published: Sequence[Published]) -> list[Column]:
    """Columns of sizes and scores; of a class its mAP50-95, and beside published rows that have it its mAP50."""

    def of(metric: str, name: str | None = None) -> Callable[[Arm], str]:
        return lambda arm: _spread([_score(run, metric, name) for run in arm])

    per_class = [(text(name), of("map50_95", name)) for name in classes]
    if any("map50" in row.per_class.get(name, {}) for row in published for name in classes):
        per_class = [(_map50_of(name), of("map50", name)) for name in classes] + per_class
    return [
        ("GFLOPs", lambda arm: gflops(arm[0].record["gflops"])),
        ("parameters", lambda arm: f"{arm[0].record['params'] / 1e6:.2f} M"),
        ("mAP50", of("map50")),
        ("mAP50-95", of("map50_95")),
        *per_class,
    ]


def _beside(columns: Sequence[Column], arms: Sequence[Arm], published: Sequence[Published]) -> str:
    """Our rows, and below them the published ones, in italics and with their source."""
    if published:
        columns = [*columns, ("source", lambda arm: "here")]
    head = [name for name, _ in columns]
    rows = [[cell(arm) for _, cell in columns] for arm in arms]
    for row in published:
        cells = {
            "model": row.model, "student": row.model, "teacher": row.teacher, "method": row.method,
            "GFLOPs": gflops(row.gflops), "parameters": row.params_m and f"{row.params_m:.2f} M",
            "mAP50": _as_published(row.map50), "mAP50-95": _as_published(row.map50_95), "source": row.source,
            **{name: _as_published(scores["map50_95"]) for name, scores in row.per_class.items()},
            **{_map50_of(name): _as_published(scores.get("map50")) for name, scores in row.per_class.items()},
        }  # fmt: skip
        rows.append([f"*{text(cell)}*" if cell and cell != "-" else "-" for cell in map(cells.get, head)])
    return table(head, rows)


def _map50_of(name: str) -> str:
    """The head of the column of a class's mAP50."""
    return f"mAP50 of {text(name)}"


def _as_published(score: float | None) -> str | None:
    """A score with the digits that it was published with, and at least one: '15.55', '35.0'."""
    return None if score is None else str(float(score))


def _varies(arms: Iterable[Arm], key: str) -> bool:
    return len(_values(arms, key)) > 1


def _values(arms: Iterable[Arm], key: str) -> list[int]:
    return sorted({run.config[key] for arm in arms for run in arm})


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _score(run: Run, metric: str, name: str | None = None) -> float | None:
    scores = run.scores()
    return scores[metric] if name is None else scores["per_class"].get(name, {}).get(metric)


def _spread(shares: Sequence[float | None]) -> str:
    """The mean in per cent, and the standard deviation where there are several: '31.0 ± 1.4'."""
    there = [share for share in shares if share is not None]
    spread = f" \N{PLUS-MINUS SIGN} {100 * stdev(there):.1f}" if len(there) > 1 else ""
    return percent(_mean(there)) + spread


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
