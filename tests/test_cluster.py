"""Joining a Ray cluster, with a stand-in for Ray: what it is told, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from schemas.cluster import ClusterError, joined


@pytest.fixture
def ray(monkeypatch):
    """A module `ray` that notes what it is asked."""
    asked = []

    def init(*address, **options):
        asked.append((address, options, os.environ["RAY_USAGE_STATS_ENABLED"]))

    module = SimpleNamespace(asked=asked, init=init, shutdown=lambda: asked.append("shutdown"))
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    return module


def test_a_ray_of_its_own_is_quiet_and_ends(ray):
    with pytest.raises(ZeroDivisionError), joined(None, 3) as found:
        found.asked[0][1]["num_cpus"] / 0
    (address, options, reports), end = ray.asked
    assert (address, options["num_cpus"], options["include_dashboard"]) == ((), 3, False)
    assert (options["log_to_driver"], reports, end) == (False, "0", "shutdown")


def test_a_running_cluster_keeps_its_cores(ray):
    with joined("auto", 3):
        pass
    ((address, options, reports), _) = ray.asked
    assert (address, set(options), reports) == (("auto",), {"log_to_driver", "logging_level"}, "0")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, r"^--executor ray: timed out at start; expected Ray to start on this machine: try again$"),
        ("auto", r"^--ray-address: auto: timed out at start; expected a running cluster, such as auto$"),
    ],
)
def test_what_does_not_start_is_one_line(ray, address, message):
    def init(*address, **options):
        raise Exception("timed out\n at start")  # as Ray does

    ray.init = init
    with pytest.raises(ClusterError, match=message), joined(address, 3):
        pass
