"""Runs in, a report out: Markdown tables in the paper's form, and a GFLOPs-against-mAP plot beside them.

Every figure is the last checkpoint's, on test where there is one; the best checkpoint's stand beside. A distilled
run is compared only with plain runs of the same student, data, seed, epochs, image size and settings.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import fastjsonschema

import schemas
from kd.errors import RunError

LEAST_PAIRS = 5


@dataclass(frozen=True)
class Run:
    """One finished run and the folder's name relative to the report's source."""

    name: str
    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """What the run was asked to do."""
        return self.record["config"]

    @property
    def student(self) -> str:
        """The student's architecture or file, without folders and endings."""
        return Path(self.config["student"]).stem

    @property
    def method(self) -> str:
        """``plain``, or the methods with their weights."""
        return " + ".join(f"{name} {weight:g}" for name, weight in self.config["methods"].items()) or "plain"

    @property
    def teacher(self) -> str:
        """The teachers' runs or files."""
        return ", ".join(_title(path) for path in self.config["teachers"]) or "-"

    def scores(self, checkpoint: str = "last") -> dict[str, Any]:
        """The checkpoint's scores on test, or on val if there is no test split."""
        by_split = self.record["metrics"][checkpoint]
        return by_split.get("test", by_split["val"])

    @property
    def twin_key(self) -> str:
        """What a distilled run and its plain twin have in common."""
        same = ("student", "epochs", "imgsz", "batch", "seed", "freeze", "settings")
        content = [self.record["data_sha256"], self.record["student_sha256"], [self.config[key] for key in same]]
        return json.dumps(content, sort_keys=True)


