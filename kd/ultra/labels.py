"""What Ultralytics will make of every image and its label file, found out before anything is trained or scored.

In: the view of a data.yaml. Out: what each split has to learn from, or one line that names what cannot be used.
Invariant: the verdicts are Ultralytics' own, and its datasets are then made by them; no file is written. By itself it
drops without a word what it cannot use, and saves anew the JPEGs that do not end by the book.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm
from ultralytics.data import dataset as label_reader
from ultralytics.data import utils as image_checks
from ultralytics.utils import NUM_THREADS
from ultralytics.utils.patches import imread

from kd.errors import DataError
from kd.ultra import session
from kd.ultra.data import image_files, label_file
from kd.ultra.depth import bits_per_channel, require_8_bit
from schemas.text import one_line

NAMED, LETTERS = 10, 560  # files that an error names at most, and the letters that they may take
FLAT = "a box of no width or height, missed for ever"
LEAST, MOST = -0.01, 1.01  # coordinates that Ultralytics lets pass
Verdict = Sequence[Any]  # of Ultralytics: file, labels [N, 5], size, polygons, ..., message; no file: left out


@dataclass(frozen=True)
class Found:
    """What a split has: images that can be used, ``skipped`` ones that cannot, objects, and rows that stand twice.

    Ultralytics drops a row of a label file that equals another one there; ``repeated`` counts those.
    """

    images: int
    objects: int
    skipped: int = 0
    repeated: int = 0


def check_splits(
    file: str | Path,
    view: Mapping[str, Any],
    splits: Collection[str],
    *,
    needed: Collection[str],
    skip_bad: bool = False,
    single_cls: bool = False,
    classes: Sequence[int] | int | None = None,
    fraction: float | Sequence[float] = 1.0,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = True,
) -> dict[str, Found]:
    """Judge all images of some splits; ``view`` is that of ``file``, a data.yaml, from `kd.ultra.data.resolve_data`.

    ``single_cls``, ``classes`` and ``fraction`` are Ultralytics' settings; with ``skip_bad`` images that cannot be used
    are counted instead of refused; ``tell`` gets a line of what is dropped. Raises DataError for images of more than 8
    bits, for unusable ones, and for a split of those ``needed`` without an object.
    """
    found, faults, warnings = {}, [], []
    for split in splits:
        verdicts = _judge_all(f"{file}: {split}", used_images(view, split, fraction), view, single_cls, quiet)
        found[split] = _count(verdicts, classes)
        faults += [(image, verdict) for image, verdict in verdicts if verdict[0] is None]
        if found[split].repeated:
            warnings.append(f"{file}: {split}: {_repeats(verdicts, found[split].repeated)}")
    if faults:
        text = _listed([_reason(image, bad, view, single_cls) for image, bad in faults[:NAMED]], len(faults))
        count = f"{len(faults)} of {sum(one.images + one.skipped for one in found.values())} images"
        if not skip_bad:
            raise DataError(
                f"{file}: got {count} that cannot be used ({text}), expected sound images and labels: mend or remove "
                f"them, or leave them out by --skip-bad-labels"
            )
        warnings.append(f"{file}: {count} are left out: {text}")
    for split in needed:
        if not found[split].objects:
            which = "" if classes is None else f" of classes={classes}"
            raise DataError(
                f"{file}: split '{split}': got {found[split].images} images without one labelled object{which}, "
                f"expected label files beside the images (labels/ for images/): nothing to "
                f"{'learn from' if split == 'train' else 'score against'}"
            )
    for line in warnings:  # not before an error
        tell(line)
    return found


def used_images(view: Mapping[str, Any], split: str, fraction: float | Sequence[float] = 1.0) -> list[Path]:
    """The images of a split; of train, those that the setting `fraction`, a share or a number, leaves."""
    images = image_files(view[split])
    if isinstance(fraction, list | tuple):  # one for each split, train first; kd scores all of the others
        fraction = (*fraction, 1.0)[0]
    if split != "train" or fraction == 1:
        return images
    return images[: fraction if isinstance(fraction, int) else max(1, round(len(images) * fraction))]


def _require_channels(where: str, images: Sequence[Path], channels: int) -> None:
    """Raise DataError where the first image is not of so many channels; Ultralytics makes 1 or 3 of any."""
    image = None if channels in (1, 3) or not images else imread(images[0], flags=cv2.IMREAD_UNCHANGED)
    if image is not None and image.shape[2] != channels:
        raise DataError(f"{where}: got {images[0].name} of {image.shape[2]} channels, expected channels: {channels}")


def usable_images(
    view: Mapping[str, Any], split: str, single_cls: bool = False, fraction: float | Sequence[float] = 1.0
) -> list[Path]:
    """The images of a split that Ultralytics can use, of those that `used_images` gives."""
    return [image for image in used_images(view, split, fraction) if _judge(image, view, single_cls)[0] is not None]


def objects_of(
    image: Path, view: Mapping[str, Any], single_cls: bool = False
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Class numbers [N] and boxes [N, 4], x1 y1 x2 y2 px, of an image that Ultralytics can use; its width and height.

    With ``single_cls`` all classes are 0.
    """
    _, rows, (height, width), *_ = _judge(image, view, single_cls)
    centres, halves, size = rows[:, 1:3], rows[:, 3:5] / 2, np.array([width, height])
    boxes = np.hstack([centres - halves, centres + halves]) * np.tile(size, 2)
    return np.where(single_cls, 0, rows[:, 0]).astype(int), boxes.clip(0, np.tile(size, 2)), (width, height)


