"""The dataset on disk, its one reader and writer: data.yaml, frames.jsonl, manifest.jsonl, report, labels, images.

    OUT/data.yaml  OUT/frames.jsonl  OUT/manifest.jsonl  OUT/report.json
    OUT/images/<split>/<name>.jpg    OUT/labels/<split>/<name>.txt

While a dataset is being made, OUT/.unfinished holds the identity of its plan, a lock, the temporary files and the
dataset that it replaces;
every other file is complete the moment it has its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fastjsonschema
import orjson
import yaml

import schemas
from dtld_tools.errors import DatasetError, ImageError
from dtld_tools.outputs import IDENTITY, REPLACED, UNFINISHED, held, refuse_file, remove_temporary
from dtld_tools.pixels.images import write_atomically
from dtld_tools.types import SPLITS, Box, Dropped, FrameRecord, ImageRecord, SequenceId, Target, Window
from schemas import strict
from schemas.strict import StrictError

OWN = ("images", "labels", "frames.jsonl", "manifest.jsonl", "data.yaml")
REPORT = "report.json"
Record = TypeVar("Record")


# --- lines -----------------------------------------------------------------------------------------------


def frame_to_json(frame: FrameRecord) -> dict[str, Any]:
    """A frame as its line of frames.jsonl; see schemas/frame.schema.json."""
    return {
        "frame": frame.frame,
        **frame.sequence._asdict(),
        "split": frame.split,
        "width": frame.width,
        "height": frame.height,
        "lights": [{"id": t.light_id, "class": t.class_id, "box": list(t.box)} for t in frame.lights],
        "dropped": [_dropped_to_json(dropped) for dropped in frame.dropped],
    }


def frame_from_json(line: Mapping[str, Any]) -> FrameRecord:
    """The inverse of `frame_to_json`."""
    return FrameRecord(
        frame=line["frame"],
        sequence=SequenceId(line["city"], line["route"], line["sequence"]),
        split=line["split"],
        width=line["width"],
        height=line["height"],
        lights=tuple(Target(light["class"], Box(*light["box"]), light["id"]) for light in line["lights"]),
        dropped=tuple(
            Dropped(d["id"], d["reason"], d.get("class"), Box(*d["box"]) if "box" in d else None)
            for d in line["dropped"]
        ),
    )


def image_to_json(image: ImageRecord) -> dict[str, Any]:
    """An image as its line of manifest.jsonl; see schemas/manifest.schema.json."""
    return {
        "name": image.name,
        "split": image.split,
        "frame": image.frame,
        **image.sequence._asdict(),
        "window": image.window._asdict(),
        "scale": image.scale,
        "augmentation": image.augmentation,
        "targets": image.targets,
        "slivers": image.slivers,
        "masked": image.masked,
    }


def image_from_json(line: Mapping[str, Any]) -> ImageRecord:
    """The inverse of `image_to_json`."""
    return ImageRecord(
        name=line["name"],
        split=line["split"],
        frame=line["frame"],
        sequence=SequenceId(line["city"], line["route"], line["sequence"]),
        window=Window(**line["window"]),
        scale=line["scale"],
        augmentation=line["augmentation"],
        targets=tuple(line["targets"]),
        slivers=tuple(line["slivers"]),
        masked=tuple(line["masked"]),
    )


def label_text(targets: Sequence[Target], size_wh: tuple[int, int]) -> str:
    """A YOLO label file: ``class xc yc w h`` per target, shares of the image's size with 6 decimals.

    >>> label_text([Target(1, Box(0, 0, 64, 32), 7)], (640, 640))
    '1 0.050000 0.025000 0.100000 0.050000\\n'
    """
    width, height = size_wh
    return "".join(
        f"{t.class_id} {(t.box.x1 + t.box.x2) / 2 / width:.6f} {(t.box.y1 + t.box.y2) / 2 / height:.6f} "
        f"{t.box.width / width:.6f} {t.box.height / height:.6f}\n"
        for t in targets
    )


def _dropped_to_json(dropped: Dropped) -> dict[str, Any]:
    line: dict[str, Any] = {"id": dropped.light_id, "reason": dropped.reason}
    if dropped.class_id is not None:
        line["class"] = dropped.class_id
    if dropped.box is not None:
        line["box"] = list(dropped.box)
    return line


# --- reading ---------------------------------------------------------------------------------------------


def read_frames(root: Path) -> Iterator[FrameRecord]:
    """The lines of frames.jsonl in order, each checked against its schema. Raises DatasetError."""
    return _read_lines(root / "frames.jsonl", "frame", frame_from_json)


def read_images(root: Path) -> Iterator[ImageRecord]:
    """The lines of manifest.jsonl in order, each checked against its schema. Raises DatasetError."""
    return _read_lines(root / "manifest.jsonl", "manifest", image_from_json)


def read_frames_with_images(root: Path) -> Iterator[tuple[FrameRecord, tuple[ImageRecord, ...]]]:
    """Each frame with its images; both files are in the order of the frames, so one frame is held at a time.

    Raises DatasetError if the manifest names a frame that frames.jsonl does not have, or in another order.
    """
    by_frame = groupby(read_images(root), key=lambda image: image.frame)
    name, images = next(by_frame, (None, iter(())))
    for frame in read_frames(root):
        own: tuple[ImageRecord, ...] = ()
        if name == frame.frame:
            own = tuple(images)
            name, images = next(by_frame, (None, iter(())))
        yield frame, own
    for image in images:  # of a frame that never came
        where = f"{root / 'manifest.jsonl'}: {image.name}"
        raise DatasetError(f"{where}: its frame is not in frames.jsonl or not in its order")


def read_report(root: Path) -> dict[str, Any]:
    """The dataset's report.json. Raises DatasetError."""
    path = root / "report.json"
    try:
        return strict.read_json(path)
    except (OSError, StrictError) as error:
        raise DatasetError(f"{path}: {error}; expected a finished dataset of dtld") from error


