"""The folder of a run, apart from training: what may be started, continued or replaced in it.

In: a folder that this process holds (kd/locks.py), and what config.json would hold. Out: files, or RunError.
Invariant: nothing but a folder with a config.json of ours is ever emptied, and never before another run stands there:
an earlier run lies whole in ``.replaced`` until then, whatever becomes of this process. While its files are on their
way there or back they are in ``.moving``, so that the next process knows whose the others are.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.config import TrainConfig
from kd.errors import RunError, UsageError
from kd.locks import LOCK
from kd.runs.record import REPLACED
from kd.training.checkpoints import sidecar_of
from schemas.strict import StrictError, read_json

CONFIG, RUN = "config.json", "run.json"
MOVING = ".moving"
MAY_DIFFER = frozenset({"out", "device", "teacher_cache"})  # between a run and its resumption: places and machine
#: Options that name a place -> the hash of the content that is there.
CONTENT_OF = {
    "data": "data_sha256", "student": "student_sha256", "teachers": "teacher_sha256", "unlabeled": "unlabeled images",
    "inherit": "inherited weights",
}  # fmt: skip


def entries(out: Path) -> list[Path]:
    """What is in the folder, without the lock of the process that looks and an earlier run."""
    return [path for path in out.iterdir() if path.name not in (LOCK, REPLACED, MOVING)]


def clear(out: Path) -> None:
    """Empty the folder."""
    for path in entries(out):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def require_free(out: Path, overwrite: bool) -> None:
    """Raise RunError unless a run may be started in ``out``: nothing is in it, or a run that may be replaced."""
    if not entries(out):
        return
    if not _is_run(out):
        raise RunError(f"{out}: got something that is no run of kd, expected a new folder: choose another --out")
    if not overwrite:
        before = f"; the run before it lies in {out / REPLACED}" if (out / REPLACED).exists() else ""
        raise RunError(f"{out}: got a run that is there already, expected none: pass --resume or --overwrite{before}")


@contextlib.contextmanager
def replacing(out: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Move an earlier run out of the way while a new one is made; unless that is finished, the earlier one comes back.

    A new one that has a checkpoint is kept within the earlier one's folder, and ``tell`` gets a line of it.
    """
    if (out / REPLACED).exists():  # the run in between was killed
        clear(out)
    elif entries(out):
        try:
            (out / MOVING).mkdir()
            _move(entries(out), out / MOVING)
        except BaseException:  # a part of it may be a file system of its own, say
            settle_earlier(out)
            raise
        (out / MOVING).rename(out / REPLACED)
    try:
        yield
    except BaseException:
        if not (out / RUN).exists() and (out / REPLACED).exists():
            kept = _keep(out)
            _bring_back(out)
            tell(f"{out}: the earlier run is back" + (f"; the new one is in {kept}, for --resume" if kept else ""))
        raise


def settle_earlier(out: Path) -> None:
    """Finish what a process that replaced a run here had begun: drop the earlier one, or bring it back.

    It is left where it is while the new one can be resumed.
    """
    if (out / MOVING).exists():
        _move((out / MOVING).iterdir(), out)
        (out / MOVING).rmdir()
    if (out / REPLACED).exists():
        if (out / RUN).exists() and _is_run(out):
            shutil.rmtree(out / REPLACED)
        elif not (out / CONFIG).exists() and _is_run(out / REPLACED):
            _bring_back(out)


def _is_run(folder: Path) -> bool:
    """Whether a folder's config.json is one of kd train; other programs have files of that name, too.

    One that is damaged counts where there are weights beside it.
    """
    try:
        content = read_json(folder / CONFIG)
    except OSError:
        return False
    except StrictError:
        content = None
    ours = isinstance(content, dict) and {"config", "data_sha256"} <= content.keys()
    return ours or (folder / "weights").is_dir()


