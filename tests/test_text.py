"""What is printed cannot be forged by names and values in files: one line stays one line, and short."""

import io
import json
import subprocess
import sys
import warnings

import pytest
import typer

import cli
from dtld_tools.commands import app
from dtld_tools.errors import DtldError, UsageError
from schemas.text import one_line
from tests.dtld_data import image, light, make_tree, write_v2

FORGED = "red\nerror: all is lost\r\x1b[2K\u202e\u2028\x00"


def test_one_line_by_hand():
    assert one_line("Köln 12, naïve") == "Köln 12, naïve"
    assert one_line(FORGED) == r"red\nerror: all is lost\r\x1b[2K\u202e\u2028\x00"
    assert one_line("\udc80") == r"\udc80"  # a file name that is no UTF-8
    assert one_line(7) == "7"


@pytest.mark.parametrize("limit", [10, 11, 100])
def test_a_long_text_keeps_its_ends(limit):
    short = one_line("a" * 5000 + "z", limit)
    assert len(short) == limit
    assert short.startswith("a")
    assert short.endswith("z")
    assert one_line("a" * limit, limit) == "a" * limit


def test_inspect_of_forged_values_prints_its_own_lines_only(dtld, tmp_path):
    lights = [light(5, 5, 9, 20, 1, state=FORGED), light(5, 5, 9, 20, 2, state="x" * 10_000)]
    labels = write_v2(tmp_path / "all.json", [image("A\nerror: x/B/c/d.tiff", *lights)])
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"classes": ["go\nerror: y"], "rules": [{"class": "go\nerror: y"}]}))
    code, out, err = dtld("inspect", labels, "--rules", rules)
    assert (code, err) == (0, "")
    assert not any(line.startswith("error") for line in out.splitlines())
    assert all(line.isprintable() for line in out.split("\n"))
    assert r"red\nerror: all is lost" in out
    assert max(map(len, out.splitlines())) < 2100
    code, out, _ = dtld("inspect", labels, "--rules", rules, "--json")
    found = json.loads(out)
    assert "go\nerror: y" in found["classes"]  # exact
    assert FORGED in found["attributes"]["state"]


def test_a_dataset_of_forged_classes_prints_its_own_lines_only(dtld, tmp_path):
    labels = write_v2(tmp_path / "all.json", make_tree(tmp_path, lights=4))
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"classes": ["go\nerror: y"], "rules": [{"class": "go\nerror: y"}]}))
    code, out, err = dtld("convert", labels, "--root", tmp_path, "--out", tmp_path / "o", "--rules", rules)
    assert (code, err) == (0, "")
    assert r"  go\nerror: y: " in out
    assert dtld("validate", tmp_path / "o")[0] == 0
    (tmp_path / "o" / "data.yaml").write_text('names: ["go\\nerror: z"]')
    code, out, err = dtld("validate", tmp_path / "o")
    assert code == 1
    assert all(line.startswith(f"error: {tmp_path / 'o'}: ") for line in err.splitlines())


def test_errors_are_one_printable_line(dtld, tmp_path):
    code, out, err = dtld("inspect", tmp_path / "a\nerror: b\x1b[1m")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err[:-1].isprintable()
    assert len(dtld("inspect", tmp_path / ("a/" * 2000))[2]) < 1000


def test_nul_in_an_argument_is_wrong_usage(dtld):
    code, out, err = dtld("inspect", "a\0b.json")
    assert (code, out) == (2, "")
    assert err == r"error: 'a\x00b.json': got NUL in an argument, expected text: no file has such a name" + "\n"


def test_a_terminal_without_the_letters_is_no_error(tmp_path):
    labels = write_v2(tmp_path / "all.json", [image("Köln/K/s/a.tiff", light(5, 5, 9, 20))])
    command = [sys.executable, "-c", "import cli; cli.dtld()", "inspect", str(labels)]
    run = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert rb"K\xf6ln 1" in run.stdout


def test_a_stream_that_is_no_file_is_written_to_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    with pytest.raises(SystemExit):
        cli.run("dtld", app, DtldError, UsageError, ["--version"])
    assert stream.getvalue().startswith("dtld ")


@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_warnings_of_libraries_are_for_debugging_alone(flags):
    app = typer.Typer()

    @app.command()
    def warn() -> None:
        warnings.warn("from a library", stacklevel=1)

    @app.command()
    def other() -> None:
        """A second one, so that the first has a name."""

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            cli.run("dtld", app, DtldError, UsageError, [*flags, "warn"])
    assert [str(each.message) for each in seen] == ["from a library"] * len(flags)
