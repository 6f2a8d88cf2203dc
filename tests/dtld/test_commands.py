"""`dtld` as a user meets it: help, exit codes, one error line each, JSON and nothing else on stdout."""

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import cli
from dtld_tools.commands import app
from dtld_tools.errors import DtldError, UsageError
from tests.dtld_data import (
    REAL,
    image,
    light,
    make_tree,
    needs_real,
    read_lines,
    tool,
    tree_bytes,
    write_raw,
    write_v1,
    write_v2,
)

COMMANDS = ("sample", "inspect", "convert", "tile", "augment", "split", "prepare", "preview", "validate", "export")


@pytest.fixture
def fails(dtld):
    """Run `dtld`, which must fail with one error line and this exit code; the answer is that line."""

    def run(*arguments, code=1):
        exit_code, out, err = dtld(*arguments)
        assert exit_code == code, err
        assert out == ""
        assert re.fullmatch(r"error: .+\n", err), err
        return err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree with labels in both formats, and its tiles; shared, so only read."""
    root = tmp_path_factory.mktemp("raw")
    images = make_tree(root, lights=4)
    write_v2(root / "all.json", images)
    write_v1(root / "all.yml", images)
    with pytest.raises(SystemExit):
        cli.run("dtld", app, DtldError, UsageError, ["prepare", *prepare(root, root / "tiles")])
    return root


def prepare(root, out, *more):
    options = ["--root", root, "--out", out, "--tile-size", 96, "--workers", 1, *more]
    return [str(part) for part in (root / "all.json", *options)]


# --- help and usage --------------------------------------------------------------------------------------


def test_the_commands_are_the_contracts(dtld):
    code, out, _ = dtld("--help")
    assert code == 0
    listed = re.findall(r"^  ([a-z]+)  +\S", out.partition("Commands:")[2], re.MULTILINE)
    assert set(listed) >= set(COMMANDS)


def click_commands():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("command", sorted(click_commands()))
def test_help_of_every_command_ends_in_an_example_that_parses(dtld, command):
    code, out, err = dtld(command, "--help")
    assert (code, err) == (0, "")
    example = re.search(r"Example: (dtld .+?)\s*$", " ".join(out.split()))
    assert example, out
    words = shlex.split(example[1])
    assert words[:2] == ["dtld", command]
    # Parsing alone: every option exists and every value is of its type.
    click_commands()[command].make_context(command, words[2:])


@pytest.mark.parametrize("command", sorted(click_commands()))
def test_every_option_says_what_it_does(command):
    assert click_commands()[command].help
    for parameter in click_commands()[command].params:
        assert getattr(parameter, "help", None) or parameter.name == "help", f"{command} {parameter.name}"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("convert", {"val": 0.1, "test": 0.2, "split_by": "sequence", "image_format": "jpg", "seed": 0}),
        (
            "tile",
            {
                "tile_size": 640,
                "overlap": 0.2,
                "layout": "grid",
                "min_visible": 0.4,
                "min_side": 2,
                "empty_ratio": "0.1",
            },
        ),
        ("augment", {"clahe": 0.5, "blur": 0.3, "copies": 1, "splits": "train"}),
        ("sample", {"frames": 48, "seed": 0, "labels": "v2"}),
        ("preview", {"count": 16, "split": "train"}),
    ],
)
def test_defaults_are_the_contracts_and_prepares(command, expected):
    defaults = {parameter.name: parameter.default for parameter in click_commands()[command].params}
    assert {name: defaults[name] for name in expected} == expected
    if command in ("convert", "tile", "augment"):
        whole = {parameter.name: parameter.default for parameter in click_commands()["prepare"].params}
        renamed = {"augment_splits" if name == "splits" else name: value for name, value in expected.items()}
        assert {name: whole[name] for name in renamed} == renamed


def test_version(dtld):
    assert re.fullmatch(r"dtld \d+\.\d+\.\d+\S*\n", dtld("--version")[1])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["inspect"],
        ["inspect", "a.json", "--nonsense"],
        ["convert", "a.json"],
        ["convert", "a.json", "--root", "r", "--out", "o", "--image-format", "bmp"],
        ["convert", "a.json", "--root", "r", "--out", "o", "--val", "much"],
        ["tile", "d", "--out", "o", "--layout", "thirds"],
        ["preview", "d", "--out", "o.png", "--count", "0"],
        ["sample", "o", "--frames", "0"],
        ["sample", "o", "--frames", "9" * 30],
        ["sample", "o", "--seed", str(2**200)],
        ["convert", "a.json", "--root", "r", "--out", "o", "--seed", str(2**200)],
        ["convert", "a.json", "--root", "r", "--out", "o", "--limit", "9" * 30],
        ["inspect", "a.json", "--anchors", "9" * 30],
    ],
)
def test_wrong_usage_is_exit_2(dtld, arguments):
    code, _, err = dtld(*arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--val", "1.5"),
        ("--test", "-0.1"),
        ("--overlap", "1"),
        ("--tile-size", "3"),
        ("--min-visible", "2"),
        ("--min-side", "-1"),
        ("--empty-ratio", "some"),
        ("--empty-ratio", "-1"),
        ("--empty-ratio", "inf"),
        ("--empty-ratio", "1e308"),
        ("--max-images", "train=" + "9" * 30),
        ("--workers", "9" * 30),
        ("--clahe", "2"),
        ("--blur", "-1"),
        ("--copies", "-1"),
        ("--augment-splits", "trian"),
        ("--workers", "0"),
        ("--limit", "0"),
    ],
)
def test_a_value_out_of_range_is_exit_2_and_names_its_option(fails, made, tmp_path, option, value):
    line = fails("prepare", *prepare(made, tmp_path / "out", option, value), code=2)
    name = {"--augment-splits": "--splits"}.get(option, option)
    assert f"{name}: got" in line
    assert not (tmp_path / "out").exists()


# --- bad input: one line, exit 1 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ("", "the file is empty"),
        ('{"images": [', "expected a whole v2.0 JSON file"),
        ("{}", "missing key 'images'"),
        ('{"images": [{"image_path": "A/B/C/d.tiff"}]}', "images[0]: missing key 'labels'"),
        ('{"images": [{"image_path": 3, "labels": []}]}', "images[0].image_path: got 3"),
        ('{"images": [{"image_path": "A/B/C/d.tiff", "labels": {}}]}', "images[0].labels: got {}, expected a list"),
        ('{"images": [{"image_path": "../B/C/d.tiff", "labels": []}]}', "leaves the dataset's root"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "prepare", "convert"])
def test_a_bad_label_file(fails, tmp_path, command, content, expected):
    labels = tmp_path / "bad.json"
    if content is not None:
        labels.write_text(content)
    where = [] if command == "inspect" else ["--root", tmp_path, "--out", tmp_path / "out"]
    line = fails(command, labels, *where)
    assert "bad.json" in line
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_an_out_that_holds_another_dataset_or_other_files(fails, dtld, made, tmp_path):
    out = Path(shutil.copytree(made / "tiles", tmp_path / "out"))
    assert "holds a dataset of another configuration, or of other frames; choose another --out, or pass" in fails(
        "prepare", *prepare(made, out, "--seed", 1)
    )
    assert tree_bytes(out) == tree_bytes(made / "tiles")
    assert dtld("prepare", *prepare(made, out, "--seed", 1, "--overwrite"))[0] == 0
    assert tree_bytes(out) != tree_bytes(made / "tiles")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for more in ([], ["--overwrite"]):
        assert "holds files that are no dataset of dtld" in fails("prepare", *prepare(made, tmp_path / "mine", *more))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_all_frames_missing(fails, made, tmp_path):
    line = fails("prepare", made / "all.json", "--root", tmp_path, "--out", tmp_path / "out")
    assert f"tried {tmp_path}/Aachen/Aachen1/" in line
    assert f"and {tmp_path}/Aachen/Aachen/Aachen1/" in line
    assert not (tmp_path / "out").exists()


def test_fewer_groups_than_splits(fails, made, tmp_path):
    line = fails("prepare", *prepare(made, tmp_path / "out", "--split-by", "city"))
    assert "--val 0 or --test 0" in line


def test_unknown_cities(fails, made, tmp_path):
    assert "--cities: no frames of Atlantis, expected some of Aachen, Berlin" in fails(
        "prepare", *prepare(made, tmp_path / "out", "--cities", "Aachen,Atlantis")
    )


def test_a_wrong_rule_table(fails, made, tmp_path):
    (tmp_path / "rules.json").write_text('{"classes": ["a"], "rules": [{"class": "b"}]}')
    assert "rules[0].class: got 'b', expected a, drop" in fails(
        "inspect", made / "all.json", "--rules", tmp_path / "rules.json"
    )


@pytest.mark.parametrize("command", ["tile", "augment", "split", "preview", "validate"])
def test_a_dataset_that_is_none(fails, tmp_path, command):
    out = {"validate": [], "preview": ["--out", tmp_path / "o.png"]}.get(command, ["--out", tmp_path / "out"])
    assert "expected a dataset" in fails(command, tmp_path / "nowhere", *out)
    assert not (tmp_path / "out").exists()


def test_pictures_need_an_ending_and_a_folder(fails, made, tmp_path):
    assert "--out: got the ending '.xyz'" in fails("preview", made / "tiles", "--out", tmp_path / "a.xyz", code=2)
    assert "--plot: got the ending '.xyz'" in fails("inspect", made / "all.json", "--plot", tmp_path / "a.xyz", code=2)
    assert "No such file" in fails("preview", made / "tiles", "--out", tmp_path / "no" / "a.png")
    assert "No such file" in fails("inspect", made / "all.json", "--plot", tmp_path / "no" / "a.png")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(DtldError, match="No such file"):
        cli.run("dtld", app, DtldError, UsageError, ["inspect", str(tmp_path / "a.json"), "--debug"])


def test_a_defect_of_ours_is_still_one_line(fails, made, monkeypatch):
    monkeypatch.setattr("dtld_tools.labels.stats.inspect_labels", lambda *_: {}["x"])
    assert "KeyError (a defect of dtld; please report it with --debug): 'x'" in fails("inspect", made / "all.json")


# --- what is printed -------------------------------------------------------------------------------------


def test_skipped_frames_are_named_and_counted_in_the_closing_line(dtld, made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "raw"))
    first = json.loads((root / "all.json").read_text())["images"][0]
    (root / first["image_path"]).write_bytes(b"broken")
    code, out, err = dtld("prepare", *prepare(root, tmp_path / "out", "--empty-ratio", "all"))
    assert code == 0
    assert f"skipped: {first['image_path'][2:]}: unreadable" in err
    assert out.splitlines()[-1].startswith("1 frames skipped; ")
    lights = json.loads((tmp_path / "out/report.json").read_text())["lights"]
    assert f"{lights['in']} in = {lights['kept']} kept + " in out
    assert f"+ {len(first['labels'])} in skipped frames" in out
    code, _, err = dtld("prepare", *prepare(root, tmp_path / "strict", "--empty-ratio", "all", "--strict"))
    assert (code, Path(first["image_path"]).name in err) == (1, True)


@pytest.mark.parametrize("command", ["inspect", "prepare", "convert", "tile", "augment", "split", "validate"])
def test_json_is_one_object_and_nothing_else(dtld, made, tmp_path, command):
    where = ["--root", made, "--out", tmp_path / "out"]
    if command in ("tile", "augment", "split"):
        full = [made / "all.json", "--root", made, "--out", tmp_path / "full"]
        assert dtld("convert", *full)[0] == 0
    arguments = {
        "inspect": [made / "all.json", made / "all.yml"][:1],
        "prepare": [made / "all.json", *where],
        "convert": [made / "all.json", *where],
        "validate": [made / "tiles"],
    }.get(command, [tmp_path / "full", "--out", tmp_path / "out"])
    code, out, err = dtld(command, *arguments, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert isinstance(answer, dict)
    if (tmp_path / "out/report.json").exists():
        assert answer == json.loads((tmp_path / "out/report.json").read_text())


def test_inspect_has_the_contracts_keys(dtld, made):
    answer = json.loads(dtld("inspect", made / "all.json", "--json")[1])
    keys = {"frames", "lights", "sequences", "cities", "attribute_combinations", "attributes", "classes", "problems"}
    assert set(answer) >= keys
    assert answer["frames"] == 12


def test_problems_alone_are_exit_0(dtld, tmp_path):
    lamps = [light(-5, 1, 9, 9, 1, state="purple"), light(9000, 1, 9, 9, 1)]
    labels = write_v2(tmp_path / "all.json", [image("A/A1/s/a.tiff", *lamps)])
    code, out, _ = dtld("inspect", labels, "--root", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["problems"] == {
        "boxes_outside_frame": 1,
        "boxes_over_the_edge": 1,
        "duplicate_ids": 1,
        "missing_images": 1,
        "unlisted_values": 1,
    }
    assert "unlisted state=purple: 1, treated as unknown" in dtld("inspect", labels)[1]


def test_validate_names_each_defect_on_stderr_and_leaves_with_1(dtld, made, tmp_path):
    out = Path(shutil.copytree(made / "tiles", tmp_path / "tiles"))
    labels = sorted((out / "labels").rglob("*.txt"))
    labels[0].unlink()
    next((out / "images/train").iterdir()).write_bytes(b"")
    code, printed, err = dtld("validate", out, "--json")
    assert code == 1
    assert len(json.loads(printed)["defects"]) == len(err.splitlines()) == 2
    assert all(line.startswith(f"error: {out}: ") for line in err.splitlines())
    code, printed, _ = dtld("validate", out)
    assert (code, "2 defects" in printed) == (1, True)
    assert "sound" in dtld("validate", made / "tiles")[1]


def test_preview_says_what_it_shows(dtld, made, tmp_path):
    code, out, _ = dtld("preview", made / "tiles", "--out", tmp_path / "sheet.png", "--count", 2)
    assert code == 0
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/sheet\.png: \d images with \d+ boxes\n", out)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("position", [0, 1, 3])
def test_quiet_may_stand_anywhere(dtld, made, position):
    arguments = ["validate", str(made / "tiles"), "--workers", "1"]
    code, out, err = dtld(*arguments[:position], "--quiet", *arguments[position:])
    assert (code, err) == (0, "")
    assert "sound" in out


def test_quiet_silences_the_bar_on_a_terminal(made, tmp_path):
    """A bar is drawn on a terminal only, and not with --quiet."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))

    def stderr_on_a_terminal(name, *more):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        command = [sys.executable, "-c", "import cli; cli.dtld()", "prepare", *prepare(made, tmp_path / name, *more)]
        subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, check=True)
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 1024):
                seen += chunk
        except OSError:  # Linux: the other end is closed
            pass
        os.close(ours)
        return seen

    assert b"prepare: 100%" in stderr_on_a_terminal("loud")
    assert stderr_on_a_terminal("quiet", "--quiet") == b""


