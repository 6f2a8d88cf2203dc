"""One process at a time per output: refused beside a living holder, also a stopped one; free after any end of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kd.errors import RunError
from kd.locks import hold, hold_file

ROOT = Path(__file__).parents[1]
HOLDER = """
import os, sys, time
from pathlib import Path
from kd import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    child = os.fork() if sys.argv[3] == "fork" else None
    if child == 0:
        time.sleep(60)
    print(child or "", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Start a process that holds a place until its stdin ends."""
    started = []

    def start(function, place, how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, function, str(place), how],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        process.forked = [int(number) for number in process.stdout.readline().split()]
        return process

    yield start
    for process in started:
        process.kill()
        for child in getattr(process, "forked", ()):
            os.kill(child, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("function", "lock"), [(hold, "out/.lock"), (hold_file, ".out.lock")])
def test_a_second_one_is_refused_in_one_line_that_names_the_first_and_touches_nothing(holder, tmp_path, function, lock):
    first = holder(function.__name__, tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert list(before) == [tmp_path / lock]
    with (
        pytest.raises(
            RunError, match=rf"out: got process {first.pid} on \S+ since [-\d]+ \d\d:\d\d at work"
        ) as refusal,
        function(tmp_path / "out", 0),
    ):
        pass
    assert "\n" not in str(refusal.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    first.communicate()  # its stdin ends
    assert not list(tmp_path.iterdir())
    with function(tmp_path / "out", 0):
        pass


def test_a_stopped_holder_keeps_it_and_a_killed_one_does_not(holder, tmp_path):
    first = holder("hold", tmp_path / "out")
    first.send_signal(signal.SIGSTOP)
    with pytest.raises(RunError, match=f"process {first.pid}"), hold(tmp_path / "out", 0.2):
        pass
    first.kill()
    first.wait()
    assert (tmp_path / "out" / ".lock").exists()
    with hold(tmp_path / "out"):
        pass
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_forked_child_of_a_killed_holder_does_not_keep_it(holder, tmp_path):
    first = holder("hold", tmp_path / "out", "fork")
    first.kill()
    first.wait()
    os.kill(first.forked[0], 0)  # it lives
    with hold(tmp_path / "out", 0):
        pass


def test_folders_that_were_made_for_it_are_removed_unless_something_came_into_them(tmp_path):
    with hold(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept.txt").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept.txt"]
    (tmp_path / "empty").mkdir()
    with hold(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_lock_file_of_anything_names_another_process(holder, tmp_path):
    first = holder("hold", tmp_path / "out")
    for content in (b"", b"\xff\xfe", b"1 2", b"x host 12", b"1 host 99999999999999999999"):
        (tmp_path / "out" / ".lock").write_bytes(content)
        with pytest.raises(RunError, match="got another process at work"), hold(tmp_path / "out", 0):
            pass
    assert first.poll() is None


def test_what_is_not_of_its_kind_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="got a file, expected a folder"), hold(tmp_path / "file"):
        pass
    with pytest.raises(RunError, match="got a folder, expected a file"), hold_file(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "mine"
