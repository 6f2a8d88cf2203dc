"""Carrying out a plan: every run a process of its own, resumable, and a failed one stops only those that need it.

In: a plan and a folder. Out: OUT/{plan.yaml, teachers/<name>, runs/<student>/<arm>/seed<k>, logs, failures.json}.
Invariant: a finished run is never repeated, OUT holds the runs of one plan, and no process of ours outlives the sweep;
where the processes are (kd/sweeps/executors.py) changes none of it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from kd.config import require_side
from kd.errors import PlanError, RunError, UsageError
from kd.files import write_all
from kd.locks import LOCK, hold
from kd.runs.record import CONFIG, OPTIMIZER, RUN, epochs_done, optimizer_settings, read_config, read_run
from kd.sweeps.batches import require_room, with_batches
from kd.sweeps.executors import POLL_S, Cluster, Executor, LostError, Run, on_one_gpu, reason_of, started
from kd.sweeps.job import Job
from kd.sweeps.plan import MODELS, arguments, configuration, expand, read_plan, refused, require_extends, to_yaml
from schemas.strict import StrictError
from schemas.text import one_line

DEFAULT_EPOCHS = 30  # of kd train
LOSSES = 3  # of a run, after which it is not tried again: it may be what brings its nodes down
SHOWN = 4  # runs that the progress bar names


def sweep(
    plan: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    changes: Sequence[str] = (),
    at_once: int | None = None,
    cluster: Cluster | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train what a plan asks for and ``out`` does not have yet; returns ``{out, runs, finished, failed, ...}``.

    ``data`` and ``changes`` as in `kd.sweeps.plan.read_plan`; ``at_once`` processes, or one, share the cores; in a
    ``cluster`` so many, or as many as there is room for, are under way. ``tell``, or stdout, gets a line per finished,
    lost or failed run. ``dry_run`` writes nothing and adds ``plan``: every run with its state and the seconds that it
    may take, None before any has finished. Raises PlanError where ``out`` is another plan's, UsageError for no such
    cluster, or for runs at once that have no room together.
    """
    out, tell = Path(out).resolve(), tell or partial(tqdm.write, file=sys.stdout)
    content = read_plan(plan, data, changes)
    jobs = expand(content)
    require_room(jobs, on_one_gpu(cluster, at_once))
    with contextlib.nullcontext() if dry_run else hold(out, f"{out}: another sweep is at work there"):
        _require_ours(out, jobs, Path(plan))
        scheduler = Scheduler(out, jobs, tell, at_once or 1)
        _require_models([job for job in jobs if not scheduler.finished(job.name)], plan)
        if dry_run:
            return {**scheduler.summary(), "plan": [scheduler.describe(job) for job in jobs]}
        devices = [job.options.get("device") for job in jobs]
        with started(cluster, at_once, devices, tell) as executor:
            write_all({out / "plan.yaml": to_yaml(content)})
            (out / "failures.json").unlink(missing_ok=True)
            scheduler.jobs = with_batches(jobs, out, executor, tell)
            scheduler.work(executor, quiet or not sys.stderr.isatty())
    return scheduler.summary()


def equal_epochs(distilled: Mapping[str, Any], plain: Mapping[str, Any]) -> int:
    """Epochs of plain training that take the wall-clock time of a distilled run; arguments are their run.json.

    A teacher's own training is not counted, the check of its worth is. Never fewer than the plain run had.

    >>> equal_epochs({"wall_time_s": 90.0, "epochs": 30}, {"wall_time_s": 60.0, "epochs": 30})
    45
    """
    seconds = max(plain["wall_time_s"], 0.1)  # what run.json says of less than half of that is 0
    return max(plain["epochs"], round(distilled["wall_time_s"] * plain["epochs"] / seconds))


