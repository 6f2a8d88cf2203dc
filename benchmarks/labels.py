"""Label files of DTLD's full size: how near `dtld inspect` comes to merely opening the file, in time and memory.

The files are drawn into a temporary folder: 40,979 frames with 292,245 lights in some 620 sets of attributes, as v2.0
JSON (about 170 MB) and as v1.0 YAML. `dtld inspect` is compared with the bare opening of the JSON file as DTLD's
official parser does it: json.load, and one Python object per image and per light. Each figure is the median of
whole processes, timed in turn; memory is the peak of a process as the kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FRAMES, LIGHTS = 40_979, 292_245
CITIES = [
    "Berlin",
    "Bochum",
    "Bremen",
    "Dortmund",
    "Duesseldorf",
    "Essen",
    "Frankfurt",
    "Fulda",
    "Hannover",
    "Kassel",
    "Koeln",
]
COMBINATIONS = 620
FRAMES_PER_SEQUENCE = 20

# The values of each attribute with its v1.0 digit and weight, the rare ones as rare as in real streets.
DIRECTION = {"front": (1, 70), "right": (4, 13), "left": (3, 9), "back": (2, 8)}
RELEVANCE = {"not_relevant": (0, 60), "relevant": (1, 40)}
OCCLUSION = {"not_occluded": (0, 88), "occluded": (4, 12)}
ORIENTATION = {"vertical": (2, 96), "horizontal": (1, 4)}
ASPECTS = {"three_aspects": (3, 70), "two_aspects": (2, 22), "one_aspect": (1, 6), "four_aspects": (4, 2)}
STATE = {"red": (1, 40), "green": (4, 34), "off": (0, 12), "yellow": (2, 7), "unknown": (5, 5), "red_yellow": (3, 2)}
PICTOGRAM = {
    "circle": (0, 55),
    "pedestrian": (8, 18),
    "arrow_straight": (1, 8),
    "arrow_left": (2, 7),
    "bicycle": (9, 4),
    "arrow_right": (4, 3),
    "unknown": (7, 3),
    "arrow_straight_left": (3, 2),
}
REFLECTION = {"not_reflected": (0, 97), "reflected": (0, 3)}
ATTRIBUTES = {
    "direction": DIRECTION,
    "relevance": RELEVANCE,
    "occlusion": OCCLUSION,
    "orientation": ORIENTATION,
    "aspects": ASPECTS,
    "state": STATE,
    "pictogram": PICTOGRAM,
    "reflection": REFLECTION,
}


class Lamp(NamedTuple):
    """A light as both formats need it."""

    box_xywh: tuple[int, int, int, int]
    combination: int
    unique_id: int
    track_id: str


class Picture(NamedTuple):
    """A frame as both formats need it; ``stem`` is the image's path below the root, without its ending."""

    stem: str
    timestamp_s: float
    velocity: float
    yaw_rate: float
    longitude: float
    latitude: float
    lamps: list[Lamp]


# --- drawing the content ------------------------------------------------------------------------------------


def combinations(rng: random.Random) -> tuple[list[dict[str, str]], list[float]]:
    """The 620 sets of attributes and how often each occurs: weights as drawn, so a few make up most lights."""
    found: dict[tuple[str, ...], float] = {}
    while len(found) < COMBINATIONS:
        drawn = [rng.choices(list(v), [weight for _, weight in v.values()])[0] for v in ATTRIBUTES.values()]
        weight = 1.0
        for value, values in zip(drawn, ATTRIBUTES.values(), strict=True):
            weight *= values[value][1]
        found[tuple(drawn)] = weight
    return [dict(zip(ATTRIBUTES, values, strict=True)) for values in found], list(found.values())


def pictures(frames: int, lights: int, weights: list[float], rng: random.Random) -> Iterator[Picture]:
    """Frames in sequences, routes and cities, with ``lights`` lights in all; tracks go through a sequence."""
    kinds = range(len(weights))
    first = rng.sample(kinds, len(weights))  # every combination occurs, however rare, where there are lights enough
    cumulative = [sum(weights[: n + 1]) for n in kinds]
    placed = 0
    for index in range(frames):
        sequence, number = divmod(index, FRAMES_PER_SEQUENCE)
        if number == 0:
            city = CITIES[
                sequence * len(CITIES) * FRAMES_PER_SEQUENCE // max(frames, len(CITIES) * FRAMES_PER_SEQUENCE)
            ]
            start = f"2015-{1 + sequence % 12:02d}-{1 + sequence % 28:02d}_{sequence % 24:02d}-{sequence % 60:02d}"
            folder = f"{city}/{city}{1 + sequence % 9}/{start}-{sequence % 50:02d}"
        clock = f"{start}-{10 + number:02d}-{rng.randrange(1_000_000):06d}"
        due = lights * (index + 1) / frames - placed  # keeps to the sum, whatever the chance of single frames
        count = lights - placed if index == frames - 1 else max(0, min(lights - placed, round(rng.gauss(due, 4))))
        lamps = []
        for lamp in range(count):
            combination = first.pop() if first else rng.choices(kinds, cum_weights=cumulative)[0]
            width = 3 + int(rng.expovariate(1 / 14))
            box = (rng.randrange(-20, 2040), rng.randrange(-20, 900), width, int(width * 2.6))
            placed += 1
            lamps.append(Lamp(box, combination, placed, f"TrafficLight_{sequence:05d}_{lamp}"))
        yield Picture(
            f"{folder}/DE_BBBR667_{clock}",
            1429260000.0 + index * 0.67,
            rng.uniform(0, 16),
            rng.gauss(0, 0.05),
            13.4 + rng.uniform(-5, 1),
            52.5 + rng.uniform(-2, 1),
            lamps,
        )


