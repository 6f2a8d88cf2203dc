"""From a configuration to a run folder: checks first, then Ultralytics' training loop, then the figures.

In: a TrainConfig. Out: RUN with weights, results.csv, config.json (written at the start) and run.json (written at
the end; schemas/run.schema.json).
Invariant: a refused run leaves no folder, run.json exists exactly when the run is complete, and nothing but a folder
with a config.json of ours is ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kd.config import TrainConfig
from kd.errors import RunError
from kd.files import remove_partials
from kd.locks import hold
from kd.reports.model_card import model_card
from kd.runs.record import epochs_done
from kd.training import ranks
from kd.training.auto_batch import size_batch
from kd.training.build import build_trainer, translated
from kd.training.check import check, check_options, require_outside
from kd.training.checkpoints import epoch_of, finish, load_sidecar, settle, sidecar_of, strip
from kd.training.defaults import choose
from kd.training.disk import write_text
from kd.training.dry_run import plan, untaught
from kd.training.record import Checked, run_json
from kd.training.room import room_for
from kd.training.run_folder import (
    CONFIG,
    RUN,
    clear,
    replacing,
    require_free,
    require_same,
    require_unfinished,
    settle_earlier,
    with_own_batch,
)
from kd.training.start import INHERITED, inherit_start
from kd.training.taught import require_unchanged, taught
from kd.training.worth import check_source, check_worth
from kd.ultra import session


@ranks.leading()
def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_weak_teacher: bool = False,
    allow_overlap: bool = False,
    also_read: Iterable[Path] = (),
    tell: Callable[[str], None] = lambda line: None,
    logs: tuple[str, ...] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a student, distilled when the configuration names teachers; returns the content of run.json.

    ``resume`` continues a run that was cut off, with the same configuration, or starts it again when it has no
    checkpoint yet; ``overwrite`` replaces an earlier run, which comes back unless the new one is finished, and must
    hold nothing that is read, be it in the configuration or in ``also_read``; ``dry_run`` writes nothing and returns
    the plan: levels, adapters, the terms and fgfi's mask on one batch, the teachers' scores. ``allow_overlap`` lets val
    and test have training images; ``tell`` gets a line of what is left out or kept. ``logs`` are packages to log the
    run to (`session.LOGS`); ``quiet`` silences Ultralytics. Under torchrun the first process does all of this; the
    others train with it, and return {}.
    Raises ModelError, DataError, UsageError, RunError or DistillationError.
    """
    started = time.monotonic()
    if ranks.RANK > 0:
        _train_along(config, quiet)
        return {}
    ranks.require_world(config, dry_run)
    config = choose(config)
    check_options(config, resume, overwrite, logs)
    device = session.check_device(config.device)
    out = Path(config.out).resolve()
    with contextlib.nullcontext() if dry_run else _hold(out):
        if resume:
            require_unfinished(out)
            config = with_own_batch(config, out)
        elif not dry_run:
            require_free(out, overwrite)
        checked = check(config, allow_overlap or resume, tell, quiet)  # a run resumes with the data it began with
        if overwrite:
            require_outside(out, config, checked.data, also_read)
        if resume:
            checked = checked.as_before(require_same(out, checked.record))
        else:
            with room_for(config):
                checked = _with_worths(config, checked, allow_weak_teacher)
        job = Job(config, checked, out, device, started, resume, logs, quiet, tell)
        if dry_run:
            job = _size(replace(job, config=untaught(config)))
            config = replace(config, batch=job.config.batch, batch_auto=None)
            with room_for(config):
                return plan(config, job.checked)
        with replacing(out, tell) if overwrite else contextlib.nullcontext():
            return _carry_out(job)


def _with_worths(config: TrainConfig, checked: Checked, allow_weak: bool) -> Checked:
    """What the teachers are worth, by a look at validation images. Raises DistillationError."""
    if config.distils:
        checked = checked.with_worths(check_worth(config, allow_weak))
    if config.inherit:
        checked = checked.with_inherited({"worth": check_source(config, allow_weak).to_json()})
    return checked


@dataclass(frozen=True)
class Job:
    """A run that nothing stands against."""

    config: TrainConfig
    checked: Checked
    out: Path
    device: torch.device
    started: float  # time.monotonic()
    resume: bool
    logs: tuple[str, ...]
    quiet: bool
    tell: Callable[[str], None]

    @property
    def last(self) -> Path:
        """The checkpoint that is trained on."""
        return self.out / "weights" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.out / "weights" / "best.pt"


