"""A dataset folder in, its defects out: proves a dataset from its files alone, and writes nothing.

Labels are derived again from frames.jsonl and the windows and must be equal to the byte; every image is
decoded; every light must be where the lines say, once; no sequence may be in two splits; the sums must add up.
No defect hides another, and memory holds one frame at a time and the names of all.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from tqdm import tqdm

from dtld_tools.dataset.consistency import report_defects
from dtld_tools.dataset.data_yaml import is_names, read_class_names, read_data_yaml
from dtld_tools.dataset.reading import read_lines, read_report
from dtld_tools.dataset.records import frame_from_json, image_from_json
from dtld_tools.dataset.tally import Tally
from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.files import UNFINISHED
from dtld_tools.threads import map_in_order
from dtld_tools.types import SPLITS, FrameRecord, ImageRecord, SequenceId, Split, TileSpec
from dtld_tools.validation.duplicates import check_options, find_near_duplicates, is_own
from dtld_tools.validation.frame import Proof
from schemas.text import one_line


def validate(root: Path, *, distance: int | None = None, workers: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Counts and ``defects``, a list of one line each; a sound dataset has none. Raises DatasetError.

    With a ``distance`` also the near duplicates across splits (`dtld_tools.validation.duplicates`): all that is looked
    for in a dataset that dtld did not make. Only a folder that cannot be read as a dataset at all raises.
    """
    if distance is None:
        return _prove(root, workers, quiet)
    check_options(distance)
    own = is_own(root)  # whose proof tells which images cannot be read
    found = _prove(root, workers, quiet) if own else {"dataset": str(root), "defects": []}
    near = find_near_duplicates(root, distance=distance, workers=workers, quiet=quiet, is_proven=own)
    return near | found | {"defects": found["defects"] + near["defects"]}


def _prove(root: Path, workers: int, quiet: bool) -> dict[str, Any]:
    unfinished = (root / UNFINISHED).exists()
    if unfinished and not (root / "report.json").exists():
        raise DatasetError(f"{root}: is unfinished; run the command that was making it again to continue")
    defects: list[str] = []
    if unfinished:
        defects.append(f"{UNFINISHED}: the dataset is unfinished; run the command that made it again")
    report, class_names, spec = _read_report(root, defects)
    defects += _data_yaml_defects(root, class_names)
    manifest = _index_manifest(root, defects)
    proof, tally = Proof(root, len(class_names), spec), Tally(class_names)
    names: set[str] = set()
    total = sum(len(offsets) for offsets in manifest.offsets.values())
    with tqdm(total=total, unit="image", desc="validate", disable=True if quiet else None) as bar:
        items = _frames_with_images(root, manifest, names, defects)
        checked = map_in_order(lambda item: (*item, proof.defects(*item)), items, workers)
        for frame, images, found in checked:
            tally.add(frame, images)
            defects += found
            bar.update(len(images))
    defects += _frameless_images(manifest)
    defects += _unlisted_files(root, manifest)
    defects += _wrong_sums(report, tally, names)
    return {
        "dataset": str(root),
        "frames": len(names),
        "images": sum(tally.images.values()),
        "targets": sum(tally.targets.values()),
        "defects": [one_line(defect, limit=len(defect)) for defect in defects],
    }


# --- report.json and data.yaml -----------------------------------------------------------------------------


def _read_report(root: Path, defects: list[str]) -> tuple[dict[str, Any], tuple[str, ...], TileSpec | None]:
    """The report, the class names in order, and the options of tiling, as far as they can be read."""
    report, is_valid = read_report(root, defects)
    if not is_valid:
        try:
            return report, read_class_names(root), None
        except (DatasetError, ValueError):
            return report, (), None
    made_with = report["configuration"]
    defects += (f"report.json: {text}" for text in report_defects(report))
    spec = None
    try:
        spec = TileSpec(**made_with["tiles"])
    except UsageError as error:
        defects.append(f"report.json: configuration.tiles: {error}")
    return report, tuple(report["classes"]), spec


def _data_yaml_defects(root: Path, class_names: tuple[str, ...]) -> Iterator[str]:
    """Ultralytics must find this dataset's own folders by it, and the classes that report.json counts."""
    try:
        document = read_data_yaml(root / "data.yaml")
    except DatasetError as error:
        yield str(error).removeprefix(f"{root}/")
        return
    for split in SPLITS:
        if document.get(split) != f"images/{split}":
            yield f"data.yaml: {split}: got {document.get(split)!r}, expected images/{split}"
    if "path" in document:
        yield f"data.yaml: path: got {document['path']!r}, expected no such key: images are looked for there"
    names = document.get("names")
    as_numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not is_names(as_numbered) or as_numbered != dict(enumerate(class_names)):
        yield f"data.yaml: names: got {names!r}, expected {dict(enumerate(class_names))} as in report.json"


