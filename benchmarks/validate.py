"""What `dtld validate` costs at scale: peak memory by the number of frames, and the search for near duplicates.

    python benchmarks/validate.py

The datasets are as many lines as asked for, four images a frame; all images are hard links of one small picture, as
are all labels, so that reading them costs nothing. Each is proven in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import orjson

from dtld_tools.dataset.records import frame_to_json, image_to_json, label_text
from dtld_tools.dataset.tally import Tally
from dtld_tools.planning.split import SplitSpec
from dtld_tools.planning.tile import tile_frame
from dtld_tools.types import Box, FrameRecord, ImageRecord, SequenceId, Target, TileSpec
from dtld_tools.validation.duplicates import nearest
from dtld_tools.validation.validate import validate

SPEC = TileSpec(size_px=32, overlap=0)
FRAME_WH = (128, 32)


def write_dataset(root: Path, frames: int) -> None:
    """A sound dataset in sequences of twelve frames, one light in each of a frame's four tiles."""
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    picture, label = root / "picture", root / "label"
    picture.write_bytes(cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    lights = tuple(Target(0, Box(x + 4.5, 4.25, x + 14.5, 24.25), n) for n, x in enumerate(range(0, 128, 32)))
    tiles = tile_frame(*FRAME_WH, lights, SPEC)
    label.write_text(label_text(tiles[0].targets, (32, 32)))
    tally = Tally(("relevant", "not_relevant"))
    with (root / "frames.jsonl").open("wb") as frame_lines, (root / "manifest.jsonl").open("wb") as image_lines:
        for number in range(frames):
            sequence = SequenceId("Berlin", "Berlin1", f"2015-04-17_{number // 12:06d}")
            split = ("train", "train", "train", "val", "test")[number // 12 % 5]
            path = f"{'/'.join(sequence)}/DE_BBBR667_2015-04-17_10-50-13-{number:06d}_k0.tiff"
            frame = FrameRecord(path, sequence, split, *FRAME_WH, lights, ())
            stem = f"{'_'.join(sequence)}_{Path(path).stem}"
            images = []
            for tile in tiles:
                name = f"{stem}_x{tile.window.x}_y{tile.window.y}.png"
                ids = tuple(target.light_id for target in tile.targets)
                images.append(ImageRecord(name, split, path, sequence, tile.window, 1.0, None, ids, ()))
                link(picture, root / "images" / split / name)
                link(label, (root / "labels" / split / name).with_suffix(".txt"))
            frame_lines.write(orjson.dumps(frame_to_json(frame), option=orjson.OPT_APPEND_NEWLINE))
            for image in images:
                image_lines.write(orjson.dumps(image_to_json(image), option=orjson.OPT_APPEND_NEWLINE))
            tally.add(frame, images)
    picture.unlink()
    label.unlink()
    (root / "data.yaml").write_text(
        "train: images/train\nval: images/val\ntest: images/test\nnames: [relevant, not_relevant]\n"
    )
    (root / "report.json").write_bytes(orjson.dumps(report(tally)))


def link(source: Path, path: Path) -> None:
    """A file system takes so many links of one file; then the next is a copy, and the links are of it."""
    try:
        os.link(source, path)
    except OSError:
        path.write_bytes(source.read_bytes())
        source.unlink()
        os.link(path, source)


def report(tally: Tally) -> dict:
    return {
        "identity": "0" * 64,
        "configuration": {
            "command": "prepare",
            "rules": {},
            "cities": [],
            "limit": None,
            "split": asdict(SplitSpec()),
            "tiles": asdict(SPEC),
            "empty_ratio": None,
            "max_images": {},
            "augment": None,
            "image_format": "png",
            "seed": 0,
        },
        "versions": dict.fromkeys(("dtld-kd", "python", "opencv", "numpy", "shapely"), ""),
        "seed": 0,
        **tally.counts(0),
        "frames_skipped": [],
        "wall_time_s": 0,
        "frames_per_s": 0,
    }


def prove(root: Path) -> None:
    started = time.monotonic()
    found = validate(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"defects": found["defects"][:3], "s": time.monotonic() - started, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[40, 4_000, 40_000])
    parser.add_argument("--hashes", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--prove", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prove:
        prove(options.prove)
        return
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    for frames in options.frames:
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder) / "out", frames)
            command = [sys.executable, __file__, "--prove", str(Path(folder) / "out")]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{frames:,} frames, {4 * frames:,} images: peak {found['peak_mib']:.0f} MiB, {found['s']:.1f} s, "
            f"defects {found['defects']}"
        )
    for count in options.hashes:
        hashes = np.random.default_rng(0).integers(0, 2**64, count, np.uint64)
        train, val, test = np.split(hashes, [int(count * 0.7), int(count * 0.8)])
        started = time.monotonic()
        for queries, others in ((val, train), (test, train), (test, val)):
            nearest(queries, others)
        seconds = time.monotonic() - started
        pairs = len(train) * (len(val) + len(test)) + len(val) * len(test)
        print(f"{count:,} hashes, 70/10/20: {pairs:,} pairs in {seconds:.1f} s, {pairs / seconds / 1e9:.2f} G pairs/s")


if __name__ == "__main__":
    main()
