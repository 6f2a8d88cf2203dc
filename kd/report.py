"""Runs in, a report out: Markdown tables in the paper's form, and a plot of mAP against GFLOPs beside them.

In: a folder with runs at any depth. Out: one Markdown file and a PNG per dataset, linked relatively.
Invariant: every figure is the last checkpoint's unless it says best, on test images where the dataset has some; a
distilled run is compared only with the plain run that differs from it in nothing but the teacher.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from kd.errors import RunError
from kd.runs import Pair, Run, find_pairs, read_runs, title

LEAST_PAIRS = 5
GREEN = "#0f8a5f"
MANY_CLASSES = 8  # beyond this a column per class is no table any more


def report(folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the report of all runs below ``folder``; returns ``{runs, pairs, unfinished, out}``.

    Raises RunError where there is no finished run.
    """
    folder, out = Path(folder), Path(out)
    runs, unfinished = read_runs(folder)
    if not runs:
        found = f"{len(unfinished)} unfinished" if unfinished else "none"
        raise RunError(f"{folder}: got {found}, expected finished runs of kd train (run.json) at any depth below it")
    out.parent.mkdir(parents=True, exist_ok=True)
    pairs = find_pairs(runs)
    parts = [
        "# Runs",
        "Per cent throughout. Scores are those of the last checkpoint, not the best: a best checkpoint is chosen on "
        "the validation images and flatters itself. Each score is of the test images, or of the validation images "
        "where a dataset has no test split.",
    ]
    for i, (name, members) in enumerate(_by_dataset(runs)):
        picture = out.with_name(f"{out.stem}_gflops{f'_{i + 1}' if i else ''}.png")
        split = "test" if "test" in members[0].record["metrics"]["last"] else "val"
        counted = members[0].scores()
        parts += [f"## {name}", f"{counted['images']} {split} images with {counted['instances']} objects."]
        parts += [_models_table(members), *_pairs_part([pair for pair in pairs if pair.distilled in members])]
        parts += [f"![mAP50-95 against GFLOPs]({quote(picture.name)})"] if _plot(members, picture) else []
    parts += ["## All runs, all seeds", _runs_table(runs, out.parent)]
    if unfinished:
        lines = "\n".join(f"- {name}: {state}" for name, state in unfinished.items())
        parts += ["## Unfinished, and counted nowhere", lines]
    parts += ["## Hardware and versions", _hardware_table(runs)]
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    partial.replace(out)
    return {"runs": len(runs), "pairs": len(pairs), "unfinished": len(unfinished), "out": str(out)}


