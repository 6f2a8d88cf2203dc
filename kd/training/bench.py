"""What distilling costs for a pair: training steps with and without it and the teacher's forward pass, timed in turns.

In: student, teacher, methods, sizes. Out: seconds and memory per arm, and each step's extra time as a share of the
teacher's forward pass.
Invariant: an arm is the engine's own trainer on a data set of one batch, drawn here and dropped afterwards; no step is
imitated but Ultralytics' few lines that join forward, backward and optimizer.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from tqdm import tqdm
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import autocast

from kd.config import CACHE, TrainConfig, require_number, require_side
from kd.distillation.cache_file import Detections, TeacherCache, image_sha256
from kd.distillation.teacher import Teacher, load_detector, probe_levels, require_branches
from kd.errors import DistillationError
from kd.files import sha256
from kd.methods.facts import BUILT_IN, DEFAULT_WEIGHTS, SOFT_LABELS, WEIGHTS
from kd.methods.masks import Grid, imitation_masks
from kd.training import rtdetr
from kd.training.classic import require_methods
from kd.training.step import one_step
from kd.training.trainer import trainer_class
from kd.ultra import classic, memory, models, session

PLAIN, MASKS = "plain", "fgfi's masks"
TEACHER, FEATURES = "teacher, whole", "teacher, features"
EVERY = {**DEFAULT_WEIGHTS, SOFT_LABELS: WEIGHTS[SOFT_LABELS]}  # methods of ours
BOXES = 8  # per image; COCO has 7 on average
UNNAMED = 3  # detections per image that no label names
WARM_UP = 2  # rounds that do not count

Step = Callable[[], Any]


def bench(
    student: str,
    teacher: str,
    *,
    methods: Iterable[tuple[str, float]] = (),
    imgsz: int = 640,
    batch: int = 16,
    device: str | None = None,
    steps: int = 10,
    quiet: bool = False,
) -> dict[str, Any]:
    """Time ``steps`` rounds in which every arm does one step, after two that do not count; medians in seconds.

    ``methods`` as in a TrainConfig; none means every method that this pair allows. Arms: the plain step, the whole
    teacher (folded, head included, inference mode, the layout it is loaded in), its features as distilling runs it,
    each method's step, Ultralytics' own distillation, the masks of fgfi. Per training step ``over_teacher`` is (step -
    plain) / whole teacher. ``peak_mib`` is measured in a process of its own per arm: what torch allocated on a GPU; on
    Linux' CPUs the growth of resident memory; else None. Raises ModelError, UsageError or
    DistillationError, and RunError where there is no memory for the batch.
    """
    found = session.check_device(device)
    for option, value in (("batch", batch), ("steps", steps)):
        require_number(option, value)
    named = dict(methods)
    with tempfile.TemporaryDirectory(prefix="kd-bench-") as scratch, session.silence():
        pair = Pair.draw(Path(scratch), student, teacher, imgsz=imgsz, batch=batch, device=device)
        try:
            with memory.enough_memory(student, batch, imgsz, lambda: memory.fewer(batch)):
                arms, left_out = _arms(pair, named)
                seconds = in_turns(arms, steps, found, quiet)
                trained = [PLAIN, *(named or EVERY), BUILT_IN]
                peaks = {name: _alone(pair, name, named) for name in trained if name in arms}
        except DistillationError as error:
            raise DistillationError(str(error).replace(pair.teacher, teacher)) from error
        finally:
            torch.set_num_threads(session.TORCH_THREADS)
    whole, plain = seconds[TEACHER], seconds[PLAIN]
    return {
        "student": student,
        "teacher": teacher,
        "imgsz": pair.imgsz,
        "batch": batch,
        "boxes": batch * BOXES,
        "rounds": steps,
        "device": session.device_name(found),
        "versions": session.versions(),
        "arms": {
            name: {
                "seconds": value,
                "over_teacher": (value - plain) / whole if name in peaks and name != PLAIN else None,
                "peak_mib": peaks.get(name),
            }
            for name, value in seconds.items()
        },
        "mask_share": seconds[MASKS] / seconds["fgfi"] if "fgfi" in seconds else None,
        "left_out": {name: reason.replace(pair.teacher, teacher) for name, reason in left_out.items()},
    }


@dataclass(frozen=True)
class Pair:
    """Two models and a batch on disk; picklable, so that another process can train them as well."""

    folder: Path
    student: str  # as Ultralytics' trainer takes it
    teacher: str  # a checkpoint
    imgsz: int
    batch: int
    device: str | None

    @classmethod
    def draw(cls, folder: Path, student: str, teacher: str, *, imgsz: int, batch: int, device: str | None) -> Pair:
        """Check both models, write a teacher of fresh weights as the checkpoint that the built-in expects, draw data.

        Raises UsageError for an image size that is no multiple of the student's largest stride, as training does.
        """
        teacher_yolo, student_yolo = load_detector(teacher), models.load_model(student)
        models.require_student(student_yolo, student)
        require_side("imgsz", imgsz, models.grid_px(student_yolo))
        if not teacher.lower().endswith(".pt"):
            teacher = str(folder / "teacher.pt")
            with classic.official_names():
                torch.save({"model": teacher_yolo.model, "epoch": -1, "train_args": {"task": "detect"}}, teacher)
        said = draw_batch(folder, teacher_yolo.names, side=imgsz, images=batch)
        cache = TeacherCache.of(sha256(Path(teacher)), imgsz, list(teacher_yolo.names.values()), said.items())
        cache.write(folder / CACHE)
        return cls(folder, student_yolo.overrides["model"], teacher, imgsz, batch, device)

    def trainer(self, arm: str, weight: float | None = None) -> DetectionTrainer:
        """A trainer ready for its first step: plain, of a method, or Ultralytics' own distillation.

        Every batch ends in an optimizer step, nothing is augmented away, and torch has the threads it had.
        """
        overrides = {
            "task": "detect", "mode": "train", "model": self.student, "data": str(self.folder / "data.yaml"),
            "epochs": 1, "imgsz": self.imgsz, "batch": self.batch, "nbs": self.batch, "device": self.device,
            "workers": 0, "mosaic": 0.0, "translate": 0.0, "scale": 0.0, "plots": False,
            "save_dir": str(self.folder / "run"),
        }  # fmt: skip
        distilled: dict[str, Any] = {}
        if arm != PLAIN:
            distilled = {"teachers": (self.teacher,), "methods": ((arm, weight or WEIGHTS[arm]),)}
        if arm == SOFT_LABELS:
            require_branches(load_detector(self.teacher).model, self.teacher)
            distilled["teacher_cache"] = str(self.folder / CACHE)
        config = TrainConfig(data=overrides["data"], student=self.student, out=overrides["save_dir"], **distilled)
        require_methods(config, classic.is_classic(self.student))
        rtdetr.require_methods(config, models.is_rtdetr(self.student))
        if arm == BUILT_IN:
            trainer = DetectionTrainer(overrides={**overrides, "distill_model": self.teacher})
        else:
            trainer = trainer_class(config)(overrides=overrides)
        trainer._setup_train()
        trainer._model_train()
        torch.set_num_threads(session.TORCH_THREADS)  # Ultralytics takes one core away
        return trainer


def draw_batch(folder: Path, names: dict[int, str], *, side: int, images: int) -> dict[str, Detections]:
    """Write a YOLO data set of one batch: noise, and eight boxes an image with sides of 1/20 to 1/2 of the image's.

    Returns what a teacher might say of the images, by their SHA-256: each box, a little off, and three that no label
    names.
    """
    rng = np.random.default_rng(0)
    said = {}
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(images):
        image = folder / "images" / f"{i}.jpg"
        cv2.imwrite(str(image), rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        sides = np.exp(rng.uniform(np.log(0.05), np.log(0.5), (BOXES + UNNAMED, 2)))
        centres = rng.uniform(sides / 2, 1 - sides / 2)
        labels, boxes = rng.integers(0, len(names), BOXES + UNNAMED), np.hstack((centres, sides))
        rows = [" ".join([str(label), *map(str, box)]) for label, box in zip(labels[:BOXES], boxes, strict=False)]
        (folder / "labels" / f"{i}.txt").write_text("\n".join(rows), encoding="utf-8")
        off = np.hstack((rng.normal(0, 0.03, sides.shape) * sides, np.zeros_like(sides)))
        said[image_sha256(image)] = Detections(boxes + off, 0.8 * np.eye(len(names))[labels])
    content = {"train": "images", "val": "images", "names": dict(names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return said


def training_step(trainer: DetectionTrainer) -> Step:
    """A step on the batch of the trainer's loader."""
    batch = next(iter(trainer.train_loader))
    return lambda: one_step(trainer, batch)


