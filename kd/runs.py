"""Finished runs as they lie on the disk, and which of them are a distilled run and its plain twin.

In: a folder with runs at any depth. Out: Run and Pair values.
Invariant: a distilled run is paired only with the plain run that differs from it in nothing but the teacher.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastjsonschema

import schemas


@dataclass(frozen=True)
class Run:
    """One finished run: its folder and the content of its run.json (schemas/run.schema.json)."""

    folder: Path
    name: str  # the folder as seen from the report's source
    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """What the run was asked to do."""
        return self.record["config"]

    @property
    def student(self) -> str:
        """The student's architecture, file or run."""
        return title(self.config["student"])

    @property
    def teacher(self) -> str:
        """The teachers' architectures, files or runs."""
        return ", ".join(map(title, self.config["teachers"])) or "-"

    @property
    def method(self) -> str:
        """``plain``, or the methods with their weights."""
        return " + ".join(f"{name} {weight:g}" for name, weight in self.config["methods"].items()) or "plain"

    @property
    def distils(self) -> bool:
        """Whether it had a teacher."""
        return bool(self.config["teachers"])

    def scores(self, checkpoint: str = "last") -> dict[str, Any]:
        """A checkpoint's scores on test, or on val where there is no test split."""
        by_split = self.record["metrics"][checkpoint]
        return by_split.get("test", by_split["val"])

    @property
    def twin_key(self) -> str:
        """What a distilled run and its plain twin have in common: all but the teacher."""
        start = self.record["student_sha256"] or self.config["student"]
        same = [self.config[key] for key in ("seed", "epochs", "imgsz", "batch", "freeze", "settings")]
        return json.dumps([self.record["data_sha256"], start, same], sort_keys=True)

    @property
    def arm_key(self) -> str:
        """What runs have in common that differ in nothing but the seed."""
        asked = {key: value for key, value in self.config.items() if key not in ("data", "out", "device", "seed")}
        taught = self.record["kd"] and self.record["kd"]["teacher_sha256"]
        return json.dumps([self.record["data_sha256"], self.record["student_sha256"], taught, asked], sort_keys=True)


@dataclass(frozen=True)
class Pair:
    """A distilled run and its plain twin."""

    distilled: Run
    plain: Run

    def difference(self, metric: str) -> float | None:
        """Distilled minus plain, as a share; None where either has no score."""
        after, before = self.distilled.scores()[metric], self.plain.scores()[metric]
        return None if after is None or before is None else after - before


def read_runs(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The finished runs below ``folder``, sorted by name, and the others: name -> what is amiss."""
    check = fastjsonschema.compile(schemas.load("run"), use_default=False)
    runs, unfinished = [], {}
    folders = {path.parent for name in ("run.json", "config.json") for path in folder.rglob(name)}
    for place in sorted(folders):
        name = place.relative_to(folder).as_posix() if place != folder else place.resolve().name
        try:
            if (place / "run.json").exists():
                runs.append(Run(place, name, check(json.loads((place / "run.json").read_bytes()))))
            else:
                asked = json.loads((place / "config.json").read_bytes())["config"]["epochs"]
                unfinished[name] = f"{_epochs_done(place)} of {asked} epochs done"
        except (ValueError, fastjsonschema.JsonSchemaValueException) as error:
            unfinished[name] = f"run.json is none of kd train ({str(error).splitlines()[0]})"
        except (KeyError, TypeError):
            continue  # another program's config.json
    return runs, unfinished


def find_pairs(runs: Iterable[Run]) -> list[Pair]:
    """Each distilled run with its plain twin, where there is one."""
    plain = {run.twin_key: run for run in runs if not run.distils}
    return [Pair(run, plain[run.twin_key]) for run in runs if run.distils and run.twin_key in plain]


def _epochs_done(place: Path) -> int:
    results = place / "results.csv"
    return max(0, len(results.read_text(encoding="utf-8").splitlines()) - 1) if results.exists() else 0


def title(spec: str) -> str:
    """The run's folder for a run's weights, else the file's name without its ending."""
    path = Path(spec)
    return path.parent.parent.name if path.parent.name == "weights" and path.stem in ("best", "last") else path.stem
