"""Runs as they lie on the disk.

In: a folder with runs at any depth. Out: Run values, and a word about each that is not finished.
Invariant: a Run's record is as schemas/run.schema.json has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastjsonschema

import schemas
from kd.config import CLASSIC
from kd.errors import RunError
from kd.methods.fgfi_config import FgfiConfig
from schemas.strict import StrictError, read_json

CONFIG, RUN, RESULTS = "config.json", "run.json", "results.csv"  # of a run that was begun, is finished, has epochs
REPLACED = ".replaced"  # in a run's folder: the one that it takes the place of (kd/training/run_folder.py)
OPTIMIZER = ("optimizer", "lr0", "momentum", "warmup_bias_lr")  # settings that `optimizer=auto` decides


def optimizer_of(args: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer as run.json has it, of training arguments in which Ultralytics' choice stands."""
    return {"name": args["optimizer"], **{key: args[key] for key in OPTIMIZER[1:]}}


def optimizer_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make the optimizer of a run.json again, however long one trains."""
    found = dict(record["optimizer"])
    return {"optimizer": found.pop("name"), **found}


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
    def seed(self) -> int:
        """What decided initial weights and data order."""
        return self.config["seed"]

    @property
    def student(self) -> str:
        """The student's architecture, file or run."""
        return title(self.config["student"])

    @property
    def teacher(self) -> str:
        """The teachers' files or runs, or architectures of random weights, and how they teach if not as usual."""
        if not self.distils:
            return _taught_by(self.config["inherit"]) if self.taught else "-"
        names = [_taught_by(spec) for spec in self.config["teachers"]]
        weights = self.config.get("teacher_weights", [])
        if len(set(weights)) > 1:
            names = [f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True)]
        if self.config.get("combine") == "best":
            names.append("best per image")
        if self.config.get("teacher_imgsz"):
            names.append(f"at {self.config['teacher_imgsz']} px")
        return ", ".join(names)

    @property
    def method(self) -> str:
        """``plain``, or the methods with their weights, and what else the terms were made of."""
        weighted = [f"{name} {weight:g}" if weight else name for name, weight in self.config["methods"].items()]
        variant = _variant(self.config.get("fgfi", {}))
        if variant:
            weighted = [f"{word} ({variant})" if word.partition(" ")[0] == "fgfi" else word for word in weighted]
        inherited = [self._inherited] if "inherit" in self.config else []
        balance = [f"balance {self.config['balance']:g}"] if "balance" in self.config else []
        every = [f"every {self.config['every']} steps"] if "every" in self.config else []
        images = ["unlabeled images"] if "unlabeled" in self.config else []
        terms = " + ".join([*inherited, *weighted]) or "plain"
        return ", ".join([terms, *balance, *self.config.get("schedules", []), *every, *images])

    @property
    def _inherited(self) -> str:
        """``inherited``, and from whom where that is none of the teachers."""
        source = self.config["inherit"]
        of_teacher = source in (self.config["teachers"] or [source])
        return "inherited" if of_teacher else f"inherited from {_taught_by(source)}"

    @property
    def distils(self) -> bool:
        """Whether it had a teacher to imitate."""
        return bool(self.config["teachers"])

    @property
    def sources(self) -> list[str]:
        """All that it learned from: the teachers that it imitated, and the one whose weights it inherited."""
        inherit = self.config.get("inherit")
        return list(dict.fromkeys([*self.config["teachers"], *([inherit] if inherit else [])]))

    @property
    def taught(self) -> bool:
        """Whether it had anything of a teacher, if only its first weights; a plain run had nothing."""
        return bool(self.sources)

    @property
    def optimizer(self) -> str:
        """What trained it: 'AdamW, lr0 0.001667, momentum 0.9, ...'."""
        found = self.record["optimizer"]
        return ", ".join([found["name"], *(f"{key} {found[key]}" for key in OPTIMIZER[1:])])

    def scores(self, checkpoint: str = "last") -> dict[str, Any]:
        """A checkpoint's scores on test, or on val where there is no test split."""
        by_split = self.record["metrics"][checkpoint]
        return by_split.get("test", by_split["val"])


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a finished run's run.json. Raises RunError where it is none of kd train."""
    path = folder / RUN
    record = read_by_schema(path, "run", "kd train")
    if ("inherit" in record["config"]) != ("inherited" in record):
        raise RunError(
            f"{path}: config.inherit: got {record['config'].get('inherit', 'none')}, and "
            f"{'an' if 'inherited' in record else 'no'} account of inherited weights: expected a file that kd train "
            f"wrote"
        )
    teachers, weights = record["config"]["teachers"], record["config"].get("teacher_weights")
    if bool(teachers) != bool(record["kd"]) or len(weights or teachers) != len(teachers):
        raise RunError(
            f"{path}: got {len(teachers)} teachers, weights for {len(weights or teachers)}, and "
            f"{'what they taught' if record['kd'] else 'nothing learned'}, which contradict each other: expected a "
            f"file that kd train wrote"
        )
    return record


