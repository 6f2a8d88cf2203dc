"""The datasets of the evidence: lists of images of BCCD and cinTA_v2, which stay where they are.

    python benchmarks/evidence_data.py SETS OUT

SETS has `bccd` (train 205, val 87 images) and `cinta_v2` (train 2097, valid 200), each as Roboflow exports YOLO data.
OUT gets `bccd/data.yaml` and `cinta/data.yaml`. Checkpoints are chosen on val, scores are of test, and no image is in
two splits:

- BCCD: all of train; of val, 15 at equal distances are val and the other 72 test.
- cinTA: its author made three augmented copies of each of 699 photographs; train has the first copy of every third
  photograph (233). Of valid, every fifth image is val (40) and the others are test (160).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

BCCD_CLASSES = ("RBC", "WBC", "Platelets")
CINTA_CLASSES = ("green", "red", "yellow")


def write_bccd(source: Path, out: Path) -> dict[str, int]:
    """Lists and data.yaml of BCCD; returns the number of images by split."""
    held_out = _images(source / "images" / "val")
    val = every(held_out, 15)
    return _write(out, BCCD_CLASSES, _images(source / "images" / "train"), val, held_out)


def write_cinta(source: Path, out: Path) -> dict[str, int]:
    """Lists and data.yaml of a third of cinTA_v2's photographs; returns the number of images by split."""
    copies: dict[str, Path] = {}
    for image in _images(source / "train" / "images"):
        copies.setdefault(image.name.partition(".rf.")[0], image)
    held_out = _images(source / "valid" / "images")
    return _write(out, CINTA_CLASSES, list(copies.values())[::3], held_out[::5], held_out)


def every(items: Sequence[Path], count: int) -> list[Path]:
    """``count`` of the items at equal distances, the first among them."""
    return [items[i * len(items) // count] for i in range(count)]


def _images(folder: Path) -> list[Path]:
    images = sorted(folder.resolve().glob("*.jpg"))
    if not images:
        raise SystemExit(f"{folder}: got no .jpg, expected the dataset's images")
    return images


def _write(
    out: Path, names: Sequence[str], train: Sequence[Path], val: Sequence[Path], held_out: Sequence[Path]
) -> dict[str, int]:
    out.mkdir(parents=True, exist_ok=True)
    splits = {"train": train, "val": val, "test": [image for image in held_out if image not in val]}
    for split, images in splits.items():
        (out / f"{split}.txt").write_text("".join(f"{image}\n" for image in images), encoding="utf-8")
    content = {**{split: f"{split}.txt" for split in splits}, "names": dict(enumerate(names))}
    (out / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return {split: len(images) for split, images in splits.items()}


def main() -> None:
    """Write both datasets."""
    parser = argparse.ArgumentParser(description="Lists of images for benchmarks/evidence/*.yaml.")
    parser.add_argument("sets", type=Path, help="the folder with bccd and cinta_v2")
    parser.add_argument("out", type=Path, help="gets bccd/data.yaml and cinta/data.yaml")
    arguments = parser.parse_args()
    for name, counts in (
        ("bccd", write_bccd(arguments.sets / "bccd", arguments.out / "bccd")),
        ("cinta", write_cinta(arguments.sets / "cinta_v2", arguments.out / "cinta")),
    ):
        print(f"{arguments.out / name / 'data.yaml'}: " + ", ".join(f"{split} {n}" for split, n in counts.items()))


if __name__ == "__main__":
    main()
