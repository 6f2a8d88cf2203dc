"""The only place where the stages meet: a plan is made from labels or a dataset, then carried out in workers.

Every command gives the same bytes (all but report.json) for any number of workers, and again after being
interrupted: an image that has its name is complete, so a second run makes only what is missing.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import cv2
from tqdm import tqdm

from dtld_tools import dataset
from dtld_tools.augment import AugmentSpec, apply_recipe
from dtld_tools.collapse import load_rules
from dtld_tools.errors import DatasetError, DtldError, ImageError
from dtld_tools.images import crop, encode_image, read_image, write_atomically
from dtld_tools.parse import VOCABULARY, read_labels
from dtld_tools.plan import FramePlan, Job, Plan, copies, plan_copies, plan_images
from dtld_tools.sources import Skipped, dataset_sources, find_sources, select
from dtld_tools.split import SplitSpec, assign_splits
from dtld_tools.tally import Tally
from dtld_tools.tile import image_size, targets_in
from dtld_tools.types import FrameRecord, ImageRecord, TileSpec

FULL_FRAMES = TileSpec(layout="frame", min_visible=0, min_side_px=0)


@dataclass(frozen=True, slots=True)
class Run:
    """How to carry a plan out; nothing here changes the bytes."""

    workers: int = 1
    overwrite: bool = False
    strict: bool = False
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of which label files, where their images lie, and what their lights are called."""

    labels: tuple[Path, ...]
    root: Path
    rules: Path | None = None
    cities: tuple[str, ...] = ()
    limit: int | None = None
    follow_symlinks: bool = False


# --- the commands ----------------------------------------------------------------------------------------


def convert(
    selection: Selection,
    out: Path,
    split: SplitSpec,
    *,
    image_format: Literal["jpg", "png"] = "jpg",
    seed: int = 0,
    run: Run = Run(),
) -> dict[str, Any]:
    """Label files and raw frames to a full-frame dataset in ``out``; returns its report. Raises DtldError."""
    return _from_labels("convert", selection, out, split, FULL_FRAMES, None, None, image_format, seed, run)


def prepare(
    selection: Selection,
    out: Path,
    split: SplitSpec,
    tiles: TileSpec,
    augment: AugmentSpec,
    *,
    empty_ratio: float | None = 0.1,
    image_format: Literal["jpg", "png"] = "jpg",
    seed: int = 0,
    run: Run = Run(),
) -> dict[str, Any]:
    """`convert`, `tile` and `augment` in one pass: each frame is decoded once. Returns the report."""
    return _from_labels("prepare", selection, out, split, tiles, empty_ratio, augment, image_format, seed, run)


def tile(
    root: Path,
    out: Path,
    tiles: TileSpec,
    *,
    empty_ratio: float | None = 0.1,
    seed: int = 0,
    run: Run = Run(),
) -> dict[str, Any]:
    """A full-frame dataset to a dataset of tiles; returns its report. Raises DtldError."""
    settings = {"command": "tile", "tiles": asdict(tiles), "empty_ratio": empty_ratio, "seed": seed}
    frames = plan_images(dataset_sources(root), tiles, empty_ratio, None, seed, None)
    return _execute(Plan(settings, dataset.read_class_names(root), frames), root, out, run)


def augment(root: Path, out: Path, spec: AugmentSpec, *, seed: int = 0, run: Run = Run()) -> dict[str, Any]:
    """A dataset with changed copies beside its originals; returns its report. Raises DtldError."""
    _refuse_augmented(root, "augment the one it was made from")
    settings = {"command": "augment", "augment": asdict(spec), "seed": seed}
    frames = plan_copies(root, lambda image: copies(image, spec, seed), lambda frame: frame.split)
    return _execute(Plan(settings, dataset.read_class_names(root), frames), root, out, run)


