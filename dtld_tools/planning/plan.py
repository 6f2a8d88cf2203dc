"""Sources and options in, the whole plan out, before any pixel is read: windows, targets, quotas, copies, drops.

A plan is made in one pass over the sources and carried out in a second, frame by frame, in any process: what a
frame becomes depends on its source and on numbers drawn from (seed, image name). Memory stays flat, any number of
workers gives the same dataset, and an interrupted run continues.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dtld_tools.dataset.consistency import read_classes, read_consistent
from dtld_tools.dataset.names import COPY_NAME, image_name, image_path
from dtld_tools.dataset.records import frame_to_json, image_to_json
from dtld_tools.errors import DatasetError
from dtld_tools.pixels.augment import AugmentSpec, draw_recipe
from dtld_tools.pixels.disparity import Stereo
from dtld_tools.pixels.images import MARKS
from dtld_tools.planning.sources import Skipped, Source
from dtld_tools.planning.tile import tile_frame
from dtld_tools.types import Dropped, FrameRecord, ImageRecord, LightId, Split, Tile, TileSpec
from dtld_tools.versions import package_version


@dataclass(frozen=True, slots=True)
class Job:
    """One source image and what is made of it; ``verbatim`` originals are copied byte by byte.

    ``shown`` says that its boxes count pixels as shown, when they are turned by the file's Orientation.
    """

    source: Path
    images: tuple[ImageRecord, ...]
    verbatim: bool = False
    shown: bool = False


@dataclass(frozen=True, slots=True)
class FramePlan:
    """One frame's line and its images.

    Its lights get their distances from the image at ``disparity`` by ``stereo``, where it has both.
    """

    frame: FrameRecord
    jobs: tuple[Job, ...]
    disparity: Path | None = None
    stereo: Stereo | None = None

    @property
    def images(self) -> Iterator[ImageRecord]:
        """All images of the frame, in the order of the manifest."""
        return (image for job in self.jobs for image in job.images)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides a dataset's bytes.

    ``items`` gives the same items, in the order of frame paths, however often it is asked; ``cut`` makes one into a
    `FramePlan` in a worker process. Equal identities mean equal datasets; ``settings`` are the options, for the
    report.
    """

    settings: Mapping[str, Any]
    class_names: tuple[str, ...]
    items: Callable[[], Iterable[Any]]
    cut: Callable[[Any], FramePlan]
    identity: str
    frames: int
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()  # what the counts alone do not tell, a line each


# --- sources -> images -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """How a source becomes images; called in the workers.

    An image is made unless its rank, a number drawn from (seed, name), is above its split's ``last_rank``, or above
    ``last_empty`` for an empty training tile. ``suffix`` None keeps the source's if it is one of a dataset's images.
    """

    spec: TileSpec
    augment: AugmentSpec | None
    seed: int
    suffix: str | None
    last_empty: int | None = None
    last_rank: Mapping[Split, int] = field(default_factory=dict)
    shown: bool = False
    stereo: Stereo | None = None

    def __call__(self, source: Source) -> FramePlan:
        """The frame's line and its images."""
        frame = source.frame
        tiles = self.tiles(source)
        kept = [(tile, name) for tile, name in tiles if self._keeps(tile, name, frame.split)]
        images: list[ImageRecord] = []
        for tile, name in kept:
            image = _image_record(frame, tile, name, self.spec)
            images += [image, *copies(image, self.augment, self.seed)]
        frame = _with_drops(frame, [tile for tile, _ in tiles], [tile for tile, _ in kept])
        jobs = (Job(source.path, tuple(images), shown=self.shown),) if images else ()
        return FramePlan(frame, jobs, source.disparity, self.stereo)

    def tiles(self, source: Source) -> list[tuple[Tile, str]]:
        """All tiles of a source with their images' names."""
        frame, suffix, is_whole = source.frame, self.suffix or kept_suffix(source.path), self.spec.layout == "frame"
        return [
            (tile, image_name(frame.frame, frame.sequence, None if is_whole else tile.window, suffix))
            for tile in tile_frame(frame.width, frame.height, frame.lights, self.spec)
        ]

    def passes_quota(self, tile: Tile, name: str, split: Split) -> bool:
        """Whether the quota of empty training tiles lets a tile through."""
        if tile.targets or split != "train" or self.last_empty is None:
            return True
        return rank(self.seed, name) <= self.last_empty

    def _keeps(self, tile: Tile, name: str, split: Split) -> bool:
        if split in self.last_rank and _order(self.seed, name) > self.last_rank[split]:
            return False
        return self.passes_quota(tile, name, split)