@contextlib.contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder, and finish what killed ones, and then this one, have begun in it."""
    with hold(out):
        for folder in (out, out / INHERITED.parent):
            remove_partials(folder)
        settle_earlier(out)
        yield
        settle_earlier(out)


def _carry_out(job: Job) -> dict[str, Any]:
    """Train, score and describe; returns the content of run.json. Raises RunError or DistillationError."""
    try:
        settle(job.last)
        resumed = job.last.exists()
        if not resumed:
            write_text(job.out / CONFIG, _json(job.checked.record))  # whoever finds the folder knows what it is
        with room_for(job.config):
            if job.config.inherit and not resumed:
                job = _inherit(job)
            if job.config.cached:
                job = _ask(job)
        job = _size(job)
        seconds_before = _fit(job)
        for checkpoint in (job.last, job.best):  # a run that was cut off after its last epoch has this still to do
            strip(checkpoint)
        with room_for(job.config):
            found = run_json(job.config, job.checked, job.out, job.quiet)
        result = {
            **found,
            "device": session.device_name(
                job.device, max(ranks.world_size(), len((job.config.device or "").split(",")))
            ),
            "epochs": epochs_done(job.out),
            "resumed": resumed,
            "wall_time_s": round(seconds_before + time.monotonic() - job.started, 1),
        }
        write_text(job.out / "README.md", model_card(result))
        write_text(job.out / RUN, _json(result))
        finish(job.last)
    except BaseException:
        if not job.last.exists() and not job.resume:  # nothing to resume: leave no trace
            clear(job.out)
        raise
    finally:
        torch.set_num_threads(session.TORCH_THREADS)
    return result


def _inherit(job: Job) -> Job:
    """The job with its first weights made. Raises ModelError or DataError."""
    account = inherit_start(job.config, job.checked.data, job.out, job.device, job.quiet)
    return replace(job, checked=replace(job.checked.with_inherited(account), model=str(job.out / INHERITED)))


def _ask(job: Job) -> Job:
    """The job with what its teacher says about the training images in a file. Raises ModelError, DistillationError."""
    before = job.checked.record["kd"].get("cache")
    account = taught(job.config, job.checked.data, job.device, job.quiet)
    if before:
        require_unchanged(job.config, before, account)
    return replace(job, checked=job.checked.with_cache(account))


def _size(job: Job) -> Job:
    """The job with its batch measured, where that is still to be done. Raises RunError."""
    if job.config.batch_auto is None:
        return job
    batch, account = size_batch(job.config, job.checked.model, job.device, job.tell)
    config = replace(job.config, batch=batch, batch_auto=None)
    return replace(job, config=config, checked=job.checked.with_batch(batch, account))


def _fit(job: Job) -> float:
    """Train, from the last checkpoint if there is one, unless no epoch is left; returns the seconds of before."""
    resumed = job.last.exists()
    state = load_sidecar(sidecar_of(job.last), mmap=True) if resumed and epoch_of(job.last) >= 0 else {}
    if not resumed or state.get("stop") is False:
        write_text(job.out / CONFIG, _json(job.checked.record))  # with accounts and, resumed, places of now
        trainer = build_trainer(job.config, job.checked.model, job.out, job.last if resumed else None, job.logs)
        trainer.started = job.started
        with session.log_to_stderr(job.quiet):
            translated(trainer.train, job.out)
    if not job.best.exists():
        raise RunError(f"{job.out}: training: got no best.pt, expected finite scores: lower the learning rate")
    return state.get("seconds", 0.0)


def _train_along(config: TrainConfig, quiet: bool) -> None:
    """Train as one of torchrun's processes but the first: what it reads has to be what that one has put on record."""
    out = Path(config.out).resolve()
    with ranks.getting_ready():
        ranks.require_world(config)
        config = choose(config)
        checked = check(config, True, lambda line: None, quiet=True)
        task = ranks.task()
        if task == ranks.NOTHING:
            return
        require_same(out, checked.record)
    model = str(out / INHERITED) if config.inherit else checked.model
    last = out / "weights" / "last.pt" if task == ranks.RESUME else None
    trainer = build_trainer(config, model, out, last)
    with session.log_to_stderr(quiet):
        translated(trainer.train, out)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
