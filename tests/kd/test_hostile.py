"""Damaged and hostile files below a sweep: named in one line, counted, or shown as harmless text; never a defect."""

from __future__ import annotations

import copy
import errno
import json
import random
from pathlib import Path

import pytest
import yaml

from kd.errors import KdError, PlanError, RunError, UsageError
from kd.files import write_all
from kd.runs.compare import compare, lines
from kd.sweeps.plan import expand, read_plan, to_yaml
from schemas import strict
from tests.kd_fixtures import needs_torch
from tests.kd_runs import write_run

VALUES = (
    None, True, -1, 0, 1.5, 2**63, 10**400, 1e308, float("nan"), float("-inf"), "", "x", "a\nerror: forged", "\x1b[2J",
    "<script>alert(1)</script>", "a|b", "\0", "../../x", [], {}, [[]], {"x": 1}, ["a"] * 3,
)  # fmt: skip
FORMS = (
    b"", b"null", b"1", b'"x"', b"[]", b"{}", b"[" * 3000, b'{"a":' * 3000, b'{"config": 1, "config": 2}', b"\xff\xfe",
    b'{"config": "\\ud800"}', b"{\0}", b'{"config": {"epochs": NaN}}', b'{"config": {"epochs": [1]}}', b"a: *b",
)  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The run.json of a distilled run."""
    folder = write_run(tmp_path_factory.mktemp("one") / "run", (0.6, 0.5), teacher="t")
    return json.loads((folder / "run.json").read_text())


def places(value, path=()):
    """The path of every value within a document."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(document, rng):
    """The document with one to three of its values, or keys, exchanged."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice([path for path in places(document) if path])
        at = document
        for step in path:
            at = at[step]
        if isinstance(at, dict) and rng.random() < 0.3:
            at[rng.choice(["x", "a\nerror: forged", "a|b", "<b>", "\x1b", "{x}", "seed"])] = at.pop(last)
        else:
            at[last] = copy.deepcopy(rng.choice(VALUES))
    return document


def looked_at(folder, out):
    """What report and compare make of a folder: both done, or refused on purpose."""
    from kd.reports.report import report

    for work in (lambda: report(folder, out, images=0), lambda: lines(compare([folder]))):
        try:
            work()
        except (KdError, OSError):
            continue
    text = out.read_text() if out.exists() else ""
    assert not any(line.startswith("error: forged") for line in text.splitlines())
    assert "\x1b" not in text
    assert "<script>" not in text.replace(r"\<script\>", "")


def test_mutated_runs_are_left_out_or_shown(record, tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "runs"
    write_run(folder / "plain" / "seed0", (0.5, 0.4))
    write_run(folder / "kd" / "seed0", (0.6, 0.5), teacher="t")
    for _ in range(25):
        text = json.dumps(mutated(record, rng))
        (folder / "kd" / "seed0" / "run.json").write_text(text)
        looked_at(folder, tmp_path / "report.md")


@pytest.mark.parametrize("name", ["run.json", "config.json", "failures.json", "results.csv"])
def test_damaged_files_of_runs_are_named(tmp_path, name):
    from kd.reports.report import report

    folder = tmp_path / "runs"
    sound = write_run(folder / "sound", (0.5, 0.4)) / "run.json"
    sound.write_text(json.dumps(json.loads(sound.read_text()) | {"gflops": None}))  # in no figure, which takes time
    broken = folder / "broken"
    broken.mkdir()
    if name == "results.csv":
        (broken / "config.json").write_text('{"config": {"epochs": 3}}')
    for form in (*FORMS, None):
        path = broken / name
        if form is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(form)
        found = report(folder, tmp_path / "report.md", images=0)
        assert found["runs"] == 1
        if name == "run.json":
            assert "- broken: run.json is none of kd train" in (tmp_path / "report.md").read_text()
        compared = pytest.raises(RunError, match="got plain runs alone")
        with compared:
            compare([folder])


def test_scores_that_are_no_number_are_left_out(record, tmp_path):
    from kd.reports.report import report

    write_run(tmp_path / "runs" / "plain", (0.5, 0.4))
    bad = write_run(tmp_path / "runs" / "kd", (0.6, 0.5), teacher="t")
    for key, value in (("gflops", 1e308), ("wall_time_s", 1e308), ("kd", None)):
        changed = json.loads((bad / "run.json").read_text()) | {key: value}
        (bad / "run.json").write_text(json.dumps(changed))
        assert report(tmp_path / "runs", tmp_path / "report.md", images=0)["unfinished"] == 1
        assert "kd: run.json is none of kd train" in (tmp_path / "report.md").read_text()
        (bad / "run.json").write_text(json.dumps(record))
    text = json.dumps(record).replace('"map50": 0.6', '"map50": NaN')
    (bad / "run.json").write_text(text)
    assert report(tmp_path / "runs", tmp_path / "report.md", images=0)["unfinished"] == 1


def test_names_are_text_in_tables_pages_and_lines(tmp_path):
    from kd.reports.report import report

    name = 'a|b\nerror: forged <img src=x onerror="1"> \x1b[2J'
    folder = tmp_path / "runs"
    for arm, more in (("plain", {}), ("kd", {"teacher": "t"})):
        path = write_run(folder / arm, (0.5, 0.4), **more) / "run.json"
        path.write_text(path.read_text().replace('"relevant"', json.dumps(name)))
    odd = folder / "odd\udcff\n| x |"
    write_run(odd, (0.5, 0.4), seed=7, out="x")
    report(folder, tmp_path / "report.md", images=0)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert r"a\|b error: forged \<img src=x onerror=" in text
    assert "odd%FF%0A" in text
    assert "<img src=x" not in page
    assert "\x1b" not in text + page
    tables = [line for line in text.splitlines() if line.startswith("|")]
    cells = {line.replace(r"\|", "").count("|") for line in tables if "error: forged" in line}
    assert len(cells) <= 3  # a table has one number of columns, whatever its names hold
    shown = "\n".join(lines(compare([folder])))
    assert r"a|b\nerror: forged" in shown
    assert not any(line.startswith("error") for line in shown.splitlines())


def test_no_file_of_a_report_is_left_in_part(tmp_path, monkeypatch):
    from kd.reports.report import report

    write_run(tmp_path / "runs" / "plain", (0.5, 0.4))
    (tmp_path / "report.md").write_text("before")
    write, written = Path.write_bytes, []

    def full(path, content):
        if len(written) == 2:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*report\.(html|md|png|svg)'|report_"):
        report(tmp_path / "runs", tmp_path / "report.md", images=0)
    assert len(written) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "runs"]
    assert (tmp_path / "report.md").read_text() == "before"


def test_files_are_written_together(tmp_path):
    write_all({tmp_path / "a" / "x": "ä", tmp_path / "a" / "y": b"2"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {"x": "ä".encode(), "y": b"2"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder'$"):
        write_all({tmp_path / "folder": b"1"})
    assert not list(tmp_path.rglob("*.partial"))


def test_a_report_is_not_written_over_what_it_is_made_of(tmp_path):
    from kd.reports.report import report

    run = write_run(tmp_path / "runs" / "plain", (0.5, 0.4))
    (run / "README.md").write_text("card")
    rows = tmp_path / "rows.md"
    rows.write_text("- {model: a, source: b, map50_95: 31.0}\n")
    for out, published in ((run / "README.md", None), (rows, rows)):
        before = out.read_text()
        with pytest.raises(UsageError, match="which is read here, expected another file"):
            report(tmp_path / "runs", out, published=published, images=0)
        assert out.read_text() == before
    link = tmp_path / "link.md"
    link.symlink_to(run / "README.md")
    with pytest.raises(UsageError, match=r"link\.md, which is read here"):
        report(tmp_path / "runs", link, images=0)
    for _ in range(2):  # its own report may be written again
        report(tmp_path / "runs", run / "report.md", images=0)


# ---------------------------------------------------------------- plans

PLAN = {
    "data": "data.yaml",
    "settings": {"epochs": 4},
    "teachers": {"m": {"student": "yolov5m"}},
    "students": ["yolov5n"],
    "arms": {"plain": {}, "fgfi": {"teacher": "m", "method": "fgfi"}},
    "seeds": [0],
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "data.yaml").touch()

    def write(content):
        path = tmp_path / "plan.yaml"
        path.write_text(content if isinstance(content, str) else to_yaml(content))
        return path

    return write


def changed(place, value):
    plan = copy.deepcopy(PLAN)
    *path, last = place
    at = plan
    for step in path:
        at = at[step]
    at[last] = value
    return plan


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("arms", "fgfi", "method"), "fgfj", r"runs/yolov5n/fgfi/seed0: --method: got 'fgfj', expected fgfi"),
        (("arms", "fgfi", "schedule"), "linear", "--schedule: got 'linear'"),
        (("arms", "fgfi", "balance"), -3, "--balance: got -3"),
        (("arms", "fgfi", "weight"), "much", "--weight: got much, expected a number"),
        (("arms", "fgfi", "fgfi"), {"kernel": 5}, "--fgfi kernel: got 5"),
        (("arms", "fgfi", "priors"), "no.json", "no.json: No such file"),
        (("arms", "fgfi", "log"), "paper", "--log: got 'paper'"),
        (("arms", "fgfi", "schedule"), ["no-closing"], "--schedule no-closing: got 10 closing epochs of 4"),
        (("settings", "epochs"), -1, "epochs: got -1"),
        (("settings", "epochs"), 3.0, "--epochs: got 3.0, expected a whole number"),
        (("settings", "epochs"), 10**9, "--epochs: got 1000000000"),
        (("settings", "imgsz"), 100, "--imgsz: got 100, expected a multiple of 32"),
        (("settings", "combine"), "worst", "--combine: got 'worst'"),
        (("settings", "allow-weak-teacher"), "yes", "--allow-weak-teacher: got yes, expected true or false"),
        (("settings", "set"), {"lrO": 1}, "--set lrO: got no training argument"),
        (("settings", "set"), {"lr0": "high"}, "--set: 'lr0=high'"),
        (("settings", "set"), {"lr0": "1e999"}, "--set lr0: got '1e999', expected a finite number"),
        (("settings", "set"), {"optimizer": "b'x'"}, "--set optimizer: got"),
        (("settings", "set"), {"batch": 3}, "expected --batch"),
        (("seeds",), [0, 2**40], "--seed: got 1099511627776"),
        (("seeds",), list(range(5001)), "got 10003 runs, expected at most 10000"),
        (("students",), ["../../n5"], "students: got '../../n5', expected the name of one folder"),
        (("students",), [".."], "students: got '..'"),
        (("students",), ["a\nb"], r"students: got 'a\\nb'"),
        (("students",), ["n" * 101], "students: got 'nnn"),
        (("students",), ["n5.YAML", "sub/N5.pt"], "expected different names, also without regard to case"),
        (("arms", "Fgfi"), {"teacher": "m"}, "arms: got plain, fgfi, Fgfi, expected different names"),
        (("arms", "fgfi/x"), {"teacher": "m"}, "arms: got"),
        (("teachers", "m\n"), {"student": "yolov5m"}, "teachers: got"),
        (("data",), "a\0b", "data: got"),
    ],
)
@needs_torch
def test_what_a_run_would_refuse_the_plan_refuses(write, place, value, message):
    read_plan(write(PLAN))
    with pytest.raises(PlanError, match=message):
        read_plan(write(changed(place, value)))


@needs_torch
def test_a_students_file_names_one_folder_whatever_the_case_of_its_ending(write, tmp_path):
    (tmp_path / "n5.YAML").touch()
    plan = changed(("students",), ["n5.YAML", "{0.x}.yaml"])
    (tmp_path / "{0.x}.yaml").touch()
    names = [job.name for job in expand(read_plan(write(plan)))]
    assert "runs/n5/plain/seed0" in names
    assert "runs/{0.x}/fgfi/seed0" in names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0]\nseeds: [1]\n", "line 2: got 'seeds' as a key"),
        ("[" * 3000, "got no YAML: exceeded maximum nesting depth"),
        ("a: \0", "NUL"),
        ("a: .nan", "expected a finite number"),
        ("\n".join(["- &a0 [x, x]"] + [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]), "aliases"),
    ],
)
def test_a_plan_is_read_strictly(write, text, message):
    with pytest.raises(PlanError, match=message):
        read_plan(write(text))
    with pytest.raises(UsageError, match="--set seeds: got"):
        read_plan(write(PLAN), changes=["seeds=[[["])


def test_a_plan_is_written_as_it_is_read():
    plan = {"a": ["1e-3", "007", "off", "12", ".nan", "~", "x: y", "ä\nb", "2020-01-01", "1_0"], "1": 1e-3, "b": True}
    assert strict.load_yaml(to_yaml(plan)) == plan


def test_shipped_plans_and_those_of_the_evidence_read_as_before():
    home = Path(__file__).parents[2]
    files = [*home.glob("kd/sweeps/plans/*.yaml"), *home.glob("benchmarks/evidence/*.yaml")]
    assert len(files) >= 6
    for path in files:
        assert strict.read_yaml(path) == yaml.safe_load(path.read_text())


@needs_torch
def test_a_sweep_names_what_is_damaged_in_its_folder(write, tmp_path):
    from kd.sweeps.sweep import sweep

    plan, out = write(PLAN), tmp_path / "out"
    out.mkdir()
    for form in FORMS:
        (out / "plan.yaml").write_bytes(form)
        with pytest.raises((PlanError, RunError), match=r"plan\.yaml: .*the plan that was begun here"):
            sweep(plan, out, dry_run=True)
    (out / "plan.yaml").write_text(to_yaml(read_plan(plan)))
    run = out / "teachers" / "m"
    run.mkdir(parents=True)
    for form in FORMS:
        (run / "run.json").write_bytes(form)
        with pytest.raises(RunError, match=r"teachers/m/run\.json: .*expected a file that kd train wrote"):
            sweep(plan, out, dry_run=True)


@needs_torch
def test_a_sweep_is_not_written_over_its_plan(write, tmp_path):
    from kd.sweeps.sweep import sweep

    path = tmp_path / "own" / "plan.yaml"
    path.parent.mkdir()
    path.write_text(write({**PLAN, "data": str(tmp_path / "data.yaml")}).read_text() + "# mine\n")
    with pytest.raises(UsageError, match="where the plan itself would be written over"):
        sweep(path, path.parent)
    assert path.read_text().endswith("# mine\n")


@pytest.mark.parametrize("keys", [{"students": ["yolov5q"]}, {"teachers": {"m": {"student": "yolov5q"}}}])
@needs_torch
def test_a_sweep_starts_nothing_where_a_model_is_none(write, tmp_path, keys):
    from kd.sweeps.sweep import sweep

    with pytest.raises(PlanError, match=r"plan\.yaml: .*yolov5q"):
        sweep(write({**PLAN, **keys}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_torch
def test_a_picture_is_not_drawn_over_an_image(tmp_path):
    import cv2
    import numpy as np

    from kd.scoring.predict import predict

    photo = tmp_path / "images" / "photo.png"
    photo.parent.mkdir()
    cv2.imwrite(str(photo), np.zeros((32, 32, 3), np.uint8))
    before = photo.read_bytes()
    (photo.parent / "z.png").write_bytes(before)
    (tmp_path / "link.png").symlink_to(photo)
    model = tmp_path / "model.png"
    model.write_bytes(b"weights")
    for images, out in (
        ([photo], photo), ([photo], tmp_path / "link.png"), ([photo], model),
        ([photo.parent], photo.parent / "z.png"),  # beyond the limit, and no less an image of the folder
    ):  # fmt: skip
        with pytest.raises(UsageError, match="which is read here, expected another file"):
            predict(images, [model], out, limit=1)
    assert (photo.read_bytes(), model.read_bytes()) == (before, b"weights")


def test_every_option_of_kd_train_is_known_to_plans():
    import typer

    from kd.commands import app
    from kd.options import OPTIONS

    command = typer.main.get_command(app).commands["train"]
    words = {word.removeprefix("--") for parameter in command.params for word in parameter.opts}
    assert words - OPTIONS == {"out", "resume", "overwrite", "dry-run", "json", "help"} - ({"help"} - words)
    assert not OPTIONS - words
