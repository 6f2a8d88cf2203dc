"""What `kd device-bench` measured, in a report: a machine at a time, whole files or a line about them."""

from __future__ import annotations

import pytest

from kd.errors import RunError, UsageError
from kd.reports.device import BENCH, device_figure, device_table, machine, write_bench
from kd.reports.report import report
from kd.show import print_device
from tests.kd_device import STUDENT, found, row, write
from tests.kd_runs import write_run


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "plain", (0.6, 0.3))
    return tmp_path / "runs"


def lines(bench):
    """How many lines join marks in a figure; a mark alone has one of no length."""
    return device_figure(bench)[1].decode().count("stroke-opacity: 0.6")


def test_a_worked_example_as_table():
    lines = device_table(found()).splitlines()
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        "teacher-int8", "openvino", "INT8 + float32", "192", "3.6", "9.0", "10.8", "12.0", "2.22", "800", "101", "80.0",
        "49.7",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[4].strip("|").split("|")][8:] == ["2.50", "-", "-", "80.0", "-"]


def test_the_terminal_says_the_same(capsys):
    bench = found()
    print_device(machine(bench), bench)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "AMD EPYC (avx512_vnni), 1 thread on 2 cores, Linux x86_64"
    assert lines[4].split()[:5] == ["teacher-int8", "openvino", "INT8", "+", "float32"]
    assert lines[4].split()[5:] == ["192", "3.6", "9.0", "10.8", "12.0", "2.22", "800", "101", "80.0", "49.7"]
    assert len({len(line) for line in lines[2:6]}) == 1


def test_the_figure_joins_the_forms_of_one_checkpoint_in_one_runtime():
    forms = [row("a"), row("a8", precision="INT8", ms=9.0)]
    others = [{**forms[1], "checkpoint_sha256": STUDENT}, {**forms[1], "format": "onnx"}]
    assert [lines(found(*rows)) for rows in (forms, [*forms, *others])] == [1, 3]
    assert device_figure(found(row("a", map50_95=None))) is None


def test_what_is_written_is_read_and_reported_beside_runs(runs, tmp_path):
    write_bench(found(), runs / "device")
    assert sorted(path.name for path in (runs / "device").iterdir()) == [BENCH, "figure.png", "figure.svg"]
    car = write(tmp_path / "car.json", found(processor="Cortex-A78AE"))
    out = tmp_path / "report.md"
    report(runs, out, device=[car, car, runs / "device" / BENCH])  # the last is found anyway
    text = out.read_text()
    heads = [line for line in text.splitlines() if line.startswith("## On the device")]
    assert heads == [
        "## On the device: Cortex-A78AE (avx512_vnni), 1 thread on 2 cores, Linux x86_64",
        "## On the device: AMD EPYC (avx512_vnni), 1 thread on 2 cores, Linux x86_64",
    ]
    assert text.count("| teacher-int8 | openvino |") == 2
    assert "72 images of tiles/data.yaml, test, with 925 objects" in text
    assert {path.name for path in tmp_path.glob("report_device*")} == {
        f"report_device{number}.{ending}" for number in ("", "_2") for ending in ("png", "svg")
    }
    assert out.with_suffix(".html").read_text().count("mAP50-95 against milliseconds") == 2


def test_files_that_are_none_are_a_line_each_and_the_report_is_written(runs, tmp_path):
    for name, content in (("half", '{"data": "tiles/data.ya'), ("empty", "{}"), ("other", '{"benchmarks": []}')):
        (runs / name).mkdir()
        (runs / name / BENCH).write_text(content)
    found = report(runs, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    lines = [line for line in text.splitlines() if BENCH in line]
    assert [line.partition(": ")[0] for line in lines] == [f"- {name}/{BENCH}" for name in ("empty", "half", "other")]
    assert all(line.endswith("expected a file that kd device-bench wrote") for line in lines)
    assert found["unfinished"] == 3
    assert "On the device" not in text


def test_a_given_file_that_is_none_ends_it_before_anything_is_written(runs, tmp_path):
    half = write(tmp_path / "car.json", {**found(), "models": []})
    with pytest.raises(
        RunError, match=r"car\.json: models: got '\[\]', which .*: expected a file that kd device-bench"
    ):
        report(runs, tmp_path / "report.md", device=[half])
    with pytest.raises(RunError, match=r"none\.json: got No such file"):
        report(runs, tmp_path / "report.md", device=[tmp_path / "none.json"])
    with pytest.raises(UsageError, match="which is read here"):
        report(runs, write(tmp_path / "report.md", found()), device=[tmp_path / "report.md"])
    assert not (tmp_path / "report.html").exists()
