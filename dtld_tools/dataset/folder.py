"""The folder of a dataset while it is made: held, continued or replaced, and finished.

    OUT/data.yaml  OUT/frames.jsonl  OUT/manifest.jsonl  OUT/report.json
    OUT/images/<split>/<name>.jpg    OUT/labels/<split>/<name>.txt

Until then OUT/.unfinished holds the identity of its plan, a lock, the temporary files and the dataset that it
replaces; every other file is complete the moment it has its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dtld_tools.dataset.names import OWN, REPORT
from dtld_tools.dataset.reading import read_report
from dtld_tools.errors import DatasetError, ImageError
from dtld_tools.files import IDENTITY, REPLACED, UNFINISHED, held, refuse_file, remove_temporary, write_atomically
from dtld_tools.types import SPLITS


@contextmanager
def output(out: Path, identity: str, *, overwrite: bool) -> Iterator[None]:
    """Hold OUT ready for the plan with this identity, or to continue it, against any other process.

    A folder that holds another dataset is refused, or with ``overwrite`` kept in OUT/.unfinished until the new one is
    finished; it comes back if the input turns out to be wrong. One that holds anything else is always refused.
    Raises DatasetError.
    """
    refuse_file(out)
    _holds_another(out, identity, overwrite)  # a refused folder stays as it was
    with held(out) as scratch:
        replaced = scratch / REPLACED
        if _holds_another(out, identity, overwrite):
            if (scratch / IDENTITY).exists():
                remove_dataset(out)
            else:
                replaced.mkdir(exist_ok=True)
                _move(out, replaced, OWN)  # not yet its report: as long as it is there, a killed run can do it again
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


def finish(out: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, which makes the dataset a finished one."""
    write_atomically(out / REPORT, orjson.dumps(report, option=orjson.OPT_INDENT_2), out / UNFINISHED)
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
    report, _ = read_report(out, [])
    return str(report["identity"]) if "identity" in report else None
