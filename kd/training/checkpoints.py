"""The weights of a run: a checkpoint and its sidecar, `last.pt` and `last.kd.pt`, written and finished as a pair.

Invariant: a run folder holds a whole pair, or none, at every moment. Both are written under partial names first; the
rename of the sidecar commits, for it knows its checkpoint by hash, and `settle` finishes what was cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils.torch_utils import strip_optimizer

from kd.errors import RunError
from kd.files import SUFFIX, sha256, whole_file
from kd.training.disk import writing
from kd.ultra import session
from kd.ultra.classic import official_names

FORMAT = 2  # of the sidecar; the first one held an epoch and the adapters


def partial_of(path: Path) -> Path:
    """Where a checkpoint or sidecar is written before the pair is committed; another process finds it there."""
    return path.with_name(path.name + SUFFIX)


def sidecar_of(last: Path) -> Path:
    """``weights/last.pt`` -> ``weights/last.kd.pt``."""
    return last.with_suffix(".kd.pt")


def load_sidecar(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a sidecar; tensors, numbers and text only, nothing in it can run.

    ``mmap`` leaves the tensors on the disk until they are used. Raises RunError when it is missing or damaged, or was
    written by an earlier version of kd.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise RunError(
            f"{path}: got no readable sidecar ({type(error).__name__}), expected the one that kd wrote beside "
            f"last.pt: start anew with --overwrite"
        ) from error
    version = state.get("format", 1) if isinstance(state, dict) else None
    if version != FORMAT:
        raise RunError(
            f"{path}: got a sidecar of format {version}, expected format {FORMAT}: another version of kd wrote it, "
            f"resume with that one or start anew with --overwrite"
        )
    return state


def settle(last: Path) -> None:
    """Bring the weights folder of a killed run in order: finish a save that was committed, drop one that was not."""
    partial, sidecar = partial_of(last), sidecar_of(last)
    best = last.with_name("best.pt")
    if partial.exists() and sidecar.exists() and load_sidecar(sidecar, mmap=True)["checkpoint"] == sha256(partial):
        for path in (best, last):  # last.pt at the end: killed again, the same test succeeds again
            if partial_of(path).exists():
                partial_of(path).replace(path)
    for path in last.parent.glob(f"*{SUFFIX}"):
        path.unlink()


def finish(last: Path) -> None:
    """Leave the adapters of a finished run alone in its sidecar; a plain run keeps none."""
    sidecar = sidecar_of(last)
    try:
        state = load_sidecar(sidecar)
    except RunError:
        return  # there is none, or one of an earlier version
    if state["adapters"]:
        with writing(sidecar), whole_file(sidecar) as partial:
            torch.save({key: state[key] for key in ("format", "epoch", "adapters")}, partial)
    else:
        sidecar.unlink()


def epoch_of(checkpoint: Path) -> int:
    """The epoch, from 0, that an unfinished checkpoint was written after; -1 for a finished one; else RunError."""
    try:
        with session.silence():
            return int(torch_safe_load(str(checkpoint), safe_only=True)[0]["epoch"])
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise RunError(
            f"{checkpoint}: got no checkpoint of Ultralytics ({type(error).__name__}), expected the one that kd wrote: "
            f"bring it back, or start anew with --overwrite"
        ) from error


def strip(checkpoint: Path) -> None:
    """Take out of an unfinished checkpoint what only training needs; a finished one stays as it is."""
    if epoch_of(checkpoint) >= 0:
        with session.silence(), writing(checkpoint), official_names(), whole_file(checkpoint) as partial:
            strip_optimizer(checkpoint, str(partial))
