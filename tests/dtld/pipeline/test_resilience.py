"""Nothing is lost: killed, interrupted, out of disk or out of memory, a run is continued to the same bytes.

Every run here is a process of its own, as a user starts it; the test decides when it dies.
"""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtld_tools.validation.validate import validate
from tests.dtld_data import make_tree, read_lines, tool, tree_bytes, write_v2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, signals and process groups")

OPTIONS = ("--tile-size", 96, "--val", 0.2, "--test", 0.3, "--empty-ratio", "all")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A tree of 24 frames of 256x128: about a second's work."""
    root = tmp_path_factory.mktemp("raw")
    write_v2(root / "all.json", make_tree(root, frames=4, lights=5))
    return root


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The dataset of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run = continue_run(raw, out, workers=1)
    assert (run.returncode, run.stderr) == (0, "")
    return tree_bytes(out)


def arguments(raw, out, workers):
    return [str(a) for a in (raw / "all.json", "--root", raw, "--out", out, *OPTIONS, "--workers", workers)]


def start(raw, out, workers, **options):
    command = [sys.executable, "-c", "import cli; cli.dtld()", "prepare", *arguments(raw, out, workers)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, **options)


def continue_run(raw, out, workers):
    return tool("dtld", "prepare", *arguments(raw, out, workers))


def images(out):
    return list((out / "images").rglob("*.jpg"))


def wait_for(run, happened):
    """Wait until something has happened in a run; the test fails if the run ends first."""
    while not happened():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.002)


def worker_of(parent):
    """A worker process of a run."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            is_child = int(stat.read_text().rpartition(")")[2].split()[1]) == parent
            if is_child and b"spawn_main" in stat.with_name("cmdline").read_bytes():
                return int(stat.parent.name)
    raise AssertionError("no worker")


def group_is_alive(group):
    """Whether a process of the group runs; one that has ended but was not waited for does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                return True
    return False


def all_end(group):
    """Whether all processes of a group end soon: one may still be on its way out when its parent has ended."""
    deadline = time.monotonic() + 10
    while group_is_alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not group_is_alive(group)


# --- killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)])
def test_kill_9_at_any_moment_then_the_same_command_gives_the_same_bytes(raw, whole, tmp_path, workers, seed):
    """Killed three times over, each time a random number of images later; the last word has another worker count."""
    rng, out = random.Random(seed), tmp_path / "out"
    for _ in range(3):
        goal = len(images(out)) + rng.randint(1, 25)
        with start(raw, out, workers) as run:
            wait_for(run, lambda: len(images(out)) >= goal)  # noqa: B023 - called at once
            time.sleep(rng.random() / 200)
            os.killpg(run.pid, signal.SIGKILL)
        assert not (out / "report.json").exists()
        for image in images(out):  # an image that has its name is complete, and has its label
            assert whole[image.relative_to(out).as_posix()] == image.read_bytes()
            label = Path(str(image.relative_to(out)).replace("images", "labels", 1)).with_suffix(".txt")
            assert whole[label.as_posix()] == (out / label).read_bytes()
    assert continue_run(raw, out, 3 - workers).returncode == 0
    assert tree_bytes(out) == whole


KILLED_RUN = """
import os, signal, sys
from dtld_tools.dataset import data_yaml, folder
from dtld_tools.pipeline import render
write, left = render.write_atomically, [int(sys.argv.pop(1))]
def write_or_die(path, data, scratch):
    left[0] -= 1
    if not left[0]:
        open(f"{scratch}/1.tmp", "wb").write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data, scratch)
render.write_atomically = folder.write_atomically = data_yaml.write_atomically = write_or_die
import cli
cli.dtld()
"""


@pytest.mark.parametrize("write_that_kills", [1, 2, 61, -2, -1])
def test_kill_9_in_the_middle_of_a_write(raw, whole, tmp_path, write_that_kills):
    """Half a temporary file left behind, of: the mark, the first image, another one, data.yaml, the report."""
    out = tmp_path / "out"
    if write_that_kills < 0:  # before them: the mark and the images
        write_that_kills = len([name for name in whole if name.endswith(".jpg")]) + 1 + 3 + write_that_kills
    command = [sys.executable, "-c", KILLED_RUN, str(write_that_kills), "prepare", *arguments(raw, out, 1)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "report.json").exists()
    assert continue_run(raw, out, 1).returncode == 0
    assert tree_bytes(out) == whole


