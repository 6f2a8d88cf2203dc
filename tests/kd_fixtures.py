"""Tiny YOLO datasets and run settings for the tests of kd: coloured rectangles on grey, learnable in a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
COLOURS = {0: (40, 40, 220), 1: (40, 200, 40)}
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra kd")


def write_dataset(folder: Path, *, train: int = 6, val: int = 3, test: int = 0, side: int = 96, seed: int = 0) -> Path:
    """Write images and labels below ``folder``; returns its data.yaml. Every third image has no box."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            image = np.full((side, side, 3), 110, np.uint8) + rng.integers(0, 20, (side, side, 3), dtype=np.uint8)
            lines = []
            for _ in range(0 if i % 3 == 2 else 2):
                w, h = rng.integers(side // 6, side // 2, 2)
                x, y = rng.integers(0, side - w), rng.integers(0, side - h)
                label = int(rng.integers(0, 2))
                image[y : y + h, x : x + w] = COLOURS[label]
                box = ((x + w / 2) / side, (y + h / 2) / side, w / side, h / side)
                lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in box))
            for kind, name in (("images", f"{i:03d}.png"), ("labels", f"{i:03d}.txt")):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                path = folder / kind / split / name
                if kind == "images":
                    cv2.imwrite(str(path), image)
                else:
                    path.write_text("\n".join(lines))
    content = "train: images/train\nval: images/val\n" + ("test: images/test\n" if test else "")
    (folder / "data.yaml").write_text(content + "names: {0: red, 1: green}\n")
    return folder / "data.yaml"


def tiny_config(data: Path, out: Path, **changes):
    """A TrainConfig that takes seconds: 64 px, batch 3, one epoch, no mosaic; teachers are imitated by fgfi."""
    from kd.config import TrainConfig

    values = {
        "data": str(data), "out": str(out), "student": "yolov5n", "epochs": 1, "imgsz": 64, "batch": 3,
        "device": "cpu", "settings": (("mosaic", 0.0), ("warmup_epochs", 0.0)),
        **({"methods": (("fgfi", 0.01),)} if changes.get("teachers") else {}),
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})


def end_workers(trainer) -> None:
    """End the workers of a trainer's loaders; later, as garbage, each of them is waited for up to 5 s."""
    for loader in (trainer.train_loader, trainer.test_loader):
        loader.close()
    unlabeled = trainer.distillation and trainer.distillation.unlabeled
    if unlabeled and unlabeled._loader._iterator is not None:
        unlabeled._loader._iterator._shutdown_workers()


@contextmanager
def interrupted(epoch: int = 1) -> Iterator[None]:
    """A training in this process is interrupted at the first batch of an epoch, from 0."""
    from kd.training.trainer import Trainer

    own = Trainer.preprocess_batch

    def interrupt(self: Trainer, batch: dict) -> dict:
        if self.epoch == epoch:
            raise KeyboardInterrupt
        return own(self, batch)

    with patch.object(Trainer, "preprocess_batch", interrupt):
        yield


def shared_weights(name: str) -> str:
    """The path of a file in ../shared/weights; skips the test where that folder is absent."""
    path = SHARED / "weights" / name
    if not path.exists():
        pytest.skip(f"needs {path}: shared material beside the checkout")
    return str(path)
