"""A dataset in, WebDataset shards out: <split>-000000.tar with NNNNNNNN.jpg and NNNNNNNN.json per sample.

A key has no dots, because readers take an ending from the first one on: samples are numbered, and their JSON names
the image. The same dataset gives the same bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import orjson

from dtld_tools.errors import UsageError
from dtld_tools.export.boxes import Labelled, class_names, image_bytes, labelled_images
from dtld_tools.files import whole_folder
from dtld_tools.types import SPLITS, Split

SAMPLES = 1000  # of a shard


def to_webdataset(
    root: Path, out: Path, splits: Sequence[Split] = SPLITS, *, shard_size: int = SAMPLES
) -> dict[str, Any]:
    """Write the images of some splits with their boxes as shards into a new folder; returns how many there are.

    A sample is the image and a JSON object: name, size, frame, sequence, and its targets with class, label, box
    [x1, y1, x2, y2] in pixels, light, and attributes and distance where they are known. Samples are in the order of
    the frames: shuffle when reading. dataset.json names the classes and the shards. Raises DatasetError, UsageError.
    """
    if shard_size < 1:
        raise UsageError(f"--shard-size: got {shard_size}, expected 1 or more images")
    names = class_names(root, out)
    with whole_folder(out) as folder, ExitStack() as opened:
        shards = {split: opened.enter_context(_Shards(folder, split, shard_size)) for split in splits}
        for each in labelled_images(root, splits):
            shards[each.image.split].add(each, image_bytes(root, each.image), _sample(each, names))
        index = {"classes": names, "shards": {split: own.written for split, own in shards.items()}}
        (folder / "dataset.json").write_bytes(orjson.dumps(index, option=orjson.OPT_INDENT_2))
    written = [shard for own in shards.values() for shard in own.written]
    return {
        "out": str(out),
        "images": sum(shard.images for shard in written),
        "annotations": sum(shard.boxes for shard in written),
        "categories": list(names),
    }


@dataclass
class _Shard:
    file: str
    images: int = 0
    boxes: int = 0


class _Shards:
    """The shards of a split, of which one at a time is open."""

    def __init__(self, folder: Path, split: Split, size: int) -> None:
        self.written: list[_Shard] = []
        self._folder, self._split, self._size = folder, split, size
        self._opened = ExitStack()

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def add(self, each: Labelled, image: bytes, sample: dict[str, Any]) -> None:
        """Append a sample, to a new shard where the last one is full."""
        if not self.written or self.written[-1].images == self._size:
            self._opened.close()
            self.written.append(_Shard(f"{self._split}-{len(self.written):06d}.tar"))
            path = self._folder / self.written[-1].file
            self._tar = self._opened.enter_context(tarfile.TarFile(path, "w"))
        shard = self.written[-1]
        key = f"{(len(self.written) - 1) * self._size + shard.images:08d}"
        for name, data in ((PurePath(each.image.name).suffix, image), (".json", orjson.dumps(sample))):
            entry = tarfile.TarInfo(key + name)  # of no owner and no time
            entry.size = len(data)
            self._tar.addfile(entry, BytesIO(data))
        shard.images += 1
        shard.boxes += len(each.targets)


def _sample(each: Labelled, names: Sequence[str]) -> dict[str, Any]:
    image, (width, height) = each.image, each.size_wh
    targets = []
    for target, light in zip(each.targets, each.lights, strict=True):
        known = {"attributes": light.attributes, "distance_m": light.distance_m}
        targets.append(
            {"class": target.class_id, "label": names[target.class_id], "box": list(target.box)}
            | {"light": light.light_id}
            | {key: value for key, value in known.items() if value is not None}
        )
    return {
        "name": image.name,
        "width": width,
        "height": height,
        "frame": image.frame,
        **image.sequence._asdict(),
        "targets": targets,
    }
