"""The public names of both packages: they exist, docs/api.md explains them, and its examples run as they stand."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dtld_tools
import kd
from tests.dtld_data import REPOSITORY
from tests.kd_device import canned
from tests.kd_fixtures import needs_torch

API = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
PACKAGES = (dtld_tools, kd)
NAMES = [
    pytest.param(package, name, id=f"{package.__name__}.{name}") for package in PACKAGES for name in package.__all__
]


def section(package) -> str:
    """The part of the page between the heading of this package and the next one."""
    return re.search(rf"^## {package.__name__}$(.*?)(?=^## |\Z)", API, re.MULTILINE | re.DOTALL)[1]


def examples(package) -> str:
    """The examples of a package's section, without the fences."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```$", section(package), re.MULTILINE | re.DOTALL))


def run_examples(package) -> None:
    """Run a section's examples in the current folder; a failure shows what was expected and what came."""
    name = f"docs/api.md, {package.__name__}"
    test = doctest.DocTestParser().get_doctest(examples(package), {}, name, "docs/api.md", 0)
    shown: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=shown.append)
    assert result.attempted > 5
    assert not result.failed, "".join(shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the examples of dtld_tools have run: those of kd train on their tiles."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_examples(dtld_tools)
    return folder


def test_the_examples_of_dtld_tools_run(folder):
    assert (folder / "tiles" / "report.json").exists()


@needs_torch
@pytest.mark.train
def test_the_examples_of_kd_run(folder, monkeypatch):
    from kd.device import bench as device
    from kd.training import bench

    monkeypatch.setattr(bench, "_alone", lambda *_: None)  # memory, in a process per arm: test_bench.py measures it
    monkeypatch.setattr(device, "_measure", canned)  # as well, in a process per model
    monkeypatch.chdir(folder)
    run_examples(kd)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_explained_and_has_an_example(package, name):
    table = [line for line in section(package).splitlines() if line.startswith("| `")]
    assert any(re.search(rf"`{name}\b", line.split(" | ")[0]) for line in table), f"{name}: in no row of the table"
    assert re.search(rf"\b{package.__name__}\.{name}\b", examples(package)), f"{name}: in no example"


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_there_with_a_docstring(package, name):
    if package is kd:
        pytest.importorskip("torch", reason="needs the extra kd")
    value = getattr(package, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_every_public_name(package):
    source = inspect.getsource(package)
    assert set(re.findall(r"^    from \S+ import (\w+) as \1$", source, re.MULTILINE)) == set(package.__all__)
    assert all(f"from {module} import {name} as {name}\n" in source for name, module in package._MODULE_OF.items())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_none_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(package):
    code = f"import sys, {package.__name__}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert package.__name__ in run.stdout.split()
    assert not set(run.stdout.split()) & {"cv2", "numpy", "torch", "ultralytics", "typer", "matplotlib", "shapely"}
