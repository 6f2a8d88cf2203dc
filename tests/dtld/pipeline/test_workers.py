"""The map over frames: in order, bounded, errors come through; Ray gives the same bytes as a process."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import pytest

from dtld_tools.errors import DtldError, ImageError, UsageError
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Run, Selection
from dtld_tools.pipeline.workers import AHEAD, Executor
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from tests.dtld_data import make_tree, tree_bytes, write_v2


@dataclass
class Named:
    frame: str


@dataclass
class Item:
    """As a source has it: a frame with a path."""

    number: int

    @property
    def frame(self):
        return Named(f"frame {self.number}")


def slow_square(item):
    time.sleep(0.02 * (item.number % 3))  # later items end earlier
    return item.number**2


def failing(item):
    if item.number == 5:
        raise ImageError("frame 5: cannot be read")
    return item.number


def killing(item):
    if item.number == 5:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return item.number


@dataclass
class Large(Item):
    ballast: bytes = b" " * 2**20


def large(item):
    return bytes([item.number]) * 2**20


def mapped(executor, work, items):
    with executor.started() as map_items:
        yield from map_items(work, items)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_items_are_taken_as_needed(workers):
    taken = []

    def items():
        for number in range(30):
            taken.append(number)
            yield Item(number)

    for number, result in enumerate(mapped(Executor(workers), slow_square, items())):
        assert result == number**2
        assert len(taken) <= number + AHEAD * workers
    assert len(taken) == 30


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_comes_through_after_the_results_before_it(workers):
    results = mapped(Executor(workers), failing, map(Item, range(30)))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ImageError, match="frame 5: cannot be read"):
        next(results)
    assert not multiprocessing.active_children()


def test_no_items():
    assert list(mapped(Executor(2), slow_square, [])) == []


def test_the_frame_of_a_killed_worker_is_named():
    """Not one that waits behind it, nor one of the other worker, which answers meanwhile."""
    results = mapped(Executor(2), killing, map(Item, range(30)))
    with pytest.raises(DtldError, match=r"^frame 5: the worker process that had this frame was killed \(out of mem"):
        list(results)
    assert not multiprocessing.active_children()


def test_messages_larger_than_a_pipe_holds():
    """Each side sends before it reads: neither may wait for the other."""
    assert list(mapped(Executor(2), large, map(Large, range(20)))) == [bytes([n]) * 2**20 for n in range(20)]


def test_a_caller_that_fails_before_there_are_items_leaves_no_process():
    with suppress(ZeroDivisionError), Executor(2).started(ImageError):
        assert len(multiprocessing.active_children()) == 2
        raise ZeroDivisionError
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("options", "message"), [({"workers": 0}, "--workers"), ({"ray_address": "auto"}, "--ray-ad")])
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        Executor(**options)


def test_without_ray_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'dtld-kd\[ray\]'"):
        list(mapped(Executor(kind="ray"), failing, [Item(1)]))


def test_a_local_ray_writes_the_same_bytes_and_its_errors_come_through(tmp_path):
    pytest.importorskip("ray")
    root = tmp_path / "raw"
    write_v2(root / "all.json", make_tree(root, lights=5))
    for name, executor in (("local", Executor(1)), ("ray", Executor(2, "ray"))):
        pipeline.prepare(
            Selection((root / "all.json",), root),
            tmp_path / name,
            SplitSpec(),
            TileSpec(size_px=96),
            AugmentSpec(),
            run=Run(executor),
        )
    assert tree_bytes(tmp_path / "ray") == tree_bytes(tmp_path / "local")
    results = mapped(Executor(2, "ray"), int, map(str, [*range(20), "x", 21]))
    assert [next(results) for _ in range(20)] == list(range(20))
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)


def test_a_ray_cluster_that_is_not_there_is_one_line():
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"--ray-address: auto: .*expected a running cluster"):
        list(mapped(Executor(2, "ray", "auto"), failing, [Item(1)]))