def read_class_names(root: Path) -> tuple[str, ...]:
    """The class names of data.yaml in the order of their numbers. Raises DatasetError."""
    path = root / "data.yaml"
    try:
        document = strict.read_yaml(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected a dataset made by dtld convert or prepare") from error
    except StrictError as error:
        raise DatasetError(f"{path}: {error}; expected a dataset's data.yaml") from error
    names = document.get("names") if isinstance(document, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not is_names(names):
        raise DatasetError(f"{path}: got no class names numbered from 0; expected a dataset's data.yaml")
    return tuple(names[index] for index in range(len(names)))


def is_names(names: Any) -> bool:
    """Whether it is {number: text} with the numbers 0, 1, ...; ``true`` is no 1, though equal to it."""
    return (
        isinstance(names, dict)
        and all(type(number) is int and isinstance(name, str) for number, name in names.items())
        and sorted(names) == list(range(len(names)))
    )


def image_path(root: Path, image: ImageRecord) -> Path:
    """Where an image of the dataset lies."""
    return root / image_file(image)


def label_path(root: Path, image: ImageRecord) -> Path:
    """Where the image's label file lies."""
    return root / label_file(image)


def image_file(image: ImageRecord) -> str:
    """An image's place below the dataset's folder."""
    return f"images/{image.split}/{image.name}"


def label_file(image: ImageRecord) -> str:
    """Its label file's place below the dataset's folder."""
    return f"labels/{image.split}/{image.name.rpartition('.')[0]}.txt"


def files_of(root: Path) -> list[Path]:
    """All that a dataset is made of: what a file written for it must not lie in, or replace."""
    return [root / name for name in (*OWN, REPORT, UNFINISHED)]


def _read_lines(path: Path, schema: str, from_json: Callable[[Mapping], Record]) -> Iterator[Record]:
    check = _validator(schema)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield from_json(check(strict.load_json(line)))
                except (StrictError, fastjsonschema.JsonSchemaValueException) as error:
                    reason = str(error).replace("data", "line", 1)
                    raise DatasetError(f"{path}: line {number}: {reason}; make the dataset again") from error
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}; expected a dataset made by dtld convert, tile or prepare"
        ) from error


@lru_cache
def _validator(schema: str) -> Callable[[Any], Any]:
    return fastjsonschema.compile(schemas.load(schema), use_default=False)


# --- writing ---------------------------------------------------------------------------------------------


