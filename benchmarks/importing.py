"""A COCO JSON like val2017's into frames of `dtld`, against datumaro: seconds and memory.

    python benchmarks/importing.py /tmp/importing --datumaro /path/of/a/venv/with/datumaro/bin/python

Each reader has a process of its own, in turns; time is the processor's, from the path to the annotations in memory,
without the imports. Memory is the process's peak, and what it has more than after the imports. No image is read.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES, BOXES, CLASSES = 5_000, 36_000, 80

OURS = """
from pathlib import Path
from dtld_tools.importing.reading import read_import
def read(path):
    found = read_import("coco", [(Path(path), None)], Path("."), None, "drop")
    return sum(len(frame.lights) for frame in found.frames)
"""
DATUMARO = """
from datumaro.components.dataset import Dataset
def read(path):
    found = Dataset.import_from(path, "coco_instances")
    return sum(len([a for a in item.annotations if a.type.name == "bbox"] or item.annotations) for item in found)
"""
MEASURED = """
import re, sys, time
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak(), time.process_time()
count = read(sys.argv[1])
print(count, time.process_time() - start, peak(), peak() - before)
"""


def write_coco(path: Path, with_polygons: bool) -> None:
    """A file of random boxes, as val2017 has them: 7.2 an image, some images without."""
    rng = random.Random(0)
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in range(IMAGES)]
    annotations = []
    for number in range(BOXES):
        x, y, w, h = (round(rng.uniform(*limits), 2) for limits in ((0, 500), (0, 380), (4, 140), (4, 100)))
        points = [round(rng.uniform(0, 480), 2) for _ in range(60)] if with_polygons else [x, y, x + w, y, x + w, y + h]
        annotations.append(
            {
                "id": number + 1,
                "image_id": rng.randrange(IMAGES),
                "category_id": rng.randrange(CLASSES) + 1,
                "bbox": [x, y, w, h],
                "area": round(w * h, 2),
                "iscrowd": 0,
                "segmentation": [points],
            }
        )
    categories = [{"id": n + 1, "name": f"class {n}", "supercategory": ""} for n in range(CLASSES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parents[1] / "images" / "val2017").mkdir(parents=True, exist_ok=True)  # datumaro wants it
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def measure(python: str, code: str, path: Path) -> list[float]:
    """Boxes, seconds, MiB in all and MiB more than after the imports."""
    run = subprocess.run(
        [python, "-W", "ignore", "-c", code + MEASURED, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return list(map(float, run.stdout.split()[-4:]))


def main() -> None:
    """Write the files, read them in turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets the files")
    parser.add_argument("--datumaro", help="the Python that has datumaro")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    for name, with_polygons in (("boxes", False), ("polygons", True)):
        root = arguments.folder / name
        path = root / "annotations" / "instances_val2017.json"
        write_coco(path, with_polygons)
        readers = {"dtld": (sys.executable, OURS, path)}
        if arguments.datumaro:
            readers["datumaro"] = (arguments.datumaro, DATUMARO, root)
        found: dict[str, list[list[float]]] = {reader: [] for reader in readers}
        for _ in range(arguments.runs):
            for reader, what in readers.items():
                found[reader].append(measure(*what))
        print(f"{name}: {IMAGES} images, {BOXES} annotations, {path.stat().st_size / 2**20:.1f} MiB")
        for reader, rows in found.items():
            boxes, seconds, peak, more = (median(column) for column in zip(*rows, strict=True))
            print(f"  {reader:<9}{boxes:8.0f} read {seconds:7.2f} s {peak:7.0f} MiB, {more:.0f} more than at the start")


if __name__ == "__main__":
    main()
