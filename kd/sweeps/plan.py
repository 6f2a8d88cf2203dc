"""Plans of `kd sweep`: YAML in, the runs that it asks for out.

In: a plan's file or the name of a shipped one, and changes from the command line. Out: Jobs in the order in which they
are started, each the options of one `kd train`.
Invariant: expansion is pure: the same plan (schemas/plan.schema.json) gives the same jobs under the same names, every
name stays below OUT, and what a run would refuse of its options is refused before the first one starts.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import fastjsonschema
import yaml

import schemas
from kd.config import CLASSIC, TrainConfig
from kd.errors import KdError, PlanError, UsageError
from kd.options import OPTIONS, train_values, words_of
from kd.reports.published import read_published
from kd.sweeps.job import Job
from schemas import strict
from schemas.text import one_line

SHIPPED = Path(__file__).parent / "plans"
PLAIN = "plain"  # the arm that the others are held against
DECIDED = frozenset({"data", "student", "teacher", "inherit", "seed"})  # options of kd train that the sweep gives
MOST_RUNS = 10_000  # a week of runs of a minute each
TEACHER_KEYS = frozenset({"student", "weights", "plain", "seed"})
MODELS = ("teacher", "inherit")  # options of an arm that name a teacher of the plan
ARM_KEYS = frozenset({*MODELS, "students", "wall_time_of"})


def read_plan(spec: str | Path, data: str | Path | None = None, changes: Sequence[str] = ()) -> dict[str, Any]:
    """A plan's content, checked, with absolute paths; ``spec`` is a file or the name of a shipped plan.

    ``data`` and ``changes`` (``settings.epochs=3``: a dotted key, a YAML value) go before what the file says; their
    paths are relative to where you are, the file's to the file. Raises PlanError, UsageError for a change of no form.
    """
    file = Path(spec)
    if not file.is_file():
        shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
        file = SHIPPED / f"{spec}.yaml"
        if str(spec) not in shipped:
            raise PlanError(f"{spec}: no such file, expected a plan, or the name of one: {', '.join(shipped)}")
    try:
        plan = strict.read_yaml(file)
    except strict.StrictError as error:
        raise PlanError(f"{file}: {error}: expected a plan, as schemas/plan.schema.json has it") from error
    if isinstance(plan, dict):
        for change in changes:
            _change(plan, change)
        if data is not None:
            plan["data"] = str(Path(data).resolve())
    _check(plan, str(spec))
    plan = _with_paths(plan, file.resolve().parent)
    _check_references(plan, str(spec))
    _check_runs(plan, str(spec))
    if "published" in plan:
        with refused(f"{spec}: published"):
            read_published(plan["published"])
    return plan


def to_yaml(plan: Mapping[str, Any]) -> str:
    """A plan as a file that the strict reader reads back as it is."""
    return yaml.dump(dict(plan), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that the strict reader would take for numbers: PyYAML writes 1e-3 bare, for YAML 1.1 has no such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        bare = strict.word(text) == text
    except strict.StrictError:
        bare = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else "'")


_Dumper.add_representer(str, _text)


def expand(plan: Mapping[str, Any]) -> list[Job]:
    """The runs of a checked plan: teachers first, then seed by seed, so that what is finished early is paired."""
    students = {student_name(spec): spec for spec in plan["students"]}
    data, first = {"data": plan["data"]}, plan["seeds"][0]
    jobs, taught = [], {}
    for name, teacher in plan.get("teachers", {}).items():
        if "plain" in teacher:
            taught[name] = f"runs/{student_name(teacher['plain'])}/{PLAIN}/seed{first}"
        elif "student" in teacher:
            taught[name] = f"teachers/{name}"
            options = {**data, **_merged(_settings(plan, teacher["student"]), teacher), "student": teacher["student"]}
            jobs.append(Job(taught[name], options | {"seed": teacher.get("seed", 0)}))
    for seed in plan["seeds"]:
        for student, spec in students.items():
            for arm, own in plan["arms"].items():
                if spec not in own.get("students", plan["students"]):
                    continue
                settings = plan.get("settings", {}) if "inherit" in own else _settings(plan, spec)
                options = {**data, **_merged(settings, own), "student": spec, "seed": seed}
                models = {}
                for key, name in ((key, own[key]) for key in MODELS if key in own):
                    if isinstance(name, dict):
                        options |= {key: name["random"], "allow-weak-teacher": True}
                    elif name in taught:
                        models[key] = taught[name]
                    else:
                        options[key] = plan["teachers"][name]["weights"]
                longer = own.get("wall_time_of")
                times = (
                    (f"runs/{student}/{longer}/seed{seed}", f"runs/{student}/{PLAIN}/seed{seed}") if longer else None
                )
                jobs.append(Job(f"runs/{student}/{arm}/seed{seed}", options, models, times))
    order = {name: i for i, name in enumerate(_in_order(jobs))}
    return sorted(jobs, key=lambda job: order[job.name])


def require_extends(before: Sequence[Job], now: Sequence[Job], out: Path) -> None:
    """Raise PlanError unless every run of the earlier plan is in this one, unchanged but for the device."""
    jobs = {job.name: job for job in now}
    for job in before:
        if job.name not in jobs:
            raise PlanError(
                f"{out}: got a plan without {job.name}, expected all runs of the plan that was begun here: seeds, "
                f"arms and students may be added; choose another --out for less"
            )
        new = jobs[job.name]
        sides = [
            {**side.options, **side.models, "the time of": side.time_of and side.time_of[0]} for side in (job, new)
        ]
        for key in sorted((sides[0].keys() | sides[1].keys()) - {"device"}):
            if sides[0].get(key) != sides[1].get(key):
                raise PlanError(
                    f"{out}: {job.name}: {key}: got {sides[1].get(key)}, expected {sides[0].get(key)} as in the plan "
                    f"that was begun here: choose another --out"
                )


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line.

    >>> arguments({"epochs": 3, "method": {"cwd": 1.0}, "set": {"lr0": 0.1}, "allow-weak-teacher": True})
    ['--epochs', '3', '--method', 'cwd=1.0', '--set', 'lr0=0.1', '--allow-weak-teacher']
    """
    words: list[str] = []
    for key, value in options.items():
        if isinstance(value, dict):
            value = [f"{name}={part}" for name, part in value.items()]
        if value is True:
            words.append(f"--{key}")
        elif value is not False and value is not None:
            for part in value if isinstance(value, list) else [value]:
                words += [f"--{key}", str(part)]
    return words


