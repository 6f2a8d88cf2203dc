"""Reports: a worked example from hand-written runs, pairs, and what is not counted."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from kd_runs import OTHER_DATA, write_run

from kd.errors import RunError
from kd.report import report
from kd.runs import find_pairs, read_runs


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


def test_a_worked_example(runs, tmp_path):
    out = tmp_path / "docs" / "report.md"
    found = report(runs, out)
    assert found == {"runs": 5, "pairs": 2, "unfinished": 0, "out": str(out)}
    text = out.read_text()

    # a row per arm, the mean over its seeds: (60 + 64) / 2, (30 + 32) / 2
    plain, taught = rows(text, ["yolov5n", "-", "plain", "2"]), rows(text, ["yolov5n", "teacher", "fgfi 0.01", "2"])
    assert [row[4:] for row in plain] == [["30", "640", "7.7", "2.65 M", "62.0", "31.0", "31.0", "-"]]
    assert [row[4:] for row in taught] == [["30", "640", "7.7", "2.65 M", "64.0", "32.0", "32.0", "-"]]
    assert rows(text, ["yolov5m", "-", "plain", "1"])[0][6:10] == ["64.0", "25.30 M", "90.0", "60.0"]

    # pairs by seed, and their mean difference (3.0 - 1.0) / 2
    assert rows(text, ["yolov5n", "teacher", "fgfi 0.01", "0", "60.0"])[0][5:] == [
        "66.0",
        "+6.0",
        "30.0",
        "33.0",
        "+3.0",
    ]
    assert rows(text, ["yolov5n", "teacher", "fgfi 0.01", "1", "64.0"])[0][5:] == [
        "62.0",
        "-2.0",
        "32.0",
        "31.0",
        "-1.0",
    ]
    assert "mAP50-95 +1.0 points, the mean of 2 paired seeds. **Fewer than 5 paired seeds: nothing is proven.**" in text

    # the last checkpoint is what counts, the best stands beside it
    assert "last checkpoint, not the best" in text
    assert rows(text, ["[fgfi/0](../runs/fgfi/0)"])[0][8:12] == ["66.0", "33.0", "67.0", "34.0"]
    assert "20 test images with 50 objects" in text
    assert rows(text, ["cpu x86_64, 2 threads"])[0][1:] == [
        "dtld-kd 0.1.0, python 3.11, torch 2.15, ultralytics 8.4.190", "5"
    ]  # fmt: skip


def test_all_links_are_relative_and_lead_somewhere_also_after_a_move(runs, tmp_path):
    report(runs, runs / "report.md")
    moved = shutil.move(runs, tmp_path / "elsewhere")
    text = (moved / "report.md").read_text()
    targets = re.findall(r"\]\((.+?)\)", text)
    assert len(targets) == 5 + 1
    assert all((moved / target).exists() for target in targets)
    assert "/somewhere" not in text
    assert str(tmp_path) not in text
    assert (moved / "report_gflops.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(moved.glob(".*"))  # nothing half-written


def test_five_pairs_carry_no_warning(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"plain{seed}", (0.5, 0.30), seed=seed)
        write_run(tmp_path / f"fgfi{seed}", (0.5, 0.31), seed=seed, teacher="t")
    report(tmp_path, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "mAP50-95 +1.0 points, the mean of 5 paired seeds." in text
    assert "nothing is proven" not in text


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 7}, {"epochs": 31}, {"imgsz": 320}, {"data": OTHER_DATA}, {"batch": 8}, {"freeze": 3},
        {"settings": {"lr0": 0.1}}, {"student": "yolov5m"},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_runs_that_differ_in_more_than_the_teacher_are_no_pair(tmp_path, other):
    write_run(tmp_path / "distilled", (0.5, 0.3), teacher="t")
    write_run(tmp_path / "other", (0.5, 0.3), **other)
    assert find_pairs(read_runs(tmp_path)[0]) == []
    write_run(tmp_path / "twin", (0.5, 0.2))
    (pair,) = find_pairs(read_runs(tmp_path)[0])
    assert (pair.distilled.name, pair.plain.name) == ("distilled", "twin")
    assert pair.difference("map50_95") == pytest.approx(0.1)


def test_datasets_are_never_mixed_in_a_table(tmp_path):
    write_run(tmp_path / "a", (0.5, 0.3))
    write_run(tmp_path / "b", (0.7, 0.5), data=OTHER_DATA, test=False)
    report(tmp_path, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert [row[8:10] for row in rows(text, ["yolov5n", "-", "plain", "1"])] == [["50.0", "30.0"], ["11.0", "5.0"]]
    assert "10 val images" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"report_gflops.png", "report_gflops_2.png"}
    assert text.count("No distilled run here has a plain twin") == 2


def test_unfinished_and_broken_runs_are_listed_and_not_averaged(runs, tmp_path):
    (runs / "plain" / "2").mkdir()
    (runs / "plain" / "2" / "config.json").write_text(json.dumps({"config": {"epochs": 30}}))
    (runs / "plain" / "2" / "results.csv").write_text("epoch\n1\n2\n")
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text('{"config":')
    (runs / "foreign").mkdir()
    (runs / "foreign" / "run.json").write_text('{"config": {}}')
    (runs / "tool").mkdir()
    (runs / "tool" / "config.json").write_text('{"editor": "vi"}')
    found = report(runs, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert (found["runs"], found["unfinished"]) == (5, 3)
    assert "- plain/2: 2 of 30 epochs done\n" in text
    assert "- broken: run.json is none of kd train" in text
    assert "- foreign: run.json is none of kd train" in text
    assert "tool" not in text
    assert rows(text, ["yolov5n", "-", "plain", "2"])  # still two seeds


def test_no_runs_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match=r"got none, expected finished runs of kd train \(run.json\) at any depth"):
        report(tmp_path, tmp_path / "report.md")
    (tmp_path / "config.json").write_text(json.dumps({"config": {"epochs": 3}}))
    with pytest.raises(RunError, match="got 1 unfinished"):
        report(tmp_path, tmp_path / "report.md")
    with pytest.raises(RunError, match="got none"):
        report(tmp_path / "missing", tmp_path / "report.md")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_without_gflops_or_score_is_in_the_tables_and_not_in_the_plot(tmp_path):
    folder = write_run(tmp_path / "a", (0.5, 0.3))
    record = json.loads((folder / "run.json").read_text())
    record["gflops"] = None
    (folder / "run.json").write_text(json.dumps(record))
    report(tmp_path, tmp_path / "report.md")
    assert rows((tmp_path / "report.md").read_text(), ["yolov5n", "-", "plain", "1"])[0][6] == "-"
    assert not list(tmp_path.glob("*.png"))
