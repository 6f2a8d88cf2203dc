"""The examples in docstrings, of every module of both tools."""

import doctest
import importlib
import importlib.util

import pytest

from tests.test_imports import EVERY

HAS_KD = importlib.util.find_spec("ultralytics") is not None
WITH_EXAMPLES = sorted(module for module, path in EVERY.items() if ">>> " in path.read_text(encoding="utf-8"))


def test_there_are_examples():
    assert len(WITH_EXAMPLES) > 15


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_are_true(module):
    if module.startswith("kd.") and not HAS_KD:
        pytest.skip("needs the extra kd")
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0