def report(folder: Path, out: Path) -> dict[str, Any]:
    """Write the Markdown report of all runs below ``folder`` and its plot; returns counts and paths.

    Raises RunError if there is no finished run, or a run.json is not one of ours.
    """
    runs, unfinished = read_runs(folder)
    if not runs:
        found = f"{len(unfinished)} unfinished" if unfinished else "none"
        raise RunError(f"{folder}: got {found}, expected finished runs of kd train (run.json) at any depth below it")
    pairs = _pairs(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = out.with_name(f"{out.stem}_gflops.png")
    plotted = _plot(runs, picture)
    parts = [
        "# Runs\n",
        _hardware(runs),
        _runs_table(runs),
        _pairs_table(pairs),
        f"## mAP against GFLOPs\n\n![mAP50-95 against GFLOPs]({picture.name})\n" if plotted else "",
        _appendix(runs, unfinished),
    ]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    temporary.replace(out)
    return {"runs": len(runs), "unfinished": len(unfinished), "pairs": len(pairs), "out": str(out)}


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """The finished runs below ``folder``, sorted by name, and the names of unfinished ones. Raises RunError."""
    check = fastjsonschema.compile(schemas.load("run"), use_default=False)
    runs, unfinished = [], []
    for config in sorted(folder.rglob("config.json")):
        name = config.parent.relative_to(folder).as_posix()
        path = config.parent / "run.json"
        if not path.exists():
            unfinished.append(name)
            continue
        try:
            runs.append(Run(name if name != "." else folder.resolve().name, check(json.loads(path.read_bytes()))))
        except (ValueError, fastjsonschema.JsonSchemaValueException) as error:
            raise RunError(f"{path}: {error}; expected a run.json of kd train, see run.schema.json") from error
    return runs, unfinished


def _pairs(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Each distilled run with the plain run that differs in nothing else, where there is one."""
    plain = {run.twin_key: run for run in runs if run.method == "plain"}
    return [(run, plain[run.twin_key]) for run in runs if run.method != "plain" and run.twin_key in plain]


# --- the parts of the report -----------------------------------------------------------------------------


def _runs_table(runs: list[Run]) -> str:
    classes = list(dict.fromkeys(name for run in runs for name in run.scores()["per_class"]))
    head = ["run", "model", "teacher", "method", "seed", "parameters", "GFLOPs", "mAP50", "mAP50-95", *classes]
    rows = []
    for run in runs:
        scores = run.scores()
        gflops = run.record["gflops"]
        per_class = [scores["per_class"].get(name, {}).get("map50_95") for name in classes]
        rows.append([
            run.name, run.student, run.teacher, run.method, str(run.config["seed"]), f"{run.record['params']:,}",
            "-" if gflops is None else f"{gflops:.2f}", _percent(scores["map50"]), _percent(scores["map50_95"]),
            *map(_percent, per_class),
        ])  # fmt: skip
    note = (
        "Last checkpoint, test images (validation images where there is no test split); per class: mAP50-95. Per cent."
    )
    return f"## Models\n\n{note}\n\n{_table(head, rows)}"


def _pairs_table(pairs: list[tuple[Run, Run]]) -> str:
    if not pairs:
        return "## With and without distillation\n\nNo distilled run has a plain run that differs in nothing else.\n"
    head = ["student", "teacher", "method", "seed", "plain", "distilled", "difference"]
    rows, differences = [], {}
    for distilled, plain in pairs:
        before, after = plain.scores()["map50_95"], distilled.scores()["map50_95"]
        difference = None if before is None or after is None else after - before
        if difference is not None:
            differences.setdefault((distilled.student, distilled.teacher, distilled.method), []).append(difference)
        rows.append([
            distilled.student, distilled.teacher, distilled.method, str(distilled.config["seed"]),
            _percent(before), _percent(after), "-" if difference is None else f"{100 * difference:+.1f}",
        ])  # fmt: skip
    lines = [f"## With and without distillation\n\nmAP50-95, last checkpoint, paired by seed.\n\n{_table(head, rows)}"]
    for (student, teacher, method), values in differences.items():
        count = f"{len(values)} pair" + ("s" if len(values) > 1 else "")
        mean = f"{student} from {teacher}, {method}: mean difference {100 * fmean(values):+.1f} points over {count}."
        few = f" Fewer than {LEAST_PAIRS} pairs prove nothing." if len(values) < LEAST_PAIRS else ""
        lines.append(mean + few + "\n")
    return "\n".join(lines)


def _hardware(runs: list[Run]) -> str:
    devices = sorted({run.record["device"] for run in runs})
    versions = sorted({", ".join(f"{k} {v}" for k, v in run.record["versions"].items()) for run in runs})
    return f"Hardware: {'; '.join(devices)}. Versions: {'; '.join(versions)}.\n"


def _appendix(runs: list[Run], unfinished: list[str]) -> str:
    head = [
        "run",
        "seed",
        "epochs",
        "imgsz",
        "batch",
        "last mAP50",
        "last mAP50-95",
        "best mAP50",
        "best mAP50-95",
        "time",
    ]
    rows = []
    for run in runs:
        last, best = run.scores("last"), run.scores("best")
        shares = [last["map50"], last["map50_95"], best["map50"], best["map50_95"]]
        numbers = [run.config["seed"], run.record["epochs"], run.config["imgsz"], run.config["batch"]]
        rows.append([run.name, *map(str, numbers), *map(_percent, shares), f"{run.record['wall_time_s']:.0f} s"])
    left = f"\nUnfinished, not counted: {', '.join(unfinished)}.\n" if unfinished else ""
    return f"## All runs, all seeds\n\n{_table(head, rows)}{left}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _title(path: str) -> str:
    """A run's folder for its weights, else the file's name."""
    file = Path(path)
    return file.parent.parent.name if file.parent.name == "weights" else file.stem


# --- the plot --------------------------------------------------------------------------------------------


def _plot(runs: list[Run], path: Path) -> bool:
    """mAP50-95 against GFLOPs, a point per run, an arrow from each plain to its distilled run; False without any."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    points = [run for run in runs if run.record["gflops"] is not None and run.scores()["map50_95"] is not None]
    if not points:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    styles = {
        "teacher": {"marker": "s", "color": "#5b5b8c"},
        "without distillation": {"marker": "o", "color": "#9a9a9a"},
        "with distillation": {"marker": "^", "color": "#1b7f4d"},
    }
    taught = {_title(path) for run in runs for path in run.config["teachers"]}
    kinds = [_kind(run, taught) for run in points]
    for kind, style in styles.items():
        members = [run for run, its_kind in zip(points, kinds, strict=True) if its_kind == kind]
        if members:
            x, y = zip(*[_point(run) for run in members], strict=True)
            axes.scatter(x, y, s=60, label=kind, zorder=3, **style)
    for distilled, plain in _pairs(points):
        axes.annotate(
            "", _point(distilled), _point(plain), arrowprops={"arrowstyle": "->", "color": "#1b7f4d", "alpha": 0.6}
        )
    for name in sorted({run.student for run in points}):
        members = [_point(run) for run in points if run.student == name]
        axes.annotate(
            name, (members[0][0], max(y for _, y in members)), xytext=(0, 8), textcoords="offset points", ha="center"
        )
    axes.set(xlabel="GFLOPs per image", ylabel="mAP50-95, %", title="Accuracy against cost")
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
    return True


def _kind(run: Run, taught: set[str]) -> str:
    if run.method != "plain":
        return "with distillation"
    return "teacher" if run.name.rpartition("/")[2] in taught else "without distillation"


def _point(run: Run) -> tuple[float, float]:
    return run.record["gflops"], 100 * run.scores()["map50_95"]
