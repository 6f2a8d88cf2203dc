"""A synthetic DTLD tree: cities, routes, sequences, raw frames and both kinds of label files.

In: a folder, a number of frames and a seed. Out: a tree like the real one (see `scene` for what it shows).
Invariant: every file follows from (seed, sequence, step) alone, so the bytes do not depend on the workers, nor on
having been interrupted: a file that has its name is whole, and the same command makes what is missing, labels last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import orjson
import yaml
from tqdm import tqdm

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.files import IDENTITY, UNFINISHED, held, refuse_file, remove_temporary, told_when_full, write_atomically
from dtld_tools.pipeline.workers import Executor
from dtld_tools.synthetic.scene.depth import disparity_image
from dtld_tools.synthetic.scene.layout import DARK, Brief, build_scene
from dtld_tools.synthetic.scene.sensor import expose, render
from dtld_tools.synthetic.scene.world import STEP_S, Scene, Sighting, look
from dtld_tools.versions import package_version

LabelFormats = Literal["v1", "v2", "both"]

#: Name, what its label paths begin with, longitude and latitude. One city's paths are stale, as in the real set.
CITIES = (
    ("Berlin", "./", 13.405, 52.52),
    ("Bochum", "/scratch/fs2/DTLD_final/", 7.216, 51.482),
    ("Bremen", "./", 8.807, 53.075),
)
ROUTES = 2  # per city
FRAMES_PER_SEQUENCE = 4
LEAST_SEQUENCES = 4  # so that even a small tree can be split three ways

_RED, _GREEN = ("red",) * 3, ("green",) * 3
_STOP, _GO = ("green", "yellow", "red"), ("red", "red_yellow", "green")
# Decks: twelve sequences, the default, see every card of each.
PHASES = (_STOP, _STOP, _STOP, _GO, _GO, _GO, _RED, _RED, _GREEN, _GREEN, _GREEN, DARK)
PICTOGRAMS = (*("circle",) * 8, "arrow_left", "arrow_right", "arrow_straight", "arrow_straight_left")
EXTRAS = ("tram", "bicycle", "pedestrian_bicycle", "horizontal", "four_aspects", "green_arrow")
OCCLUDERS = ("none", "none", "none", "tree", "van", "post")
WEATHERS = ("clear", "clear", "clear", "overcast", "overcast", "dusk")
LAST_M = (9.0, 9.5, 10.0, 11.0, 12.0, 13.0, 14.0, 16.0, 19.0, 23.0, 30.0, 50.0)

# The digits of a v1.0 class_id from the left. Where v2.0 says unknown, v1.0 has a default.
_DIRECTION = {"front": 1, "back": 2, "left": 3, "right": 4}
_STATE = {"off": 0, "unknown": 0, "red": 1, "yellow": 2, "red_yellow": 3, "green": 4}
_WHITE = 5
_MASK = {
    "circle": 0, "unknown": 0, "tram": 0, "arrow_straight": 1, "arrow_left": 2, "arrow_straight_left": 3,
    "arrow_right": 4, "pedestrian": 8, "pedestrian_bicycle": 8, "bicycle": 9,
}  # fmt: skip
_ASPECTS = {1: "one_aspect", 2: "two_aspects", 3: "three_aspects", 4: "four_aspects"}


@dataclass(frozen=True, slots=True)
class PlannedSequence:
    """One approach: where it lies in the tree, and all that its scene is drawn from."""

    index: int
    seed: int
    brief: Brief
    start: datetime

    @property
    def city(self) -> int:
        """Position in `CITIES`."""
        return self.index % len(CITIES)

    @property
    def folder(self) -> str:
        """``City/Route/Sequence``."""
        name = CITIES[self.city][0]
        route = self.index // len(CITIES) % ROUTES + 1
        return f"{name}/{name}{route}/{self.start:%Y-%m-%d_%H-%M-%S}"

    def scene(self) -> Scene:
        """The same scene at every call."""
        return build_scene(self.brief, np.random.default_rng([self.seed, 1, self.index]))


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """One frame before it is drawn; lights are (unique_id, what the frame shows), labelled ones only."""

    sequence: PlannedSequence
    step: int
    time: datetime
    velocity: float
    yaw_rate: float
    lights: tuple[tuple[int, Sighting], ...]

    @property
    def image_path(self) -> str:
        """Path below the tree's root."""
        return f"{self.sequence.folder}/DE_BBBR667_{self.time:%Y-%m-%d_%H-%M-%S-%f}_k0.tiff"

    @property
    def disparity_path(self) -> str:
        """Path of its disparity image below the tree's root."""
        return self.image_path.replace("_k0.tiff", "_nativeV2.tiff")