def read_by_schema(path: Path, schema: str, tool: str) -> dict[str, Any]:
    """The content of a JSON file that ``tool`` writes by a schema. Raises RunError where it is none."""
    try:
        return _check(schema)(read_json(path))
    except OSError as error:
        raise RunError(f"{path}: got {error.strerror}, expected a file that {tool} wrote") from error
    except StrictError as error:
        raise RunError(f"{path}: {error}, expected a file that {tool} wrote") from error
    except fastjsonschema.JsonSchemaValueException as error:
        place = ".".join(map(str, error.path[1:])) or "all of it"
        reason = error.message.removeprefix(error.name or "").strip()
        raise RunError(
            f"{path}: {place}: got {str(error.value)[:60]!r}, which {reason[:160]}: expected a file that {tool} wrote"
        ) from error


@lru_cache
def _check(schema: str) -> Callable[[Any], Any]:
    return fastjsonschema.compile(schemas.load(schema), use_default=False)


def read_runs(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The finished runs below ``folder``, sorted by name, and the others: name -> what is amiss."""
    runs, unfinished = [], {}
    files = [path for name in (RUN, CONFIG) for path in folder.rglob(name)]
    folders = {path.parent for path in files if REPLACED not in path.relative_to(folder).parts}
    for place in sorted(folders):
        name = place.relative_to(folder).as_posix() if place != folder else place.resolve().name
        try:
            if (place / RUN).exists():
                runs.append(Run(place, name, read_run(place)))
            elif asked := read_config(place):
                unfinished[name] = f"{epochs_done(place)} of {asked['epochs']} epochs done"
        except RunError as error:
            unfinished[name] = f"run.json is none of kd train ({str(error).removeprefix(f'{place}/run.json: ')})"
        except (OSError, StrictError) as error:
            unfinished[name] = f"{CONFIG}: {getattr(error, 'strerror', None) or error}"
    return runs, unfinished


def read_config(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder was asked to do, by its config.json; None where that is another program's.

    Raises StrictError, and OSError where it cannot be read.
    """
    content = read_json(folder / CONFIG)
    config = content.get("config") if isinstance(content, dict) else None
    return config if isinstance(config, dict) and "epochs" in config else None


def epochs_done(folder: Path) -> int:
    """Rows of a run's results.csv; 0 without one."""
    try:
        return max(0, len((folder / RESULTS).read_bytes().splitlines()) - 1)
    except OSError:
        return 0


def _variant(fgfi: dict[str, Any]) -> str:
    """What of fgfi's options is not as usual.

    >>> _variant({"threshold": 0.3, "assigned": False, "kernel": 1, "soft": True})
    'threshold 0.3, soft'
    """
    usual = asdict(FgfiConfig())
    unusual = {key: value for key, value in fgfi.items() if value != usual[key]}
    if "priors" in unusual:
        unusual["priors"] = "own"
    if "defects" in unusual:
        unusual["defects"] = " and ".join(unusual["defects"])
    return ", ".join(key if value is True else f"{key} {value}" for key, value in unusual.items())


def _taught_by(spec: str) -> str:
    is_file = Path(spec).suffix.lower() == ".pt"  # as `kd.ultra.models.load_model` tells weights from an architecture
    return title(spec) if is_file else f"random {title(spec)}"


def title(spec: str) -> str:
    """The run's folder for a run's weights, with two more above a seed's; else the file's name without its ending.

    A classic model's name, which is no file's, stays as it is.

    >>> title("runs/teacher/weights/best.pt"), title("out/runs/yolov5m/plain/seed0/weights/best.pt"), title("yolov5n")
    ('teacher', 'yolov5m/plain/seed0', 'yolov5n')
    """
    path = Path(spec)
    if path.parent.name != "weights" or path.stem not in ("best", "last"):
        return spec if spec.startswith(CLASSIC) else path.stem
    folder = path.parent.parent
    return "/".join(folder.parts[-3:]) if re.fullmatch(r"seed\d+", folder.name) else folder.name
