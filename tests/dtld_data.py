"""Small synthetic DTLD trees for the tests of `dtld`: random Bayer pixels, and lights exactly as given.

Nothing here uses dtld_tools, so that a test compares the tool with something independent of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import settings

# No database: tests leave nothing in the tree. No deadline: two cores, shared with others.
settings.register_profile("dtld", deadline=None, database=None, max_examples=100)
settings.load_profile("dtld")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = REPOSITORY.parent / "shared" / "data" / "dtld_layout"

GREEN = {
    "direction": "front",
    "relevance": "relevant",
    "occlusion": "not_occluded",
    "orientation": "vertical",
    "aspects": "three_aspects",
    "state": "green",
    "pictogram": "circle",
    "reflection": "not_reflected",
}

# The six digits of a v1.0 class number, as the table in the official C++ parser reads.
V1_DIGITS = (
    ("direction", {"front": 1, "back": 2, "left": 3, "right": 4}),
    ("relevance", {"not_relevant": 0, "relevant": 1}),
    ("orientation", {"horizontal": 1, "vertical": 2}),
    ("aspects", {"one_aspect": 1, "two_aspects": 2, "three_aspects": 3, "four_aspects": 4}),
    ("state", {"off": 0, "red": 1, "yellow": 2, "red_yellow": 3, "green": 4}),
    (
        "pictogram",
        {
            "circle": 0,
            "arrow_straight": 1,
            "arrow_left": 2,
            "arrow_straight_left": 3,
            "arrow_right": 4,
            "pedestrian": 8,
            "bicycle": 9,
        },
    ),
)


def light(x, y, w, h, unique_id=1, **attributes):
    """A label of a v2.0 file: a green light ahead, but for the attributes given."""
    return {
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "attributes": GREEN | attributes,
        "unique_id": unique_id,
        "track_id": f"track_{unique_id}",
    }


def image(path, *lights):
    """An image of a v2.0 file."""
    return {"image_path": path, "time_stamp": 1429260613.6, "labels": list(lights)}


def class_id_of(attributes):
    """The v1.0 class number of attributes that v1.0 can say."""
    return int("".join(str(codes[attributes[name]]) for name, codes in V1_DIGITS))


def write_v2(path, images):
    """Write a v2.0 label file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images}, indent=1))
    return path


def write_v1(path, images):
    """Write the same images as a v1.0 label file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [
        {
            "path": entry["image_path"],
            "time_stamp": entry["time_stamp"],
            "objects": [
                {
                    "x": each["x"],
                    "y": each["y"],
                    "width": each["w"],
                    "height": each["h"],
                    "class_id": class_id_of(each["attributes"]),
                    "unique_id": each["unique_id"],
                    "track_id": each["track_id"],
                }
                for each in entry["labels"]
            ],
        }
        for entry in images
    ]
    path.write_text(yaml.safe_dump(objects, sort_keys=False))
    return path


def random_raw(rng, width, height):
    """HxW uint16 of smooth 12-bit Bayer data with noise: compresses like a photograph, not like static."""
    coarse = rng.integers(0, 4096, (height // 16 + 2, width // 16 + 2)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return (smooth + rng.integers(-40, 40, (height, width))).clip(0, 4095).astype(np.uint16)


def write_raw(path, rng, width, height):
    """Write a frame as DTLD's container has it: 16-bit, one channel, Bayer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), random_raw(rng, width, height))
    return path


def frame_path(city, sequence, number, route=1):
    """City/Route/Sequence/file of the n-th frame of a sequence."""
    return f"{city}/{city}{route}/2015-04-{sequence:02d}_10-50-05/DE_{city}_{number:06d}_k0.tiff"


def random_light(rng, unique_id, width, height):
    """A light of any size and attributes v1.0 can say; about one in five reaches over an edge."""
    w, h = int(rng.integers(1, 30)), int(rng.integers(2, 60))
    x, y = int(rng.integers(-10, width + 4)), int(rng.integers(-20, height + 4))
    attributes = {name: str(rng.choice(list(codes))) for name, codes in V1_DIGITS}
    if rng.random() < 0.5:
        attributes |= {"direction": "front", "relevance": "relevant", "pictogram": "circle", "state": "red"}
    return light(x, y, w, h, unique_id, **attributes)


def make_tree(root, *, cities=("Aachen", "Berlin"), sequences=3, frames=2, size_wh=(256, 128), seed=0, lights=3):
    """Write a tree of raw frames; returns the images of its v2.0 label file, which the caller writes."""
    rng = np.random.default_rng(seed)
    images, unique_id = [], 0
    for city in cities:
        for sequence in range(1, sequences + 1):
            for number in range(frames):
                path = frame_path(city, sequence, number)
                write_raw(root / path, rng, *size_wh)
                found = []
                for _ in range(int(rng.integers(0, lights + 1))):
                    unique_id += 1
                    found.append(random_light(rng, unique_id, *size_wh))
                images.append(image(f"./{path}", *found))
    return images


def read_lines(path):
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree_bytes(root, *, without=("report.json",)):
    """Every file below a folder with its bytes, all but the report: what must be identical."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).as_posix() not in without
    }


def tool(name, *arguments, cwd=None, timeout=60):
    """Run a console script of this environment as its own process."""
    script = Path(sys.executable).parent / name
    if not script.exists():
        pytest.skip(f"{script} is absent: install the checkout with pip install -e .")
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=environment,
        check=False,
    )


def needs_real():
    """Skip where the real photographs are absent."""
    if not REAL.is_dir():
        pytest.skip(f"needs {REAL}: shared material beside the checkout")
