"""Whole frames and videos in, boxes out: tiles cut in memory, looked at in batches, merged as scoring merges them.

In: images, folders, videos and a model. Out: labels, COCO results, pictures, and a dict of counts and speed.
Invariant: a frame's boxes are those that `kd evaluate --full-frame` scores for the same windows and network input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from kd.config import require_number
from kd.errors import ModelError, UsageError
from kd.files import require_new_folder, require_no_input, require_writable
from kd.scoring import outputs
from kd.scoring.detection_metrics import Detections
from kd.scoring.evaluate import channels_of, image_size
from kd.scoring.frames import Frame, View
from kd.scoring.full_frame import merge
from kd.scoring.predict import CONFIDENCE
from kd.scoring.shots import Shot, count_shots, find_files, is_video, read_shots
from kd.scoring.sparse import FAINT, Attention
from kd.scoring.tiles import Grid, TileDetector
from kd.ultra import model_files
from kd.ultra.exported import Exported, load_runnable
from kd.ultra.session import check_device, device_name

NOTHING = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, int))


class Detector(Protocol):
    """What looks at tiles: `TileDetector`, or a stand-in."""

    batch: int

    def __call__(self, tiles: Sequence[np.ndarray]) -> list[Detections]:
        """The detections in each tile, in its pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A frame with its boxes, and how many of its tiles were looked at."""

    shot: Shot
    found: Detections
    tiles: int
    looked_at: int


def predict_frames(
    frames: Sequence[str | Path],
    model: str | Path,
    *,
    grid: Grid | None = None,
    imgsz: int | None = None,
    conf: float = CONFIDENCE,
    batch: int = 16,
    device: str | None = None,
    limit: int | None = None,
    sparse: bool = False,
    out: str | Path | None = None,
    save_txt: str | Path | None = None,
    coco: str | Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> dict:
    """Find objects in whole frames: what ``kd predict --tiled`` prints.

    ``frames`` are images, folders of images, of which each is a sequence, and videos; ``limit`` takes the first images
    of a folder. Tiles are seen at ``imgsz`` pixels, by default those of the model's training. ``sparse`` skips tiles
    (`kd.scoring.sparse`). ``out`` takes pictures (a .png for one frame, else a new folder), ``save_txt`` is a new
    folder for YOLO labels, ``coco`` a file for COCO results; ``tell`` gets warnings. Returns ``{model, frames, tiles,
    looked_at, detections, imgsz, seconds, frames_per_s, device, out, save_txt, coco}``. Raises ModelError, DataError
    and UsageError.
    """
    grid, found_device = grid or Grid(), check_device(device)
    require_number("batch", batch)
    targets = {"--out": out, "--save-txt": save_txt, "--coco": coco}
    places = {option: Path(place) for option, place in targets.items() if place is not None}
    if not places:
        raise UsageError("--tiled: got no place for the boxes, expected --save-txt, --coco or --out")
    files = find_files(frames, limit)
    _check_places(places, files, [*map(Path, frames), Path(model)])
    yolo = load_runnable(str(model), device, tell)
    if not isinstance(yolo, Exported):
        model_files.require_names(yolo.model, str(model))
    if (channels := channels_of(yolo)) != 3:
        raise ModelError(f"{model}: got a model of {channels} channels, expected 3, as frames are read with")
    imgsz = image_size(yolo, imgsz)
    if imgsz != grid.tile_px:
        tell(f"tiles of {grid.tile_px} px are seen at {imgsz} px; --tile-size {imgsz} keeps them as they are")
    least = FAINT * conf if sparse else conf
    detector = TileDetector(yolo, imgsz=imgsz, conf=least, batch=batch, device=found_device)
    attention = Attention(grid.tile_px) if sparse else None

    counts, started = np.zeros(4, int), time.monotonic()
    bar = tqdm(total=count_shots(files), desc="predict", unit="frame", leave=False, disable=quiet or None)
    with bar, ExitStack() as writers:
        writes = [writers.enter_context(_writer(option, place, yolo.names)) for option, place in places.items()]
        for seen in detect_frames(read_shots(files, tell), detector, grid, conf, attention):
            for write in writes:
                write(seen.shot, seen.found)
            counts += (1, seen.tiles, seen.looked_at, len(seen.found))
            bar.update()
    seconds = time.monotonic() - started
    return {
        "model": str(model),
        **dict(zip(("frames", "tiles", "looked_at", "detections"), counts.tolist(), strict=True)),
        "imgsz": imgsz,
        "seconds": round(seconds, 3),
        "frames_per_s": round(int(counts[0]) / seconds, 3),
        "device": device_name(torch.device(found_device)),
        **{option[2:].replace("-", "_"): None if place is None else str(place) for option, place in targets.items()},
    }


def detect_frames(
    shots: Iterable[Shot], detector: Detector, grid: Grid, conf: float, attention: Attention | None = None
) -> Iterator[Seen]:
    """Each frame with its boxes above ``conf``, in frame pixels; with ``attention`` from a part of its tiles.

    Without it, as many frames are looked at together as it takes to fill the detector's batch.
    """
    waiting: list[tuple[Shot, list[View], int]] = []  # with the tiles to look at, and how many there are
    for shot in shots:
        views = grid.views(shot.size_wh, Path(shot.file_name))
        chosen = attention.choose(shot, views) if attention else list(views)
        waiting.append((shot, chosen, len(views)))
        if attention or sum(len(chosen) for _, chosen, _ in waiting) >= detector.batch:
            yield from _look(waiting, detector, grid, conf, attention)
            waiting = []
    yield from _look(waiting, detector, grid, conf, attention)


def _look(
    waiting: Sequence[tuple[Shot, list[View], int]],
    detector: Detector,
    grid: Grid,
    conf: float,
    attention: Attention | None,
) -> Iterator[Seen]:
    """The frames with what the detector finds in their tiles; tiles that were not looked at have no say in merging."""
    on_tiles = iter(detector([grid.cut(shot.picture, view) for shot, chosen, _ in waiting for view in chosen]))
    for shot, chosen, tiles in waiting:
        found = [next(on_tiles) for _ in chosen]
        if attention:
            attention.saw(found, chosen)
        sure = [tile[tile.confidences > conf] for tile in found]
        merged = merge(Frame.unlabelled(shot.name, shot.size_wh, tuple(chosen)), sure) if sure else NOTHING
        yield Seen(shot, merged, tiles, len(chosen))


def _writer(option: str, place: Path, names: dict[int, str]) -> outputs.Writer:
    if option == "--save-txt":
        return outputs.labels(place)
    return outputs.coco_results(place, names) if option == "--coco" else outputs.pictures(place, names)


def _check_places(places: dict[str, Path], files: Sequence[Path], read: Sequence[Path]) -> None:
    """Raise UsageError where results cannot be written, or would lie over each other or over what is read."""
    written: list[Path] = []
    for option, place in places.items():
        picture = option == "--out" and outputs.is_picture(place)
        if picture and (len(files) > 1 or is_video(files[0])):
            raise UsageError(f"--out: got {place} for more than one frame, expected a new folder for their pictures")
        if option == "--coco" and place.suffix.lower() != ".json":
            raise UsageError(f"--coco: got {place}, expected a file name that ends in .json")
        if picture or option == "--coco":
            these = [place, outputs.images_file(place)] if option == "--coco" else [place]
            for file in these:
                require_writable(option, file)
            require_no_input(option, these, [*files, *read])
        else:
            these = [place]
            require_new_folder(option, place)
        if any(place.absolute() == other.absolute() for other in written):
            raise UsageError(f"{option}: got {place} for two results, expected one each: choose another name")
        written += these
