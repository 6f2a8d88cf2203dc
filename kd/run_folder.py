"""The folder of a run, apart from training: what may be started, continued or replaced in it.

In: a folder that this process holds (kd/locks.py), and what config.json would hold. Out: files, or RunError.
Invariant: nothing but a folder with a config.json of ours is ever emptied.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kd.errors import RunError
from kd.locks import LOCK
from kd.resume import aside

CONFIG, RUN = "config.json", "run.json"
MAY_DIFFER = frozenset({"out", "device"})  # between a run and its resumption: folder and machine may change


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole the moment it has its name."""
    aside(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside(path).replace(path)


def entries(out: Path) -> list[Path]:
    """What is in the folder, without the lock of the process that looks."""
    return [path for path in out.iterdir() if path.name != LOCK]


def clear(out: Path) -> None:
    """Empty the folder."""
    for path in entries(out):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def require_free(out: Path, overwrite: bool) -> None:
    """Raise RunError unless a run may be started in ``out``: nothing is in it, or a run that may be replaced."""
    if {path.name for path in entries(out)} <= {aside(out / CONFIG).name}:
        return
    if not (out / CONFIG).is_file():
        raise RunError(f"{out}: got something that is no run of kd, expected a new folder: choose another --out")
    if not overwrite:
        raise RunError(f"{out}: got a run that is there already, expected none: pass --resume or --overwrite")


def require_unfinished(out: Path) -> None:
    """Raise RunError unless ``out`` holds a run, and one that was cut off."""
    read_record(out)
    if (out / RUN).exists():
        raise RunError(f"{out}: got a finished run, expected one that was cut off: nothing is left to do")


def read_record(out: Path) -> dict[str, Any]:
    """The content of a run's config.json. Raises RunError."""
    try:
        record = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(record["config"], dict) or not {"data_sha256", "student_sha256", "kd"} <= record.keys():
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{out}: got no run of kd to resume, expected a folder with a {CONFIG}") from error
    return record


def require_same(out: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Raise RunError unless ``out`` holds a run of this configuration; returns what it learns from."""
    before = read_record(out)
    pairs = {**before["config"], **{key: before[key] for key in ("data_sha256", "student_sha256")}}
    taught = before["kd"]
    now = {**record["config"], **{key: record[key] for key in ("data_sha256", "student_sha256")}}
    if taught and record["kd"]:
        for side, kd in ((pairs, taught), (now, record["kd"])):
            side["teacher_sha256"] = [teacher["sha256"] for teacher in kd["teachers"]]
            side["unlabeled images"] = kd.get("unlabeled")
    for key in sorted((pairs.keys() | now.keys()) - MAY_DIFFER):
        if pairs.get(key) != now.get(key):
            raise RunError(
                f"{out}: {key}: got {now.get(key)}, expected {pairs.get(key)} as the run was started with: "
                f"give the same options, or --overwrite"
            )
    return taught