def split(root: Path, out: Path, spec: SplitSpec, *, seed: int = 0, run: Run = Run()) -> dict[str, Any]:
    """A dataset split anew; returns its report. Raises DtldError for one with augmented copies."""
    _refuse_augmented(root, "copies of a training image must not end up in test; split first, then augment")
    splits = assign_splits(Counter(frame.sequence for frame in dataset.read_frames(root)), spec, seed)
    settings = {"command": "split", "split": _plain(asdict(spec)), "seed": seed}
    frames = plan_copies(root, lambda _: (), lambda frame: splits[frame.sequence])
    return _execute(Plan(settings, dataset.read_class_names(root), frames), root, out, run)


def _from_labels(
    command: str,
    selection: Selection,
    out: Path,
    split: SplitSpec,
    tiles: TileSpec,
    empty_ratio: float | None,
    augment: AugmentSpec | None,
    image_format: str,
    seed: int,
    run: Run,
) -> dict[str, Any]:
    rules = load_rules(selection.rules, VOCABULARY)
    labels = read_labels(selection.labels)
    sources, skipped = find_sources(
        select(labels, selection.cities, selection.limit),
        selection.root,
        rules,
        split,
        seed,
        strict=run.strict,
        follow_symlinks=selection.follow_symlinks,
    )
    settings = {
        "command": command,
        "rules": rules.table,
        "cities": selection.cities,
        "limit": selection.limit,
        "split": _plain(asdict(split)),
        "tiles": asdict(tiles),
        "empty_ratio": empty_ratio,
        "augment": augment and asdict(augment),
        "image_format": image_format,
        "seed": seed,
    }
    frames = plan_images(sources, tiles, empty_ratio, augment, seed, f".{image_format}")
    return _execute(Plan(settings, rules.class_names, frames, tuple(skipped)), selection.root, out, run)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}


def _refuse_augmented(root: Path, advice: str) -> None:
    for image in dataset.read_images(root):
        if image.augmentation is not None:
            raise DatasetError(f"{root}: holds augmented copies such as {image.name}; {advice}")


# --- carrying a plan out ---------------------------------------------------------------------------------


def _execute(plan: Plan, source_root: Path, out: Path, run: Run) -> dict[str, Any]:
    """Write the dataset of a plan, or what is still missing of it, and its report."""
    started = time.monotonic()
    if out.resolve() == source_root.resolve():
        raise DatasetError(f"{out}: is the input, expected another folder to write into")
    identity, total = plan.scan()
    dataset.open_output(out, identity, overwrite=run.overwrite)

    skipped = list(plan.skipped)
    bar = tqdm(total=total, unit="frame", desc=plan.settings["command"], disable=True if run.quiet else None)
    with bar:
        work = (frame for frame in plan.frames() if frame.jobs)
        for done, failure in _map(partial(render, out=out), work, run.workers):
            bar.update()
            if failure is None:
                continue
            if run.strict or done.jobs[0].verbatim:
                raise ImageError(failure)
            lights = len(done.frame.lights) + len(done.frame.dropped)
            skipped.append(Skipped(done.frame.frame, f"unreadable: {failure}", lights))

    unreadable = {skip.frame for skip in skipped}
    if total and len(unreadable) - len(plan.skipped) == total:
        reason = f"none of {total} frames could be read; the first: {skipped[len(plan.skipped)].reason}"
        dataset.remove_dataset(out)
        raise DatasetError(f"{source_root}: {reason}")

    def written() -> Iterator[FramePlan]:
        return (frame for frame in plan.frames() if frame.frame.frame not in unreadable)

    tally = Tally(plan.class_names)

    def counted_lines() -> Iterator[dict[str, Any]]:
        for frame_plan in written():
            tally.add(frame_plan.frame, frame_plan.images)
            yield dataset.frame_to_json(frame_plan.frame)

    dataset.write_lines(out / "frames.jsonl", counted_lines())
    images = (image for plan in written() for image in plan.images)
    dataset.write_lines(out / "manifest.jsonl", (dataset.image_to_json(image) for image in images))
    dataset.write_data_yaml(out, plan.class_names)
    seconds = time.monotonic() - started
    report = {
        "identity": identity,
        "configuration": plan.settings,
        "versions": {
            "dtld-kd": _version("dtld-kd"),
            "python": platform.python_version(),
            "opencv": cv2.__version__,
            "numpy": _version("numpy"),
            "shapely": _version("shapely"),
        },
        "seed": plan.settings["seed"],
        **tally.counts(sum(skip.lights for skip in skipped)),
        "frames_skipped": [{"frame": s.frame, "reason": s.reason, "lights": s.lights} for s in skipped],
        "wall_time_s": round(seconds, 3),
        "frames_per_s": round(total / seconds, 2),
    }
    dataset.close_output(out, report)
    return report


