"""How near `dtld prepare` comes to a bare loop of the same OpenCV calls: frames/s as ratios within one run.

The bare loop reads a TIFF, demosaics, shifts, cuts the grid's eight windows and writes them as JPEG, and knows
nothing of labels, names or interruptions. Both are timed in turn, three times; the medians are compared.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from dtld_tools.augment import AugmentSpec
from dtld_tools.pipeline import Run, Selection, prepare
from dtld_tools.sample import sample
from dtld_tools.split import SplitSpec
from dtld_tools.tile import windows
from dtld_tools.types import TileSpec

REPETITIONS = 3


def bare_loop(frames: list[Path], out: Path) -> None:
    """The least that must be done for eight JPEG tiles per frame."""
    cv2.setNumThreads(1)  # as in the pipeline's workers
    for path in frames:
        colour = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BAYER_GB2BGR)
        image = (colour >> 4).astype(np.uint8)
        for x, y, w, h in windows(image.shape[1], image.shape[0], TileSpec()):
            name = str(out / f"{path.stem}_{x}_{y}.jpg")
            cv2.imwrite(name, image[y : y + h, x : x + w], [cv2.IMWRITE_JPEG_QUALITY, 95])


def pipeline(root: Path, out: Path, workers: int) -> None:
    """`dtld prepare` without copies, all tiles kept."""
    labels = root / "DTLD_Labels_v2.0" / "v2.0" / "DTLD_all.json"
    prepare(
        Selection((labels,), root),
        out,
        SplitSpec(),
        TileSpec(),
        AugmentSpec(copies=0),
        empty_ratio=None,
        run=Run(workers=workers),
    )


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    count = parser.parse_args().frames
    times: dict[str, list[float]] = {"bare loop": [], "prepare, 1 worker": [], "prepare, 2 workers": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "raw")
        sample(root, count, workers=2)
        frames = sorted(root.rglob("*_k0.tiff"))
        for repetition in range(REPETITIONS):
            bare = Path(scratch, f"bare{repetition}")
            bare.mkdir()
            times["bare loop"].append(seconds(lambda: bare_loop(frames, bare)))  # noqa: B023 - called at once
            for workers, name in ((1, "prepare, 1 worker"), (2, "prepare, 2 workers")):
                out = Path(scratch, f"out{repetition}{workers}")
                times[name].append(seconds(lambda: pipeline(root, out, workers)))  # noqa: B023 - called at once
    print(f"{count} frames; {os.cpu_count()} cores, {platform.machine()}, OpenCV {cv2.__version__}")
    print("| | frames/s | of the bare loop |\n| --- | --- | --- |")
    base = statistics.median(times["bare loop"])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"| {name} | {count / median:.1f} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
