"""What the tests of sweeps share."""

from __future__ import annotations

import pytest
import yaml

from kd.sweeps import executors
from tests.kd_sweeps import PLAN, STAND_IN


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan in an empty folder, to be carried out by the stand-in."""
    monkeypatch.setattr(executors, "KD", ("-c", STAND_IN))
    (tmp_path / "data.yaml").touch()
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"data": "data.yaml", **PLAN}, sort_keys=False))
    return path
