"""What a training run is asked to do, as frozen values; parses `--method`, `--set` and the file of `--priors`.

In: plain values, `name=value` strings, a JSON file. Out: a `TrainConfig`, validated once, or an error that names the
option or the place in the file.
Invariant: standard library only, and a TrainConfig survives the way through JSON, so that a resume can compare it.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kd.errors import DataError, UsageError

#: Anchor priors: (stride, ((width, height) in pixels, ...)), sorted by stride.
Priors = tuple[tuple[int, tuple[tuple[float, float], ...]], ...]

# The weight that a method gets when none is given: what starts its kd_loss near 1 beside a box_loss near 6, unless its
# source says otherwise. In brackets the unweighted term on a first batch (BCCD, 256 px, a yolov8n teacher trained for
# two epochs, yolov5n with fresh weights, box_loss 5.4).
DEFAULT_WEIGHTS: dict[str, float] = {
    "fgfi": 0.01,  # (152) a sum over channels, so large by itself; 0.01 gave the better seeds of the first trials
    "cwd": 1.0,  # (1.1)
    "pkd": 1.0,  # (3.0) 1 - r starts at 1 on each of three levels, and its authors weigh it more: 6
    "logits": 1.0,  # (0.9)
    "box": 1.0,  # (0.9)
    "ld": 0.25,  # (4.5) its authors' own weight too
    "score-l2": 6.0,  # (2.6) Ultralytics' own default (`dis`), kept so that the term is theirs
    "built-in": 6.0,  # no term of ours: Ultralytics' own distillation, the reference (kd/builtin.py)
}
BUILT_IN = "built-in"

# Ultralytics settings that have an option of their own, or that the engine decides.
OPTION_OF_SETTING = {
    "data": "--data", "model": "--student", "epochs": "--epochs", "imgsz": "--imgsz", "batch": "--batch",
    "device": "--device", "seed": "--seed", "freeze": "--freeze", "resume": "--resume", "project": "--out",
    "name": "--out", "save_dir": "--out", "exist_ok": "--overwrite", "distill_model": "--teacher",
    "dis": "--weight",
}  # fmt: skip
# single_cls renames the classes, and so parts the model from the data it is scored on.
DECIDED = frozenset({"task", "mode", "cfg", "save", "val", "split", "verbose", "deterministic", "single_cls"})


@dataclass(frozen=True)
class FgfiConfig:
    """Options of the imitation mask and its adapters.

    ``threshold`` is the paper's psi: a cell imitates where an anchor's IoU with a box exceeds psi times that box's
    best. ``assigned`` takes the best over all levels instead of per level, so that a box imitates on the level of
    its size. ``kernel`` is the adapter's side in cells, 1 or 3. ``priors`` are the anchors by stride, in pixels of the
    training image; None for YOLOv5's.
    """

    threshold: float = 0.5
    assigned: bool = False
    kernel: int = 1
    priors: Priors | None = None

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range."""
        if not 0 < self.threshold < 1:
            raise UsageError(f"fgfi: threshold: got {self.threshold}, expected between 0 and 1, such as 0.5")
        if self.kernel not in (1, 3):
            raise UsageError(f"fgfi: kernel: got {self.kernel}, expected 1 or 3")
        if self.priors is not None and not (self.priors and all(_are_priors(*level) for level in self.priors)):
            raise UsageError(f"fgfi: priors: got {self.priors}, expected (stride, ((width, height), ...)) per stride")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Without teachers it is plain; methods are (name, weight) and matter only with teachers.

    ``imgsz`` is the longer image side in pixels, ``freeze`` the number of the student's first layers kept as they
    are, ``settings`` further Ultralytics arguments as sorted (key, value). Raises UsageError when made.
    """

    data: str
    student: str
    out: str
    teachers: tuple[str, ...] = ()
    methods: tuple[tuple[str, float], ...] = (("fgfi", DEFAULT_WEIGHTS["fgfi"]),)
    epochs: int = 30
    imgsz: int = 640
    batch: int = 16
    device: str | None = None
    seed: int = 0
    freeze: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    fgfi: FgfiConfig = FgfiConfig()

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range, or on options that contradict each other."""
        for name, least in (("epochs", 1), ("imgsz", 32), ("batch", 1), ("seed", 0), ("freeze", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"--{name}: got {value!r}, expected a whole number from {least}")
        if len(self.teachers) > 1:
            raise UsageError(f"--teacher: got {len(self.teachers)} teachers, expected one: several are to come")
        if self.device and "," in self.device:
            raise UsageError(f"--device: got {self.device}, expected cpu or one GPU such as 0: several are to come")
        names = [name for name, _ in self.methods]
        for name, weight in self.methods:
            if name not in DEFAULT_WEIGHTS:
                raise UsageError(f"--method: got {name!r}, expected one of: {', '.join(DEFAULT_WEIGHTS)}")
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"--method {name}: weight: got {weight}, expected a number above 0")
        if self.teachers and not names:
            raise UsageError("--method: got none, expected at least one with a teacher")
        if len(set(names)) < len(names):
            raise UsageError(f"--method: got {', '.join(names)}, expected each method once")
        if BUILT_IN in names and len(names) > 1:
            raise UsageError(f"--method: got {', '.join(names)}, expected {BUILT_IN} alone: it is Ultralytics' trainer")
        if self.built_in and not self.teachers[0].endswith(".pt"):
            raise UsageError(f"--teacher: got {self.teachers[0]} with {BUILT_IN}, expected a .pt: Ultralytics loads it")
        if self.teachers and self.fgfi.priors is not None and "fgfi" not in names:
            raise UsageError(f"--priors: got it with {', '.join(names)}, expected the method fgfi, which alone has any")

    @property
    def distils(self) -> bool:
        """Whether there is a teacher to learn from."""
        return bool(self.teachers)

    @property
    def built_in(self) -> bool:
        """Whether Ultralytics distils, and not this project."""
        return self.distils and self.methods[0][0] == BUILT_IN

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON has it: tuples as lists, paths absolute, so that a later process compares equal."""
        values = asdict(self)
        values["data"], values["out"] = str(Path(self.data).resolve()), str(Path(self.out).resolve())
        values["methods"] = dict(self.methods) if self.distils else {}
        values["settings"] = {key: _jsonable(value) for key, value in self.settings}
        values["teachers"] = [_place(teacher) for teacher in self.teachers]
        values["student"] = _place(self.student)
        if not self.distils:
            del values["fgfi"]
        elif self.fgfi.priors is None:
            del values["fgfi"]["priors"]  # as runs have it from before there were any but YOLOv5's
        else:
            values["fgfi"]["priors"] = {str(stride): _jsonable(sizes) for stride, sizes in self.fgfi.priors}
        return values


def _place(spec: str) -> str:
    return str(Path(spec).resolve()) if Path(spec).is_file() else spec


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, list | tuple) else value


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
        if not _are_priors(stride, sizes):
            raise DataError(
                f"{path}: anchors.{key}: got {str(sizes)[:80]}, expected [[width, height], ...] in pixels above 0, "
                f"under a stride such as 8"
            )
        priors.append((stride, tuple((float(width), float(height)) for width, height in sizes)))
    return tuple(sorted(priors))


def _are_priors(stride: Any, sizes: Any) -> bool:
    """Whether this is a stride and at least one (width, height), all in pixels above 0."""
    if not (isinstance(stride, int) and stride >= 1 and isinstance(sizes, list | tuple) and sizes):
        return False
    pairs = all(isinstance(size, list | tuple) and len(size) == 2 for size in sizes)
    return pairs and all(type(side) in (int, float) and 0 < side < 1e6 for size in sizes for side in size)


def parse_methods(texts: Iterable[str], weight: float | None = None) -> tuple[tuple[str, float], ...]:
    """``name`` or ``name=weight`` strings as (name, weight) pairs.

    ``weight`` is `--weight`: for a single method that has none of its own. Raises UsageError.

    >>> parse_methods(["fgfi"]), parse_methods(["fgfi=0.1"]), parse_methods(["fgfi"], weight=0.05)
    ((('fgfi', 0.01),), (('fgfi', 0.1),), (('fgfi', 0.05),))
    """
    pairs = [_parse_method(text) for text in texts]
    if weight is not None:
        if len(pairs) != 1 or pairs[0][1] is not None:
            given = ", ".join(texts) or "no method"
            raise UsageError(f"--weight: got {weight} with {given}, expected one method without a weight of its own")
        pairs = [(pairs[0][0], float(weight))]
    return tuple((name, DEFAULT_WEIGHTS[name] if own is None else own) for name, own in pairs)


def _parse_method(text: str) -> tuple[str, float | None]:
    name, equals, number = text.partition("=")
    if name not in DEFAULT_WEIGHTS:
        near = get_close_matches(name, DEFAULT_WEIGHTS, n=1) or list(DEFAULT_WEIGHTS)
        raise UsageError(f"--method: got {name!r}, expected {' or '.join(near)}, as in fgfi or fgfi=0.01")
    try:
        return name, float(number) if equals else None
    except ValueError as error:
        raise UsageError(f"--method {name}: weight: got {number!r}, expected a number such as 0.01") from error


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
