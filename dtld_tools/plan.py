"""Sources and options in, the whole plan out, before any pixel is read: windows, targets, quotas, copies, drops.

A plan is a re-iterable stream of `FramePlan`, in the order of frame paths, each the same however often it is
asked for: memory stays flat, any number of workers gives the same dataset, and an interrupted run continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dtld_tools import dataset
from dtld_tools.augment import AugmentSpec, draw_recipe
from dtld_tools.errors import DatasetError
from dtld_tools.sources import Skipped, Source, image_name
from dtld_tools.tile import tile_frame
from dtld_tools.types import Dropped, FrameRecord, ImageRecord, LightId, Split, Tile, TileSpec, Window


@dataclass(frozen=True, slots=True)
class Job:
    """One source image and what is made of it; ``verbatim`` originals are copied byte by byte."""

    source: Path
    images: tuple[ImageRecord, ...]
    verbatim: bool = False


@dataclass(frozen=True, slots=True)
class FramePlan:
    """One frame's line and its images."""

    frame: FrameRecord
    jobs: tuple[Job, ...]

    @property
    def images(self) -> Iterator[ImageRecord]:
        """All images of the frame, in the order of the manifest."""
        return (image for job in self.jobs for image in job.images)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides a dataset's bytes. ``settings`` are the options, for the report and the identity."""

    settings: Mapping[str, Any]
    class_names: tuple[str, ...]
    frames: Callable[[], Iterator[FramePlan]]
    skipped: tuple[Skipped, ...] = ()

    def scan(self) -> tuple[str, int]:
        """A hash of the options and of every line (equal plans give equal datasets), and the frames with images."""
        frames_with_images = 0
        digest = hashlib.sha256(orjson.dumps([self.settings, self.class_names], option=orjson.OPT_SORT_KEYS))
        for plan in self.frames():
            digest.update(orjson.dumps(dataset.frame_to_json(plan.frame)))
            digest.update(orjson.dumps([dataset.image_to_json(image) for image in plan.images]))
            frames_with_images += bool(plan.jobs)
        return digest.hexdigest(), frames_with_images


# --- sources -> images -----------------------------------------------------------------------------------


def plan_images(
    sources: Sequence[Source],
    spec: TileSpec,
    empty_ratio: float | None,
    augment: AugmentSpec | None,
    seed: int,
    suffix: str | None,
) -> Callable[[], Iterator[FramePlan]]:
    """Cut the sources into images: windows, targets, which empty tiles stay, which copies are made.

    ``empty_ratio`` None keeps every empty tile; ``suffix`` None keeps the source's. Raises DatasetError if two
    images would get the same name.
    """
    threshold = None if empty_ratio is None else _empty_threshold(sources, spec, empty_ratio, seed, suffix)
    _check_names(sources, suffix)

    def frames() -> Iterator[FramePlan]:
        for source in sources:
            yield _plan_frame(source, spec, threshold, augment, seed, suffix)

    return frames


def _plan_frame(
    source: Source,
    spec: TileSpec,
    threshold: int | None,
    augment: AugmentSpec | None,
    seed: int,
    suffix: str | None,
) -> FramePlan:
    frame = source.frame
    tiles = tile_frame(frame.width, frame.height, frame.lights, spec)
    images: list[ImageRecord] = []
    for tile in tiles:
        image = _image_record(source, tile, spec, suffix)
        if tile.targets or threshold is None or frame.split != "train" or _rank(seed, image.name) <= threshold:
            images.append(image)
            images.extend(copies(image, augment, seed))
    return FramePlan(_with_drops(frame, tiles), (Job(source.path, tuple(images)),) if images else ())


def _with_drops(frame: FrameRecord, tiles: Sequence[Tile]) -> FrameRecord:
    """Move the lights that no tile has as a target to ``dropped``.

    A light that some tile shows well enough, but too small, is dropped for its size; else for its visible share.
    """
    kept = {target.light_id for tile in tiles for target in tile.targets}
    reasons: dict[LightId, str] = {}
    for tile in tiles:
        for light_id, reason in tile.slivers.items():
            reasons[light_id] = "min_side" if "min_side" in (reason, reasons.get(light_id)) else reason
    return replace(
        frame,
        lights=tuple(light for light in frame.lights if light.light_id in kept),
        dropped=frame.dropped
        + tuple(
            Dropped(light.light_id, reasons[light.light_id], light.class_id, light.box)
            for light in frame.lights
            if light.light_id not in kept
        ),
    )


