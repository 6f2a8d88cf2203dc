"""The stack on which this thread handles signals, which OpenVINO changes and may leave freed.

Python's handlers, of Ctrl-C and of a data loader's dead workers, run on it: on freed memory, the process ends there.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class Stack(ctypes.Structure):
    """stack_t of Linux' signal.h."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> Stack:
    """This thread's alternative stack; ``address`` is None where it has none."""
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack


@contextlib.contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Give this thread back, at the end, the signal stack that it has now.

    OpenVINO's CPU plugin (2026.4.1) brings one of its own for each model, and on release brings back the one before,
    be it freed meanwhile: as with two models released in the order in which they were loaded.
    """
    if sys.platform != "linux":
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
