"""The map over frames: in order, bounded, errors come through; Ray gives the same bytes as a process."""

import sys
import time
from dataclasses import dataclass

import pytest
from dtld_data import make_tree, tree_bytes, write_v2

from dtld_tools import pipeline
from dtld_tools.augment import AugmentSpec
from dtld_tools.errors import ImageError, UsageError
from dtld_tools.pipeline import Run, Selection
from dtld_tools.split import SplitSpec
from dtld_tools.types import TileSpec
from dtld_tools.workers import AHEAD, Executor


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


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_items_are_taken_as_needed(tmp_path, workers):
    taken = []

    def items():
        for number in range(30):
            taken.append(number)
            yield Item(number)

    for number, result in enumerate(Executor(workers).map(slow_square, items(), tmp_path)):
        assert result == number**2
        assert len(taken) <= number + AHEAD * workers
    assert len(taken) == 30
    assert not list(tmp_path.iterdir())  # no notes left


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_comes_through(tmp_path, workers):
    with pytest.raises(ImageError, match="frame 5: cannot be read"):
        list(Executor(workers).map(failing, map(Item, range(30)), tmp_path))
    assert not list(tmp_path.iterdir())


def test_no_items(tmp_path):
    assert list(Executor(2).map(slow_square, [], tmp_path)) == []


@pytest.mark.parametrize(("options", "message"), [({"workers": 0}, "--workers"), ({"ray_address": "auto"}, "--ray-ad")])
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        Executor(**options)


def test_without_ray_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'dtld-kd\[ray\]'"):
        list(Executor(kind="ray").map(failing, [Item(1)], tmp_path))


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
    results = Executor(2, "ray").map(int, map(str, [*range(20), "x", 21]), tmp_path)
    assert [next(results) for _ in range(20)] == list(range(20))
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)


def test_a_ray_cluster_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"--ray-address: auto: .*expected a running cluster"):
        list(Executor(2, "ray", "auto").map(failing, [Item(1)], tmp_path))