@dataclass
class Scheduler:
    """The jobs of a sweep and the runs under way, of which so many are at work ``at_once``."""

    out: Path
    jobs: Sequence[Job]
    tell: Callable[[str], None]
    at_once: int
    waiting: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, Run] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # what run.json of finished runs says

    def work(self, executor: Executor, quiet: bool) -> None:
        """Run all jobs that are not finished; Ctrl-C ends their processes with this one."""
        self.waiting = [job for job in self.jobs if not self.finished(job.name)]
        total, done = len(self.jobs), len(self.jobs) - len(self.waiting)
        bar = tqdm(total=total, initial=done, disable=quiet, bar_format="{n_fmt}/{total_fmt} runs [{elapsed}]{postfix}")
        try:
            while self.waiting or self.running:
                self.at_once = executor.room()
                for job in list(self.waiting):
                    missing = [name for name in job.after if not self.finished(name)]
                    lost = next((name for name in missing if name in self.failed), None)
                    if lost:
                        self.waiting.remove(job)
                        self._fail(job, f"needs {lost}, which failed", bar)
                    elif not missing and len(self.running) < executor.at_once:
                        self.waiting.remove(job)
                        self._start(job, executor)
                time.sleep(POLL_S)
                for job in [job for job in self.jobs if job.name in self.running]:
                    self._look_after(job, bar)
                if not quiet:
                    bar.set_postfix_str(self._view())
        finally:
            for run in self.running.values():
                run.stop()
            for run in self.running.values():
                run.wait()
            bar.close()

    def finished(self, name: str) -> bool:
        """Whether a run is complete."""
        return name in self.records or (self.out / name / RUN).exists()

    def summary(self) -> dict[str, Any]:
        """Counts, and what failed."""
        finished = sum(self.finished(job.name) for job in self.jobs)
        left = self.seconds_left()
        return {
            "out": str(self.out), "runs": len(self.jobs), "finished": finished, "failed": self.failed,
            "seconds_left": left and round(left),
        }  # fmt: skip

    def describe(self, job: Job) -> dict[str, Any]:
        """A job for `--dry-run`."""
        begun = (self.out / job.name / CONFIG).exists()
        return {
            "run": job.name,
            "state": "finished" if self.finished(job.name) else "begun" if begun else "to do",
            **{key: job.models.get(key) or job.options.get(key) for key in ("teacher", "inherit")},
            "epochs": f"time of {job.time_of[0]}" if job.time_of else _epochs(job),
            "seconds": self.estimate(job),
        }

    # ------------------------------------------------------------ time

    def estimate(self, job: Job) -> float | None:
        """Seconds that a job may take, by those of its kind that have finished, else of its student, else of all."""
        if job.time_of:
            return self.estimate(next(other for other in self.jobs if other.name == job.time_of[0]))
        done = [(other, self._record(other.name)) for other in self.jobs if self.finished(other.name)]
        alike = (
            [record for other, record in done if other.kind == job.kind],
            [record for other, record in done if other.options["student"] == job.options["student"]],
            [record for _, record in done],
        )
        records = next(filter(None, alike), None)
        if records is None:
            return None
        return _epochs(job) * fmean(record["wall_time_s"] / record["epochs"] for record in records)

    def seconds_left(self) -> float | None:
        """For all jobs that are neither finished nor failed; None before any has finished."""
        left = 0.0
        for job in self.jobs:
            if self.finished(job.name) or job.name in self.failed:
                continue
            seconds = self.estimate(job)
            if seconds is None:
                return None
            left += seconds * max(0.0, 1 - epochs_done(self.out / job.name) / _epochs(job))
        return left / self.at_once

    def _view(self) -> str:
        """The runs under way with their epochs, and the time left."""
        parts = [f"{name} epoch {epochs_done(self.out / name)}" for name in islice(self.running, SHOWN)]
        more = [f"{len(self.running) - SHOWN} more"] if len(self.running) > SHOWN else []
        return ", ".join([*parts, *more, *_left(self.seconds_left())])

    # ------------------------------------------------------------ processes

    def _start(self, job: Job, executor: Executor) -> None:
        """Start, continue, or start again the run of a job."""
        folder, options = self.out / job.name, job.options_in(self.out)
        begun = (folder / CONFIG).exists()
        if job.time_of and begun:
            config = _begun(folder)
            options["epochs"] = config["epochs"]  # times may have changed since
            given = {key: value for key, value in config.get("settings", {}).items() if key in OPTIMIZER}
        elif job.time_of:
            options["epochs"] = equal_epochs(*map(self._record, job.time_of))
            given = optimizer_settings(self._record(job.time_of[1]))  # `auto` would choose by the number of epochs
        if job.time_of and given:
            options["set"] = {**options.get("set", {}), **given}
        words = [*arguments(options), "--out", str(folder), "--quiet"]
        if begun:
            words.append("--resume" if job.resumable else "--overwrite")
        log = self._log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self.running[job.name] = executor.start(["train", *words], log, folder / RUN)

    def _look_after(self, job: Job, bar: tqdm) -> None:
        """See to a run: one that has ended is finished or has failed, one whose node is gone waits again."""
        try:
            code = self._poll(job.name)
            if code is None:
                return
            if code or not self.finished(job.name):
                raise RunError(reason_of(self._log(job.name), code))
            record = self._record(job.name)
        except LostError as error:
            self._repeat(job, str(error), bar)
        except RunError as error:
            self._fail(job, str(error), bar)
        else:
            bar.update()
            self._report(job.name, record)
        del self.running[job.name]

    def _poll(self, name: str) -> int | None:
        """The exit code of a run, None before the end. Raises LostError, unless it was finished by then; RunError."""
        try:
            return self.running[name].poll()
        except LostError:
            if self.finished(name):
                return 0
            raise

    def _repeat(self, job: Job, reason: str, bar: tqdm) -> None:
        self.losses[job.name] += 1
        if self.losses[job.name] == LOSSES:
            self._fail(job, f"lost {LOSSES} times: {reason}", bar)
        else:
            self.waiting.insert(0, job)
            self.tell(one_line(f"lost, to be repeated: {job.name}: {reason}"))

    def _report(self, name: str, record: Mapping[str, Any]) -> None:
        by_split = record["metrics"]["last"]
        score = by_split.get("test", by_split["val"])["map50_95"]
        shown = "no score" if score is None else f"mAP50-95 {100 * score:.1f}"
        line = [f"{name}: {shown}", f"{record['wall_time_s']:.0f} s", *_left(self.seconds_left())]
        self.tell(f"[{sum(self.finished(job.name) for job in self.jobs)}/{len(self.jobs)}] {', '.join(line)}")

    def _fail(self, job: Job, reason: str, bar: tqdm) -> None:
        self.failed[job.name] = reason
        write_all({self.out / "failures.json": json.dumps(self.failed, indent=2) + "\n"})
        bar.update()
        self.tell(one_line(f"failed: {job.name}: {reason}"))

    def _record(self, name: str) -> dict[str, Any]:
        if name not in self.records:
            self.records[name] = read_run(self.out / name)
        return self.records[name]

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name.replace('/', '_')}.log"


