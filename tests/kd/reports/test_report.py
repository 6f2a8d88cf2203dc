"""Reports: a worked example from hand-written runs, what is compared with what, and what is not counted."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from kd.errors import RunError, UsageError
from kd.reports.report import report
from kd.runs.arms import twins_of
from kd.runs.record import read_runs
from kd.runs.statistics import differences
from tests.kd_runs import ADAMW, OTHER_DATA, write_run


@pytest.fixture
def runs(tmp_path):
    """A teacher, and two paired seeds of a student."""
    folder = tmp_path / "runs"
    write_run(folder / "teacher", (0.9, 0.6), student="yolov5m")
    write_run(folder / "plain" / "0", (0.60, 0.300))
    write_run(folder / "plain" / "1", (0.64, 0.320), seed=1)
    write_run(folder / "fgfi" / "0", (0.66, 0.330), teacher="teacher")
    write_run(folder / "fgfi" / "1", (0.62, 0.310), seed=1, teacher="teacher")
    return folder


def rows(text, first):
    """The cells of the table rows that begin with these cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [line for line in lines if line[: len(first)] == first]


def written(runs, out, **options):
    report(runs, out, **options)
    return out.read_text()


def test_a_worked_example(runs, tmp_path):
    out = tmp_path / "docs" / "report.md"
    found = report(runs, out)
    assert found == {"runs": 5, "pairs": 2, "unfinished": 0, "out": str(out), "html": str(out.with_suffix(".html"))}
    text = out.read_text()
    assert "20 test images with 50 objects. All models here: 30 epochs, 640 px, batch 16." in text

    # Table 2: a row per arm, the mean over its seeds (60 + 64) / 2 and their standard deviation 2 sqrt(2)
    (plain,), (teacher,) = rows(text, ["yolov5n", "2", "7.7"]), rows(text, ["yolov5m", "1", "64.0"])
    assert plain[3:] == ["2.65 M", "62.0 ± 2.8", "31.0 ± 1.4", "31.0 ± 1.4", "-"]
    assert teacher[3:] == ["25.30 M", "90.0", "60.0", "60.0", "-"]
    assert text.index("| yolov5n | 2 |") < text.index("| yolov5m | 1 |")

    # Table 3: the same, and the mean difference to plain (3.0 - 1.0) / 2
    arm = ["yolov5n", "teacher", "fgfi 0.01"]
    (taught,) = rows(text, [*arm, "2"])
    assert taught[6:] == ["64.0 ± 2.8", "32.0 ± 1.4", "+2.0", "+1.0", "32.0 ± 1.4", "-"]

    # differences +3, -1: t(0.975, 1) = 12.706 times 2 reaches 25.4 around 1
    pairs = rows(text, [*arm, "plain"])
    assert pairs[0][4:9] == ["2", "+1.0", "-24.4 to +26.4", "1 of 2", "unproven: 2 pairs"]
    assert pairs[0][9:] == ["+2.0", "-48.8 to +52.8", "1 of 2"]
    assert pairs[1][4:] == ["relevant", "+1.0", "-24.4 to +26.4", "1 of 2"]
    assert pairs[2][4:] == ["not_relevant", "-", "-", "0 of 0"]

    # the last checkpoint is what counts, the best stands beside it
    assert "last checkpoint and not the best" in text
    assert rows(text, ["[fgfi/0](../runs/fgfi/0)"])[0][8:12] == ["66.0", "33.0", "67.0", "34.0"]
    assert rows(text, ["cpu x86_64, 2 threads"])[0][1:] == [
        "dtld-kd 0.1.0, python 3.11, torch 2.15, ultralytics 8.4.190", "5"
    ]  # fmt: skip


