"""Reports as pages and pictures: one content in two forms, nothing from outside, and figures that can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from kd.reports.markdown import text
from kd.reports.page import embedded, to_html
from kd.reports.report import report
from tests.kd_runs import write_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would make of a page: its words, table cells, tags and what it asks for."""

    def __init__(self, source):
        super().__init__()
        self.words, self.cells, self.tags, self.sources, self.inside = [], [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "srcset", "data", "xlink:href", "action")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.inside):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Five students, plain and taught by three, five seeds each; and the report of them."""
    folder = tmp_path_factory.mktemp("grid")
    for i, size in enumerate("nsmlx"):
        for arm, gain in (("plain", 0), ("m", 0.01), ("l", 0.02), ("x", 0.03)):
            for seed in range(5):
                taught = {"teacher": f"teachers/{arm}"} if gain else {}
                at, score = folder / "runs" / size / arm / f"seed{seed}", 0.3 + 0.04 * i + gain + 0.002 * seed
                write_run(at, (score + 0.2, score), seed=seed, student=f"yolov5{size}", gflops=7.7 * 2.4**i, **taught)
    report(folder, folder / "report.md")
    return folder


def test_both_forms_say_the_same(grid):
    markdown, page = (grid / "report.md").read_text(), Page((grid / "report.html").read_text())
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not re.match(r"\| -{3}", line)]
    cells = [
        re.sub(r"\\(.)|\[(.+?)\]\(.*?\)", r"\1\2", cell.strip()) for line in lines for cell in line[1:-1].split(" | ")
    ]
    assert page.cells == cells
    assert len(cells) > 1000
    headings = [line.lstrip("# ") for line in markdown.splitlines() if line.startswith("#")]
    assert [heading for heading in headings if heading not in page.words] == []


def test_a_page_asks_for_nothing_and_runs_nothing(grid):
    source = (grid / "report.html").read_text()
    page = Page(source)
    assert "default-src 'none'" in source
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert [value for value in page.sources if not value.startswith(("data:image/png;base64,", "#"))] == []
    assert not re.search(r"url\((?!#)|@import", source)
    assert page.tags.count("svg") == 1


def test_words_stay_words():
    nasty = "a|b *c* _d_ <script>alert(1)</script> [x](http://y) `z` ![i](j) &amp; \\ ~e~\n# f"
    page = Page(to_html(f"| head |\n| --- |\n| {text(nasty)} |\n", {}, "<b>"))
    assert page.cells == ["head", " ".join(nasty.split())]
    assert not {"script", "a", "em", "img", "code", "b"} & set(page.tags)


def test_a_picture_without_its_bytes_is_an_error_and_no_gap():
    assert "data:image/png;base64,aGk=" in to_html("![x](y.png)", {"y.png": embedded(b"hi", "x")}, "t")
    with pytest.raises(KeyError):
        to_html("![x](y.png)", {}, "t")


def test_figure_2_is_one_picture_as_png_and_svg_and_in_the_page(grid):
    image = cv2.imread(str(grid / "report_figure2.png"))
    assert min(image.shape[:2]) > 600
    svg = ElementTree.parse(grid / "report_figure2.svg")
    words = ["".join(node.itertext()) for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in (*(f"yolov5{size}" for size in "nsmlx"), "without distillation", "fgfi 0.01 from m"):
        assert words.count(wanted) == 1, wanted
    inside = (grid / "report.html").read_text()
    assert 'aria-label="mAP50-95 against GFLOPs"' in inside
    assert "fgfi 0.01 from x" in inside


def test_no_two_names_or_marks_cover_each_other_in_figure_2(tmp_path, monkeypatch):
    """Four students so close in GFLOPs that names beside each other would overlap."""
    for name, gflops in (("yolov5n", 7.7), ("yolo11n", 7.5), ("yolov8n", 7.9), ("yolo26n", 7.6)):
        write_run(tmp_path / name, (0.5, 0.3), student=name, gflops=gflops)
    boxes = []
    monkeypatch.setattr("kd.reports.figures.Figure", watched(boxes))
    report(tmp_path, tmp_path / "report.md")
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def watched(boxes):
    from matplotlib.figure import Figure

    class Watched(Figure):
        def savefig(self, *args, **kwargs):
            super().savefig(*args, **kwargs)
            boxes[:] = [word.get_window_extent() for word in self.axes[0].texts if word.get_text()]

    return Watched


@pytest.mark.skipif(not BROWSER, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [1280, 420])
def test_a_browser_shows_the_page_and_only_tables_are_wider_than_it(grid, tmp_path, width):
    """A frame of that width, since Chromium's own windows are not so narrow; its page would be scrolled if wider."""
    probe = (
        "<script>onload = () => { const page = frames[0].document.documentElement;"
        "document.title = [page.scrollWidth <= page.clientWidth, frames[0].document.querySelectorAll('svg').length,"
        "frames[0].document.querySelectorAll('table').length].join(' ') }</script>"
    )
    shutil.copy(grid / "report.html", tmp_path)
    frame = f'<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title>-</title>{probe}<body style='margin:0'>{frame}")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--allow-file-access-from-files",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000")  # fmt: skip
    shot = tmp_path / "shot.png"
    at = (tmp_path / "frame.html").as_uri()
    run = [BROWSER, *options, f"--window-size={width},900"]
    subprocess.run([*run, f"--screenshot={shot}", at], check=True, capture_output=True, timeout=120)
    image = cv2.imread(str(shot))
    assert len(np.unique(image)) > 50  # words and colours, no blank page
    dom = subprocess.run([*run, "--dump-dom", at], check=True, capture_output=True, timeout=120, text=True).stdout
    assert re.search(r"<title>(.*?)</title>", dom).group(1) == "true 1 6"
