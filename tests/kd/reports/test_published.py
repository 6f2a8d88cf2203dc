"""Published rows: read from three forms, refused by row and column, shown beside ours and never mixed with them."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

import schemas
from kd.errors import DataError
from kd.reports.published import Published, contradictions, read_published
from kd.reports.report import report
from tests.kd_runs import OTHER_DATA, write_run

ROWS = [
    {"model": "NanoFiction", "gflops": 6.1, "map50": 55.5, "map50_95": 33.3, "source": "Nobody 1900, Table 2"},
    {"model": "NanoFiction", "teacher": "BigFiction", "method": "magic", "map50_95": 35, "source": "Nobody 1900"},
]


@pytest.fixture
def write(tmp_path):
    def write(content, name="published.yaml"):
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return write


def test_yaml_json_and_csv_give_the_same_rows(write):
    jsonschema.validate(ROWS, schemas.load("published"))
    expected = [Published(**row) for row in ROWS]
    csv = "\ufeffmodel,teacher,method,gflops,map50,map50_95,source\n"
    csv += 'NanoFiction,,,6.1,55.5,33.3,"Nobody 1900, Table 2"\nNanoFiction,BigFiction,magic,,,35,Nobody 1900\n'
    assert read_published(write(yaml.safe_dump(ROWS))) == expected
    assert read_published(write(json.dumps(ROWS), "p.json")) == expected
    assert read_published(write(csv, "p.csv")) == expected


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.yaml", "- {model: x, map50_95: 0.3, source: s}", "row 1: map50_95: got '0.3', .* in per cent, not shares"),
        ("p.csv", "model,map50_95,source,map50\nx,31,s,\ny,31,s,high\n", "row 2: map50: got 'high', .* a number"),
        ("p.csv", "model,map50_95\nx,31\n", r"row 1: got .* expected it to contain \['source'\]"),
        ("p.csv", "model,map50_95,source\nx,31,s,9\n", "row 1: .* beyond the first line"),
        ("p.yaml", "- {model: x, map50_95: 31, source: s, mAP: 3}", "row 1: got .* not contain {'mAP'}"),
        ("p.yaml", "- {model: x, map50_95: 31, source: s, per_class: {a: {map50: 3}}}", "row 1: per_class: a: got "),
        ("p.csv", "model,map50_95,source,per_class\nx,31,s,9\n", "row 1: per_class: got '9', .* be a mapping"),
        ("p.yaml", "model: x", "rows: got .* a list of rows"),
        ("p.yaml", "[]", "rows: got .* at least 1"),
        ("p.json", "{", "got nothing readable"),
        ("p.yaml", "a: [", "got nothing readable"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(write, name, content, complaint):
    with pytest.raises(DataError, match=f"{name}: {complaint}") as caught:
        read_published(write(content, name))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: got No such file"):
        read_published(tmp_path / "none.csv")


def test_published_rows_stand_below_ours_in_italics_with_their_source(tmp_path, write):
    write_run(tmp_path / "plain", (0.6, 0.3))
    write_run(tmp_path / "fgfi", (0.6, 0.32), teacher="t")
    alone = tmp_path / "alone.md"
    report(tmp_path, alone)
    report(tmp_path, tmp_path / "beside.md", published=write(yaml.safe_dump(ROWS)))
    text, page = (tmp_path / "beside.md").read_text(), (tmp_path / "beside.html").read_text()
    assert "| *NanoFiction* | - | *6.1* | - | *55.5* | *33.3* | - | - | *Nobody 1900, Table 2* |" in text
    assert "| *NanoFiction* | *BigFiction* | *magic* | - | - | - | - | *35.0* | - | - | - | - | *Nobody 1900* |" in text
    assert "published, without distillation: Nobody 1900, Table 2" in page  # the figure's legend
    assert "with distillation: Nobody" not in page.replace("without", "")  # without GFLOPs: in no figure
    assert "not measured here" in text
    assert "published" not in alone.read_text()
    ours, before = ([line for line in words.splitlines() if line.startswith("| yolov5n")]
                    for words in (text, alone.read_text()))  # fmt: skip
    assert [line.removesuffix(" here |") for line in ours] == before


def test_rows_that_name_a_dataset_stand_with_it_alone(tmp_path, write):
    write_run(tmp_path / "a", (0.6, 0.3))
    other = write_run(tmp_path / "b", (0.6, 0.3), data=OTHER_DATA) / "run.json"
    other.write_text(other.read_text().replace("tiles/data.yaml", "cells/data.yaml"))
    report(tmp_path, tmp_path / "r.md", published=write(yaml.safe_dump([{**ROWS[0], "data": "cells/data.yaml"}])))
    text = (tmp_path / "r.md").read_text()
    assert text.index("## tiles/data.yaml") < text.index("## cells/data.yaml") < text.index("NanoFiction")
    with pytest.raises(DataError, match=r"row 1: data: got 'x', expected one of tiles/data\.yaml, cells/data"):
        report(tmp_path, tmp_path / "x.md", published=write(yaml.safe_dump([{**ROWS[0], "data": "x"}])))
    assert not (tmp_path / "x.md").exists()


# ---------------------------------------------------------------- the seed paper's

# As the tables have them: GFLOPs, then mAP50 and mAP50-95 of both classes, of relevant lights, of the others.
TABLE_2 = """yolov5n 4.5 36.6 15.55 45.25 18.9 14.92 4.83; yolov5s 16.5 42.9 19.8 66.0 32.9 19.7 6.77;
yolov5m 49 49.95 23.75 73.35 37.8 26.5 9.505; yolov5l 109.1 51.4 25.2 74.65 39.7 28.2 10.67;
yolov5x 205.7 53.95 27.0 76.55 41.95 31.3 12.045"""
TABLE_3 = """n<l 50.9 23.2 77.9 38.3 24.0 8.03; s<l 54.5 26.2 80.0 41.9 29.1 10.5; m<l 59.7 29.7 81.7 46.0 35.4 13.3;
n<x 49.6 22.6 75.4 37.5 23.8 7.76; s<x 55.4 26.4 80.9 41.8 30.0 11.1; m<x 58.3 29.6 81.2 45.8 35.4 13.3;
n<m 50.1 22.8 75.8 37.8 24.4 7.89; s<m 55.3 26.9 80.0 42.5 30.5 11.3"""


def figures(row):
    return [scores[key] for scores in (vars(row), *row.per_class.values()) for key in ("map50", "map50_95")]


def test_the_papers_rows_are_its_tables():
    rows = read_published("paper")
    plain, distilled = [row for row in rows if not row.teacher], [row for row in rows if row.teacher]
    assert {f"{row.model} {row.gflops:g} {' '.join(map(str, figures(row)))}" for row in plain} == {
        " ".join(cell.split()) for cell in TABLE_2.split(";")
    }
    assert {f"{row.model[-1]}<{row.teacher[-1]} {' '.join(map(str, figures(row)))}" for row in distilled} == {
        cell.strip() for cell in TABLE_3.split(";")
    }
    sizes = {row.model: row.gflops for row in plain}
    assert all(row.gflops == sizes[row.model] and row.method == "fgfi" for row in distilled)
    assert all(list(row.per_class) == ["relevant", "not_relevant"] for row in rows)
    assert {row.title: row.inference_ms for row in rows if row.inference_ms} == {
        "yolov5l": 285, "yolov5s from yolov5l": 72,
    }  # fmt: skip
    assert {row.source for row in rows} == {"Teichman and Kong, Table 2", "Teichman and Kong, Table 3"}


def test_three_of_the_papers_rows_cannot_be_right():
    assert list(contradictions(read_published("paper"))) == [
        "yolov5n: mAP50 36.6, of its classes 45.25 and 14.92, whose mean is 30.085",
        "yolov5n: mAP50-95 15.55, of its classes 18.9 and 4.83, whose mean is 11.865",
        "yolov5m: mAP50-95 23.75, of its classes 37.8 and 9.505, whose mean is 23.652",
        "yolov5m from yolov5l: mAP50 59.7, of its classes 81.7 and 35.4, whose mean is 58.55",
    ]


def test_a_sweeps_report_has_what_its_plan_names(tmp_path, write):
    write_run(tmp_path / "plain", (0.6, 0.3))
    write_run(tmp_path / "fgfi", (0.6, 0.32), teacher="t")
    write("published: paper\nseeds: [0]\n", "plan.yaml")
    report(tmp_path, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| model"))
    assert head.endswith("| mAP50 of relevant | mAP50 of not_relevant | relevant | not_relevant | source |")
    ends = "*45.25* | *14.92* | *18.9* | *4.83* | *Teichman and Kong, Table 2* |"
    assert f"| *yolov5n* | - | *4.5* | - | *36.6* | *15.55* | {ends}" in text
    assert "| *yolov5m* | *yolov5l* | *fgfi* | - | *49.0* | - | *59.7* | *29.7* | - | - | *81.7* | *35.4* |" in text
    assert "| yolov5n | 1 | 7.7 | 2.65 M | 60.0 | 30.0 | 60.0 | - | 30.0 | - | here |" in text
    assert "by more than rounding explains: yolov5n: mAP50 36.6, of its classes 45.25 and 14.92, whose mean" in text
    assert "*As published, on their hardware: yolov5l 285 ms, yolov5s from yolov5l 72 ms.*" in text
    report(tmp_path, tmp_path / "own.md", published=write(yaml.safe_dump(ROWS)))
    assert "Teichman" not in (tmp_path / "own.md").read_text()
    assert "odd in themselves" not in (tmp_path / "own.md").read_text()


def test_a_plan_that_cannot_be_read_is_named_and_names_nothing(tmp_path, write):
    write_run(tmp_path / "plain", (0.6, 0.3))
    write("published: paper\nx: [", "plan.yaml")
    report(tmp_path, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert "- plan.yaml: no plan that kd sweep wrote" in text
    assert "Teichman" not in text