# --- writing it ---------------------------------------------------------------------------------------------


def write_files(folder: Path, frames: int, seed: int = 0) -> tuple[Path, Path, int]:
    """Write DTLD_all.json and DTLD_all.yml of the same content, frame by frame; returns them and the lights."""
    rng = random.Random(seed)
    kinds, weights = combinations(rng)
    attributes = [json.dumps(kind, indent=2).replace("\n", "\n" + " " * 10) for kind in kinds]
    class_ids = [_class_id(kind) for kind in kinds]
    v2, v1 = folder / "DTLD_all.json", folder / "DTLD_all.yml"
    lights = LIGHTS * frames // FRAMES
    with v2.open("w") as as_json, v1.open("w") as as_yaml:
        as_json.write('{\n  "images": [')
        for index, picture in enumerate(pictures(frames, lights, weights, rng)):
            as_json.write(("," if index else "") + _json_of(picture, attributes))
            as_yaml.write(_yaml_of(picture, class_ids))
        as_json.write("\n  ]\n}\n")
    return v2, v1, lights


def _class_id(kind: dict[str, str]) -> int:
    """v1.0's six digits; what v1.0 cannot say (reflections, relevant and occluded) is lost."""
    digits = [ATTRIBUTES[name][value][0] for name, value in kind.items() if name not in ("occlusion", "reflection")]
    if kind["occlusion"] == "occluded":
        digits[1] = 4
    return int("".join(map(str, digits)))


def _json_of(picture: Picture, attributes: list[str]) -> str:
    """One image of the v2.0 file, indented as the whole is."""
    lamps = ",".join(
        f"""
        {{
          "x": {x},
          "y": {y},
          "w": {w},
          "h": {h},
          "attributes": {attributes[combination]},
          "unique_id": {unique_id},
          "track_id": "{track_id}"
        }}"""
        for (x, y, w, h), combination, unique_id, track_id in picture.lamps
    )
    return f"""
    {{
      "image_path": "./{picture.stem}_k0.tiff",
      "disparity_image_path": "./{picture.stem}_nativeV2.tiff",
      "time_stamp": {picture.timestamp_s!r},
      "velocity": {picture.velocity!r},
      "yaw_rate": {picture.yaw_rate!r},
      "longitude": {picture.longitude!r},
      "latitude": {picture.latitude!r},
      "labels": [{lamps}{chr(10) + " " * 6 if lamps else ""}]
    }}"""


def _yaml_of(picture: Picture, class_ids: list[int]) -> str:
    """One item of the v1.0 file, in block style."""
    lamps = "".join(
        f"""
  - class_id: {class_ids[combination]}
    height: {h}
    track_id: {track_id!r}
    unique_id: {unique_id}
    width: {w}
    x: {x}
    y: {y}"""
        for (x, y, w, h), combination, unique_id, track_id in picture.lamps
    )
    return f"""\
- disp_path: /scratch/fs2/DTLD_final/{picture.stem}_nativeV2.tiff
  latitude: {picture.latitude!r}
  longitude: {picture.longitude!r}
  objects:{lamps or " []"}
  path: /scratch/fs2/DTLD_final/{picture.stem}_k0.tiff
  time_stamp: {picture.timestamp_s!r}
  velocity: {picture.velocity!r}
  yaw_rate: {picture.yaw_rate!r}
"""


# --- what is compared ---------------------------------------------------------------------------------------


class Vehicle:
    def __init__(self, velocity: float, yaw_rate: float, longitude: float, latitude: float) -> None:
        self.velocity, self.yaw_rate, self.longitude, self.latitude = velocity, yaw_rate, longitude, latitude


class Label:
    def __init__(self, label: dict[str, Any]) -> None:
        self.x, self.y = label["x"], label["y"]
        self.width, self.height = label["w"], label["h"]
        self.attributes = label["attributes"]
        self.unique_id = label["unique_id"]
        self.track_id = label["track_id"]


