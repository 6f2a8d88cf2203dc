"""One run of a plan: its folder, its options, and the other runs that it waits for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.methods.facts import BUILT_IN, SOFT_LABELS
from kd.options import words_of


@dataclass(frozen=True)
class Job:
    """One run: its folder below OUT, and the options of `kd train` but for what other jobs decide.

    ``models`` are the options, teacher and inherit, that name the best checkpoint of another job -> that job.
    ``time_of`` are two jobs, a distilled one and a plain one: the epochs are such that the run takes as long as the
    first.
    """

    name: str
    options: dict[str, Any] = field(hash=False)
    models: dict[str, str] = field(default_factory=dict, hash=False)
    time_of: tuple[str, str] | None = None

    @property
    def after(self) -> tuple[str, ...]:
        """The jobs that must have finished before this one."""
        return (*dict.fromkeys(self.models.values()), *(self.time_of or ()))

    def options_in(self, out: Path) -> dict[str, Any]:
        """The options, with the other jobs' checkpoints as they lie in ``out``."""
        options = {**self.options, **{key: str(out / job / "weights" / "best.pt") for key, job in self.models.items()}}
        if SOFT_LABELS in self.methods and "teacher-cache" not in options:  # arms and seeds share what is the same
            seen = [options.get(key) for key in ("teacher", "teacher-imgsz", "imgsz")]
            key = [*seen, options.get("set", {}).get("fraction")]
            options["teacher-cache"] = str(
                out / "caches" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.npz"
            )
        return options

    @property
    def kind(self) -> str:
        """What jobs have in common that differ in the seed alone."""
        return self.name.rpartition("/seed")[0] or self.name

    @property
    def resumable(self) -> bool:
        """Whether `kd train --resume` continues it: Ultralytics' own distillation starts anew."""
        return BUILT_IN not in self.methods

    @property
    def methods(self) -> set[str]:
        """The names of what is imitated."""
        return {word.partition("=")[0] for word in words_of(self.options.get("method"))}