def test_workers_end_with_a_killed_parent(raw, tmp_path):
    """A worker holds both ends of the pipe it waits on; without a watch it would wait for ever."""
    with start(raw, tmp_path / "out", workers=2) as run:
        wait_for(run, lambda: images(tmp_path / "out"))
        run.kill()
    assert all_end(run.pid)


def test_a_worker_that_the_kernel_kills_is_one_line_that_names_its_frame(raw, whole, tmp_path):
    """As it does when memory runs out."""
    out = tmp_path / "out"
    run = start(raw, out, workers=2)
    wait_for(run, lambda: images(out))
    os.kill(worker_of(run.pid), signal.SIGKILL)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 1
    assert re.fullmatch(r"error: (\S+\.tiff): the worker process .* killed .* run the same command .*\n", err)
    assert all_end(run.pid)
    assert continue_run(raw, out, 2).returncode == 0
    assert tree_bytes(out) == whole


# --- interrupted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_exit_130_and_can_be_continued(raw, whole, tmp_path, workers):
    out = tmp_path / "out"
    run = start(raw, out, workers)
    wait_for(run, lambda: images(out))
    os.killpg(run.pid, signal.SIGINT)  # a terminal signals the workers, too
    _, err = run.communicate(timeout=30)
    assert (run.returncode, "Traceback" in err) == (130, False)
    assert not (out / "report.json").exists()
    assert continue_run(raw, out, 1).returncode == 0
    assert tree_bytes(out) == whole


# --- two at once -----------------------------------------------------------------------------------------


def test_the_second_of_two_processes_refuses_and_the_first_finishes(raw, whole, tmp_path):
    out = tmp_path / "out"
    first = start(raw, out, 1)
    wait_for(first, lambda: images(out))
    os.kill(first.pid, signal.SIGSTOP)
    second = continue_run(raw, out, 1)
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: {out}: another process is writing this dataset; ")
    assert first.communicate(timeout=30)[1] == ""
    assert tree_bytes(out) == whole


# --- no room ---------------------------------------------------------------------------------------------


def limit_file_size(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("limit", ["images", "lines"])
def test_a_full_disk_is_one_line_and_what_is_there_stays_valid(raw, whole, tmp_path, workers, limit):
    """By a limit on the size of files: one that some images pass, or one that only manifest.jsonl does not."""
    out = tmp_path / "out"
    sizes = sorted(len(data) for name, data in whole.items() if name.endswith(".jpg"))
    size = sizes[len(sizes) // 2] if limit == "images" else sizes[-1] + 1
    assert size < len(whole["manifest.jsonl"])
    run = start(raw, out, workers, preexec_fn=limit_file_size(size))
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    expected = rf"error: {out}: File too large; what is written is kept: .* run the same command again\n"
    assert re.fullmatch(expected, err), err
    assert all_end(run.pid)
    assert images(out)
    assert all(whole[image.relative_to(out).as_posix()] == image.read_bytes() for image in images(out))
    assert continue_run(raw, out, workers).returncode == 0
    assert tree_bytes(out) == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(raw, whole, small_disk):
    assert sum(map(len, whole.values())) > 2**18
    run = continue_run(raw, small_disk / "out", 2)
    assert run.returncode == 1
    assert re.fullmatch(r"error: \S+/out: No space left on device; what is written is kept: .*\n", run.stderr)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert continue_run(raw, small_disk / "out", 2).returncode == 0
    assert tree_bytes(small_disk / "out") == whole
    assert validate(small_disk / "out")["defects"] == []


def test_the_dataset_of_these_tests_is_sound(raw, whole, tmp_path):
    assert continue_run(raw, tmp_path / "out", 2).returncode == 0
    assert validate(tmp_path / "out")["defects"] == []
    assert len(read_lines(tmp_path / "out/manifest.jsonl")) > 150
    assert tree_bytes(tmp_path / "out") == whole
