"""`dtld tile` beside SAHI's `slice_coco`: whole frames with their boxes into eight tiles each, JPEG or PNG.

    python benchmarks/slicing.py --frames 400

In turn on the same dataset of `dtld convert`, tiles in the frames' own format, with two workers: `dtld` in processes,
SAHI in the threads that it starts by itself, twice as many as cores. SAHI saves JPEG by Pillow's default quality of 75,
dtld by 95, so SAHI is measured with both. Time is that of all their processes; dtld's includes that its workers start.
SAHI's PNG takes seconds a frame, so it gets a twentieth of the frames. Its tiles start 512 px apart, dtld's 469; both
are eight of 640 px.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import orjson
from PIL import Image
from prepare import make_tree
from sahi.slicing import slice_coco

from dtld_tools.export.export import to_coco
from dtld_tools.pipeline.stages import Run, Selection, convert, tile
from dtld_tools.pipeline.workers import Executor
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec

TWO = Run(Executor(2))
SAVE = Image.Image.save


def dtld(full: Path, out: Path, _: int) -> None:
    """Every tile, the empty ones too."""
    tile(full, out, TileSpec(), empty_ratio=None, run=TWO)


def sahi(full: Path, out: Path, frames: int) -> None:
    """The first frames, their tiles in their format."""
    coco = orjson.loads((full / "all.json").read_bytes())
    coco["images"] = coco["images"][:frames]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [box for box in coco["annotations"] if box["image_id"] in kept]
    (full / "some.json").write_bytes(orjson.dumps(coco))
    slice_coco(
        str(full / "some.json"), str(full), "sliced", str(out),
        slice_height=640, slice_width=640, overlap_height_ratio=0.2, overlap_width_ratio=0.2,
        out_ext=Path(coco["images"][0]["file_name"]).suffix,
    )  # fmt: skip


def sahi_of_quality_95(full: Path, out: Path, frames: int) -> None:
    """The same with our quality, which slice_coco has no option for."""

    def save(image: Image.Image, path: str, **options: Any) -> None:
        SAVE(image, path, quality=95, **options)

    Image.Image.save = save  # type: ignore[method-assign]
    try:
        sahi(full, out, frames)
    finally:
        Image.Image.save = SAVE  # type: ignore[method-assign]


def measure(work: Callable[[Path, Path, int], None], full: Path, out: Path, frames: int) -> tuple[float, float]:
    """Milliseconds a frame by the clock and of the processor, of this process and those that it waited for."""
    before = time.perf_counter(), _cpu_s()
    work(full, out, frames)
    after = time.perf_counter(), _cpu_s()
    tiles = sum(path.suffix in (".jpg", ".png") for path in out.rglob("*"))
    assert tiles == 8 * frames, f"{out}: {tiles} tiles"
    return 1000 * (after[0] - before[0]) / frames, 1000 * (after[1] - before[1]) / frames


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Draw frames, convert them, let both cut them; print medians and how many times dtld's time each takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    few = max(1, options.frames // 20)
    arms: dict[Literal["jpg", "png"], dict[str, tuple[Callable[[Path, Path, int], None], int]]] = {
        "jpg": {
            "dtld": (dtld, options.frames),
            "SAHI": (sahi, options.frames),
            "SAHI, quality 95": (sahi_of_quality_95, options.frames),
        },
        "png": {"dtld": (dtld, options.frames), "SAHI": (sahi, few)},
    }
    print(
        f"SAHI {version('sahi')}, {options.frames} frames, {options.repetitions} runs in turn, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "raw")
        labels = make_tree(root, options.frames)
        for form, works in arms.items():
            full = Path(scratch, form)
            convert(Selection((labels,), root), full, SplitSpec(0, 0), image_format=form, run=TWO)
            to_coco(full, full / "all.json")
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
            for repetition in range(options.repetitions):
                for name, (work, frames) in works.items():
                    out = full.with_name(f"{form}-{repetition}-{name}")
                    found[name].append(measure(work, full, out, frames))
            for name, runs in found.items():
                times = [[wall / own[0], cpu / own[1]] for (wall, cpu), own in zip(runs, found["dtld"], strict=True)]
                wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
                more = "{:.2f} and {:.2f} times".format(*map(statistics.median, zip(*times, strict=True)))
                print(f"{form} {name:<17}{wall:8.1f} ms by the clock{cpu:8.1f} ms of the processor a frame: {more}")


if __name__ == "__main__":
    main()