def _judge_all(
    where: str, images: Sequence[Path], view: Mapping[str, Any], single_cls: bool, quiet: bool
) -> list[tuple[Path, Verdict]]:
    """Images with Ultralytics' verdicts. Raises DataError for some of more than 8 bits, or of other channels."""
    with session.silence(), ThreadPool(NUM_THREADS) as pool:
        judged = pool.imap(lambda image: (bits_per_channel(image), _judge(image, view, single_cls)), images)
        judged = list(tqdm(judged, "check images", len(images), unit="image", leave=False, disable=quiet or None))
    require_8_bit(where, images, [bits for bits, _ in judged])
    _require_channels(where, images, view["channels"])
    return [(image, verdict) for image, (_, verdict) in zip(images, judged, strict=True)]


def _count(verdicts: Sequence[tuple[Path, Verdict]], classes: Sequence[int] | int | None) -> Found:
    rows = [verdict[1] for _, verdict in verdicts if verdict[0] is not None]
    wanted = None if classes is None else np.atleast_1d(classes)
    return Found(
        images=len(rows),
        objects=sum(len(row) if wanted is None else int(np.isin(row[:, 0], wanted).sum()) for row in rows),
        skipped=len(verdicts) - len(rows),
        repeated=sum(_repeated(verdict) for _, verdict in verdicts),
    )


def _repeated(verdict: Verdict) -> int:
    """The rows that Ultralytics has taken out since an equal one is there."""
    removed = re.search(r": (\d+) duplicate labels removed$", verdict[-1])
    return int(removed[1]) if removed else 0


def _repeats(verdicts: Sequence[tuple[Path, Verdict]], count: int) -> str:
    names = [label_file(image).name for image, verdict in verdicts if _repeated(verdict)]
    words = "equals another one of its file and is" if count == 1 else "equal another one of their file and are"
    return (
        f"{count} label row{'' if count == 1 else 's'} {words} not counted, here and by Ultralytics: "
        f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    )


def _listed(reasons: Sequence[str], count: int) -> str:
    """As many reasons as there is room for in a line, the first one in any case."""
    room = [sum(map(len, reasons[:i])) < LETTERS for i in range(1, len(reasons) + 1)]
    shown = reasons[: max(1, sum(room))]
    return f"{'; '.join(shown)}{'; ...' if len(shown) < count else ''}"


def _reason(image: Path, verdict: Verdict, view: Mapping[str, Any], single_cls: bool) -> str:
    """Why an image cannot be used: the line of its label file, or Ultralytics' message about the image."""
    label, shape = label_file(image), view.get("kpt_shape")
    fault = first_fault(label, None if single_cls else len(view["names"]), shape) if label.is_file() else None
    message = " ".join(verdict[-1].partition("ignoring corrupt image/label: ")[2].split())
    if "pi_heif" in message or "cannot identify" in message:  # of Ultralytics and Pillow, for what they cannot decode
        message = "no image that can be read"
    place = label if fault else image
    name = place.relative_to(view["path"]) if place.is_relative_to(view["path"]) else place
    return f"{one_line(name, 200)}: {fault or one_line(message, 90)}"  # a name of dtld has 100 letters


# ---------------------------------------------------------------- a label file


