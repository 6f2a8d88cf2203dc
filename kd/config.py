"""The configuration of a training run, as frozen values.

In: plain values. Out: a `TrainConfig`, checked once, or an error that names the option.
Invariant: standard library alone; a TrainConfig survives the way through JSON, so that a resume can compare it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from kd.errors import UsageError
from kd.methods.facts import BOXES_ONLY, BUILT_IN, DEFAULT_WEIGHTS, NEEDS_HEAD, SOFT_LABELS, WEIGHTS
from kd.methods.fgfi_config import FgfiConfig
from kd.schedule import SCHEDULES

COMBINE = ("mean", "best")  # several teachers: the mean by their weights, or per image the most confident one

GRID_PX = 32  # image sides are multiples of this, or of the largest stride: Ultralytics rounds others up
# Option -> least and most. Below the most stands whatever is in use; beyond it memory or time end first, or 32 bits.
NUMBERS: dict[str, tuple[int, int]] = {
    "epochs": (1, 100_000),
    "distil": (1, 100_000),
    "imgsz": (GRID_PX, 8192),  # one image of 8192 px takes 0.8 GB; a DTLD frame is 2048 px wide
    "teacher-imgsz": (GRID_PX, 8192),
    "batch": (1, 65_536),
    "seed": (0, 2**31 - 1),  # numpy's generator takes 32 bits, and Ultralytics adds the rank
    "freeze": (0, 10_000),
    "every": (1, 100_000),
    "steps": (1, 100_000),
    "rounds": (1, 100_000),
    "images": (1, 100_000),
}

CACHE = "teacher.npz"  # in a run's folder, unless --teacher-cache names another place
MOST_WHOLE = 2**53  # in settings: what every reader of JSON gives back as it is
BATCH_SHARE = 0.8  # of a GPU's free memory, which `--batch auto` fills; the rest is for what was not measured
WEIGHT = (1e-6, 1e6)  # least and most of weights and ratios: terms are about 1, and float32 keeps seven digits

CLASSIC = "classic/"  # begins the names of anchor-based models: classic/yolov5n
SINGLE_CLASS = {0: "item"}  # the classes of any data under single_cls, by Ultralytics' name


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Without teachers it is plain; methods are (name, weight), with teachers alone.

    Teachers without any get the paper's, fgfi; a trained one given alone (`unsettled`) gets what has proved best
    for the pair, once `kd.training.defaults` has looked at both.

    ``imgsz`` is the longer image side in pixels, ``freeze`` the number of the student's first layers kept as they
    are, ``settings`` further Ultralytics arguments as sorted (key, value). ``teacher_weights`` are one per teacher or
    none, for equal ones; ``combine`` says whether teachers are averaged (mean) or chosen per image (best);
    ``teacher_imgsz`` is the longer image side in pixels that they see, None for the student's; ``teacher_cache`` where
    soft-labels keeps what its teacher says, None for a file in the run's folder. ``schedules`` multiply the terms in
    the course of the run, ``every`` lets them wait for every Nth step and count N times there (kd/schedule.py);
    ``balance``, a gradient ratio, sets the weights in place of those in ``methods`` (kd/distillation/balance.py);
    ``unlabeled`` is a folder of images that the terms alone see (kd/distillation/unlabeled.py); ``skip_bad_labels``
    leaves out images that cannot be used (kd/ultra/labels.py); ``inherit`` is the teacher that the first weights come
    from (kd/inheritance); ``batch_auto`` is the share of a GPU's free memory that ``batch`` is measured for
    (kd/training/auto_batch.py), None where that is given or has been measured. Raises UsageError when made.
    """

    data: str
    student: str
    out: str
    teachers: tuple[str, ...] = ()
    methods: tuple[tuple[str, float], ...] = ()
    epochs: int = 30
    imgsz: int = 640
    batch: int = 16
    batch_auto: float | None = None
    device: str | None = None
    seed: int = 0
    freeze: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    fgfi: FgfiConfig = field(default=FgfiConfig())
    teacher_weights: tuple[float, ...] = ()
    combine: Literal["mean", "best"] = "mean"
    teacher_imgsz: int | None = None
    teacher_cache: str | None = None
    schedules: tuple[str, ...] = ()
    every: int = 1
    balance: float | None = None
    unlabeled: str | None = None
    skip_bad_labels: bool = False
    inherit: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range, or on options that contradict each other."""
        for name in ("epochs", "batch", "seed", "freeze", "every"):
            require_number(name, getattr(self, name))
        require_side("imgsz", self.imgsz)
        if self.batch_auto is not None and not 0 < self.batch_auto <= 1:
            raise UsageError(f"--batch: got auto:{self.batch_auto:g}, expected a share of the memory above 0, up to 1")
        for key, value in self.settings:
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(number, int) and abs(number) > MOST_WHOLE:
                    raise UsageError(f"--set {key}: got {_short(number)}, expected at most {MOST_WHOLE}")
        self._check_teachers()
        self._check_inherit()
        self._check_devices()
        if self.teachers and not self.methods and not self.unsettled:
            object.__setattr__(self, "methods", (("fgfi", DEFAULT_WEIGHTS["fgfi"]),))
        names = [name for name, _ in self.methods]
        for name, weight in self.methods:
            if name not in WEIGHTS:
                raise UsageError(f"--method: got {name!r}, expected one of: {', '.join(WEIGHTS)}")
            if not _is_weight(weight):
                raise UsageError(f"--method {name}: weight: got {weight}, expected a number above 0, {_RANGE}")
        if len(set(names)) < len(names):
            raise UsageError(f"--method: got {', '.join(names)}, expected each method once")
        self._check_built_in(names)
        self._check_soft_labels(names)
        if self.teachers and self.fgfi != FgfiConfig() and "fgfi" not in names:
            if replace(self.fgfi, priors=None) != FgfiConfig():
                raise UsageError(
                    f"--fgfi: got it with {', '.join(names)}, expected the method fgfi, whose option it is"
                )
            if not self.may_be_classic:
                raise priors_without_fgfi(self.methods)
        self._check_course(names)
        if names and not self.teachers:
            raise UsageError(f"--method: got {', '.join(names)} without --teacher, expected a teacher to imitate")

    def _check_course(self, names: list[str]) -> None:
        """Raise UsageError on what is amiss with schedules, balance or unlabelled images."""
        for option, value in (
            ("--schedule", self.schedules), ("--every", self.every > 1), ("--balance", self.balance),
            ("--unlabeled", self.unlabeled),
        ):  # fmt: skip
            if value and not self.distils:
                raise UsageError(f"{option}: got it without --teacher, expected a teacher to learn from")
        for schedule in self.schedules:
            if schedule not in SCHEDULES:
                raise UsageError(f"--schedule: got {schedule!r}, expected one of: {', '.join(SCHEDULES)}")
        if len(set(self.schedules)) < len(self.schedules):
            raise UsageError(f"--schedule: got {', '.join(self.schedules)}, expected each schedule once")
        if self.balance is not None and not _is_weight(self.balance):
            raise UsageError(
                f"--balance: got {self.balance}, expected a ratio of gradients above 0, such as 0.1, {_RANGE}"
            )
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
            ("--unlabeled", self.unlabeled), ("--every", self.every > 1),
        ):  # fmt: skip
            if value:
                raise UsageError(f"{option}: got it with {BUILT_IN}, expected a method of kd: Ultralytics' has none")

    def _check_soft_labels(self, names: list[str]) -> None:
        """Raise UsageError on what cached detections cannot do."""
        if SOFT_LABELS not in names or not self.teachers:
            if self.teacher_cache:
                raise UsageError(f"--teacher-cache: got it without --method {SOFT_LABELS}, expected it with that alone")
            return
        if len(names) > 1:
            raise UsageError(
                f"--method: got {', '.join(names)}, expected {SOFT_LABELS} alone: no teacher runs in a step"
            )
        if len(self.teachers) > 1 or not self.teachers[0].lower().endswith(".pt"):
            raise UsageError(
                f"--teacher: got {', '.join(self.teachers)} with {SOFT_LABELS}, expected one trained detector (.pt)"
            )
        if not self.methods[0][1] <= 1:
            raise UsageError(
                f"--method {SOFT_LABELS}: weight: got {self.methods[0][1]:g}, expected the teacher's share in the "
                f"labels, above 0 and at most 1"
            )
        if not self.cache_file.suffix == ".npz":
            raise UsageError(f"--teacher-cache: got {self.teacher_cache}, expected a file that ends in .npz")
        for option, value in (
            ("--balance", self.balance), ("--unlabeled", self.unlabeled), ("--every", self.every > 1),
        ):  # fmt: skip
            if value:
                raise UsageError(f"{option}: got it with {SOFT_LABELS}, expected another method: it softens labels")

    def _check_teachers(self) -> None:
        if self.combine not in COMBINE:
            raise UsageError(f"--combine: got {self.combine!r}, expected {' or '.join(COMBINE)}")
        weights, size = self.teacher_weights, self.teacher_imgsz
        if weights and (len(weights) != len(self.teachers) or not all(map(_is_weight, weights))):
            raise UsageError(
                f"--teacher: weights: got {list(weights)}, expected a number above 0 for each teacher, {_RANGE}"
            )
        if self.combine == "best" and len(set(weights)) > 1:
            raise UsageError("--combine best: got teachers with weights, expected none: their scores choose")
        if size is not None:
            require_side("teacher-imgsz", size)
        if size is not None and not self.teachers:
            raise UsageError(f"--teacher-imgsz: got {size} without a teacher, expected --teacher beside it")

    def _check_inherit(self) -> None:
        if self.inherit is None:
            return
        if self.student.lower().endswith(".pt"):
            raise UsageError(
                f"--inherit: got it with the student {self.student}, expected an architecture (a .yaml or a name): "
                f"what a checkpoint has learned would be lost"
            )
        if dict(self.settings).get("pretrained"):
            raise UsageError("--inherit: got it with --set pretrained, expected one of them: both are first weights")

    def _check_devices(self) -> None:
        devices = (self.device or "").split(",")
        if len(set(devices)) < len(devices):
            raise UsageError(f"--device: got {self.device}, expected each GPU once, such as 0,1")
        if self.batch_auto is not None and len(devices) > 1:
            raise UsageError(
                f"--batch: got auto on {len(devices)} GPUs, expected a multiple of their number, for it is measured on "
                f"one: --device {devices[0]} --batch auto --dry-run says what that has room for"
            )
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
    def backbone(self) -> str | None:
        """The file of torchvision's weights for the student's backbone (.pth), where `pretrained` names one."""
        weights = dict(self.settings).get("pretrained")
        return weights if isinstance(weights, str) and weights.lower().endswith(".pth") else None

    @property
    def fraction(self) -> Any:
        """The setting that says how many of the training images are used."""
        return dict(self.settings).get("fraction", 1.0)

    @property
    def seen_imgsz(self) -> int:
        """The longer image side in pixels that teachers see."""
        return self.teacher_imgsz or self.imgsz

    @property
    def may_be_classic(self) -> bool:
        """Whether the student may be a classic YOLOv5, whose anchors `--priors` are; of a file its content says so."""
        return self.student.startswith(CLASSIC) or self.student.lower().endswith((".pt", ".yaml", ".yml"))

    @property
    def distils(self) -> bool:
        """Whether there is a teacher to learn from."""
        return bool(self.teachers)

    @property
    def unsettled(self) -> bool:
        """Whether a trained teacher is given and nothing of how to learn from it."""
        how = [self.methods, self.inherit, self.schedules, self.balance, self.unlabeled, self.teacher_imgsz]
        trained = len(self.teachers) == 1 and self.teachers[0].lower().endswith(".pt")
        return trained and not any((*how, self.every > 1, self.teacher_cache)) and self.fgfi == FgfiConfig()

    @property
    def shares(self) -> tuple[float, ...]:
        """The teachers' weights with a sum of 1, so that a method's weight means the same for any number of them."""
        weights = self.teacher_weights or (1.0,) * len(self.teachers)
        total = sum(weights)
        return tuple(weights) if abs(total - 1) < 1e-12 else tuple(weight / total for weight in weights)

    @property
    def chooses(self) -> bool:
        """Whether each image learns from one of several teachers."""
        return self.combine == "best" and len(self.teachers) > 1

    @property
    def needs_head(self) -> bool:
        """Whether a method needs what the teachers' heads put out in cells, not their features alone."""
        names = {name for name, _ in self.methods}
        return bool(names & NEEDS_HEAD) or ("fgfi" in names and self.fgfi.soft)

    @property
    def built_in(self) -> bool:
        """Whether Ultralytics distils, and not this project."""
        return self.distils and BUILT_IN in dict(self.methods)

    @property
    def cached(self) -> bool:
        """Whether the teacher has said beforehand what is learned from it, so that it runs in no step."""
        return self.distils and SOFT_LABELS in dict(self.methods)

    @property
    def cache_file(self) -> Path:
        """Where soft-labels keeps what its teacher says."""
        return Path(self.teacher_cache) if self.teacher_cache else Path(self.out) / CACHE

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_json`; keys that are none of ours are passed over.

        Raises UsageError for values out of range; LookupError, TypeError, ValueError or AttributeError for others.
        """
        given = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        given |= {key: tuple(given[key]) for key in ("teachers", "teacher_weights", "schedules") if key in given}
        given["settings"] = tuple(sorted(given["settings"].items()))
        methods = given.pop("methods")
        if methods:
            given["methods"] = tuple((name, WEIGHTS[name] if own is None else own) for name, own in methods.items())
        if "fgfi" in given:
            given["fgfi"] = FgfiConfig.from_json(given["fgfi"])
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON has it: tuples as lists, paths absolute, so that a later process compares equal.

        What has no meaning without a teacher, or without a second one, is left out there, as are options of the
        course of a run that are not used.
        """
        methods: dict[str, float | None] = dict(self.methods)
        if self.balance:  # which sets their weights
            methods = dict.fromkeys(methods)
        values = asdict(self) | {
            "data": str(Path(self.data).resolve()),
            "student": _place(self.student),
            "out": str(Path(self.out).resolve()),
            "teachers": [_place(teacher) for teacher in self.teachers],
            "methods": methods,
            "settings": {key: _jsonable(value) for key, value in self.settings},
            "fgfi": self.fgfi.to_json(),
            "teacher_weights": list(self.shares),
            "teacher_cache": self.teacher_cache and str(Path(self.teacher_cache).resolve()),
            "schedules": list(self.schedules),
            "unlabeled": self.unlabeled and str(Path(self.unlabeled).resolve()),
            "inherit": self.inherit and _place(self.inherit),
        }
        optional = ("teacher_cache", "schedules", "balance", "unlabeled", "skip_bad_labels", "inherit")
        absent = {key for key in optional if not values[key]}
        absent |= {"fgfi"} if not (self.distils or (self.fgfi.priors and self.may_be_classic)) else set()
        absent |= {"every"} if self.every == 1 else set()
        absent |= {"teacher_weights", "combine"} if len(self.teachers) < 2 else set()
        absent |= {"batch_auto"} if self.batch_auto is None else set()
        absent |= {"teacher_imgsz"} if self.teacher_imgsz is None else set()
        return {key: value for key, value in values.items() if key not in absent}


def priors_without_fgfi(methods: Iterable[tuple[str, float]]) -> UsageError:
    """What is said of `--priors` that nobody looks at."""
    names = ", ".join(name for name, _ in methods)
    return UsageError(f"--priors: got it with {names}, expected the method fgfi, whose option it is")


def _is_weight(value: float) -> bool:
    return WEIGHT[0] <= value <= WEIGHT[1]


_RANGE = "from {:g} to {:g}".format(*WEIGHT)


def require_number(option: str, value: Any) -> None:
    """Raise UsageError unless a value is a whole number within the bounds of its option (`NUMBERS`)."""
    least, most = NUMBERS[option]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"--{option}: got {_short(value)}, expected a whole number from {least} to {most}")


def require_side(option: str, value: Any, grid: int = GRID_PX) -> None:
    """Raise UsageError unless a value is an image side in pixels that a network of this largest stride sees as it is.

    >>> require_side("imgsz", 100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kd.errors.UsageError: --imgsz: got 100, expected a multiple of 32, the largest stride, ...: choose 96 or 128
    """
    require_number(option, value)
    if value % grid:
        below, above = value // grid * grid, (value // grid + 1) * grid
        near = " or ".join(str(side) for side in (below, above) if NUMBERS[option][0] <= side <= NUMBERS[option][1])
        raise UsageError(
            f"--{option}: got {value}, expected a multiple of {grid}, the largest stride, or Ultralytics rounds it up: "
            f"choose {near}"
        )


def _short(value: Any) -> str:
    """A value as a message shows it; whole numbers of thousands of digits have no text in Python.

    >>> _short(12), _short(2**200)
    ('12', 'a number of 201 bits')
    """
    return (
        f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >= 2**64 else repr(value)[:80]
    )


def _place(spec: str) -> str:
    return str(Path(spec).resolve()) if Path(spec).is_file() else spec


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, list | tuple) else value