def test_all_links_are_relative_and_lead_somewhere_also_after_a_move(runs, tmp_path):
    report(runs, runs / "my report.md")
    moved = shutil.move(runs, tmp_path / "elsewhere")
    text = (moved / "my report.md").read_text()
    targets = [target.replace("%20", " ") for target in re.findall(r"\]\((.+?)\)", text)]
    assert len(targets) == 5 + 2  # the runs, Figure 2 as PNG and SVG
    assert all((moved / target).exists() for target in targets)
    assert "/somewhere" not in text
    assert str(tmp_path) not in text
    assert (moved / "my report_figure2.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(moved.glob(".*"))  # nothing half-written


@pytest.mark.parametrize(("step", "verdict"), [(0.001, "better"), (0.02, "unproven"), (-0.001, "worse")])
def test_five_pairs_prove_something_only_when_the_interval_is_on_one_side_of_zero(tmp_path, step, verdict):
    for seed in range(5):
        write_run(tmp_path / f"plain{seed}", (0.5, 0.30), seed=seed)
        gain = 0.01 * (1 if step > 0 else -1)
        write_run(tmp_path / f"fgfi{seed}", (0.5, 0.30 + gain + step * (seed - 2)), seed=seed, teacher="t")
    text = written(tmp_path, tmp_path / "report.md")
    (row,) = [row for row in rows(text, ["yolov5n", "t", "fgfi 0.01", "plain", "5"]) if len(row) == 12]
    assert row[8] == verdict


def test_plain_runs_over_other_epochs_are_a_baseline_of_their_own(tmp_path):
    """As a sweep lays out plain training for equal wall-clock time: its epochs may differ from seed to seed."""
    for seed in range(2):
        write_run(tmp_path / "plain" / f"seed{seed}", (0.5, 0.30), seed=seed)
        write_run(tmp_path / "fgfi" / f"seed{seed}", (0.5, 0.34), seed=seed, teacher="t")
        write_run(tmp_path / "longer" / f"seed{seed}", (0.5, 0.33), seed=seed, epochs=44 + seed)
    text = written(tmp_path, tmp_path / "report.md")
    assert [row[1:3] for row in rows(text, ["yolov5n"]) if row[3] == "7.7"] == [["30", "2"], ["44 to 45", "2"]]
    found = [row for row in rows(text, ["yolov5n", "t", "fgfi 0.01"]) if len(row) == 12]
    assert [(row[3], row[5]) for row in found] == [("plain", "+4.0"), ("plain, 44 to 45 epochs", "+1.0")]


def test_a_seed_counts_once_in_its_arm(runs, tmp_path):
    write_run(runs / "plain" / "again", (0.1, 0.1))
    text = written(runs, tmp_path / "report.md")
    assert "- plain/again: the same as plain/0, seed 0 included" in text
    assert rows(text, ["yolov5n", "2", "7.7"])[0][4] == "62.0 ± 2.8"


def test_options_that_tell_arms_apart_are_named(tmp_path):
    write_run(tmp_path / "a", (0.5, 0.3), settings={"lr0": 0.1, "nbs": 8})
    write_run(tmp_path / "b", (0.5, 0.4), settings={"nbs": 8}, freeze=3)
    text = written(tmp_path, tmp_path / "report.md")
    assert {row[1] for row in rows(text, ["yolov5n"]) if len(row) < 10} == {
        "freeze 3, lr0 as usual",
        "freeze as usual, lr0 0.1",
    }


def test_variants_of_fgfi_are_named(tmp_path):
    usual = {"threshold": 0.5, "assigned": False, "kernel": 1}
    for name, options in (("a", usual), ("b", {**usual, "soft": True}), ("c", {**usual, "mask": "boxes", "kernel": 3})):
        write_run(tmp_path / name, (0.5, 0.3), teacher="t", methods={"cwd": 1.0, "fgfi": 0.01}, fgfi=options)
    own = {**usual, "threshold": 0.25, "priors": {"8": [[4, 9]]}}
    write_run(tmp_path / "d", (0.5, 0.3), teacher="t", methods={"fgfi": 0.01}, fgfi=own)
    assert [run.method for run in read_runs(tmp_path)[0]] == [
        "cwd 1 + fgfi 0.01",
        "cwd 1 + fgfi 0.01 (soft)",
        "cwd 1 + fgfi 0.01 (kernel 3, mask boxes)",
        "fgfi 0.01 (threshold 0.25, priors own)",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 7}, {"epochs": 31}, {"imgsz": 320}, {"data": OTHER_DATA}, {"batch": 8}, {"freeze": 3},
        {"settings": {"cos_lr": True}}, {"student": "yolov5m"},
        {"optimizer": {**ADAMW, "lr0": 0.1}, "settings": {"lr0": 0.1}},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_runs_that_differ_in_more_than_the_teacher_are_no_pair(tmp_path, other):
    write_run(tmp_path / "distilled", (0.5, 0.3), teacher="t")
    write_run(tmp_path / "other", (0.5, 0.3), **other)
    assert twins_of(read_runs(tmp_path)[0]) == []
    assert report(tmp_path, tmp_path / "report.md")["pairs"] == 0
    write_run(tmp_path / "twin", (0.5, 0.2))
    (pair,) = twins_of(read_runs(tmp_path)[0])
    assert (pair.run.name, pair.baseline.name) == ("distilled", "twin")
    shares = [run.scores()["map50_95"] for run in pair]
    assert differences([shares]).difference == pytest.approx(0.1)


def test_arms_of_several_teachers_say_how_they_teach_and_which_is_random(tmp_path):
    both = {"teacher": "t", "teachers": ["/x/m/weights/best.pt", "yolov5x"]}
    ways = [
        ({"teacher_weights": [0.5, 0.5], "combine": "mean"}, "m, random yolov5x"),
        ({"teacher_weights": [1 / 3, 2 / 3], "combine": "mean"}, "m 0.333, random yolov5x 0.667"),
        (
            {"teacher_weights": [0.5, 0.5], "combine": "best", "teacher_imgsz": 1280},
            "m, random yolov5x, best per image, at 1280 px",
        ),
    ]
    for i, (way, _) in enumerate(ways):
        write_run(tmp_path / str(i), (0.5, 0.3), **both, **way)
    text = written(tmp_path, tmp_path / "report.md")
    assert all(len(rows(text, ["yolov5n", teacher, "fgfi 0.01", "1"])) == 1 for _, teacher in ways)


def test_a_run_tells_what_its_terms_were_made_of(tmp_path):
    course = {"balance": 0.1, "schedules": ["warmup", "cosine"], "unlabeled": "/somewhere/more"}
    write_run(tmp_path / "plain", (0.5, 0.2))
    write_run(tmp_path / "a", (0.5, 0.2), teacher="t", methods={"cwd": None, "box": None}, **course)
    write_run(tmp_path / "b", (0.5, 0.2), teacher="t")
    runs, _ = read_runs(tmp_path)
    methods = {run.name: run.method for run in runs}
    assert methods == {
        "plain": "plain", "a": "cwd + box, balance 0.1, warmup, cosine, unlabeled images", "b": "fgfi 0.01",
    }  # fmt: skip
    assert len(twins_of(runs)) == 2  # whatever they are made of, their twin is the plain run


def test_datasets_are_never_mixed_in_a_table(tmp_path):
    write_run(tmp_path / "a", (0.5, 0.3))
    write_run(tmp_path / "b", (0.7, 0.5), data=OTHER_DATA, test=False)
    write_run(tmp_path / "c", (0.7, 0.5), data=OTHER_DATA, test=False, teacher="t", seed=3)
    text = written(tmp_path, tmp_path / "report.md")
    assert [row[4:6] for row in rows(text, ["yolov5n", "1", "7.7"])] == [["50.0", "30.0"], ["11.0", "5.0"]]
    assert "10 val images" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"report_figure2.png", "report_figure2_2.png"}
    assert text.count("No distilled run here has a plain twin") == 1