def first_fault(label: Path, classes: int | None, kpt_shape: Sequence[int] | None = None) -> str | None:
    """What is wrong with a label file, and in which line; None for one that Ultralytics takes without a flat box.

    ``classes`` is how many there are, None for any; ``kpt_shape`` is that of a data.yaml of poses.
    """
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read ({session.first_line(error)})"
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if kpt_shape and kpt_shape[0]:
        posed = 5 + kpt_shape[0] * kpt_shape[1]
        rows = [(number, row[:5] if len(row) == posed else row) for number, row in rows]
    polygons = any(len(row) > 6 for _, row in rows)
    with np.errstate(all="ignore"):  # 1e40 is no number of 32 bits
        faults = [(number, _row_fault(row, classes, polygons)) for number, row in rows]
    faults = [(number, fault) for number, fault in faults if fault]
    faults.sort(key=lambda pair: pair[1] == FLAT)  # what Ultralytics minds goes first
    return f"line {faults[0][0]}: {one_line(faults[0][1], 90)}" if faults else None


def _row_fault(words: Sequence[str], classes: int | None, polygons: bool) -> str | None:
    columns = len(words)
    if polygons and (columns == 5 or columns < 3 or columns % 2 == 0):
        return f"{columns} columns among rows of polygons"
    if not polygons and columns != 5:
        return f"{columns} columns, expected 5{' without that of save_conf' if columns == 6 else ''}"
    try:
        numbers = np.array(words, dtype=np.float32)
    except ValueError:
        return f"{' '.join(words)[:60]!r}, expected numbers"
    if polygons:
        points = numbers[1:].reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        numbers = np.array([numbers[0], *((low + high) / 2), *(high - low)], np.float32)
    kind, box = numbers[0], numbers[1:]
    if not (np.isfinite(kind) and kind % 1 == 0):
        return f"class {words[0][:20]}, expected a whole number"
    if kind < 0 or (classes is not None and kind >= classes):
        return f"class {words[0][:20]}, expected {f'0 to {classes - 1}' if classes else '0 or more'}"
    if not (box.max() <= MOST and box.min() >= LEAST and box[2:].min() >= 0):
        return f"the box {' '.join(f'{value:g}' for value in box)}, expected 0 to 1"
    return FLAT if box[2:].min() == 0 else None


# ---------------------------------------------------------------- Ultralytics' reader

_verify, _known = label_reader.verify_image_label, {}


def _judge(image: Path, view: Mapping[str, Any], single_cls: bool) -> Verdict:
    """Ultralytics' verdict on an image, as its dataset for detectors asks for it."""
    shape = tuple(view.get("kpt_shape") or (0, 0))
    return judged((str(image), str(label_file(image)), "", False, len(view["names"]), *shape, single_cls))


def judged(args: tuple) -> Verdict:
    """`verify_image_label` of Ultralytics, called once for each state of the files; one with a flat box is left out."""
    image, label, _, keypoint, classes, *shape, single_cls = args
    state = (_state(image), _state(label))
    key = (image, label, keypoint, None if single_cls else classes, *shape)
    before, verdict = _known.get(key, (None, None))
    if before != state:
        with np.errstate(all="ignore"):
            verdict = _verify(args)
        if verdict[0] is not None and len(verdict[1]) and verdict[1][:, 3:5].min() <= 0:
            verdict = [*[None] * 5, *verdict[5:8], 1, f"{image}: ignoring corrupt image/label: {FLAT}"]
        if not verdict[3]:  # polygons are large
            _known[key] = (state, verdict)
    labels = verdict[1]
    return [verdict[0], None if labels is None else labels.copy(), *verdict[2:]]  # single_cls writes into them


def _state(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _decode_only(image: str, write: Callable[[io.BytesIO], None]) -> None:
    """In place of saving a JPEG anew, which decodes it: one that is cut off still raises, and no file changes."""
    write(io.BytesIO())


class _NoCopies:
    """No `.npy` copies of a dataset's images, which Ultralytics would read, write and delete next to them."""

    def __set__(self, dataset: Any, files: Sequence[Path]) -> None:
        vars(dataset)["npy_files"] = [Path(os.devnull) / "none"] * len(files)

    def __get__(self, dataset: Any, _: type | None = None) -> list[Path]:
        return vars(dataset)["npy_files"]


def _image_files(dataset: Any, places: str | list[str]) -> list[str]:
    """The files of a dataset of Ultralytics, by the one reader of kd, of which the dataset's fraction is taken."""
    files = image_files([Path(place) for place in ([places] if isinstance(places, str) else places)])
    share = dataset.fraction
    return [str(file) for file in files[: share if isinstance(share, int) else max(1, round(len(files) * share))]]


label_reader.verify_image_label = judged
image_checks._replace_image = _decode_only
label_reader.YOLODataset.npy_files = _NoCopies()
label_reader.YOLODataset.get_img_files = _image_files
