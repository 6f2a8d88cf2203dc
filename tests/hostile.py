"""One command in this process, held to the contract on hostile input: what `test_mutations` and `make bench` share.

In: the words of a command line, in a folder with inputs. Out: whether it was read or refused, and what is wrong with
that. Invariant: whatever the input, a command ends by itself within bounds of time and memory, with exit 0, or with a
line that begins with ``error:`` and holds nothing that a terminal would not show; and its inputs stay as they are.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cli
from tests.mutators import FORGED

MOST_SECONDS = 5.0  # of processor time, so that a busy machine changes nothing
MOST_WAITING = 30.0  # seconds on the clock: a lock, a pipe, a question
MOST_MIB = 1024  # by which the process grows during a command
MOST_LETTERS = 1000  # of a line
HARD_MIB = 4096  # where the system refuses memory
OURS = ("error: ", "warning: ", "skipped: ", "note: ")  # how a line on stderr begins


class Unending(BaseException):
    """A command took longer than it may; no ``except Exception`` takes it for its own."""


@dataclass(frozen=True)
class Answer:
    """What a command did: its exit code, both streams as text, seconds of processor time, growth in MiB."""

    code: int
    out: str
    err: str
    seconds: float
    mib: float


def tool(name: str) -> Callable[[Sequence[str]], None]:
    """``dtld`` or ``kd`` as a function of its words, that ends in SystemExit as the console script does."""
    if name == "dtld":
        from dtld_tools.commands import app
        from dtld_tools.errors import DtldError as Expected
        from dtld_tools.errors import UsageError
    else:
        from kd.commands import app
        from kd.errors import KdError as Expected
        from kd.errors import UsageError
    return lambda words: cli.run(name, app, Expected, UsageError, list(words))


def answer(run: Callable[[Sequence[str]], None], words: Sequence[str], cwd: Path) -> Answer:
    """Run a command in ``cwd`` within bounds; its answer is what a person sees."""
    code, here = 0, Path.cwd()
    with _captured() as (out, err), _bounded():
        began, _ = time.process_time(), _reset_peak()
        before = _status("VmRSS")
        os.chdir(cwd)
        try:
            run(words)
        except SystemExit as end:
            code = end.code or 0
        except Unending as end:
            code, message = -1, f"error: still at work after {end}\n"
            sys.stderr.write(message)
        finally:
            os.chdir(here)
            seconds, grown = time.process_time() - began, _status("VmHWM") - before
    return Answer(code, out(), err(), seconds, grown)


def complaint(found: Answer) -> str | None:
    """What an answer has against the contract, as one line; None for a good one."""
    lines = [line for line in found.err.split("\n") if line]
    if found.code == 2 and lines and lines[0].startswith("Usage: "):
        lines = []  # Typer's own words
    elif found.code and not any(line.startswith("error: ") for line in lines):
        return f"exit {found.code} without an error line: {found.err.strip()[:300]}"
    wrong = {
        f"exit {found.code}": found.code not in (0, 1, 2),
        "a defect line": "(a defect of" in found.err or "Traceback" in found.err,
        "a line that is not ours": not all(line.startswith(OURS) for line in lines),
        "not printable": not all(line.isprintable() for line in (*lines, *found.out.split("\n"))),
        "a forged line": any(line.startswith(FORGED) for line in (*lines, *found.out.splitlines())),
        f"a line beyond {MOST_LETTERS} letters": any(len(line) > MOST_LETTERS for line in lines),
        "out of memory": any(word in found.err for word in ("MemoryError", "allocate")),
        f"{found.seconds:.1f} s": found.seconds > MOST_SECONDS,
        f"{found.mib:.0f} MiB": found.mib > MOST_MIB,
    }
    named = [name for name, is_so in wrong.items() if is_so]
    return f"{', '.join(named)}: {found.err.strip()[:300] or found.out.strip()[:300]!r}" if named else None


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below with its size and time of change: what no command may touch."""
    return {
        str(path.relative_to(folder)): (status.st_size * (not path.is_dir()), status.st_mtime_ns * (not path.is_dir()))
        for path in folder.rglob("*")
        for status in [path.lstat()]
    }


def empty(folder: Path) -> None:
    """Remove what is in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.contextmanager
def _captured() -> Iterator[tuple[Callable[[], str], Callable[[], str]]]:
    """Both streams as the entry points have them: stdout strict, stderr with escapes, its descriptor led to nowhere.

    What C libraries print there is lost by `cli._hush_libraries`; test_odd_frames.py holds a real process to that.
    """
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True, newline="")
    with tempfile.TemporaryFile() as file:
        err = io.TextIOWrapper(
            io.FileIO(os.dup(file.fileno()), "w"), "utf-8", "backslashreplace", write_through=True, newline=""
        )
        streams, descriptor = (sys.stdout, sys.stderr), os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stdout, sys.stderr = out, err

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="backslashreplace")

        try:
            # Answers are asked for after the streams are back, while the file is still open.
            texts: dict[str, str] = {}
            yield lambda: texts["out"], lambda: texts["err"]
        finally:
            sys.stdout, sys.stderr = streams
            os.dup2(descriptor, 2)
            os.close(descriptor)
            texts |= {"out": out.buffer.getvalue().decode(errors="backslashreplace"), "err": said()}
            err.close()


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def stop(number: int, _: object) -> None:
        raise Unending(f"{MOST_SECONDS:.0f} s" if number == signal.SIGPROF else f"{MOST_WAITING:.0f} s of waiting")

    # A second past the bound, so that what is only late is told from what never ends; again, should one be swallowed.
    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, MOST_SECONDS + 1),
        (signal.ITIMER_REAL, signal.SIGALRM, MOST_WAITING),
    )
    handlers = [signal.signal(number, stop) for _, number, _ in timers]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int((_status("VmData") + HARD_MIB) * 2**20), hard))
    try:
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds, 1.0)
        yield
    finally:
        for (timer, number, _), handler in zip(timers, handlers, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    """A size of this process in MiB by its name in /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0