def _keep(out: Path) -> Path | None:
    """Move a run that can be resumed to a free name among the files of the earlier one; returns its folder to be."""
    if not sidecar_of(out / "weights" / "last.pt").exists():  # built-in runs have none
        return None
    names = (f"interrupted{number or ''}" for number in itertools.chain([0], itertools.count(2)))
    name = next(name for name in names if not (out / REPLACED / name).exists())
    (out / REPLACED / name).mkdir()
    _move(sorted(entries(out), key=lambda path: path.name != CONFIG), out / REPLACED / name)  # without it, none is here
    return out / name


def _bring_back(out: Path) -> None:
    clear(out)
    (out / REPLACED).rename(out / MOVING)
    _move((out / MOVING).iterdir(), out)
    (out / MOVING).rmdir()


def _move(paths: Iterable[Path], folder: Path) -> None:
    for path in list(paths):
        path.rename(folder / path.name)


def require_unfinished(out: Path) -> None:
    """Raise RunError unless ``out`` holds a run, and one that was cut off."""
    read_record(out)
    if (out / RUN).exists():
        raise RunError(f"{out}: got a finished run, expected one that was cut off: nothing is left to do")


def read_record(out: Path) -> dict[str, Any]:
    """The content of a run's config.json. Raises RunError."""
    try:
        record = read_json(out / CONFIG)
        _identity(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{out}: got no run of kd to resume, expected a folder with a {CONFIG}") from error
    return record


def require_same(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Raise RunError unless ``out`` holds a run of this configuration; returns the content of its config.json.

    Inputs that have a hash may lie elsewhere by now. All that differs is named at once.
    """
    before = read_record(out)
    then, now = _identity(before), _identity(record)
    places = {
        place for place, content in CONTENT_OF.items() if _has_hash(then[content]) and then[content] == now[content]
    }
    keys = sorted((then.keys() | now.keys()) - MAY_DIFFER - places)
    found = [f"{key}: got {now.get(key)}, expected {then.get(key)}" for key in keys if then.get(key) != now.get(key)]
    if found:
        raise RunError(
            f"{out}: {'; '.join(found)} as the run was started with: give the same options, or none but --out, or "
            f"--overwrite"
        )
    return before


def with_own_batch(config: TrainConfig, out: Path) -> TrainConfig:
    """The configuration with the batch that the run in ``out`` has measured, if it was to. Raises RunError."""
    before = read_record(out)
    if config.batch_auto is None or "batch_auto" not in before:
        return config
    return replace(config, batch=before["config"]["batch"], batch_auto=None)


def own_config(out: Path, **given: Any) -> TrainConfig:
    """The configuration of the run in ``out``, as it was started but for what is given. Raises RunError, UsageError.

    A teacher that is elsewhere now is so for what is inherited from it, too, be that all it was for
    (`kd.training.defaults`).
    """
    require_unfinished(out)
    try:
        config = TrainConfig.from_json(read_record(out)["config"])
    except (UsageError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{out / CONFIG}: got a configuration that is none of kd train ({' '.join(str(error).split())}), expected "
            f"the one that it wrote: bring it back, or start anew with --overwrite"
        ) from error
    if config.inherit and "teachers" in given and config.teachers in ((), (config.inherit,)):
        given = {"inherit": given["teachers"][0], **given}
        if not config.teachers and "methods" not in given:
            del given["teachers"], given["teacher_weights"]
    return replace(config, **{"out": str(out), **given})


def _has_hash(content: Any) -> bool:
    """Whether there is a hash: names such as yolov5n have none."""
    return bool(content) and not (isinstance(content, list) and None in content)


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What two runs have in common that are the same: options, and the content of what is read."""
    kd = record["kd"] or {"teachers": []}
    return {
        **record["config"],
        "data_sha256": record["data_sha256"],
        "student_sha256": record["student_sha256"],
        "teacher_sha256": [teacher["sha256"] for teacher in kd["teachers"]],
        "unlabeled images": kd.get("unlabeled"),
        "inherited weights": record.get("inherited", {}).get("teacher_sha256"),
    }
