"""Damaged datasets, rules, COCO and split files: every command ends in exit 0 or 1 and one line, never in a defect."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml

from dtld_tools.export.export import to_coco
from tests.dtld_data import tree_bytes
from tests.mutators import mutate_bytes, mutate_structure

RULES = {"classes": ["go", "rest"], "rules": [{"class": "go", "when": {"state": ["green"]}}, {"class": "rest"}]}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
HOSTILE = (
    "", "\0", "[" * 3000, "{" * 3000, '{"a":' * 3000, "3", "null", "NaN", '"x"', "- 1\n- 2", "a: 1\na: 2", BOMB,
    "names: {0: 2015-99-99}", "names: !!int ''", "names: 2", "names: *x", "!!python/object/apply:os.system ['true']",
    "names: [a]\n---\nnames: [b]", "\ufeffnames: [a]", '{"a": 1, "a": 2}', '{"a": 1e400}', '{"a": "\\ud800"}',
    "names: [.inf, .nan]", "nc: 10000000", "names: {0: a, true: b}", "&a [*a]", '{"identity": "\\u0000"}',
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(raw, full, tmp_path_factory):
    """A dataset, a raw tree, and the files of other kinds that commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(full, folder / "full")
    shutil.copytree(raw, folder / "raw")
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    (folder / "rules.json").write_text(json.dumps(RULES))
    to_coco(full, folder / "coco.json")
    sequences = {path.relative_to(raw).parent.as_posix() for path in raw.rglob("*.tiff")}
    (folder / "splits.txt").write_text("".join(f"{sequence} train\n" for sequence in sorted(sequences)))
    return folder


def commands(folder, target):
    """The commands that read a file, with their inputs in ``folder``."""
    full, raw, out = folder / "full", folder / "raw", folder / "out"
    labels, tiles = raw / "all.json", ("--tile-size", 64, "--workers", 1)
    if target.parent.name == "full":
        yield from (
            ("tile", full, "--out", out, *tiles),
            ("augment", full, "--out", out, "--workers", 1),
            ("split", full, "--out", out, "--workers", 1),
            ("validate", full, "--workers", 1),
            ("export", full, "--out", folder / "out.json"),
            ("preview", full, "--out", folder / "out.png", "--count", 2),
        )
        if target.suffix in (".yaml", ".txt"):
            yield ("convert", full / "data.yaml", "--root", full, "--out", out, "--workers", 1)
    elif target.name.startswith("rules"):
        yield ("inspect", labels, "--rules", target, "--plot", folder / "plot.svg")
    elif target.name == "coco.json":
        yield ("export", target, "--format", "yolo", "--out", out)
        yield ("convert", target, "--root", full, "--out", out, "--workers", 1)
    else:
        yield ("convert", labels, "--root", raw, "--out", out, "--split-file", target, "--workers", 1)


def check(dtld, folder, target):
    """Every command on this damaged file; tells how many refused it."""
    data, refused = target.read_bytes(), 0
    before = tree_bytes(folder, without=())
    for command in commands(folder, target):
        code, out, err = dtld(*command)
        place = (command, data[:2000], err)
        assert code in (0, 1), place
        assert "a defect of dtld" not in err, place
        assert "Traceback" not in err, place
        assert all(line.startswith(("error: ", "skipped: ", "note: ")) for line in err.splitlines()), place
        assert len(err) < 1000 or command[0] == "validate", place
        assert all(line.isprintable() for line in (*out.splitlines(), *err.splitlines())), place
        if code and command[0] != "validate":
            assert re.fullmatch(r"error: [^\n]+\n", err), place
            assert tree_bytes(folder, without=()) == before, place  # a refused input leaves nothing
            refused += 1
        shutil.rmtree(folder / "out", ignore_errors=True)
        for name in ("out.json", "out.png", "plot.svg"):
            (folder / name).unlink(missing_ok=True)
    return refused


FILES = ("full/data.yaml", "full/report.json", "full/frames.jsonl", "full/manifest.jsonl",
         "rules.yaml", "rules.json", "coco.json", "splits.txt")  # fmt: skip


def mutated(rng, path, data):
    """Another content of a file: bytes changed, or one of its values (of one of its lines)."""
    text = data.decode()
    if path.suffix == ".txt" or rng.random() < 0.4:
        return mutate_bytes(rng, data)
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutate_structure(rng, json.loads(lines[at])))
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    if path.suffix == ".json":
        return json.dumps(mutate_structure(rng, json.loads(text))).encode("utf-8", "surrogatepass")
    return yaml.dump(mutate_structure(rng, yaml.safe_load(text)), allow_unicode=True).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", FILES)
def test_20_damaged_files_of_each_kind(dtld, inputs, tmp_path, name):
    folder = Path(shutil.copytree(inputs, tmp_path / "work"))
    rng, path, refused = random.Random(name), folder / name, 0
    data = path.read_bytes()
    for _ in range(20):
        path.write_bytes(mutated(rng, path, data))
        refused += check(dtld, folder, path) > 0
    assert refused > 5


@pytest.mark.parametrize("name", FILES)
def test_hostile_contents(dtld, inputs, tmp_path, name):
    folder = Path(shutil.copytree(inputs, tmp_path / "work"))
    path = folder / name
    for content in HOSTILE:
        path.write_text(content, encoding="utf-8")
        check(dtld, folder, path)