def student_name(spec: str) -> str:
    """The folder of a student's runs: its model name, or its file's without the ending.

    >>> student_name("yolov5n"), student_name("../models/N5.YAML"), student_name("classic/yolov5n")
    ('yolov5n', 'N5', 'classic-yolov5n')
    """
    if spec.startswith(CLASSIC):
        return spec.replace("/", "-")
    return Path(spec).stem if Path(spec).suffix.lower() in (".pt", ".yaml", ".yml") else spec


def weights_of(plan: Mapping[str, Any], spec: str) -> Path | None:
    """The checkpoint that a student or a teacher starts from by the plan's folder ``pretrained``."""
    if "pretrained" not in plan or Path(spec).suffix.lower() == ".pt":
        return None
    return Path(plan["pretrained"], f"{Path(spec).stem if spec.startswith(CLASSIC) else student_name(spec)}.pt")


def _settings(plan: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """The options of every run, with those weights."""
    settings, weights = plan.get("settings", {}), weights_of(plan, spec)
    return {**settings, "set": {"pretrained": str(weights), **settings.get("set", {})}} if weights else settings


def _is_component(name: str) -> bool:
    """Whether a text names one folder of its own, on every system that runs may be copied to."""
    return (
        bool(name) and name.isprintable() and not re.search(r'[\\/:*?"<>|]|^[.\s-]|[.\s]$', name) and len(name) <= 100
    )


def _merged(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Options of one run, its own before everybody's, with dashes as on the command line."""
    both = {**settings, **own, "set": {**settings.get("set", {}), **own.get("set", {})}}
    if not both["set"]:
        del both["set"]
    return {key.replace("_", "-"): value for key, value in both.items() if key not in TEACHER_KEYS | ARM_KEYS}


def _in_order(jobs: Sequence[Job]) -> Iterator[str]:
    """Names such that each comes after those it needs, the given order otherwise kept."""
    by_name, given = {job.name: job for job in jobs}, set()

    def visit(name: str) -> Iterator[str]:
        if name not in given:
            given.add(name)
            for other in by_name[name].after:
                yield from visit(other)
            yield name

    for job in jobs:
        yield from visit(job.name)


# ---------------------------------------------------------------- checks


def _change(plan: dict[str, Any], text: str) -> None:
    """Carry out one ``settings.epochs=3`` on a plan."""
    key, equals, value = text.partition("=")
    *path, last = key.split(".")
    if not equals or not last:
        raise UsageError(f"--set: got {text!r}, expected KEY=VALUE such as settings.epochs=10")
    try:
        parsed = strict.load_yaml(value)
    except strict.StrictError as error:
        raise UsageError(
            f"--set {key}: got {value[:60]!r}, expected a YAML value such as 10 or [0, 1]: {error}"
        ) from error
    for i, step in enumerate(path):
        plan = plan.setdefault(step, {})
        if not isinstance(plan, dict):
            raise UsageError(f"--set {key}: got a key below {'.'.join(path[: i + 1])}, expected one of the plan's")
    plan[last] = _map_strings(parsed, lambda text: _located(text, Path.cwd()))
    if key == "pretrained":
        plan[last] = str(Path(plan[last]).resolve())


def _check(plan: Any, name: str) -> None:
    if not isinstance(plan, dict) or not plan.keys() & {"students", "arms", "seeds"}:
        raise PlanError(
            f"{name}: got {_shown(plan)}, expected a plan, with students, arms and seeds: schemas/plan.schema.json has "
            f"it all; a dataset's data.yaml is given by --data"
        )
    try:
        fastjsonschema.compile(schemas.load("plan"), use_default=False)(plan)
    except fastjsonschema.JsonSchemaValueException as error:
        place = ".".join(map(str, error.path[1:])) or "the plan"
        message = error.message.removeprefix(error.name or "").strip()
        raise PlanError(
            f"{name}: {place}: got {_shown(error.value)}, {message}: see schemas/plan.schema.json"
        ) from error


def _shown(value: Any) -> str:
    """A value of a plan, whole if it is short; of a mapping its keys.

    >>> _shown({"train": "images/train", "names": {0: "red"}}), _shown([0, 0])
    ('the keys train, names', '[0, 0]')
    """
    return one_line(f"the keys {', '.join(map(str, value))}" if value and isinstance(value, dict) else value, 80)


def _check_references(plan: Mapping[str, Any], name: str) -> None:
    """Raise PlanError where the plan names what it does not have, or says two things at once."""

    def refuse(place: str, got: Any, expected: str) -> None:
        raise PlanError(f"{name}: {place}: got {got}, expected {expected}")

    if not plan.get("data"):
        refuse("data", "none", "a data.yaml: name it there or by --data")
    if not Path(plan["data"]).is_file():
        refuse("data", plan["data"], "a file that is there")
    if not plan["data"].isprintable():
        refuse("data", repr(plan["data"]), "a path of printable characters, for plan.yaml holds it")
    folders = [student_name(spec) for spec in plan["students"]]
    for place, names in (("students", folders), ("teachers", plan.get("teachers", {})), ("arms", plan["arms"])):
        for name in names:
            if not _is_component(name):
                refuse(place, repr(name), "the name of one folder, for that is where its runs go")
        if len({name.lower() for name in names}) < len(names):
            refuse(place, ", ".join(names), "different names, also without regard to case, for each has a folder")
    teachers, arms, students = plan.get("teachers", {}), plan["arms"], plan["students"]
    for spec in (*students, *(teacher["student"] for teacher in teachers.values() if "student" in teacher)):
        weights = weights_of(plan, spec)
        if weights and not weights.is_file():
            refuse("pretrained", f"no {weights}", f"the weights of {spec} there")
    _check_options("settings", plan.get("settings", {}), frozenset(), refuse)
    plain = arms[PLAIN]
    if plain.keys() & {"teacher", "inherit", "method", "wall_time_of"}:
        refuse(f"arms.{PLAIN}", ", ".join(plain), "no teacher: it is what the others are held against")
    for key, teacher in teachers.items():
        forms = [form for form in ("student", "weights", "plain") if form in teacher]
        if len(forms) != 1:
            refuse(f"teachers.{key}", ", ".join(forms) or "none", "one of student, weights and plain")
        if "weights" in teacher and not Path(teacher["weights"]).is_file():
            refuse(f"teachers.{key}.weights", teacher["weights"], "a file that is there")
        if "plain" in teacher and teacher["plain"] not in plain.get("students", students):
            refuse(f"teachers.{key}.plain", teacher["plain"], f"a student with a plain run: {', '.join(students)}")
        if forms != ["student"] and len(teacher) > 1:
            refuse(f"teachers.{key}", ", ".join(teacher), f"{forms[0]} alone: it is not trained for itself")
        _check_options(f"teachers.{key}", teacher, TEACHER_KEYS, refuse)
    for key, arm in arms.items():
        teacher, longer = arm.get("teacher"), arm.get("wall_time_of")
        unknown = [spec for spec in arm.get("students", ()) if spec not in students]
        if unknown:
            refuse(f"arms.{key}.students", unknown[0], f"one of {', '.join(students)}")
        for option, name in ((option, arm.get(option)) for option in MODELS):
            if isinstance(name, str) and name not in teachers:
                refuse(
                    f"arms.{key}.{option}", name, f"one of {', '.join(teachers) or 'the teachers, of which none are'}"
                )
        if "method" in arm and not teacher:
            refuse(f"arms.{key}", "a method without a teacher", "a teacher too")
        if longer is not None:
            if longer not in arms or not arms[longer].keys() & {*MODELS}:
                refuse(f"arms.{key}.wall_time_of", longer, "an arm with a teacher")
            if arm.keys() & {*MODELS, "epochs"}:
                refuse(
                    f"arms.{key}", ", ".join(arm), "neither teacher nor epochs beside wall_time_of, which decides both"
                )
            for other in (longer, PLAIN):
                lacking = set(arm.get("students", students)) - set(arms[other].get("students", students))
                if lacking:
                    refuse(f"arms.{key}.students", min(lacking), f"students of the arm {other} alone")
        _check_options(f"arms.{key}", arm, ARM_KEYS, refuse)


def _check_options(place: str, options: Mapping[str, Any], own: frozenset[str], refuse: Callable[..., None]) -> None:
    """Refuse what is no option of kd train, or one that the sweep decides."""
    known = OPTIONS - DECIDED
    for key in options.keys() - own:
        word = key.replace("_", "-")
        if word not in known:
            near = get_close_matches(word, known, n=1) or sorted(known)
            refuse(place, key, f"an option of kd train such as {', '.join(near)}")
        if key != word and word in options:
            refuse(place, f"both {key} and {word}", "one of them: they are the same option")


def _check_runs(plan: Mapping[str, Any], name: str) -> None:
    """Raise PlanError where a run would refuse its options: each job's become a configuration, as kd train makes it."""
    runs = len(plan["students"]) * len(plan["arms"]) * len(plan["seeds"]) + len(plan.get("teachers", {}))
    if runs > MOST_RUNS:
        raise PlanError(f"{name}: got {runs} runs, expected at most {MOST_RUNS}: make several plans of it")
    for job in expand(plan):
        with refused(f"{name}: {job.name}"):
            configuration(job)


@contextlib.contextmanager
def refused(where: str | Path) -> Iterator[None]:
    """What a run would refuse becomes a PlanError that says where."""
    try:
        yield
    except KdError as error:
        raise PlanError(f"{where}: {error}") from error


def configuration(job: Job) -> TrainConfig:
    """What `kd train` makes of a job's options. Raises KdError where it would refuse them."""
    from kd.training.check import require_closing
    from kd.ultra import session

    options = job.options_in(Path())
    config = TrainConfig(**train_values(options, session.DEFAULT_CFG_DICT), out=job.name)
    session.check_settings(dict(config.settings))
    session.check_logs(words_of(options.get("log")))
    if not job.time_of:  # whose epochs are not known yet
        require_closing(config)
    return config


# ---------------------------------------------------------------- paths


def _with_paths(plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The plan with the files that it names, as seen from its folder, as absolute paths."""
    found = _map_strings(copy.deepcopy(dict(plan)), lambda text: _located(text, folder))
    if "pretrained" in found:
        found["pretrained"] = str((folder / found["pretrained"]).resolve())
    return found


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_strings(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_map_strings(part, change) for part in value]
    return change(value) if isinstance(value, str) else value


def _located(text: str, folder: Path) -> str:
    """The absolute path of a file that is there, else the text: names of models and methods have no ending."""
    return str((folder / text).resolve()) if Path(text).suffix and (folder / text).is_file() else text
