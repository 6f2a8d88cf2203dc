"""A model run on many batches in step: before any batch enters a module, a callback sees the inputs of all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class _Stop(BaseException):
    """Ends the thread of a batch whose result is no longer needed."""


def in_lockstep(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Sequence[Tensor],
    visit: Callable[[str, list[Tensor]], None],
) -> None:
    """Run the model on every batch, and call ``visit`` with a module's name and its inputs before any goes through it.

    So each module runs once per batch, with the weights that ``visit`` has given it, on the outputs of those before it.
    A thread holds the run of a batch; only one of them is awake at a time. What ``visit`` or the model raises ends all.
    """
    awake: list[_Run] = []
    runs = [_Run(model, batch) for batch in batches]
    names = {module: name for name, module in modules.items()}
    hooks = [m.register_forward_pre_hook(lambda m, args: awake[0].halt(names[m], args[0])) for m in modules.values()]
    try:
        for run in runs:
            run.thread.start()
        while True:
            for run in runs:
                awake[:] = [run]
                run.go_on()
            if runs[0].at is None:
                return
            visit(runs[0].at, [run.tensor for run in runs])
    finally:
        for run in runs:
            run.end()
        for hook in hooks:
            hook.remove()


class _Run:
    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self.at: str | None = None
        self.tensor: Tensor | None = None
        self.error: BaseException | None = None
        self._mine, self._back, self._over = threading.Semaphore(0), threading.Semaphore(0), False
        self.thread = threading.Thread(target=self._work, args=(model, batch), daemon=True)

    def go_on(self) -> None:
        """Let it run up to its next module. Raises what it raised."""
        self.at = self.tensor = None
        self._mine.release()
        self._back.acquire()
        if self.error:
            raise self.error

    def halt(self, name: str, tensor: Tensor) -> None:
        self.at, self.tensor = name, tensor
        self._back.release()
        self._mine.acquire()
        if self._over:
            raise _Stop

    def end(self) -> None:
        self._over = True
        self._mine.release()
        if self.thread.ident is not None:
            self.thread.join()

    def _work(self, model: nn.Module, batch: Tensor) -> None:
        self._mine.acquire()
        try:
            if not self._over:
                with torch.no_grad():  # of this thread
                    model(batch)
        except _Stop:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._back.release()
