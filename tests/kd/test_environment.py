"""What kd sets for the libraries underneath, seen in a process of its own: it has to stand before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kd.environment import SPINS
from tests.kd_fixtures import needs_torch


def run(code, **variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | variables, cwd=Path(__file__).parents[2], capture_output=True,
        text=True, check=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, SPINS),
        ({"OMP_NUM_THREADS": "2"}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_wait_for_a_bounded_time_unless_the_user_says_how(user, expected):
    assert run("import kd, os; print(os.environ.get('GOMP_SPINCOUNT'))", **user).stdout.strip() == expected


@needs_torch
@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
def test_torchs_openmp_takes_it():
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in run("import kd.ultra", OMP_DISPLAY_ENV="verbose").stderr


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra device")
def test_openvino_has_nothing_to_report_with():
    """By itself it sends an event when it is imported, and NNCF others."""
    code = "import kd, openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    assert run(code).stdout.strip() == "openvino.tools.ovc.telemetry_stub"