def plan_images(
    settings: Mapping[str, Any],
    class_names: tuple[str, ...],
    sources: Callable[[], Iterable[Source]],
    cut: Cut,
    *,
    empty_ratio: float | None = None,
    max_images: Mapping[Split, int] | None = None,
    skipped: Sequence[Skipped] = (),
) -> Plan:
    """Plan to cut sources into images. ``empty_ratio`` None keeps every empty tile.

    Raises DatasetError if two frames would give images of the same name.
    """
    identity = _Identity(settings, class_names)
    names: set[str] = set()
    empties, with_targets = array("Q"), 0
    for source in sources():
        identity.add([frame_to_json(source.frame), source.path.suffix, source.disparity is not None])
        _check_name(source, sources, names)
        if empty_ratio is not None and source.frame.split == "train":
            for tile, name in cut.tiles(source):
                if tile.targets:
                    with_targets += 1
                else:
                    empties.append(rank(cut.seed, name))
    if empty_ratio is not None:
        cut = replace(cut, last_empty=_threshold(empties, round(empty_ratio * with_targets)))
    if max_images:
        cut = replace(cut, last_rank=_last_ranks(sources, cut, max_images))
    return Plan(settings, class_names, sources, cut, identity.text(), identity.count, tuple(skipped))


def _last_ranks(sources: Callable[[], Iterable[Source]], cut: Cut, most: Mapping[Split, int]) -> dict[Split, int]:
    ranks = {split: array("Q") for split in most}
    for source in sources():
        if (split := source.frame.split) in ranks:
            ranks[split].extend(
                _order(cut.seed, name) for tile, name in cut.tiles(source) if cut.passes_quota(tile, name, split)
            )
    return {split: _threshold(found, most[split]) for split, found in ranks.items()}


def _threshold(ranks: array, count: int) -> int:
    """The rank up to which the ``count`` lowest are."""
    return sorted(ranks)[min(count, len(ranks)) - 1] if count and ranks else -1


def _with_drops(frame: FrameRecord, tiles: Sequence[Tile], kept: Sequence[Tile]) -> FrameRecord:
    """Move the lights that no kept tile has as a target to ``dropped``.

    A light that some tile shows well enough, but too small, is dropped for its size; else for its visible share;
    one whose tiles were left out to reach ``--max-images`` for that.
    """
    shown = {target.light_id for tile in kept for target in tile.targets}
    reasons: dict[LightId, str] = {}
    for tile in tiles:
        for light_id, reason in tile.slivers.items():
            reasons[light_id] = "min_side" if "min_side" in (reason, reasons.get(light_id)) else reason
    reasons |= {target.light_id: "max_images" for tile in tiles for target in tile.targets}
    return replace(
        frame,
        lights=tuple(light for light in frame.lights if light.light_id in shown),
        dropped=frame.dropped
        + tuple(
            Dropped(
                light.light_id, reasons[light.light_id], light.class_id, light.box, light.attributes, light.distance_m
            )
            for light in frame.lights
            if light.light_id not in shown
        ),
    )


def _image_record(frame: FrameRecord, tile: Tile, name: str, spec: TileSpec) -> ImageRecord:
    return ImageRecord(
        name=name,
        split=frame.split,
        frame=frame.frame,
        sequence=frame.sequence,
        window=tile.window,
        scale=tile.scale,
        augmentation=None,
        targets=tuple(target.light_id for target in tile.targets),
        slivers=tuple(tile.slivers),
        masked=tuple(tile.slivers) if spec.mask_partial else (),
    )