# --- frames.jsonl and manifest.jsonl -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Manifest:
    """Where each frame's lines stand in manifest.jsonl, and where each image and its label should lie."""

    offsets: dict[str, array] = field(default_factory=dict)
    files: dict[str, tuple[Split, str]] = field(default_factory=dict)  # stem -> split, suffix


def _index_manifest(root: Path, defects: list[str]) -> _Manifest:
    """Read the manifest once for its names, so that the lines of one frame are found wherever they stand."""
    manifest = _Manifest()
    places: dict[tuple[Split, str], tuple[Split, str]] = {}  # one tuple for all images of a kind
    for offset, line in read_lines(root / "manifest.jsonl", "manifest", defects):
        manifest.offsets.setdefault(line["frame"], array("q")).append(offset)
        stem, _, ending = line["name"].rpartition(".")
        place = (line["split"], f".{ending}")
        if stem in manifest.files:
            split, ending = manifest.files[stem]
            defects.append(f"manifest.jsonl: {line['name']}: stands twice, first as {split}/{stem}{ending}")
        else:
            manifest.files[stem] = places.setdefault(place, place)
    return manifest


def _frames_with_images(
    root: Path, manifest: _Manifest, names: set[str], defects: list[str]
) -> Iterator[tuple[FrameRecord, list[ImageRecord]]]:
    """Frame by frame with its images, which are taken out of the index; fills ``names``."""
    splits: dict[SequenceId, Split] = {}
    leaked: set[SequenceId] = set()
    last, in_order = -1, True
    with (root / "manifest.jsonl").open("rb") as lines:
        for _, line in read_lines(root / "frames.jsonl", "frame", defects):
            frame = frame_from_json(line)
            if frame.frame in names:
                defects.append(f"frames.jsonl: {frame.frame}: stands twice")
                continue
            names.add(frame.frame)
            first = splits.setdefault(frame.sequence, frame.split)
            if first != frame.split and frame.sequence not in leaked:
                leaked.add(frame.sequence)
                defects.append(
                    f"frames.jsonl: {frame.sequence}: the sequence is in {first} and in {frame.split}, expected in one"
                )
            offsets = manifest.offsets.pop(frame.frame, array("q"))
            if offsets and in_order and offsets[0] < last:
                in_order = False  # else one line out of place would be reported for every frame after it
                defects.append(f"manifest.jsonl: from {frame.frame} on not in the order of frames.jsonl")
            last = max(last, *offsets) if offsets else last
            yield frame, [_image_at(lines, offset) for offset in offsets]


def _image_at(lines: BinaryIO, offset: int) -> ImageRecord:
    lines.seek(offset)
    return image_from_json(orjson.loads(lines.readline()))


def _frameless_images(manifest: _Manifest) -> Iterator[str]:
    for frame, offsets in manifest.offsets.items():
        yield f"manifest.jsonl: {frame}: is not in frames.jsonl, but {len(offsets)} images are of it"


# --- the folders and the sums ------------------------------------------------------------------------------


def _unlisted_files(root: Path, manifest: _Manifest) -> Iterator[str]:
    """Files and folders in images/ and labels/ that no line names, but for the caches of Ultralytics."""
    for kind in ("images", "labels"):
        caches = {f"{split}.cache" for split in SPLITS} if kind == "labels" else set()
        for name in _listing(root / kind):
            if name not in SPLITS and name not in caches:
                yield f"{kind}/{name}: is not in manifest.jsonl"
        for split in SPLITS:
            folder = root / kind / split
            if folder.is_symlink() or not folder.is_dir():
                yield f"{kind}/{split}: is no folder, expected one of the dataset's own"
                continue
            for name in _listing(folder):
                stem, dot, ending = name.rpartition(".")
                listed_in, suffix = manifest.files.get(stem, (None, ""))
                endings = (suffix, ".npy") if kind == "images" else (".txt",)  # .npy: of cache=disk
                if listed_in != split or dot + ending not in endings:
                    yield f"{kind}/{split}/{name}: is not in manifest.jsonl"


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # a missing folder is reported by name
        return []


def _wrong_sums(report: dict[str, Any], tally: Tally, names: set[str]) -> Iterator[str]:
    skipped = report.get("frames_skipped")
    skipped = skipped if isinstance(skipped, list) else []
    lights = [skip.get("lights") for skip in skipped if isinstance(skip, dict)]
    for skip in skipped:
        if isinstance(skip, dict) and skip.get("frame") in names:
            yield f"report.json: frames_skipped: {skip['frame']} is in frames.jsonl, expected in one of them"
    if not report:
        return
    for key, value in tally.counts(sum(n for n in lights if isinstance(n, int))).items():
        if report.get(key) != value:
            yield f"report.json: {key}: got {report.get(key)}, expected {value} as counted again"
