"""What a training run is asked to do, as frozen values; parses `--method`, `--teacher`, `--set`, `--priors`' file.

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
from kd.schedule import SCHEDULES

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
}
BUILT_IN = "built-in"  # no term of ours: Ultralytics' own distillation, the reference (kd/builtin.py)
BUILT_IN_WEIGHT = 6.0

COMBINE = ("mean", "best")  # what several teachers say: the weighted mean, or the surest of them per image
BOXES_ONLY = frozenset({"fgfi"})  # methods that look near ground-truth boxes alone, so at no unlabelled image

# Ultralytics settings that have an option of their own, or that the engine decides.
OPTION_OF_SETTING = {
    "data": "--data", "model": "--student", "epochs": "--epochs", "imgsz": "--imgsz", "batch": "--batch",
    "device": "--device", "seed": "--seed", "freeze": "--freeze", "resume": "--resume", "project": "--out",
    "name": "--out", "save_dir": "--out", "exist_ok": "--overwrite", "distill_model": "--teacher",
    "dis": "--weight",
}  # fmt: skip
DECIDED = frozenset({"task", "mode", "cfg", "save", "val", "split", "verbose", "deterministic"})
SINGLE_CLASS = {0: "item"}  # the classes of any data under single_cls, by Ultralytics' name


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
    are, ``settings`` further Ultralytics arguments as sorted (key, value). ``teacher_weights`` are one per teacher or
    none, for equal ones; ``combine`` says whether teachers are averaged (mean) or chosen per image (best);
    ``teacher_imgsz`` is the longer image side in pixels that they see, None for the student's. ``schedules`` multiply
    the terms in the course of the run (kd/schedule.py); ``balance``, a gradient ratio, sets the weights in place of
    those in ``methods`` (kd/balance.py); ``unlabeled`` is a folder of images that the terms alone see
    (kd/unlabeled.py). Raises UsageError when made.
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
    teacher_weights: tuple[float, ...] = ()
    combine: str = "mean"
    teacher_imgsz: int | None = None
    schedules: tuple[str, ...] = ()
    balance: float | None = None
    unlabeled: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range, or on options that contradict each other."""
        for name, least in (("epochs", 1), ("imgsz", 32), ("batch", 1), ("seed", 0), ("freeze", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"--{name}: got {value!r}, expected a whole number from {least}")
        self._check_teachers()
        self._check_devices()
        names = [name for name, _ in self.methods]
        for name, weight in self.methods:
            if name not in _weights():
                raise UsageError(f"--method: got {name!r}, expected one of: {', '.join(_weights())}")
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"--method {name}: weight: got {weight}, expected a number above 0")
        if self.teachers and not names:
            raise UsageError("--method: got none, expected at least one with a teacher")
        if len(set(names)) < len(names):
            raise UsageError(f"--method: got {', '.join(names)}, expected each method once")
        self._check_built_in(names)
        if self.teachers and self.fgfi.priors is not None and "fgfi" not in names:
            raise UsageError(f"--priors: got it with {', '.join(names)}, expected the method fgfi, which alone has any")
        self._check_course(names)

    def _check_course(self, names: list[str]) -> None:
        """Raise UsageError on what is amiss with schedules, balance or unlabelled images."""
        for option, value in (
            ("--schedule", self.schedules), ("--balance", self.balance), ("--unlabeled", self.unlabeled),
        ):  # fmt: skip
            if value and not self.distils:
                raise UsageError(f"{option}: got it without --teacher, expected a teacher to learn from")
        for schedule in self.schedules:
            if schedule not in SCHEDULES:
                raise UsageError(f"--schedule: got {schedule!r}, expected one of: {', '.join(SCHEDULES)}")
        if len(set(self.schedules)) < len(self.schedules):
            raise UsageError(f"--schedule: got {', '.join(self.schedules)}, expected each schedule once")
        if self.balance is not None and not (math.isfinite(self.balance) and self.balance > 0):
            raise UsageError(f"--balance: got {self.balance}, expected a ratio of gradients above 0, such as 0.1")
        if self.unlabeled and set(names) <= BOXES_ONLY:
            others = ", ".join(name for name in DEFAULT_WEIGHTS if name not in BOXES_ONLY)
            raise UsageError(
                f"--unlabeled: got it with {', '.join(names)} alone, expected a method that needs no boxes: {others}"
            )
        if self.unlabeled and dict(self.settings).get("rect"):
            raise UsageError("--unlabeled: got it with --set rect=true, expected square batches: leave rect out")

    def _check_built_in(self, names: list[str]) -> None:
        """Raise UsageError on what Ultralytics' own distillation does not know."""
        if BUILT_IN not in names:
            return
        if len(names) > 1:
            raise UsageError(f"--method: got {', '.join(names)}, expected {BUILT_IN} alone: it is Ultralytics' trainer")
        if len(self.teachers) > 1:
            raise UsageError(f"--teacher: got {len(self.teachers)} with {BUILT_IN}, expected one")
        if self.teachers and not self.teachers[0].endswith(".pt"):
            raise UsageError(f"--teacher: got {self.teachers[0]} with {BUILT_IN}, expected a .pt: Ultralytics loads it")
        for option, value in (
            ("--teacher-imgsz", self.teacher_imgsz), ("--schedule", self.schedules), ("--balance", self.balance),
            ("--unlabeled", self.unlabeled),
        ):  # fmt: skip
            if value:
                raise UsageError(f"{option}: got it with {BUILT_IN}, expected a method of kd: Ultralytics' has none")

    def _check_teachers(self) -> None:
        if self.combine not in COMBINE:
            raise UsageError(f"--combine: got {self.combine!r}, expected {' or '.join(COMBINE)}")
        weights, size = self.teacher_weights, self.teacher_imgsz
        if weights and (len(weights) != len(self.teachers) or not all(math.isfinite(w) and w > 0 for w in weights)):
            raise UsageError(f"--teacher: weights: got {list(weights)}, expected a number above 0 for each teacher")
        if self.combine == "best" and len(set(weights)) > 1:
            raise UsageError("--combine best: got teachers with weights, expected none: their scores choose")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 32):
            raise UsageError(f"--teacher-imgsz: got {size!r}, expected a whole number from 32")
        if size is not None and not self.teachers:
            raise UsageError(f"--teacher-imgsz: got {size} without a teacher, expected --teacher beside it")

    def _check_devices(self) -> None:
        devices = (self.device or "").split(",")
        if len(set(devices)) < len(devices):
            raise UsageError(f"--device: got {self.device}, expected each GPU once, such as 0,1")
        if self.batch % len(devices):
            raise UsageError(f"--batch: got {self.batch} on {len(devices)} GPUs, expected a multiple of their number")
        if len(devices) > 1 and dict(self.settings).get("rect"):
            raise UsageError(
                f"--set rect: got it with --device {self.device}, expected one GPU: several cannot have it"
            )

    @property
    def one_device(self) -> str | None:
        """The device of all that runs in one process: the first where there are several."""
        return self.device and self.device.split(",")[0]

    @property
    def view(self) -> dict[str, Any]:
        """The settings that decide which objects there are; scores have to be taken with them."""
        return {key: value for key, value in self.settings if key in ("single_cls", "classes")}

    @property
    def distils(self) -> bool:
        """Whether there is a teacher to learn from."""
        return bool(self.teachers)

    @property
    def shares(self) -> tuple[float, ...]:
        """The teachers' weights with a sum of 1, so that a method's weight means the same for any number of them."""
        weights = self.teacher_weights or (1.0,) * len(self.teachers)
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def chooses(self) -> bool:
        """Whether each image learns from one of several teachers."""
        return self.combine == "best" and len(self.teachers) > 1

    @property
    def built_in(self) -> bool:
        """Whether Ultralytics distils, and not this project."""
        return self.distils and self.methods[0][0] == BUILT_IN

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON has it: tuples as lists, paths absolute, so that a later process compares equal."""
        values = asdict(self)
        values["data"], values["out"] = str(Path(self.data).resolve()), str(Path(self.out).resolve())
        values["methods"] = dict.fromkeys(dict(self.methods)) if self.balance else dict(self.methods)
        values["methods"] = values["methods"] if self.distils else {}
        values["settings"] = {key: _jsonable(value) for key, value in self.settings}
        values["teachers"] = [_place(teacher) for teacher in self.teachers]
        values["teacher_weights"] = list(self.shares)
        if len(self.teachers) < 2:  # one alone has nothing to share
            del values["teacher_weights"], values["combine"]
        if self.teacher_imgsz is None:
            del values["teacher_imgsz"]
        values["student"] = _place(self.student)
        values["schedules"] = list(self.schedules)
        values["unlabeled"] = self.unlabeled and str(Path(self.unlabeled).resolve())
        for key in ("schedules", "balance", "unlabeled"):
            if not values[key]:
                del values[key]  # as runs have it from before there were any
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
    return tuple((name, _weights()[name] if own is None else own) for name, own in pairs)


def _weights() -> dict[str, float]:
    """All that --method takes, and the weight of each when none is given."""
    return {**DEFAULT_WEIGHTS, BUILT_IN: BUILT_IN_WEIGHT}


def _parse_method(text: str) -> tuple[str, float | None]:
    name, equals, number = text.partition("=")
    if name not in _weights():
        near = get_close_matches(name, _weights(), n=1) or list(_weights())
        raise UsageError(f"--method: got {name!r}, expected {' or '.join(near)}, as in fgfi or fgfi=0.01")
    try:
        return name, float(number) if equals else None
    except ValueError as error:
        raise UsageError(f"--method {name}: weight: got {number!r}, expected a number such as 0.01") from error


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
