"""Every method is a function and a row of facts: both agree, all else derives from them, and two files add one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.methods import features, fgfi, heads, queries
from kd.methods.facts import (
    BOXES_ONLY,
    BUILT_IN,
    FACTS,
    HEADLESS,
    NEEDS_HEAD,
    NEEDS_QUERIES,
    ON_FEATURES,
    WEIGHTS,
    either,
)
from kd.methods.registry import METHODS
from tests.dtld_data import REPOSITORY


def table() -> str:
    """The documentation's table of methods: those on features first."""
    adapters = {0: "none", 1: "1x1", 2: "two layers"}
    lines = []
    for facts in sorted(FACTS.values(), key=lambda facts: facts.adapter is None):
        both = "RT-DETR on both sides; " if facts.queries else ""
        names = f"; {both}classes matched by name" if facts.same_classes else ""
        bins = "; both heads of one reg_max > 1, so not YOLO26" if facts.same_bins else ""
        adapter = adapters[facts.adapter.convolutions if facts.adapter else 0]
        head = "runs" if facts.needs_head else "cut off"
        imitated = f"{facts.imitates} ({facts.source}){names}{bins}"
        lines.append(f"| {facts.name} | {imitated} | {adapter} | {head} | {facts.weight:g} |")
    return "\n".join(lines) + "\n"


def test_functions_and_facts_agree():
    assert METHODS.keys() == FACTS.keys()
    assert [facts.name for facts in FACTS.values()] == list(FACTS)
    assert len(METHODS) == sum(len(module.METHODS) for module in (fgfi, features, heads, queries))  # no name twice
    assert all(FACTS[name].adapter for name in (*fgfi.METHODS, *features.METHODS))
    assert all(FACTS[name].needs_head and not FACTS[name].adapter for name in (*heads.METHODS, *queries.METHODS))
    assert {name for name in FACTS if FACTS[name].queries} == queries.METHODS.keys()


def test_what_derives_from_the_facts():
    assert sorted(NEEDS_HEAD) == ["box", "ld", "logits", "score-l2"]
    assert list(NEEDS_QUERIES) == ["queries"]
    assert HEADLESS == "fgfi, cwd or pkd"
    assert list(BOXES_ONLY) == ["fgfi"]
    assert ON_FEATURES == ("fgfi", "cwd", "pkd", "score-l2")
    assert WEIGHTS[BUILT_IN] == WEIGHTS["score-l2"]  # Ultralytics' own default, and the same term
    assert [either(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]


def test_the_documentation_has_the_table_of_methods():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    assert any(table() in page.read_text(encoding="utf-8") for page in pages), f"expected in docs:\n{table()}"


ADDED = """
import json
from kd.commands import app
from kd.config import TrainConfig
from kd.methods.adapters import Adapters
from kd.methods.batch import Batch
from kd.methods.registry import METHODS
from kd.options import parse_methods
import torch, typer

methods = parse_methods(["mse"])
config = TrainConfig(data="d", student="s", out="o", teachers=("t",), methods=methods)
adapters = Adapters({8: (2, 3)}, config)
features, teacher = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)
batch = Batch({8: features}, {8: teacher}, adapters.layers(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
train = typer.main.get_command(app).commands["train"]
(option,) = (option for option in train.params if option.name == "method")
term = METHODS["mse"](batch, config)
term.backward()
print(json.dumps({"methods": methods, "term": term.item(), "help": option.help, "keys": list(adapters.state_dict())}))
"""


def test_a_method_is_added_in_two_files(tmp_path):
    """A copy of the package with one more function and row: options, help, adapters and the term know it."""
    for package in ("kd", "schemas"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    function = (
        "def mse(batch, config):\n"
        '    return _over_levels(batch, "mse", lambda student, stride: F.mse_loss(student, batch.teacher[stride]))\n'
    )
    for name, before, added in (
        ("features", "METHODS: dict[str, Method] = {", function + 'METHODS: dict[str, Method] = {"mse": mse, '),
        ("facts", "_ROWS = (", '_ROWS = (Facts("mse", 3.0, "features", "FitNets", adapter=Adapter()),'),
    ):
        path = tmp_path / "kd" / "methods" / f"{name}.py"
        code = path.read_text(encoding="utf-8")
        assert code.count(before) == 1
        path.write_text(code.replace(before, added), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["methods"] == [["mse", 3.0]]
    assert found["term"] > 0
    assert found["keys"] == ["mse.8.0.weight", "mse.8.0.bias"]
    assert found["help"].startswith(
        "What to imitate: mse, fgfi, cwd, pkd or score-l2 (features), logits, box, ld or queries ("
    )