def copies(image: ImageRecord, augment: AugmentSpec | None, seed: int) -> list[ImageRecord]:
    """The changed copies of an original, in their order; a copy that nothing would change is left out."""
    if augment is None or image.split not in augment.splits:
        return []
    stem, dot, extension = image.name.rpartition(".")
    made = []
    for index in range(1, augment.copies + 1):
        rng = np.random.default_rng(rank(seed, f"{image.name}/{index}"))
        if recipe := draw_recipe(augment, rng):
            made.append(replace(image, name=f"{stem}_a{index}{dot}{extension}", augmentation=recipe))
    return made


def _check_name(source: Source, sources: Callable[[], Iterable[Source]], names: set[str]) -> None:
    """City_Route_Sequence_stem must be unique, which a '_' inside a city's name could break."""
    frame = source.frame
    name = image_name(frame.frame, frame.sequence, None, "")
    if name in names:
        first = next(s.frame for s in sources() if image_name(s.frame.frame, s.frame.sequence, None, "") == name)
        raise DatasetError(
            f"{frame.frame}: its images would be named {name}... as those of {first.frame}; rename one folder or file"
        )
    names.add(name)


def kept_suffix(path: Path) -> str:
    """The ending of the images of a source whose format is kept: its own for a JPEG or PNG, else that of a PNG."""
    suffix = path.suffix.lower()
    return suffix if suffix in MARKS else ".png"


def rank(seed: int, name: str) -> int:
    """A random 64-bit number that depends on the seed and the name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def _order(seed: int, name: str) -> int:
    # Not the rank that chose the empty tiles: those that passed have low ones.
    return rank(seed, f"{name}/order")


class _Identity:
    """A hash of the options, the version of this package among them, and of every source."""

    def __init__(self, settings: Mapping[str, Any], class_names: Sequence[str]) -> None:
        options = [package_version("dtld-kd"), settings, class_names]
        self._digest = hashlib.sha256(orjson.dumps(options, option=orjson.OPT_SORT_KEYS))
        self.count = 0

    def add(self, source: Any) -> None:
        self._digest.update(orjson.dumps(source))
        self.count += 1

    def text(self) -> str:
        return self._digest.hexdigest()


# --- a dataset -> the same images, copied ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Originals:
    """A frame of a dataset on disk with all its images."""

    frame: FrameRecord
    images: tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True)
class CopyOver:
    """Copy a dataset's images byte by byte, each with its changed copies; called in the workers."""

    root: Path
    augment: AugmentSpec | None
    seed: int

    def __call__(self, originals: Originals) -> FramePlan:
        """The frame's line and its images, under its split."""
        frame = originals.frame
        jobs = []
        for image in originals.images:
            moved = replace(image, split=frame.split)
            source = image_path(self.root, image)
            jobs.append(Job(source, (moved, *copies(moved, self.augment, self.seed)), verbatim=True))
        return FramePlan(frame, tuple(jobs))


def plan_copies(
    settings: Mapping[str, Any],
    root: Path,
    augment: AugmentSpec | None,
    seed: int,
    split_of: Callable[[FrameRecord], Split],
) -> Plan:
    """Plan to copy a dataset, each frame under its split, and to add changed copies.

    Raises DatasetError if the dataset contradicts itself, or if a copy would have the name of an original.
    """

    def items() -> Iterator[Originals]:
        for frame, images in read_consistent(root):
            yield Originals(replace(frame, split=split_of(frame)), images)

    class_names = read_classes(root)
    identity = _Identity(settings, class_names)
    like_copies: dict[str, str] = {}  # originals with a copy's name -> their frames; there are none, as a rule
    for item in items():
        identity.add([frame_to_json(item.frame), [image_to_json(image) for image in item.images]])
        like_copies |= {image.name: image.frame for image in item.images if COPY_NAME.fullmatch(image.name)}
    cut = CopyOver(root.absolute(), augment, seed)
    if like_copies and augment:
        for item in items():
            _check_copies(cut(item), like_copies)
    return Plan(settings, class_names, items, cut, identity.text(), identity.count)


def _check_copies(plan: FramePlan, originals: Mapping[str, str]) -> None:
    for image in plan.images:
        if image.augmentation is not None and image.name in originals:
            raise DatasetError(
                f"{plan.frame.frame}: a copy of its image would be named {image.name} as that of "
                f"{originals[image.name]}; rename one of the two frames"
            )