def render(plan: FramePlan, out: Path) -> tuple[FramePlan, str | None]:
    """Make the images and labels of one frame that are not there yet; the second value says why it cannot.

    A frame that cannot be read leaves nothing behind. Runs in a worker process.
    """
    try:
        for job in plan.jobs:
            _render_job(job, plan.frame, out)
    except ImageError as error:
        for image in plan.images:
            dataset.image_path(out, image).unlink(missing_ok=True)
            dataset.label_path(out, image).unlink(missing_ok=True)
        return plan, str(error)
    return plan, None


def _render_job(job: Job, frame: FrameRecord, out: Path) -> None:
    missing = [
        image
        for image in job.images
        if not (dataset.image_path(out, image).exists() and dataset.label_path(out, image).exists())
    ]
    if not missing:
        return
    scratch = out / dataset.UNFINISHED
    pixels = None
    for image in missing:
        size_wh = image_size(image.window, image.scale)
        _write_label(image, frame, size_wh, out, scratch)
        if job.verbatim and image.augmentation is None:
            data = _read_bytes(job.source)
        else:
            if pixels is None:
                pixels = _read_source(job, frame)
            part = pixels if job.verbatim else crop(pixels, *image.window, size_wh)
            if image.augmentation is not None:
                part = apply_recipe(part, image.augmentation)
            data = encode_image(part, Path(image.name).suffix)
        write_atomically(dataset.image_path(out, image), data, scratch)


def _write_label(image: ImageRecord, frame: FrameRecord, size_wh: tuple[int, int], out: Path, scratch: Path) -> None:
    """The label goes first: an image that has its name has its label."""
    wanted = set(image.targets)
    lights = [light for light in frame.lights if light.light_id in wanted]
    text = dataset.label_text(targets_in(image.window, image.scale, lights), size_wh)
    write_atomically(dataset.label_path(out, image), text.encode(), scratch)


def _read_source(job: Job, frame: FrameRecord) -> Any:
    pixels = read_image(job.source)
    height, width = pixels.shape[:2]
    if not job.verbatim and (width, height) != (frame.width, frame.height):
        raise ImageError(f"{job.source}: decoded to {width} x {height} pixels, expected {frame.width} x {frame.height}")
    return pixels


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; the dataset is damaged, see dtld validate") from error


def _map(
    work: Callable[[FramePlan], tuple[FramePlan, str | None]], items: Iterable[FramePlan], workers: int
) -> Iterator[tuple[FramePlan, str | None]]:
    """``map`` over processes, in order, with a bounded number of items under way."""
    if workers == 1:
        yield from map(work, items)
        return
    # Spawned, not forked: OpenCV's and the progress bar's threads do not survive a fork.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
        under_way: deque = deque()
        try:
            for item in items:
                with _no_interrupt():
                    under_way.append((item, pool.submit(work, item)))
                if len(under_way) >= 4 * workers:
                    yield under_way.popleft()[1].result()
            while under_way:
                yield under_way[0][1].result()
                under_way.popleft()
        except BrokenProcessPool as error:
            name = under_way[0][0].frame.frame if under_way else "the last frame"
            raise DtldError(
                f"{name}: a worker process was killed near this frame (out of memory?); "
                "run the same command again to continue, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while a process may be started: it would die in its imports, with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a started process inherits the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)
    # A worker holds both ends of the pipe it waits on, so it would never notice that its parent was killed.
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
