"""Words of the command line as values of `kd.config`: `--method`, `--teacher`, `--set`, `--fgfi`, `--priors`' file.

In: `name=value` strings, a JSON file. Out: plain values, or an error that names the option or the place in the file.
Invariant: standard library only.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kd.config import WEIGHTS, FgfiConfig, Priors, are_priors
from kd.errors import DataError, UsageError

# Ultralytics settings that have an option of their own, or that the engine decides.
OPTION_OF_SETTING = {
    "data": "--data", "model": "--student", "epochs": "--epochs", "imgsz": "--imgsz", "batch": "--batch",
    "device": "--device", "seed": "--seed", "freeze": "--freeze", "resume": "--resume", "project": "--out",
    "name": "--out", "save_dir": "--out", "exist_ok": "--overwrite", "distill_model": "--teacher",
    "dis": "--weight",
}  # fmt: skip
DECIDED = frozenset({"task", "mode", "cfg", "save", "val", "split", "verbose", "deterministic"})


def read_priors(path: Path) -> Priors:
    """Anchor priors from the key ``anchors`` of a JSON file, {stride: [[width, height], ...]} in pixels.

    `dtld inspect --anchors K --json` prints such a file. Raises DataError that names the place.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, expected the output of dtld inspect --anchors 3 --json") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: got no JSON, expected the output of dtld inspect --anchors 3 --json") from error
    anchors = document.get("anchors") if isinstance(document, dict) else None
    if not isinstance(anchors, dict) or not anchors:
        raise DataError(f"{path}: anchors: got none, expected the output of dtld inspect --anchors 3 --json")
    priors = []
    for key, sizes in anchors.items():
        stride = int(key) if key.isdecimal() else 0
        if not are_priors(stride, sizes):
            raise DataError(
                f"{path}: anchors.{key}: got {str(sizes)[:80]}, expected [[width, height], ...] in pixels above 0, "
                f"under a stride such as 8"
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
        values[key] = _typed(word)
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
        values[key] = _typed(value.strip())
    return tuple(sorted(values.items()))


def _typed(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