@contextmanager
def output(out: Path, identity: str, *, overwrite: bool) -> Iterator[None]:
    """Hold OUT ready for the plan with this identity, or to continue it, against any other process.

    A folder that holds another dataset is refused, or with ``overwrite`` keeps it aside until the new one is finished:
    it comes back when the input turns out to be wrong. One that holds anything else is always refused. Raises
    DatasetError.
    """
    refuse_file(out)
    _holds_another(out, identity, overwrite)  # a refused folder stays as it was
    with held(out) as scratch:
        replaced = scratch / REPLACED
        if _holds_another(out, identity, overwrite):
            if (scratch / IDENTITY).exists():
                remove_dataset(out)
            else:
                _set_aside(out, replaced)
        remove_temporary(scratch)
        write_atomically(scratch / IDENTITY, identity.encode(), scratch)
        if replaced.exists() and not (replaced / REPORT).exists():
            (out / REPORT).replace(replaced / REPORT)
        for kind in ("images", "labels"):
            for split in SPLITS:
                (out / kind / split).mkdir(parents=True, exist_ok=True)
        try:
            yield
        except (DatasetError, ImageError):  # of the input: there will be no new dataset
            if replaced.exists():
                remove_dataset(out)
                _move(replaced, out, (REPORT, *OWN))
                replaced.rmdir()
            raise


def remove_dataset(out: Path) -> None:
    """Delete the dataset's own files and folders, the mark of an unfinished one last; leave anything else."""
    for name in (*OWN, REPORT):
        path = out / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    (out / UNFINISHED / IDENTITY).unlink(missing_ok=True)


def _set_aside(out: Path, replaced: Path) -> None:
    """Move a finished dataset away, all but its report: as long as that is there, a killed run can do it again."""
    replaced.mkdir(exist_ok=True)
    _move(out, replaced, OWN)


def _move(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).exists():
            (source / name).replace(target / name)


@contextmanager
def line_files(out: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """frames.jsonl and manifest.jsonl to write lines into; they get their names when both are complete."""
    names = ("frames.jsonl", "manifest.jsonl")
    frames, manifest = (out / UNFINISHED / name for name in names)
    with frames.open("wb") as frame_lines, manifest.open("wb") as image_lines:
        yield frame_lines, image_lines
    for path in (frames, manifest):
        path.replace(out / path.name)


def write_data_yaml(out: Path, class_names: Sequence[str]) -> None:
    """Without a ``path`` key, Ultralytics resolves the folders beside the file, so the dataset can be moved."""
    document = {split: f"images/{split}" for split in SPLITS} | {"names": dict(enumerate(class_names))}
    write_atomically(out / "data.yaml", yaml_text(document).encode(), out / UNFINISHED)


def yaml_text(document: Mapping[str, Any]) -> str:
    """A data.yaml that `schemas.strict` and PyYAML read alike.

    >>> yaml_text({"names": {0: "go", 1: "1e3", 2: "off"}})
    "names:\\n  0: go\\n  1: '1e3'\\n  2: 'off'\\n"
    """
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Puts a text into quotes that YAML 1.2 takes for a number, and 1.1, PyYAML's, does not: ``1e3``."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_text = strict.word(text) == text
    except StrictError:
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _represent_text)


def finish(out: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, which makes the dataset a finished one."""
    write_atomically(out / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2), out / UNFINISHED)
    shutil.rmtree(out / UNFINISHED / REPLACED, ignore_errors=True)
    (out / UNFINISHED / IDENTITY).unlink()


def _holds_another(out: Path, identity: str, overwrite: bool) -> bool:
    """Whether OUT holds another dataset that may be replaced. Raises DatasetError if it may not."""
    marker = out / UNFINISHED / IDENTITY
    # A mark without an identity is a run that was killed before it wrote anything else.
    if not out.is_dir() or not (marker.is_file() or any(path.name != UNFINISHED for path in out.iterdir())):
        return False
    found = marker.read_text() if marker.is_file() else _finished_identity(out)
    if found is None:
        raise DatasetError(f"{out}: holds files that are no dataset of dtld; choose an empty or a new folder")
    if found != identity and not overwrite:
        raise DatasetError(
            f"{out}: holds a dataset of another configuration, or of other frames; "
            "choose another --out, or pass --overwrite"
        )
    return found != identity


def _finished_identity(out: Path) -> str | None:
    try:
        return str(read_report(out)["identity"])
    except (DatasetError, KeyError, TypeError):
        return None
