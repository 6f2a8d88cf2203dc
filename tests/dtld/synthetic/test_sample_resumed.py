"""`dtld sample` killed, out of disk, or started twice: the same command goes on to the same bytes."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from dtld_tools.errors import DatasetError
from dtld_tools.files import held
from dtld_tools.synthetic.sample import sample
from tests.dtld_data import tool, tree_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs signals, process groups and file size limits")

FRAMES, SEED = 4, 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tree of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    sample(out, FRAMES, SEED, "both")
    return tree_bytes(out)


def start(out, workers, **options):
    arguments = ["sample", out, "--frames", FRAMES, "--seed", SEED, "--labels", "both", "--workers", workers]
    command = [sys.executable, "-c", "import cli; cli.dtld()", *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, **options)


def frames(out):
    return list(out.glob("[A-Z]*/*/*/*.tiff"))


def wait_for_frames(run, out, count):
    while len(frames(out)) < count:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.002)


def check_whole_files_only(out, whole):
    """What has its name is what it should be; there are no labels yet."""
    for path in frames(out):
        assert whole[path.relative_to(out).as_posix()] == path.read_bytes()
    assert not list(out.glob("DTLD_Labels*/**/*.json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_then_the_same_command_gives_the_same_bytes(whole, tmp_path, workers):
    out = tmp_path / "out"
    for count in (1, 3):
        with start(out, workers) as run:
            wait_for_frames(run, out, count)
            os.killpg(run.pid, signal.SIGKILL)
        check_whole_files_only(out, whole)
    before = {path: path.stat().st_mtime_ns for path in frames(out)}
    run = start(out, 3 - workers)
    assert run.communicate(timeout=60)[1] == ""
    assert tree_bytes(out) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was there was not drawn again


def test_workers_end_with_a_killed_parent(tmp_path):
    with start(tmp_path / "out", 2) as run:
        wait_for_frames(run, tmp_path / "out", 1)
        run.kill()
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(run.pid, 0)
            time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # a frame has 4 MiB


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(whole, tmp_path, workers):
    out = tmp_path / "out"
    run = start(out, workers, preexec_fn=limit_file_size)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert re.fullmatch(rf"error: {out}: File too large; what is written is kept: .* same command again\n", err), err
    check_whole_files_only(out, whole)
    assert start(out, 2).communicate(timeout=60)[1] == ""
    assert tree_bytes(out) == whole


def test_another_command_does_not_take_over_a_tree_that_was_cut_off(dtld, whole, tmp_path):
    out = tmp_path / "out"
    with start(out, 1) as run:
        wait_for_frames(run, out, 1)
        os.killpg(run.pid, signal.SIGKILL)
    before = tree_bytes(out, without=())
    for options in (["--seed", 6], ["--frames", 7], ["--labels", "v2"]):
        given = ["--frames", FRAMES, "--seed", SEED, "--labels", "both", *options]
        code, _, err = dtld("sample", out, *given)
        assert (code, "holds the unfinished tree of another command" in err) == (1, True)
    assert tree_bytes(out, without=()) == before


def test_a_whole_tree_is_its_own_commands_and_nobody_elses(whole, tmp_path):
    out = tmp_path / "out"
    made = sample(out, FRAMES, SEED, "both")
    assert sample(out, FRAMES, SEED, "both") == made
    lost = frames(out)[0]
    lost.unlink()
    sample(out, FRAMES, SEED, "both")  # deleted by hand: drawn again
    assert tree_bytes(out) == whole
    for other in ((FRAMES, SEED + 1, "both"), (FRAMES + 1, SEED, "both")):
        with pytest.raises(DatasetError, match="got one in use"):
            sample(out, *other)
    assert tree_bytes(out) == whole


def test_a_second_process_is_refused(tmp_path):
    out = tmp_path / "out"
    with held(out, "tree"):
        second = tool("dtld", "sample", out, "--frames", 1)
        assert (second.returncode, second.stdout) == (1, "")
        assert "another process is writing this tree" in second.stderr