# --- presets ---------------------------------------------------------------------------------------------


def test_the_papers_preset_and_what_stands_on_the_line_before_it(dtld, made, tmp_path):
    arguments = [made / "all.json", "--root", made, "--workers", 1, "--preset", "paper"]
    assert dtld("prepare", *arguments, "--out", tmp_path / "a")[0] == 0
    configuration = json.loads((tmp_path / "a/report.json").read_text())["configuration"]
    assert configuration["tiles"]["layout"] == "halves"
    assert configuration["max_images"] == {"train": 24520, "val": 800, "test": 4345}
    assert configuration["augment"]["splits"] == ["train", "val"]
    assert configuration["empty_ratio"] is None
    options = ("--max-images", "train=4,test=2", "--layout", "grid", "--val", 0.2, "--copies", 0)
    assert dtld("prepare", *arguments, "--out", tmp_path / "b", *options)[0] == 0
    report = json.loads((tmp_path / "b/report.json").read_text())
    assert report["configuration"]["tiles"]["layout"] == "grid"
    assert (report["images"]["train"], report["images"]["test"]) == (4, 2)


@pytest.mark.parametrize("text", ["train", "train=x", "dev=3", "train=1,train=2", "train=-1"])
def test_max_images_that_cannot_be_read(fails, made, tmp_path, text):
    line = fails("prepare", *prepare(made, tmp_path / "out", "--max-images", text), code=2)
    assert "--max-images: got " in line