def sample(
    out: Path,
    frames: int = 48,
    seed: int = 0,
    labels: LabelFormats = "v2",
    workers: int = 1,
    progress: bool = False,
    disparity: bool = False,
) -> dict[str, int]:
    """Writes a synthetic tree, or what is missing of it, and returns its counts: frames, lights, cities, sequences.

    With ``disparity`` each frame has its disparity image, which the labels name in any case.

    Raises `DatasetError` if ``out`` holds anything else or the disk is full, `UsageError` for a number out of range or
    an unknown format.
    """
    if labels not in ("v1", "v2", "both"):
        raise UsageError(f"--labels: got {labels!r}, expected v1, v2 or both")
    if workers < 1:
        raise UsageError(f"--workers: got {workers}, expected 1 or more")
    plan = plan_tree(frames, seed)
    refuse_file(out, "tree")
    identity = orjson.dumps([package_version("dtld-kd"), frames, str(seed), labels, disparity])
    _refuse_another(out, identity, plan, labels)
    with told_when_full(out), held(out, "tree") as scratch:
        _refuse_another(out, identity, plan, labels)  # somebody may have finished another one meanwhile
        remove_temporary(scratch)
        write_atomically(scratch / IDENTITY, identity, scratch)
        for folder in {frame.sequence.folder for frame in plan}:
            (out / folder).mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=len(plan), desc="sample", unit="frame", disable=None if progress else True)
        with bar, Executor(workers).started(_draw_frame, lambda frame: frame.image_path) as map_frames:
            for _ in map_frames(partial(_draw_frame, out, disparity), plan):
                bar.update()
        for name, data in _label_files(plan, labels):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out / name, data, scratch)
        (scratch / IDENTITY).unlink()
    return {
        "frames": len(plan),
        "lights": sum(len(frame.lights) for frame in plan),
        "cities": len({frame.sequence.city for frame in plan}),
        "sequences": len({frame.sequence.index for frame in plan}),
    }


def _refuse_another(out: Path, identity: bytes, plan: Sequence[PlannedFrame], labels: LabelFormats) -> None:
    """Raise DatasetError unless OUT is new, or the tree of this very command, whole or cut off."""
    mark = out / UNFINISHED / IDENTITY
    if mark.is_file():
        if mark.read_bytes() != identity:
            raise DatasetError(
                f"{out}: holds the unfinished tree of another command (--frames, --seed, --labels, --disparity); "
                "run that one again to continue it, or choose another folder"
            )
    elif out.is_dir() and any(path.name != UNFINISHED for path in out.iterdir()):
        # A whole tree bears no mark, but its labels say what it is.
        for name, data in _label_files(plan, labels):
            if not (out / name).is_file() or (out / name).read_bytes() != data:
                raise DatasetError(
                    f"{out}: expected a new or empty folder, or the tree of this very command, got one in use; "
                    "delete it or name another"
                )


def plan_tree(frames: int, seed: int) -> list[PlannedFrame]:
    """Every frame with its lights, in the tree's order, without drawing a pixel.

    Raises `UsageError` if there is no frame to plan or the seed is negative.
    """
    if frames < 1:
        raise UsageError(f"--frames: got {frames}, expected 1 or more")
    if seed < 0:
        raise UsageError(f"--seed: got {seed}, expected 0 or more")
    planned: list[PlannedFrame] = []
    next_id = 1
    for sequence in _sequences(frames, seed):
        for frame in _frames_of(sequence, next_id):
            planned.append(frame)
            next_id += len(frame.lights)
    return planned