class Image:
    def __init__(self, image: dict[str, Any]) -> None:
        self.file_path = image["image_path"]
        self.disp_file_path = image["disparity_image_path"]
        self.timestamp = image["time_stamp"]
        self.vehicle_data = Vehicle(image["velocity"], image["yaw_rate"], image["longitude"], image["latitude"])
        self.objects: list[Label] = []


def open_officially(path: Path) -> list[Image]:
    """What DTLD's parser does with a v2.0 file, in words of our own: an object per image and per light."""
    with path.open() as file:
        document = json.load(file)
    images = []
    for entry in document["images"]:
        image = Image(entry)
        for label in entry["labels"]:
            image.objects.append(Label(label))
        images.append(image)
    return images


# Each is a process of its own, which may print how long its work took without starting and importing.
HERE = Path(__file__).resolve().parent
OPEN = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
import logging, cv2, numpy
from labels import Path, open_officially
started = time.perf_counter()
images = open_officially(Path(sys.argv[1]))
print(time.perf_counter() - started)
"""
READ = f"""
import os, sys, time
sys.path.insert(0, {str(HERE.parent)!r})
from pathlib import Path
from dtld_tools.labels.collapse import load_rules
from dtld_tools.labels.attributes import VOCABULARY
from dtld_tools.labels.parse import read_labels
from dtld_tools.labels.stats import inspect_labels
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, started = resident(), time.perf_counter()
labels = read_labels([Path(sys.argv[1])])
held = (resident() - before) / len(labels.frames)
inspect_labels(labels, load_rules(None))
print(time.perf_counter() - started, held)
"""
INSPECT = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); import cli; cli.dtld()"


class Measured(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_mb: float
    printed: str


def measure(code: str, *arguments: str) -> Measured:
    """Run Python code as a process, from start to end."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f"a measured process ended with {process.returncode}, expected 0")
    wall_s = time.perf_counter() - started
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def medians(runs: list[Measured]) -> tuple[float, float, float, list[float]]:
    """Wall-clock and CPU seconds, peak MiB, and the printed numbers of several runs."""
    printed = zip(*([float(word) for word in run.printed.split()] for run in runs), strict=True)
    return (
        statistics.median(run.wall_s for run in runs),
        statistics.median(run.cpu_s for run in runs),
        statistics.median(run.peak_mb for run in runs),
        [statistics.median(values) for values in printed],
    )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, help="fewer frames make a smaller file")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    runs: dict[str, list[Measured]] = {"open": [], "inspect": [], "read": []}
    with tempfile.TemporaryDirectory() as scratch:
        v2, v1, lights = write_files(Path(scratch), options.frames)
        sizes_mb = [path.stat().st_size / 1e6 for path in (v2, v1)]
        for _ in range(options.repetitions):
            runs["open"].append(measure(OPEN, str(v2)))
            found = measure(INSPECT, "inspect", str(v2), "--json")
            runs["inspect"].append(found._replace(printed=""))
            runs["read"].append(measure(READ, str(v2)))
        counts = json.loads(found.printed)
        if (counts["frames"], counts["lights"]) != (options.frames, lights):
            raise SystemExit(f"inspect counted {counts['frames']} frames, expected {options.frames}")
        of_yaml = measure(INSPECT, "inspect", str(v1), "--json")
    opened, inspected, read = (medians(members) for members in runs.values())
    print(
        f"{options.frames:,} frames, {lights:,} lights, {counts['attribute_combinations']} attribute combinations; "
        f"JSON {sizes_mb[0]:.0f} MB, YAML {sizes_mb[1]:.0f} MB; median of {options.repetitions}; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}, "
        f"Python {platform.python_version()}\n"
    )
    print("| | goal | measured | of the official open |\n| --- | --- | --- | --- |")
    for name, goal, seconds, base in (
        ("official open, whole process", "", opened[0], None),
        ("`dtld inspect`, whole process", "at most 0.6", inspected[0], opened[0]),
        ("the same, CPU time", "", inspected[1], opened[1]),
        ("official open, without starting and imports", "", opened[3][0], None),
        ("read and counted, without starting and imports", "at most 0.6", read[3][0], opened[3][0]),
    ):
        print(f"| {name} | {goal} | {seconds:.2f} s | {'' if base is None else format(seconds / base, '.2f')} |")
    print(
        f"| peak memory of `dtld inspect` | at most 1,200 MB | {inspected[2]:.0f} MB | {inspected[2] / opened[2]:.2f} |"
    )
    print(f"| memory of a frame read | | {read[3][1]:,.0f} bytes | |")
    print(f"| `dtld inspect` of the YAML file | at most 60 s | {of_yaml.wall_s:.1f} s, {of_yaml.peak_mb:.0f} MB | |")


if __name__ == "__main__":
    main()
