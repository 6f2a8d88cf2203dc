"""One batch for all arms of a student where a plan says `batch: auto`, so that pairs stay pairs.

In: the jobs of a plan. Out: the same with numbers, and OUT/batches.json, which later arms and seeds take them from.
Invariant: every arm is measured in a process of its own before the first run starts, and all take the smallest number;
a teacher that is yet to be trained takes part as it will begin.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.config import BATCH_SHARE, TrainConfig
from kd.errors import RunError, UsageError
from kd.files import write_all
from kd.options import parse_batch
from kd.runs.record import RUN
from kd.sweeps.executors import POLL_S, Executor, LostError, reason_of
from kd.sweeps.job import Job
from kd.sweeps.plan import RUNS, arguments, configuration
from schemas.strict import StrictError, read_json

BATCHES = "batches.json"  # in OUT: student, image size and share -> the batch, and the arms' own
UNLIKE = frozenset({"seed", "epochs", "log"})  # options that take no memory


def require_room(jobs: Sequence[Job], together: int) -> None:
    """Raise UsageError where runs, of which so many share a GPU, would each fill more of it than their part."""
    for options in (job.options for job in jobs if job.options.get("device") not in ("cpu", "mps")):
        share = parse_batch(options["batch"])["batch_auto"] if "batch" in options else None
        if share and share * together > 1:
            raise UsageError(
                f"--jobs, --ray-gpus: got {together} runs at once on a GPU, each with a batch that fills {share:g} of "
                f"it, expected room for all: batch: auto:{BATCH_SHARE / together:.2g}, or fewer runs"
            )


def with_batches(jobs: Sequence[Job], out: Path, executor: Executor, tell: Callable[[str], None]) -> list[Job]:
    """The jobs, those of a student with the batch that all of its arms have memory for; ``tell`` gets a line of each.

    Teachers' runs, which have no twins, are left to measure for themselves. Raises RunError where that fails.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.name.startswith(RUNS) and str(job.options.get("batch")).startswith("auto"):
            groups.setdefault(_group(job), []).append(job)
    known = _read(out / BATCHES)
    for group in (group for group in groups if group not in known):
        arms = {arm: _measure(job, jobs, out, executor) for arm, job in _arms(groups[group]).items()}
        known[group] = {"batch": min(arms.values()), "arms": arms}
        write_all({out / BATCHES: json.dumps(known, indent=2) + "\n"})
        tell(f"{group}: batch {known[group]['batch']}, of {', '.join(f'{arm} {n}' for arm, n in arms.items())}")
    numbers = {job.name: known[group]["batch"] for group, members in groups.items() for job in members}
    return [
        replace(job, options={**job.options, "batch": numbers[job.name]}) if job.name in numbers else job
        for job in jobs
    ]


def _group(job: Job) -> str:
    """What jobs have in common that are to have one batch."""
    options = job.options
    return f"{options['student']} at {options.get('imgsz', TrainConfig.imgsz)} px, {options['batch']}"


def _arms(jobs: Sequence[Job]) -> dict[str, Job]:
    """The first job of each kind that takes memory of its own, by the name of its arm."""
    kinds: dict[str, Job] = {}
    for job in jobs:
        options = {key: value for key, value in job.options.items() if key not in UNLIKE}
        kinds.setdefault(json.dumps([options, job.models], sort_keys=True, default=str), job)
    return {job.kind.rpartition("/")[2]: job for job in kinds.values()}


def _measure(job: Job, jobs: Sequence[Job], out: Path, executor: Executor) -> int:
    """The batch that a run of its own would have: its `kd train --dry-run` measures it."""
    options: dict[str, Any] = job.options_in(out)
    for option, name in job.models.items():
        if not (out / name / RUN).exists():
            options[option] = str(_untrained(next(other for other in jobs if other.name == name), out))
    folder = out / "batches" / job.kind.replace("/", "_")
    log = out / "logs" / f"batch_{job.kind.replace('/', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    words = [*arguments({**options, "allow-weak-teacher": True}), "--out", str(folder), "--dry-run", "--json"]
    run = executor.start(["train", *words, "--quiet"], log, log)
    try:
        while (code := run.poll()) is None:
            time.sleep(POLL_S)
    except LostError as error:
        raise RunError(f"{job.kind}: batch: {error}: give the same command again to go on") from error
    finally:
        run.stop()
        run.wait()
    if code:
        raise RunError(f"{job.kind}: batch: {reason_of(log, code)}")
    lines = log.read_text(encoding="utf-8").splitlines()
    plan = json.loads("\n".join(lines[lines.index("{") : lines.index("}") + 1]))  # warnings may stand around it
    return int(plan["config"]["batch"])


def _untrained(job: Job, out: Path) -> Path:
    """The checkpoint that a job which others wait for would begin with."""
    from kd.training.auto_batch import write_untrained

    path = out / "batches" / f"{hashlib.sha256(job.name.encode()).hexdigest()[:12]}.pt"
    if not path.exists():
        write_untrained(configuration(job), path)
    return path


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The batches of before. Raises RunError for a file that does not say."""
    try:
        found = read_json(file) if file.exists() else {}
        return {group: {**entry, "batch": int(entry["batch"])} for group, entry in found.items()}
    except (OSError, StrictError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{file}: got no batches, expected what kd sweep wrote: bring it back as it was") from error
