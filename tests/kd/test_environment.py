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


def test_mnns_converter_has_nothing_to_report_or_install_with(tmp_path):
    """By itself it pip-installs a package when it is imported, and asks a server for credentials (MNN 3.6.1)."""
    tools = tmp_path / "MNN" / "tools"
    (tools / "utils").mkdir(parents=True)
    for folder in (tools.parent, tools, tools / "utils"):
        (folder / "__init__.py").touch()
    (tools / "utils" / "log.py").write_text("print('reports')\nlogger = 1\n")
    (tools / "convert.py").write_text("try:\n    from MNN.tools.utils.log import logger\nexcept:\n    logger = None\n")
    code = "from MNN.tools import convert; print(convert.logger)"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert run(code, PYTHONPATH=path).stdout.split() == ["reports", "1"]
    assert run(f"import kd; {code}", PYTHONPATH=path).stdout.split() == ["None"]


def test_what_c_libraries_print_is_not_among_a_commands_own_lines():
    """MNN prints what the processor can, on stdout: before the JSON of --json."""
    code = (
        "import os, sys, cli; cli._hush_libraries();"
        "os.write(1, b'noise'); os.write(2, b'noise'); print('mine'); print('too', file=sys.stderr)"
    )
    shown = run(code)
    assert (shown.stdout, shown.stderr) == ("mine\n", "too\n")
    assert run(code.replace("cli._hush", "sys.argv.append('--debug'); cli._hush")).stdout == "noisemine\n"
