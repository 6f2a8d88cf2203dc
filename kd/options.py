"""Options of `kd train` as values of `kd.config`: those of the command line, and those of a plan's jobs.

In: options by name, `name=value` strings, a JSON file. Out: plain values, or an error that names the option or the
place in the file.
Invariant: what the command line refuses, a plan refuses, and in the same words; no torch.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kd.config import FgfiConfig, Priors, are_priors
from kd.errors import DataError, UsageError
from kd.methods.facts import WEIGHTS
from schemas.strict import StrictError, read_json

# Ultralytics settings that have an option of their own, or that the engine decides.
OPTION_OF_SETTING = {
    "data": "--data", "model": "--student", "epochs": "--epochs", "imgsz": "--imgsz", "batch": "--batch",
    "device": "--device", "seed": "--seed", "freeze": "--freeze", "resume": "--resume", "project": "--out",
    "name": "--out", "save_dir": "--out", "exist_ok": "--overwrite", "distill_model": "--teacher",
    "dis": "--weight",
}  # fmt: skip
DECIDED = frozenset({"task", "mode", "cfg", "save", "val", "split", "verbose", "deterministic"})

# Options of kd train by the kind of their value. A plan may give SEVERAL as one, as a list, or as name -> value.
TEXTS = frozenset({"data", "student", "combine", "device", "unlabeled", "priors"})
WHOLE = frozenset({"epochs", "imgsz", "teacher-imgsz", "batch", "seed", "freeze"})
REALS = frozenset({"weight", "balance"})
SEVERAL = frozenset({"teacher", "method", "schedule", "fgfi", "set", "log"})
FLAGS = frozenset({"allow-weak-teacher", "skip-bad-labels", "allow-overlap"})
OPTIONS = TEXTS | WHOLE | REALS | SEVERAL | FLAGS


def train_values(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What options of kd train, without their dashes, make of a `TrainConfig`, its ``out`` aside; None is as absent.

    ``known`` as in `parse_settings`. Raises UsageError, and DataError for a file of priors that holds none.

    >>> train_values({"data": "d.yaml", "student": "yolov5n", "epochs": 3, "method": {"cwd": 2}}, {})["methods"]
    (('cwd', 2.0),)
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        _require_kind(key, value)
    several = {key: words_of(given.get(key)) for key in SEVERAL}
    weight, balance, priors = (given.get(key) for key in ("weight", "balance", "priors"))
    teachers, weights = parse_teachers(several["teacher"])
    plain = {key.replace("-", "_"): given[key] for key in (*WHOLE, "combine", "skip-bad-labels") if key in given}
    return {
        **plain,
        **{key: str(given[key]) for key in ("data", "student", "device", "unlabeled") if key in given},
        "teachers": teachers,
        "teacher_weights": weights,
        "methods": parse_methods(several["method"] or ["fgfi"], weight, balance),
        "settings": parse_settings(several["set"], known),
        "fgfi": parse_fgfi(several["fgfi"], read_priors(Path(priors)) if priors else None),
        "schedules": tuple(several["schedule"]),
        "balance": balance,
    }


def _require_kind(key: str, value: Any) -> None:
    """Raise UsageError for what is no option of kd train, or a value of another kind."""
    if key not in OPTIONS:
        near = get_close_matches(key, OPTIONS, n=1) or sorted(OPTIONS)
        raise UsageError(f"got {key}, expected an option of kd train such as {', '.join(near)}")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds = (
        (TEXTS, isinstance(value, (str, Path)) or (key == "device" and type(value) is int), "a text"),
        (WHOLE, type(value) is int, "a whole number"),
        (REALS, is_number, "a number"),
        (FLAGS, isinstance(value, bool), "true or false"),
        (SEVERAL, isinstance(value, (str, list, tuple, dict)), "a text, a list of them, or names with values"),
    )
    for names, right, expected in kinds:
        if key in names and not right:
            raise UsageError(f"--{key}: got {str(value)[:60]}, expected {expected}")


def words_of(value: Any) -> list[str]:
    """An option that may be given several times, as the words that a command line would have."""
    if isinstance(value, dict):
        return [f"{name}={part}" for name, part in value.items()]
    return [str(part) for part in ([value] if isinstance(value, str) else value or ())]


def read_priors(path: Path) -> Priors:
    """Anchor priors from the key ``anchors`` of a JSON file, {stride: [[width, height], ...]} in pixels.

    `dtld inspect --anchors K --json` prints such a file. Raises DataError that names the place.
    """
    expected = "expected the output of dtld inspect --anchors 3 --json"
    try:
        document = read_json(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, {expected}") from error
    except StrictError as error:
        raise DataError(f"{path}: {error}, {expected}") from error
    anchors = document.get("anchors") if isinstance(document, dict) else None
    if not isinstance(anchors, dict) or not anchors:
        raise DataError(f"{path}: anchors: got none, {expected}")
    priors = []
    for key, sizes in anchors.items():
        stride = int(key) if key.isdecimal() and len(key) < 6 else 0
        if not are_priors(stride, sizes):
            raise DataError(
                f"{path}: anchors.{key[:80]}: got {str(sizes)[:80]}, expected [[width, height], ...] in pixels "
                f"above 0, under a stride such as 8"
            )
        priors.append((stride, tuple((float(width), float(height)) for width, height in sizes)))
    return tuple(sorted(priors))


def parse_methods(
    texts: Iterable[str], weight: float | None = None, balance: float | None = None
) -> tuple[tuple[str, float], ...]:
    """``name`` or ``name=weight`` strings as (name, weight) pairs.

    ``weight`` is `--weight`: for a single method that has none of its own. ``balance`` is `--balance`, which goes with
    no weight at all. Raises UsageError.

    >>> parse_methods(["fgfi"]), parse_methods(["fgfi=0.1"]), parse_methods(["fgfi"], weight=0.05)
    ((('fgfi', 0.01),), (('fgfi', 0.1),), (('fgfi', 0.05),))
    """
    pairs = [_parse_method(text) for text in texts]
    if balance is not None:
        given = [f"--weight {weight:g}"] if weight is not None else [f"{n}={w:g}" for n, w in pairs if w is not None]
        if given:
            raise UsageError(
                f"--balance: got it with {', '.join(given)}, expected methods without weights: it sets them"
            )
    if weight is not None:
        if len(pairs) != 1 or pairs[0][1] is not None:
            given = ", ".join(texts) or "no method"
            raise UsageError(f"--weight: got {weight} with {given}, expected one method without a weight of its own")
        pairs = [(pairs[0][0], float(weight))]
    return tuple((name, WEIGHTS[name] if own is None else own) for name, own in pairs)


def _parse_method(text: str) -> tuple[str, float | None]:
    name, equals, number = text.partition("=")
    if name not in WEIGHTS:
        near = get_close_matches(name, WEIGHTS, n=1) or list(WEIGHTS)
        raise UsageError(f"--method: got {name!r}, expected {' or '.join(near)}, as in fgfi or fgfi=0.01")
    try:
        return name, float(number) if equals else None
    except ValueError as error:
        raise UsageError(f"--method {name}: weight: got {number!r}, expected a number such as 0.01") from error


def parse_fgfi(texts: Iterable[str], priors: Priors | None = None) -> FgfiConfig:
    """``KEY=VALUE`` strings, and the anchors of `--priors`, as FGFI's options. Raises UsageError.

    >>> parse_fgfi(["kernel=3", "assigned=true"])
    FgfiConfig(threshold=0.5, assigned=True, mask='anchors', soft=False, kernel=3, priors=None)
    """
    values: dict[str, Any] = {}
    forms = {"threshold": "0.5", "assigned": "true", "mask": "boxes", "soft": "true", "kernel": "3"}
    for text in texts:
        key, equals, word = (part.strip() for part in text.partition("="))
        if key not in forms or not equals:
            known = ", ".join(f"{name}={form}" for name, form in forms.items())
            raise UsageError(f"--fgfi: got {text!r}, expected KEY=VALUE such as {known}")
        if key in values:
            raise UsageError(f"--fgfi {key}: got it twice, expected it once")
        values[key] = _option(f"--fgfi {key}", word)
        kind = type(_typed(forms[key]))
        if type(values[key]) is not kind and not (kind is float and type(values[key]) is int):
            raise UsageError(f"--fgfi {key}: got {word!r}, expected a value such as {forms[key]}")
    return FgfiConfig(**values, priors=priors)


def parse_teachers(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """``T`` or ``T=weight`` strings as models and their weights, 1 where none is given.

    What follows the last ``=`` is a weight where it is a finite number above 0 and the text as a whole names no file.

    >>> parse_teachers(["a.pt", "b.pt=0.5", "lr=fast/best.pt"])
    (('a.pt', 'b.pt', 'lr=fast/best.pt'), (1.0, 0.5, 1.0))
    """
    pairs = [_parse_teacher(text) for text in texts]
    return tuple(spec for spec, _ in pairs), tuple(weight for _, weight in pairs)


def _parse_teacher(text: str) -> tuple[str, float]:
    spec, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    weighted = spec and math.isfinite(weight) and weight > 0 and not Path(text).exists()
    return (spec, weight) if weighted else (text, 1.0)


def parse_settings(texts: Iterable[str], known: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """``KEY=VALUE`` strings as sorted (key, value) pairs, values typed as Python or YAML would.

    ``known`` holds Ultralytics' settings and their defaults. Raises UsageError for a key that is unknown (naming
    the nearest), that has an option of its own, or that the engine decides.

    >>> parse_settings(["lr0=0.01", "plots=true", "optimizer=SGD"], {"lr0": 0, "plots": True, "optimizer": "auto"})
    (('lr0', 0.01), ('optimizer', 'SGD'), ('plots', True))
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"--set: got {text!r}, expected KEY=VALUE such as lr0=0.01")
        if key in OPTION_OF_SETTING:
            raise UsageError(f"--set {key}: got an argument with its own option, expected {OPTION_OF_SETTING[key]}")
        if key in DECIDED:
            raise UsageError(f"--set {key}: got an argument that kd decides, expected any other")
        if key not in known:
            near = get_close_matches(key, known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "see docs.ultralytics.com/usage/cfg"
            raise UsageError(f"--set {key}: got no training argument of Ultralytics, expected one: {hint}")
        if key in values:
            raise UsageError(f"--set {key}: got it twice, expected it once")
        values[key] = _option(f"--set {key}", value.strip())
    return tuple(sorted(values.items()))


def _option(place: str, text: str) -> Any:
    try:
        return _typed(text)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def _typed(text: str) -> Any:
    """None, a boolean, a number, a text or lists of them. Raises UsageError for what JSON has not.

    >>> _typed("1e-3"), _typed("[0, 2]"), _typed("SGD"), _typed("none")
    (0.001, [0, 2], 'SGD', None)
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three of its parser
        return text
    if not _is_plain(value):
        raise UsageError(f"got {text[:60]!r}, expected a finite number, a text, true, false, or a list of them")
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