def _require_ours(out: Path, jobs: Sequence[Job], plan: Path) -> None:
    """Raise PlanError unless ``out`` is empty, new, or holds runs of a plan that this one continues."""
    before = out / "plan.yaml"
    names = {path.name for path in out.iterdir()} - {LOCK} if out.is_dir() else set()
    if before.is_file() and plan.is_file() and before.samefile(plan) and names <= {plan.name}:
        raise UsageError(f"--out: got {out}, where the plan itself would be written over, expected another folder")
    if before.is_file():
        try:
            recorded = expand(read_plan(before))
        except (PlanError, UsageError) as error:
            raise PlanError(
                f"{error} (the plan that was begun here: bring it back as it was, or choose another --out)"
            ) from error
        require_extends(recorded, jobs, out)
    elif names or (out.exists() and not out.is_dir()):
        raise PlanError(f"{out}: got something that is no sweep, expected a new folder: choose another --out")


def _require_models(jobs: Sequence[Job], plan: str | Path) -> None:
    """Raise PlanError where a run would refuse its models, or its options for them, after others have trained."""
    from kd.distillation.unlabeled import check_unlabeled
    from kd.training.check import require_pretrained, require_trainable
    from kd.training.classic import require_for_classic
    from kd.training.rtdetr import require_for_rtdetr
    from kd.ultra import data, models

    kinds = list({job.kind: job for job in reversed(jobs)}.values())[::-1]  # the first seed of each says it all
    students = dict.fromkeys(job.options["student"] for job in kinds)
    folders: set[str] = set()  # of unlabelled images, which are all read
    weights: set[Any] = set()  # that students start from
    given = [job.options[key] for job in kinds for key in MODELS if key in job.options]
    for spec in dict.fromkeys((*students, *given)):
        with refused(plan):
            model = models.load_model(spec)
            if spec in students:
                models.require_student(model, spec)
        for job in (job for job in kinds if job.options["student"] == spec):
            with refused(f"{plan}: {job.name}"):
                config = configuration(job)
                require_side("imgsz", config.imgsz, models.grid_px(model))
                require_trainable(config, len(model.model.model))
                pretrained = (dict(config.settings).get("pretrained"), config.backbone and spec)
                if pretrained not in weights:
                    require_pretrained(config, model.model)
                    weights.add(pretrained)
                require_for_classic(config, model.model)
                require_for_rtdetr(config, model.model)
                if config.unlabeled and config.unlabeled not in folders:
                    check_unlabeled(config.unlabeled, data.resolve_data(config.data))
                    folders.add(config.unlabeled)


def _begun(folder: Path) -> dict[str, Any]:
    """What a run that was begun was asked to do. Raises RunError for a config.json that does not say."""
    try:
        config, reason = read_config(folder), "got no configuration"
    except StrictError as error:
        config, reason = None, f"got no configuration ({error})"
    if config and type(config["epochs"]) is int and isinstance(config.get("settings", {}), dict):
        return config
    raise RunError(
        f"{folder / CONFIG}: {reason}, expected what kd train wrote: remove the folder to start this run again"
    )


def _epochs(job: Job) -> int:
    return job.options.get("epochs", DEFAULT_EPOCHS)


def _left(seconds: float | None) -> Iterable[str]:
    """The time left, coarsely; nothing where it is unknown.

    >>> list(_left(4000)), list(_left(None))
    (['about 67 min left'], [])
    """
    if seconds:
        yield f"about {seconds / 60:.0f} min left" if seconds >= 120 else f"about {seconds:.0f} s left"
