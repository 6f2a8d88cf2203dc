"""How near `dtld prepare` comes to a bare loop of the same OpenCV calls: frames/s as ratios within one run.

The bare loop reads a TIFF, demosaics, shifts, cuts the grid's eight windows and writes them as JPEG, and knows
nothing of labels, names or interruptions. All are timed in turn, `--repetitions` times over; medians are compared.
Frames beyond the first 40 are hard links to them: read as often, drawn once. Where SAHI is installed (the extra
`bench`), its `slice_coco` cuts the same frames, as PNG, into the same windows.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import orjson

from dtld_tools.export.export import to_coco
from dtld_tools.pipeline.stages import Run, Selection, convert, prepare
from dtld_tools.pipeline.workers import Executor
from dtld_tools.pixels.augment import AugmentSpec, motion_kernel
from dtld_tools.planning.split import SplitSpec
from dtld_tools.planning.tile import windows
from dtld_tools.synthetic.sample import sample
from dtld_tools.types import TileSpec

DRAWN = 40
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
EVERY_TILE_TWICE = AugmentSpec(clahe=1, blur=1, copies=1, splits=("train", "val", "test"))


def make_tree(root: Path, count: int) -> Path:
    """A DTLD tree of ``count`` frames; returns its label file."""
    sample(root, min(count, DRAWN), workers=2)
    labels = root / "DTLD_Labels_v2.0" / "v2.0" / "DTLD_all.json"
    drawn = orjson.loads(labels.read_bytes())["images"]
    images = list(drawn)
    for number in range(len(drawn), count):
        image = dict(drawn[number % len(drawn)])
        path = Path(*Path(image["image_path"]).parts[-4:])  # some are absolute and stale, as in DTLD
        linked = path.parent.with_name(f"{path.parent.name}-{number // len(drawn):04d}") / path.name
        (root / linked).parent.mkdir(exist_ok=True)
        os.link(root / path, root / linked)
        images.append(image | {"image_path": f"./{linked}"})
    labels.write_bytes(orjson.dumps({"images": images}, option=orjson.OPT_INDENT_2))
    return labels


def bare_loop(frames: list[Path], out: Path, copies: bool = False) -> None:
    """The least that must be done for eight JPEG tiles per frame, or for sixteen, each second one changed."""
    cv2.setNumThreads(1)  # as in the pipeline's workers
    clahe, blur = cv2.createCLAHE(2.0, (8, 8)), motion_kernel(5, 45)
    for index, path in enumerate(frames):
        colour = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BAYER_GB2BGR)
        image = (colour >> 4).astype(np.uint8)
        for x, y, w, h in windows(image.shape[1], image.shape[0], TileSpec()):
            tile = image[y : y + h, x : x + w]
            cv2.imwrite(str(out / f"{index}_{x}_{y}.jpg"), tile, JPEG)
            if copies:
                lab = cv2.cvtColor(tile, cv2.COLOR_BGR2LAB)
                lab[..., 0] = clahe.apply(lab[..., 0])
                tile = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)
                tile = cv2.GaussianBlur(tile, (0, 0), 1.0) if index % 2 else cv2.filter2D(tile, -1, blur)
                cv2.imwrite(str(out / f"{index}_{x}_{y}_a1.jpg"), tile, JPEG)


def bare_loops(frames: list[Path], out: Path) -> None:
    """The bare loop in two processes: what this machine's two cores can do at most."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(partial(bare_loop, out=out), (frames[::2], frames[1::2])))


def pipeline(labels: Path, root: Path, out: Path, *, workers: int, augment: AugmentSpec, limit: int) -> None:
    """`dtld prepare`, all tiles kept."""
    selection, run = Selection((labels,), root, limit=limit), Run(Executor(workers))
    prepare(selection, out, SplitSpec(), TileSpec(), augment, empty_ratio=None, run=run)


