"""Published rows: read from three forms, refused by row and column, shown beside ours and never mixed with them."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

import schemas
from kd.errors import DataError
from kd.reports.published import Published, read_published
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