def _sequences(frames: int, seed: int) -> Iterator[PlannedSequence]:
    count = max(1, min(max(LEAST_SEQUENCES, round(frames / FRAMES_PER_SEQUENCE)), frames // 2))
    rng = np.random.default_rng([seed, 2])
    decks = (_deal(deck, count, rng) for deck in (WEATHERS, PHASES, PICTOGRAMS, EXTRAS, OCCLUDERS, LAST_M))
    for index, (weather, phases, pictogram, extra, occluder, last_m) in enumerate(zip(*decks, strict=True)):
        steps = frames // count + (index < frames % count)
        hour = 20 if weather == "dusk" else 10
        start = datetime(2015, 4, 17, hour, 50, 5, tzinfo=timezone.utc) + timedelta(days=index, minutes=3 * index)
        brief = Brief(weather, phases, pictogram, extra, occluder, last_m, steps)
        yield PlannedSequence(index, seed, brief, start)


def _deal(deck: tuple, count: int, rng: np.random.Generator) -> list:
    """``count`` cards; each card comes once before any comes again."""
    rounds = -(-count // len(deck))
    return [deck[i] for _ in range(rounds) for i in rng.permutation(len(deck))][:count]


def _frames_of(sequence: PlannedSequence, first_id: int) -> Iterator[PlannedFrame]:
    scene = sequence.scene()
    rng = np.random.default_rng([sequence.seed, 3, sequence.index])
    positions = [camera.z_m for camera in scene.cameras]
    velocity = (positions[-1] - positions[0]) / max(1, len(positions) - 1) / STEP_S
    for step in range(sequence.brief.steps):
        seen = [sighting for sighting in look(scene, step).sightings if sighting.labelled]
        lights = tuple(enumerate(seen, first_id))
        first_id += len(lights)
        after_s = 8.6 + step * STEP_S + rng.uniform(0, 0.02)
        yaw_rate = round(rng.normal(0, 0.01), 5)
        yield PlannedFrame(
            sequence, step, sequence.start + timedelta(seconds=after_s), round(velocity, 3), yaw_rate, lights
        )


def _draw_frame(out: Path, disparity: bool, frame: PlannedFrame) -> None:
    """Draws what is missing of one frame."""
    path = out / frame.image_path
    if not path.exists():
        rng = np.random.default_rng([frame.sequence.seed, 4, frame.sequence.index, frame.step])
        _write_tiff(path, expose(render(look(frame.sequence.scene(), frame.step), rng), rng), out)
    path = out / frame.disparity_path
    if disparity and not path.exists():
        _write_tiff(path, disparity_image(look(frame.sequence.scene(), frame.step)), out)


def _write_tiff(path: Path, pixels: np.ndarray, out: Path) -> None:
    """Uncompressed: noise hardly packs, and packing costs more than drawing."""
    # In memory first: OpenCV does not say why it could not write a file, and leaves half of it.
    encoded, data = cv2.imencode(".tiff", pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    if not encoded:
        raise DatasetError(f"{path}: could not be encoded as TIFF")
    write_atomically(path, data.data, out / UNFINISHED)


def _label_files(plan: Sequence[PlannedFrame], labels: LabelFormats) -> Iterator[tuple[Path, bytes]]:
    """Places below OUT and contents: per format a file per city and one for all."""
    groups: list[tuple[str, Sequence[PlannedFrame]]]
    groups = [(city, [f for f in plan if f.sequence.city == number]) for number, (city, *_) in enumerate(CITIES)]
    groups = [*((city, frames) for city, frames in groups if frames), ("DTLD_all", plan)]
    if labels in ("v1", "both"):
        for name, frames in groups:
            file = f"{name if name == 'DTLD_all' else name + '_all'}.yml"
            yield Path("DTLD_Labels_v1.0", file), _labels_v1(frames)
    if labels in ("v2", "both"):
        for name, frames in groups:
            yield Path("DTLD_Labels_v2.0", "v2.0", f"{name}.json"), _labels_v2(frames)


def _labels_v2(frames: Sequence[PlannedFrame]) -> bytes:
    images = [
        _header(frame, "image_path", "disparity_image_path")
        | {"labels": [_label_v2(frame, uid, seen) for uid, seen in frame.lights]}
        for frame in frames
    ]
    return orjson.dumps({"images": images}, option=orjson.OPT_INDENT_2)


def _labels_v1(frames: Sequence[PlannedFrame]) -> bytes:
    images = [_header(frame, "path", "disp_path") | {"objects": _objects_v1(frame)} for frame in frames]
    return yaml.safe_dump(images, default_flow_style=None, width=200).encode()


def _header(frame: PlannedFrame, path_key: str, disparity_key: str) -> dict[str, str | float]:
    _, prefix, longitude, latitude = CITIES[frame.sequence.city]
    north = 1e-5 * (frame.sequence.index * 40 + frame.step * frame.velocity * STEP_S / 1.1)
    return {
        path_key: prefix + frame.image_path,
        disparity_key: prefix + frame.disparity_path,
        "time_stamp": frame.time.timestamp(),
        "velocity": frame.velocity,
        "yaw_rate": frame.yaw_rate,
        "longitude": longitude,
        "latitude": round(latitude + north, 7),
    }


def _track_id(frame: PlannedFrame, seen: Sighting) -> str:
    return f"TrafficLight_{frame.sequence.index:04d}_{seen.signal.track:02d}"


def _label_v2(frame: PlannedFrame, unique_id: int, seen: Sighting) -> dict:
    light, box = seen.signal, seen.box
    return {
        "x": int(box.x1),
        "y": int(box.y1),
        "w": int(box.width),
        "h": int(box.height),
        "attributes": {
            "direction": light.direction,
            "relevance": "relevant" if _is_relevant(seen) else "not_relevant",
            "occlusion": "occluded" if seen.occluded else "not_occluded",
            "orientation": light.orientation,
            "aspects": "unknown" if light.direction == "back" else _ASPECTS[light.aspects],
            "state": seen.state,
            "pictogram": light.pictogram,
            "reflection": "not_reflected",
        },
        "unique_id": unique_id,
        "track_id": _track_id(frame, seen),
    }


def _objects_v1(frame: PlannedFrame) -> list[dict]:
    best = max((seen.box.area for _, seen in frame.lights if _is_relevant(seen)), default=None)
    return [
        {
            "x": int(seen.box.x1),
            "y": int(seen.box.y1),
            "width": int(seen.box.width),
            "height": int(seen.box.height),
            "class_id": _class_id(seen, best_sight=seen.box.area == best),
            "unique_id": unique_id,
            "track_id": _track_id(frame, seen),
        }
        for unique_id, seen in frame.lights
    ]


def _is_relevant(seen: Sighting) -> bool:
    """v1.0 has one digit for relevance and occlusion, so an occluded light is never relevant, in both formats."""
    return seen.signal.relevant and not seen.occluded


def _class_id(seen: Sighting, best_sight: bool) -> int:
    light = seen.signal
    relevance = 4 if seen.occluded else 0 if not _is_relevant(seen) else 3 if best_sight else 1
    mounting = 1 if light.orientation == "horizontal" else 2
    if light.pictogram == "tram":
        mounting += 5 if light.framed else 7
    elif not light.framed:
        mounting += 2
    state = _WHITE if light.pictogram == "tram" else _STATE[seen.state]
    digits = (_DIRECTION[light.direction], relevance, mounting, light.aspects, state, _MASK[light.pictogram])
    return int("".join(map(str, digits)))
