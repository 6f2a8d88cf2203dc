"""Options of `kd train` as values of `kd.config`: those of the command line, and those of a plan's jobs.

In: options by name, `name=value` strings, a JSON file. Out: plain values, or an error that names the option or the
place in the file.
Invariant: what the command line refuses, a plan refuses, and in the same words; no torch.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from kd.config import TrainConfig
from kd.errors import DataError, UsageError
from kd.methods.facts import WEIGHTS
from kd.methods.fgfi_config import FgfiConfig, Priors, are_priors
from kd.train_options import TrainOptions
from schemas.strict import StrictError, read_json

# Ultralytics settings that have an option of their own, or that the engine decides.
OPTION_OF_SETTING = {
    "data": "--data", "model": "--student", "epochs": "--epochs", "imgsz": "--imgsz", "batch": "--batch",
    "device": "--device", "seed": "--seed", "freeze": "--freeze", "resume": "--resume", "project": "--out",
    "name": "--out", "save_dir": "--out", "exist_ok": "--overwrite", "distill_model": "--teacher",
    "dis": "--weight",
}  # fmt: skip
DECIDED = frozenset({"task", "mode", "cfg", "save", "val", "split", "verbose", "deterministic"})

OF_THE_FOLDER = frozenset({"out", "resume", "overwrite", "dry_run"})  # the command line's alone: a plan has no such key


def _type_of(hint: Any) -> type:
    """The type of an option's value: bool, int, float, list, or str for texts, paths and choices.

    >>> _type_of(int | None), _type_of(list[str] | None), _type_of(Path)
    (<class 'int'>, <class 'list'>, <class 'str'>)
    """
    parts = [get_origin(part) or part for part in get_args(hint) or (hint,)]
    return next((kind for kind in (bool, int, float, list) if kind in parts), str)


#: Options of kd train, without their dashes, by the type of their value.
TYPES = {
    name.replace("_", "-"): _type_of(hint)
    for name, hint in get_type_hints(TrainOptions).items()
    if name not in OF_THE_FOLDER
}
OPTIONS = frozenset(TYPES)

# Type -> what it takes, in words and as a test. Of what may be given several times, a plan gives one, a list, or
# name -> value.
_TAKES: dict[type, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, (str, Path))),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    list: (
        "a text, a list of them, or names with values",
        lambda value: isinstance(value, (str, list, tuple, dict)),
    ),
}


def train_values(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TrainConfig` that these options of kd train, without their dashes, decide; None is as absent.

    ``known`` as in `parse_settings`. Raises UsageError, and DataError for a file of priors that holds none.

    >>> train_values({"data": "d.yaml", "epochs": 3, "method": {"cwd": 2}}, {})
    {'data': 'd.yaml', 'epochs': 3, 'methods': (('cwd', 2.0),)}
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        _require_type(key, value)
    several = {key: words_of(value) for key, value in given.items() if TYPES[key] is list}
    values: dict[str, Any] = {}
    for key, value in given.items():
        field = key.replace("-", "_")
        if field in TrainConfig.__dataclass_fields__ and key not in several:
            values[field] = str(value) if TYPES[key] is str else value
    if "teacher" in given:
        values["teachers"], values["teacher_weights"] = parse_teachers(several["teacher"])
    if given.keys() & {"method", "weight", "balance"}:
        texts = several.get("method") or ["fgfi"]
        values["methods"] = parse_methods(texts, given.get("weight"), given.get("balance"))
    if "set" in given:
        values["settings"] = parse_settings(several["set"], known)
    if given.keys() & {"fgfi", "priors"}:
        priors = given.get("priors")
        values["fgfi"] = parse_fgfi(several.get("fgfi", ()), read_priors(Path(priors)) if priors else None)
    if "schedule" in given:
        values["schedules"] = tuple(several["schedule"])
    return values


def _require_type(key: str, value: Any) -> None:
    """Raise UsageError for what is no option of kd train, or a value of another type."""
    if key not in OPTIONS:
        near = get_close_matches(key, OPTIONS, n=1) or sorted(OPTIONS)
        raise UsageError(f"got {key}, expected an option of kd train such as {', '.join(near)}")
    expected, accepts = _TAKES[TYPES[key]]
    if not accepts(value) and not (key == "device" and type(value) is int):  # a plan's `device: 0`
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
            named = ", ".join(texts) or "no method"
            raise UsageError(f"--weight: got {weight} with {named}, expected one method without a weight of its own")
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
    FgfiConfig(threshold=0.5, assigned=True, mask='anchors', soft=False, kernel=3, priors=None, defects=())
    """
    values: dict[str, Any] = {}
    forms = {"threshold": "0.5", "assigned": "true", "mask": "boxes", "soft": "true", "kernel": "3", "defects": "mask"}
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
    if "defects" in values:
        values["defects"] = tuple(part.strip() for part in values["defects"].split(","))
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
