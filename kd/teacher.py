"""Teachers: loaded, folded, frozen, tapped before their head, and scored before anyone learns from them.

In: a checkpoint and a device. Out: features by stride, or a refusal with the figures.
Invariant: a Teacher is no Module, so no optimizer, EMA, freeze loop or checkpoint can pick its weights up; it stays in
eval mode without gradients.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from kd import ultra
from kd.errors import DistillationError
from kd.evaluate import score

WORTH_IMAGES = 100  # validation images that a teacher is scored on
LEAST_MAP50 = 0.05  # below this a teacher has learned next to nothing about the data


class Tap(nn.Module):
    """Stands in a head's place and hands over the features the head would have read."""

    def __init__(self, head: nn.Module) -> None:
        """Take over where the head reads from (``f``) and which layer it is (``i``)."""
        super().__init__()
        self.f, self.i = head.f, head.i

    def forward(self, features: list[Tensor], *_: Any) -> list[Tensor]:
        """Return the feature levels [B, C, H, W] as they came; a decoder's further arguments are ignored."""
        return features


def probe_levels(model: nn.Module) -> dict[int, int]:
    """Stride in pixels -> channels of each level that the model's head reads, finest first as the head has them.

    Measured by one forward pass of a blank image in eval mode, which leaves batch statistics and random state
    alone; the mode is restored. Measured rather than read, since some heads do not know their strides.
    """
    side, seen = 256, []
    weight = next(model.parameters())
    hook = model.model[-1].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, model.yaml.get("channels", 3), side, side).to(weight))
    finally:
        hook.remove()
        model.train(training)
    return {side // features.shape[-1]: features.shape[1] for features in seen}


class Teacher:
    """A frozen detector that gives its neck features; its own head is cut off and never runs."""

    def __init__(self, spec: str, device: torch.device) -> None:
        """Load ``spec`` (see `kd.ultra.load_model`), tap, fold batch norms into convolutions, freeze, move."""
        model = ultra.load_model(spec).model
        head = model.model[-1]
        model.model[-1] = Tap(head)
        self.spec = spec
        with ultra.silence():
            self.model = model.fuse(verbose=False).eval().requires_grad_(False).to(device)
        self.levels = probe_levels(self.model)

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """Feature levels [B, C, H, W] by stride for ``images`` [B, 3, H, W] in 0..1."""
        with torch.inference_mode():
            levels = self.model(images)
        return dict(zip(self.levels, levels, strict=True))


def shared_strides(student: dict[int, int], teacher: dict[int, int], spec: str) -> tuple[int, ...]:
    """The strides that both networks have a level at; DistillationError when there is none.

    >>> shared_strides({8: 64, 16: 128, 32: 256}, {4: 64, 8: 128, 16: 256, 32: 512}, "yolov8s-p2")
    (8, 16, 32)
    """
    shared = tuple(stride for stride in student if stride in teacher)
    if not shared:
        raise DistillationError(
            f"{spec}: teacher: got levels at strides {', '.join(map(str, teacher))}, expected at least one of the "
            f"student's: {', '.join(map(str, student))}"
        )
    return shared


@dataclass(frozen=True)
class Worth:
    """What a teacher and the student's starting point score on the same validation images; None: not comparable."""

    images: int
    teacher_map50: float | None
    student_map50: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as run.json has them."""
        return asdict(self)


def check_worth(
    teacher: str,
    student: str,
    data: str,
    *,
    imgsz: int,
    batch: int,
    device: str | None,
    allow_weak: bool,
) -> Worth:
    """Score a teacher, and the student it starts from, on up to 100 validation images before any training.

    Raises DistillationError, with the figures, for a teacher of other classes than the data, near zero, or below
    the student's start; ``allow_weak`` lets it pass. A student with fresh weights or other classes starts at zero by
    nature and is not scored.
    """
    content = ultra.resolve_data(data)
    images = _spread(ultra.image_files(content["val"]), WORTH_IMAGES)
    classes = list(content["names"].values())
    teacher_map50 = student_map50 = None
    override = "train a better one, or pass --allow-weak-teacher"
    with tempfile.TemporaryDirectory(prefix="kd-worth-") as scratch:
        subset = _subset(Path(scratch), images, content["names"])

        def map50(spec: str) -> float | None:
            yolo = ultra.load_model(spec)
            if list(yolo.names.values()) != classes:
                return None
            found = score(yolo, subset, split="val", imgsz=imgsz, batch=batch, device=device, quiet=True)
            return found["map50"] or 0.0

        teacher_map50 = map50(teacher)
        if teacher_map50 is None and not allow_weak:
            got = list(ultra.load_model(teacher).names.values())
            raise DistillationError(
                f"{teacher}: teacher: got {len(got)} classes ({', '.join(got[:3])}, ...), expected those of {data}: "
                f"{', '.join(classes[:10])}; train it on this data, or pass --allow-weak-teacher to learn from its "
                f"features alone"
            )
        if student.lower().endswith(".pt"):
            student_map50 = map50(student)
    worth = Worth(len(images), teacher_map50, student_map50)
    if allow_weak or teacher_map50 is None:
        return worth
    if teacher_map50 < LEAST_MAP50:
        raise DistillationError(
            f"{teacher}: teacher: got mAP50 {teacher_map50:.3f} on {len(images)} validation images of {data}, "
            f"expected at least {LEAST_MAP50}; {override}"
        )
    if student_map50 is not None and teacher_map50 < student_map50:
        raise DistillationError(
            f"{teacher}: teacher: got mAP50 {teacher_map50:.3f} on {len(images)} validation images of {data}, "
            f"expected no less than the student's starting point {student_map50:.3f}; {override}"
        )
    return worth


def _spread(files: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` files, evenly spaced over all of them."""
    step = max(len(files) / count, 1)
    return [files[int(i * step)] for i in range(min(len(files), count))]


def _subset(folder: Path, images: Sequence[Path], names: dict[int, str]) -> Path:
    (folder / "images.txt").write_text("\n".join(map(str, images)), encoding="utf-8")
    content = {"train": "images.txt", "val": "images.txt", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "data.yaml"


def sha256(path: Path) -> str:
    """The file's SHA-256 as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