def in_turns(arms: dict[str, Step], rounds: int, device: torch.device, quiet: bool = False) -> dict[str, float]:
    """Median seconds of each arm over rounds in which each has its turn, after the warm-up; a GPU is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in tqdm(range(WARM_UP + rounds), desc="bench", unit="round", leave=False, disable=quiet or None):
        for name, step in arms.items():
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}


def _arms(pair: Pair, named: dict[str, float]) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps to time, by name, and by name why one is left out: a method that was not asked for, or the built-in."""
    plain = pair.trainer(PLAIN)
    arms = {PLAIN: training_step(plain), **_teacher_arms(pair, plain)}
    left_out: dict[str, str] = {}
    for method, weight in (named or EVERY).items():
        try:
            arms[method] = training_step(pair.trainer(method, weight))
        except DistillationError as error:
            if named:
                raise
            left_out[method], refusal = str(error), error
    if len(left_out) == len(EVERY):
        raise refusal
    try:
        arms[BUILT_IN] = training_step(pair.trainer(BUILT_IN))
        arms[BUILT_IN]()
    except Exception as error:  # it refuses pairs, each in another way
        arms.pop(BUILT_IN, None)
        left_out[BUILT_IN] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "fgfi" in arms:
        arms[MASKS] = _masks(pair, plain)
    return arms, left_out


