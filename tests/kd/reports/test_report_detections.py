"""Figure A1 in reports: three columns where weights and images are there, one honest line where they are not."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from kd.reports.report import report
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector
from tests.kd_runs import write_run

NAMES = {0: "red", 1: "green"}


@pytest.fixture
def runs(tmp_path):
    """A teacher, a plain run and a distilled one whose weights detect something, and the images they saw."""
    data = write_dataset(tmp_path / "set", test=4)
    for name, teacher, student in (
        ("teacher", None, "yolov5m"),
        ("plain", None, "yolov5n"),
        ("fgfi", "teacher", "yolov5n"),
    ):
        folder = write_run(tmp_path / "runs" / name, (0.5, 0.3), teacher=teacher, student=student, imgsz=96)
        text = (folder / "run.json").read_text().replace("/somewhere/tiles/data.yaml", str(data))
        (folder / "run.json").write_text(text)
        save_detector(folder / "weights" / "last.pt", NAMES, seed=len(name))
    weights = tmp_path / "runs" / "teacher" / "weights"
    shutil.copy(weights / "last.pt", weights / "best.pt")
    return tmp_path / "runs"


def test_plain_distilled_and_teacher_stand_beside_each_other_with_their_times(runs, tmp_path):
    report(runs, tmp_path / "r.md", images=2)
    text = (tmp_path / "r.md").read_text()
    assert "![Detections of the plain student, the distilled one and the teacher](r_figureA1.png)" in text
    (line,) = re.findall(r"2 of 3 test images with objects, evenly spaced, seed 0; .*", text)  # every third has none
    assert re.search(r"yolov5n, plain \d+\.\d ms; yolov5n, fgfi 0.01 \d+\.\d ms; teacher \d+\.\d ms\.", line)
    assert cv2.imread(str(tmp_path / "r_figureA1.png")).shape[1] > 3 * 640
    assert "data:image/png;base64," in (tmp_path / "r.html").read_text()


def test_the_arm_that_gains_most_is_shown(runs, tmp_path):
    data = json.loads((runs / "fgfi" / "run.json").read_text())["config"]["data"]
    for name, weight, score in (("a", 2.0, 0.2), ("z", 3.0, 0.4)):
        methods = {"fgfi": weight}
        folder = write_run(runs / name, (0.6, score), teacher="teacher", imgsz=96, methods=methods)
        text = (folder / "run.json").read_text().replace("/somewhere/tiles/data.yaml", data)
        (folder / "run.json").write_text(text)
        shutil.copytree(runs / "fgfi" / "weights", folder / "weights")
    report(runs, tmp_path / "r.md", images=1)
    assert re.search(r"yolov5n, plain \S+ ms; yolov5n, fgfi 3 \S+ ms", (tmp_path / "r.md").read_text())


def test_without_weights_or_images_a_line_says_why(runs, tmp_path):
    report(runs, tmp_path / "none.md", images=0)
    assert "Figure A1" not in (tmp_path / "none.md").read_text()
    (tmp_path / "set").rename(tmp_path / "away")
    report(runs, tmp_path / "r.md")
    assert re.search(r"Figure A1, .* is left out: .*no such file", (tmp_path / "r.md").read_text())
    (tmp_path / "away").rename(tmp_path / "set")
    (runs / "plain" / "weights" / "last.pt").write_bytes(b"no model")
    report(runs, tmp_path / "r.md")
    assert re.search(r"left out: .*last.pt: got no usable model", (tmp_path / "r.md").read_text())
    (runs / "plain" / "weights" / "last.pt").unlink()
    report(runs, tmp_path / "r.md")
    assert "is left out: no pair's weights are there any more." in (tmp_path / "r.md").read_text()
    assert not list(tmp_path.glob("*A1*"))


def test_the_teacher_may_be_gone(runs, tmp_path):
    shutil.rmtree(runs / "teacher" / "weights")
    report(runs, tmp_path / "r.md", images=1)
    assert "; teacher " not in (tmp_path / "r.md").read_text()
    assert "yolov5n, fgfi 0.01" in (tmp_path / "r.md").read_text()
    assert json.loads((runs / "fgfi" / "run.json").read_text())["config"]["teachers"]


def test_a_student_with_inherited_weights_stands_beside_a_plain_one_of_other_epochs_where_no_twin_is(runs, tmp_path):
    folder = write_run(tmp_path / "born", (0.5, 0.3), inherit="teacher", imgsz=96, epochs=28)
    text = (folder / "run.json").read_text().replace("/somewhere/tiles/data.yaml", str(tmp_path / "set" / "data.yaml"))
    (folder / "run.json").write_text(text)
    save_detector(folder / "weights" / "last.pt", NAMES)
    shutil.rmtree(runs / "fgfi")
    folder.rename(runs / "born")
    report(runs, tmp_path / "r.md", images=1)
    text = (tmp_path / "r.md").read_text()
    assert re.search(r"yolov5n, plain \d+\.\d ms; yolov5n, inherited \d+\.\d ms; teacher \d+\.\d ms\.", text)
    assert "| yolov5n | teacher | inherited | plain, 30 epochs | 1 |" in text