def sahi_case(labels: Path, root: Path, folder: Path, count: int) -> Callable[[Path], None]:
    """SAHI's slice_coco on whole frames as PNG, with their boxes."""
    from sahi.slicing import slice_coco

    convert(Selection((labels,), root, limit=DRAWN), folder, SplitSpec(0, 0), image_format="png", run=Run(Executor(2)))
    to_coco(folder, folder / "drawn.json")
    coco = orjson.loads((folder / "drawn.json").read_bytes())
    drawn, boxes = coco["images"], coco["annotations"]
    coco["images"], coco["annotations"] = [], []
    for number in range(count):
        image = drawn[number % len(drawn)]
        path = Path(image["file_name"])
        name = path.with_name(f"{number:06d}{path.suffix}")
        os.link(folder / path, folder / name)
        coco["images"].append(image | {"id": number + 1, "file_name": str(name)})
        own = [box for box in boxes if box["image_id"] == image["id"]]
        coco["annotations"] += [
            box | {"id": len(coco["annotations"]) + n, "image_id": number + 1} for n, box in enumerate(own)
        ]
    (folder / "all.json").write_bytes(orjson.dumps(coco))

    def work(out: Path) -> None:
        slice_coco(
            str(folder / "all.json"),
            str(folder),
            "sliced",
            str(out),
            slice_height=640,
            slice_width=640,
            overlap_height_ratio=0.2,
            overlap_width_ratio=0.2,
            out_ext=".jpg",
        )

    return work


def seconds(work: Callable[[Path], None], out: Path) -> float:
    """Wall-clock time of one call into a fresh folder.

    What it wrote stays until the end, 10 GB in all: ext4 makes files several times slower for half a minute after
    many have been deleted (it looks for inodes that were not used lately).
    """
    out.mkdir()
    started = time.perf_counter()
    work(out)
    return time.perf_counter() - started


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    none, few = AugmentSpec(copies=0), options.frames // 5  # few for the slow ones
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "raw")
        labels = make_tree(root, options.frames)
        frames = sorted(root.rglob("*_k0.tiff"))
        # name -> frames, the case that it is compared with, the work
        cases: dict[str, tuple[int, str, Callable[[Path], None]]] = {
            "bare loop": (options.frames, "bare loop", partial(bare_loop, frames)),
            "prepare, 1 worker": (
                options.frames,
                "bare loop",
                partial(pipeline, labels, root, workers=1, augment=none, limit=options.frames),
            ),
            "bare loop, 2 processes": (options.frames, "bare loop", partial(bare_loops, frames)),
            "prepare, 2 workers": (
                options.frames,
                "prepare, 1 worker",
                partial(pipeline, labels, root, workers=2, augment=none, limit=options.frames),
            ),
            "bare loop, CLAHE and blur": (
                few,
                "bare loop, CLAHE and blur",
                partial(bare_loop, frames[:few], copies=True),
            ),
            "prepare, 1 worker, CLAHE and blur": (
                few,
                "bare loop, CLAHE and blur",
                partial(pipeline, labels, root, workers=1, augment=EVERY_TILE_TWICE, limit=few),
            ),
        }
        if find_spec("sahi"):
            sliced = sahi_case(labels, root, Path(scratch, "full"), few)
            cases["SAHI slice_coco, from PNG"] = (few, "bare loop", sliced)
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for repetition in range(options.repetitions):
            for number, (name, (count, _, work)) in enumerate(cases.items()):
                rates[name].append(count / seconds(work, Path(scratch, f"out-{repetition}-{number}")))
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    print(f"{options.frames} frames, {few} for the slow ones; {options.repetitions} repetitions in turn;")
    print(f"{os.cpu_count()} cores, {platform.machine()}, OpenCV {cv2.__version__}\n")
    print("| | frames/s | least, most | ratio | to |\n| --- | --- | --- | --- | --- |")
    for name, (_, base, _) in cases.items():
        speed = f"{medians[name]:.1f} | {min(rates[name]):.1f}, {max(rates[name]):.1f}"
        print(f"| {name} | {speed} | {medians[name] / medians[base]:.2f} | {base} |")


if __name__ == "__main__":
    main()