# --- as its own process ----------------------------------------------------------------------------------


def test_the_console_script_makes_a_dataset_and_proves_it(made, tmp_path):
    run = tool("dtld", "prepare", *prepare(made, "out"), cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert tree_bytes(tmp_path / "out") == tree_bytes(made / "tiles")
    assert tool("dtld", "validate", "out", cwd=tmp_path).stdout.startswith("out: sound; ")


def test_the_console_script_fails_in_one_line(tmp_path):
    run = tool("dtld", "inspect", "nowhere.json", cwd=tmp_path)
    expected = "error: nowhere.json: No such file or directory, expected a label file (.json or .yml)\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", expected)


def test_a_frame_name_with_spaces_and_umlauts(dtld, tmp_path):
    path = "Köln/Köln 1/2015 04/Straße k0.tiff"
    write_raw(tmp_path / path, np.random.default_rng(0), 256, 128)
    write_v2(tmp_path / "all.json", [image(path, light(10, 10, 20, 40))])
    code, _, err = dtld("prepare", *prepare(tmp_path, tmp_path / "out", "--val", 0, "--test", 0))
    assert (code, err) == (0, "")
    assert read_lines(tmp_path / "out/manifest.jsonl")[0]["name"].startswith("Köln_Köln 1_2015 04_Straße k0_x0_y0")
    assert dtld("validate", tmp_path / "out")[0] == 0


def test_the_real_labels_in_both_formats(dtld):
    needs_real()
    v2 = json.loads(dtld("inspect", REAL / "DTLD_Labels_v2.0/v2.0/DTLD_all.json", "--root", REAL, "--json")[1])
    v1 = json.loads(dtld("inspect", *sorted((REAL / "DTLD_Labels_v1.0").glob("*.yml")), "--root", REAL, "--json")[1])
    assert (v2["frames"], v2["lights"]) == (v1["frames"], v1["lights"]) == (24, 65)
    assert v2["classes"] == v1["classes"]