def _image_record(source: Source, tile: Tile, spec: TileSpec, suffix: str | None) -> ImageRecord:
    frame = source.frame
    return ImageRecord(
        name=_tile_name(source, tile.window, spec, suffix),
        split=frame.split,
        frame=frame.frame,
        sequence=frame.sequence,
        window=tile.window,
        scale=tile.scale,
        augmentation=None,
        targets=tuple(target.light_id for target in tile.targets),
        slivers=tuple(tile.slivers),
    )


def copies(image: ImageRecord, augment: AugmentSpec | None, seed: int) -> list[ImageRecord]:
    """The changed copies of an original, in their order; a copy that nothing would change is left out."""
    if augment is None or image.split not in augment.splits:
        return []
    stem, dot, extension = image.name.rpartition(".")
    made = []
    for index in range(1, augment.copies + 1):
        rng = np.random.default_rng(_rank(seed, f"{image.name}/{index}"))
        if recipe := draw_recipe(augment, rng):
            made.append(replace(image, name=f"{stem}_a{index}{dot}{extension}", augmentation=recipe))
    return made


def _tile_name(source: Source, window: Window, spec: TileSpec, suffix: str | None) -> str:
    shown = None if spec.layout == "frame" else window
    return image_name(source.frame.frame, source.frame.sequence, shown, suffix or source.path.suffix)


def _check_names(sources: Sequence[Source], suffix: str | None) -> None:
    """City_Route_Sequence_stem must be unique, which a '_' inside a city's name could break."""
    seen: dict[str, str] = {}
    for source in sources:
        frame = source.frame
        name = image_name(frame.frame, frame.sequence, None, suffix or source.path.suffix)
        if seen.setdefault(name, frame.frame) != frame.frame:
            raise DatasetError(f"{frame.frame}: would be named {name}, and so would {seen[name]}; rename one folder")


def _empty_threshold(
    sources: Sequence[Source], spec: TileSpec, empty_ratio: float, seed: int, suffix: str | None
) -> int:
    """The rank up to which empty training tiles stay, so that they are ``empty_ratio`` of those with targets."""
    with_targets, ranks = 0, []
    for source in sources:
        if source.frame.split == "train":
            for tile in tile_frame(source.frame.width, source.frame.height, source.frame.lights, spec):
                if tile.targets:
                    with_targets += 1
                else:
                    ranks.append(_rank(seed, _tile_name(source, tile.window, spec, suffix)))
    quota = min(round(empty_ratio * with_targets), len(ranks))
    return sorted(ranks)[quota - 1] if quota else -1


def _rank(seed: int, name: str) -> int:
    """A random 64-bit number that depends on the seed and the name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


# --- a dataset -> the same images, copied ------------------------------------------------------------------


def plan_copies(
    root: Path, make: Callable[[ImageRecord], Sequence[ImageRecord]], split_of: Callable[[FrameRecord], Split]
) -> Callable[[], Iterator[FramePlan]]:
    """Copy a dataset image by image: each original verbatim under its frame's split, and what ``make`` adds.

    Raises DatasetError if the manifest names a frame that frames.jsonl does not have, or in another order.
    """

    def frames() -> Iterator[FramePlan]:
        by_frame = groupby(dataset.read_images(root), key=lambda image: image.frame)
        name, images = next(by_frame, (None, iter(())))
        for frame in dataset.read_frames(root):
            jobs: list[Job] = []
            split = split_of(frame)
            if name == frame.frame:
                for image in images:
                    original = replace(image, split=split)
                    source = dataset.image_path(root, image)
                    jobs.append(Job(source, (original, *make(original)), verbatim=True))
                name, images = next(by_frame, (None, iter(())))
            yield FramePlan(replace(frame, split=split), tuple(jobs))
        if name is not None:
            raise DatasetError(f"{root / 'manifest.jsonl'}: {name} is not in frames.jsonl or not in its order")

    return frames
