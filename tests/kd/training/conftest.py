"""Data and a teacher for tests of training that bring none of their own; nobody changes them."""

from __future__ import annotations

import pytest

from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Its classes are the data's in another order."""
    return save_detector(tmp_path_factory.mktemp("teacher") / "t.pt", {0: "green", 1: "red"}, architecture="yolov8n")