def _by_dataset(runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Runs on the same files together, under the name of their dataset: ``tiles/data.yaml``."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.record["data_sha256"], []).append(run)
    return [("/".join(Path(group[0].config["data"]).parts[-2:]), group) for group in groups.values()]


def _arms(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but the seed together: the larger networks first, the plain arm first of each."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm_key, []).append(run)
    return sorted(arms.values(), key=lambda arm: (-arm[0].record["params"], arm[0].student, arm[0].distils))


# ---------------------------------------------------------------- the tables


def _models_table(runs: list[Run]) -> str:
    """The paper's Tables 2 and 3 in one: a row per model, teacher and method, the mean over its seeds."""
    names = list(dict.fromkeys(name for run in runs for name in run.scores()["per_class"]))
    classes = names if len(names) <= MANY_CLASSES else []
    rows = []
    for arm in _arms(runs):
        first = arm[0]
        scores = [run.scores() for run in arm]
        rows.append([
            first.student, first.teacher, first.method, str(len(arm)), str(first.config["epochs"]),
            str(first.config["imgsz"]), _gflops(first), f"{first.record['params'] / 1e6:.2f} M",
            _percent(_mean(s["map50"] for s in scores)), _percent(_mean(s["map50_95"] for s in scores)),
            *(_percent(_mean(s["per_class"].get(name, {}).get("map50_95") for s in scores)) for name in classes),
        ])  # fmt: skip
    head = ["model", "teacher", "method", "seeds", "epochs", "px", "GFLOPs", "parameters", "mAP50", "mAP50-95"]
    return _table([*head, *(f"{name} mAP50-95" for name in classes)], rows)


def _pairs_part(pairs: list[Pair]) -> list[str]:
    """Plain and distilled side by side, pair by pair, then what the pairs of one arm say together."""
    if not pairs:
        return ["No distilled run here has a plain twin: same student, data, seed, epochs, image size and settings."]
    arms: dict[str, list[Pair]] = {}
    for pair in pairs:
        arms.setdefault(pair.distilled.arm_key, []).append(pair)
    rows, verdicts = [], []
    for arm in arms.values():
        run = arm[0].distilled
        for pair in sorted(arm, key=lambda pair: pair.distilled.config["seed"]):
            cells = [pair.distilled.student, pair.distilled.teacher, pair.distilled.method]
            cells.append(str(pair.distilled.config["seed"]))
            for metric in ("map50", "map50_95"):
                both = [pair.plain.scores()[metric], pair.distilled.scores()[metric]]
                cells += [*map(_percent, both), _points(pair.difference(metric))]
            rows.append(cells)
        mean = _points(_mean(pair.difference("map50_95") for pair in arm))
        count = f"{len(arm)} paired seed{'' if len(arm) == 1 else 's'}"
        verdict = f"{run.student} from {run.teacher}, {run.method}: mAP50-95 {mean} points, the mean of {count}."
        if len(arm) < LEAST_PAIRS:
            verdict += f" **Fewer than {LEAST_PAIRS} paired seeds: nothing is proven.**"
        verdicts.append(verdict)
    head = ["model", "teacher", "method", "seed", "plain mAP50", "distilled", "difference"]
    return ["### With and without distillation", _table([*head, "plain mAP50-95", *head[-2:]], rows), *verdicts]


def _runs_table(runs: list[Run], home: Path) -> str:
    rows = []
    for run in runs:
        link = quote(Path(os.path.relpath(run.folder.resolve(), home.resolve())).as_posix())
        shares = [run.scores(checkpoint)[metric] for checkpoint in ("last", "best") for metric in ("map50", "map50_95")]
        numbers = [run.config["seed"], run.record["epochs"], run.config["imgsz"], run.config["batch"]]
        rows.append([
            f"[{run.name}]({link})", run.student, run.teacher, run.method, *map(str, numbers), *map(_percent, shares),
            f"{run.record['wall_time_s']:.0f} s",
        ])  # fmt: skip
    head = ["run", "model", "teacher", "method", "seed", "epochs", "px", "batch"]
    return _table([*head, "last mAP50", "last mAP50-95", "best mAP50", "best mAP50-95", "time"], rows)


def _hardware_table(runs: list[Run]) -> str:
    machines: dict[tuple[str, str], int] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
        machines[run.record["device"], versions] = machines.get((run.record["device"], versions), 0) + 1
    return _table(["device", "versions", "runs"], [[*machine, str(count)] for machine, count in machines.items()])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _points(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.1f}"


def _gflops(run: Run) -> str:
    gflops = run.record["gflops"]
    return "-" if gflops is None else f"{gflops:.{1 if gflops >= 1 else 2}f}"


# ---------------------------------------------------------------- the plot


def _plot(runs: list[Run], path: Path) -> bool:
    """The paper's Figure 2: a faint dot per run, a mark per mean over seeds, an arrow from plain to distilled.

    Writes nothing and returns False where no run has both GFLOPs and a score.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    arms = [
        arm for arm in _arms(runs) if arm[0].record["gflops"] and _mean(r.scores()["map50_95"] for r in arm) is not None
    ]
    if not arms:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    taught = {title(spec) for run in runs for spec in run.config["teachers"]}
    styles = {"teacher": ("s", "#4f46a5"), "without distillation": ("o", "#6b7280"), "with distillation": ("^", GREEN)}
    for label, (marker, colour) in styles.items():
        mine = [arm for arm in arms if _kind(arm[0], taught) == label]
        if mine:
            dots = [run for arm in mine for run in arm if run.scores()["map50_95"] is not None]
            axes.scatter(*zip(*(_point([run]) for run in dots), strict=True), s=14, color=colour, alpha=0.35, lw=0)
            axes.scatter(
                *zip(*map(_point, mine), strict=True), s=60, marker=marker, color=colour, label=label, zorder=3
            )
    plain = {pair.distilled.arm_key: pair.plain.arm_key for pair in find_pairs(runs)}
    means = {arm[0].arm_key: _point(arm) for arm in arms}
    for distilled, twin in plain.items():
        if distilled in means and twin in means:
            arrow = {"arrowstyle": "->", "color": GREEN, "alpha": 0.7, "shrinkA": 5, "shrinkB": 5}
            axes.annotate("", means[distilled], means[twin], arrowprops=arrow)
    for student in dict.fromkeys(arm[0].student for arm in arms):
        x, top = max((_point(arm) for arm in arms if arm[0].student == student), key=lambda point: point[1])
        axes.annotate(student, (x, top), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xlabel="GFLOPs per image", ylabel="mAP50-95, %, last checkpoint")
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, dpi=160, format="png")
    partial.replace(path)
    return True


def _kind(run: Run, taught: set[str]) -> str:
    if run.distils:
        return "with distillation"
    return "teacher" if run.folder.resolve().name in taught else "without distillation"


def _point(arm: list[Run]) -> tuple[float, float]:
    """GFLOPs and mean mAP50-95 in per cent."""
    return arm[0].record["gflops"], 100 * _mean(run.scores()["map50_95"] for run in arm)
