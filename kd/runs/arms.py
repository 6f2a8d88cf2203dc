"""Arms of runs, and which runs are each other's twins: the one place that says so, for comparisons and reports.

In: finished runs. Out: arms (runs that differ in nothing but the seed) and pairs of runs of one seed.
Invariant: twins differ in nothing but the teacher.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kd.runs.record import OPTIMIZER, Run

Arm = list[Run]  # runs that differ in nothing but the seed, by seed
#: What two runs must share to be compared at all, what people get wrong most often first; twins share the rest too.
COMPARABLE = ("data", "epochs", "imgsz", "student", "optimizer")
TWINS = (*COMPARABLE, "batch", "freeze", "settings", "anchors", "seed")


class Pair(NamedTuple):
    """A run and what it is held against: as a rule a distilled run and its plain twin."""

    run: Run
    baseline: Run


@dataclass(frozen=True)
class Contrast:
    """A distilled arm, a plain arm, and their runs by seed."""

    arm: Arm
    plain: Arm
    pairs: list[Pair]

    @property
    def longer(self) -> bool:
        """Whether the plain runs had other epochs: equal time, say, in place of equal epochs."""
        return epochs_of(self.arm) != epochs_of(self.plain)


def unlike(run: Run, other: Run, keys: Collection[str] = TWINS) -> list[tuple[str, Any, Any]]:
    """What two runs do not share of ``keys``, in their order: name, the run's value, the other's."""
    own, theirs = _facts(run), _facts(other)
    return [(key, own[key], theirs[key]) for key in keys if own[key] != theirs[key]]


def _facts(run: Run) -> dict[str, Any]:
    """What runs may share, by name.

    Settings are those that the optimizer does not say: what `optimizer=auto` chose may be asked for by name elsewhere,
    as in a sweep's runs of equal time.
    """
    return {
        **run.config,
        "settings": {key: value for key, value in run.config["settings"].items() if key not in OPTIMIZER},
        "data": run.record["data_sha256"][:12],
        "student": run.record["student_sha256"] or run.config["student"],
        "optimizer": run.optimizer,
        "anchors": run.record.get("anchors"),
    }


def twins_of(runs: Iterable[Run]) -> list[Pair]:
    """Each distilled run with its plain twin, the first one, where there is any."""
    distilled: list[Run] = []
    plain: dict[int, list[Run]] = {}
    for run in runs:
        (distilled if run.taught else plain.setdefault(run.seed, [])).append(run)
    twins = ([Pair(run, other) for other in plain.get(run.seed, ()) if not unlike(run, other)] for run in distilled)
    return [found[0] for found in twins if found]


def pair_by_seed(runs: Iterable[Run], baseline: Iterable[Run]) -> list[Pair]:
    """The runs of two arms that share a seed, by seed."""
    theirs = {run.seed: run for run in baseline}
    return [Pair(run, theirs[run.seed]) for run in sorted(runs, key=lambda run: run.seed) if run.seed in theirs]


def arm_key(run: Run, *but: str) -> str:
    """What runs have in common that differ in nothing but the seed, and in ``but``."""
    left_out = ("data", "out", "device", "seed", "teacher_cache", *but)
    asked = {key: value for key, value in run.config.items() if key not in left_out}
    taught = [teacher["sha256"] for teacher in run.record["kd"]["teachers"]] if run.distils else None
    inherited = run.record["inherited"]["teacher_sha256"] if "inherit" in run.config else None
    content = [run.record["data_sha256"], run.record["student_sha256"], taught, inherited, asked]
    return json.dumps(content, sort_keys=True)


def arms_of(runs: Iterable[Run]) -> tuple[list[Arm], dict[str, str]]:
    """Arms, the smaller networks first and plain before distilled, and runs left out: name -> why.

    Folders ``seed<k>`` beside each other are one arm also where their epochs differ, as those of a sweep do that
    trains for equal wall-clock time.
    """
    arms: dict[Any, dict[int, Run]] = {}
    repeats: dict[str, str] = {}
    for run in runs:
        beside = re.fullmatch(r"seed\d+", run.folder.name)
        key = (run.folder.parent, arm_key(run, "epochs")) if beside else arm_key(run)
        first = arms.setdefault(key, {}).setdefault(run.seed, run)
        if first is not run:
            repeats[run.name] = f"the same as {first.name}, seed {run.seed} included"
    ordered = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in arms.values()]
    ordered.sort(key=lambda arm: (arm[0].record["params"], arm[0].student, arm[0].taught, epochs_of(arm)))
    return ordered, repeats


def contrasts_of(arms: Sequence[Arm]) -> list[Contrast]:
    """Each distilled arm with the plain arms that differ from it in nothing but the teacher and, maybe, the epochs."""
    kin = [key for key in TWINS if key not in ("epochs", "seed")]
    found = []
    for arm in (arm for arm in arms if arm[0].taught):
        plain = [other for other in arms if not other[0].taught and not unlike(arm[0], other[0], kin)]
        mine = [Contrast(arm, other, pair_by_seed(arm, other)) for other in plain]
        found += sorted((one for one in mine if one.pairs), key=lambda one: one.longer)
    return found


def epochs_of(arm: Arm) -> list[int]:
    """The different numbers of epochs in an arm, ascending."""
    return sorted({run.config["epochs"] for run in arm})