def test_unfinished_broken_and_failed_runs_are_listed_and_not_averaged(runs, tmp_path):
    (runs / "plain" / "2").mkdir()
    (runs / "plain" / "2" / "config.json").write_text(json.dumps({"config": {"epochs": 30}}))
    (runs / "plain" / "2" / "results.csv").write_text("epoch\n1\n2\n")
    for name, content in (("broken", '{"config":'), ("foreign", '{"config": {}}')):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(content)
    (runs / "tool").mkdir()
    (runs / "tool" / "config.json").write_text('{"editor": "vi"}')
    (runs / "failures.json").write_text(json.dumps({"pkd/seed3": "got a <loss> that is not finite"}))
    found = report(runs, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert (found["runs"], found["unfinished"]) == (5, 4)
    assert "- plain/2: 2 of 30 epochs done\n" in text
    assert "- broken: run.json is none of kd train" in text
    assert "- foreign: run.json is none of kd train" in text
    assert "- pkd/seed3: got a \\<loss\\> that is not finite" in text
    assert "tool" not in text
    assert rows(text, ["yolov5n", "2", "7.7"])  # still two seeds


def test_no_runs_is_one_clear_line_and_writes_nothing(tmp_path):
    with pytest.raises(RunError, match=r"got none, expected finished runs of kd train \(run.json\) at any depth"):
        report(tmp_path, tmp_path / "report.md")
    (tmp_path / "config.json").write_text(json.dumps({"config": {"epochs": 3}}))
    with pytest.raises(RunError, match="got 1 unfinished"):
        report(tmp_path, tmp_path / "report.md")
    with pytest.raises(RunError, match="got none"):
        report(tmp_path / "missing", tmp_path / "report.md")
    with pytest.raises(UsageError, match=r"expected a file name that ends in .md"):
        report(tmp_path, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_without_gflops_or_score_is_in_the_tables_and_not_in_the_figure(tmp_path):
    folder = write_run(tmp_path / "a", (0.5, 0.3))
    record = json.loads((folder / "run.json").read_text())
    record["gflops"] = None
    (folder / "run.json").write_text(json.dumps(record))
    assert rows(written(tmp_path, tmp_path / "report.md"), ["yolov5n", "1", "-"])
    assert not list(tmp_path.glob("*.png"))


def test_a_line_joins_the_sizes_that_start_from_weights_of_their_own(tmp_path):
    for student, gflops in (("classic/yolov5n", 4.5), ("classic/yolov5s", 16.5)):
        settings = {"pretrained": f"{student[-7:]}.pt"}
        write_run(tmp_path / student, (0.5, 0.3), student=student, gflops=gflops, settings=settings)
    write_run(tmp_path / "other", (0.5, 0.3), gflops=7.7, settings={"lr0": 0.1})
    written(tmp_path, tmp_path / "report.md")
    legend = re.findall(r"without distillation[^<]*", (tmp_path / "report_figure2.svg").read_text())
    assert legend == ["without distillation", "without distillation (2)"]