def _teacher_arms(pair: Pair, plain: DetectionTrainer) -> dict[str, Step]:
    """The teacher's forward pass, whole and as distilling runs it, under the plain trainer's precision."""
    whole = load_detector(pair.teacher).model.fuse(verbose=False).eval().requires_grad_(False).to(plain.device)
    features = Teacher(pair.teacher, plain.device).features
    images = plain.preprocess_batch(next(iter(plain.train_loader)))["img"]

    def run(forward: Callable[[torch.Tensor], Any]) -> None:
        with torch.inference_mode(), autocast(plain.amp, device=plain.device.type):
            forward(images)

    return {TEACHER: lambda: run(whole), FEATURES: lambda: run(features)}


def _masks(pair: Pair, plain: DetectionTrainer) -> Step:
    batch = plain.preprocess_batch(next(iter(plain.train_loader)))
    centre, side = (batch["bboxes"] * pair.imgsz).split(2, 1)
    boxes, index = torch.cat((centre - side / 2, centre + side / 2), 1), batch["batch_idx"].long()
    levels = Teacher(pair.teacher, plain.device).levels
    strides = [stride for stride in probe_levels(plain.model) if stride in levels]
    grids = [Grid(stride, pair.imgsz // stride, pair.imgsz // stride) for stride in strides]
    return lambda: imitation_masks(boxes, index, pair.batch, grids)


def _alone(pair: Pair, arm: str, named: dict[str, float]) -> float | None:
    """The peak memory of an arm in MiB, in a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_mib, pair, arm, {**EVERY, **named}.get(arm)).result()


def _peak_mib(pair: Pair, arm: str, weight: float | None) -> float | None:
    with session.silence():
        before = memory.resident_mib("VmRSS")
        trainer = pair.trainer(arm, weight)
        step = training_step(trainer)
        for _ in range(WARM_UP):
            step()
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device) / 2**20
    after = memory.resident_mib("VmHWM")
    return after - before if after and trainer.device.type == "cpu" else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
