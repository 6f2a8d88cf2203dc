"""The options of fine-grained feature imitation, as frozen values.

In: plain values. Out: a `FgfiConfig`, checked once, or an error that names the option.
Invariant: standard library alone; it survives the way through JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kd.errors import UsageError

#: Anchor priors: (stride, ((width, height) in pixels, ...)), sorted by stride.
Priors = tuple[tuple[int, tuple[tuple[float, float], ...]], ...]

MASKS = ("anchors", "boxes")  # what says where fgfi imitates
DEFECTS = ("adapter", "mask", "level")  # of the port that the paper used, for measuring what they cost


@dataclass(frozen=True)
class FgfiConfig:
    """Options of the imitation mask and its adapters.

    ``threshold`` is the paper's psi: a cell imitates where an anchor's IoU with a box exceeds psi times that box's
    best. ``assigned`` takes the best over all levels instead of per level, so that a box imitates on the level of
    its size. ``mask`` anchors is that; boxes is its anchor-free variant, the cells inside a box on every level, to
    which threshold, assigned and priors mean nothing. ``soft``: a cell counts as much as the teacher's class score in
    it, not as one. ``kernel`` is the adapter's side in cells, 1 or 3. ``priors`` are the anchors by stride, in pixels
    of the training image; None for YOLOv5's.

    ``defects`` reproduces what is wrong in wonbeomjang/yolov5-knowledge-distillation (commit 3ea9de3), which the paper
    used, to measure what it costs and for nothing else: an ``adapter`` that stays as drawn, a ``mask`` with rows and
    columns exchanged, the ``level`` of the smallest stride alone.
    """

    threshold: float = 0.5
    assigned: bool = False
    mask: str = "anchors"
    soft: bool = False
    kernel: int = 1
    priors: Priors | None = None
    defects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UsageError on a value out of range."""
        if not 0 < self.threshold < 1:
            raise UsageError(f"--fgfi threshold: got {self.threshold}, expected between 0 and 1, such as 0.5")
        if self.kernel not in (1, 3):
            raise UsageError(f"--fgfi kernel: got {self.kernel}, expected 1 or 3")
        if self.mask not in MASKS:
            raise UsageError(f"--fgfi mask: got {self.mask}, expected {' or '.join(MASKS)}")
        for name in self.defects:
            if name not in DEFECTS or self.defects.count(name) > 1:
                raise UsageError(f"--fgfi defects: got {name!r}, expected each once of {', '.join(DEFECTS)}")
        anchored = {"threshold": self.threshold != 0.5, "assigned": self.assigned, "priors": self.priors is not None}
        for name in (name for name, given in anchored.items() if given and self.mask == "boxes"):
            raise UsageError(f"--fgfi mask=boxes: got {name} too, expected it with anchors alone: boxes have none")
        if self.priors is not None and not (self.priors and all(are_priors(*level) for level in self.priors)):
            raise UsageError(f"--priors: got {self.priors}, expected (stride, ((width, height), ...)) per stride")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FgfiConfig:
        """The inverse of `to_json`. Raises as `TrainConfig.from_json` does."""
        options = dict(values)
        options["defects"] = tuple(options.get("defects", ()))
        if "priors" in options:
            sized = {int(stride): tuple(map(tuple, sizes)) for stride, sizes in options["priors"].items()}
            options["priors"] = tuple(sized.items())
        return cls(**options)

    def to_json(self) -> dict[str, Any]:
        """The options as JSON has them: threshold, assigned and kernel, and of the others what is not the default."""
        values = asdict(self)
        values["defects"] = list(self.defects)
        if self.priors is not None:
            values["priors"] = {str(stride): [list(size) for size in sizes] for stride, sizes in self.priors}
        defaults = {**{key: getattr(FgfiConfig, key) for key in ("mask", "soft", "priors")}, "defects": []}
        return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def are_priors(stride: Any, sizes: Any) -> bool:
    """Whether this is a stride and at least one (width, height), all in pixels above 0."""
    if not (isinstance(stride, int) and stride >= 1 and isinstance(sizes, list | tuple) and sizes):
        return False
    pairs = all(isinstance(size, list | tuple) and len(size) == 2 for size in sizes)
    return pairs and all(type(side) in (int, float) and 0 < side < 1e6 for size in sizes for side in size)
