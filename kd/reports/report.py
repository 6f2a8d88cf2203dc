"""Runs in, a report out: the paper's tables and figures of them, as Markdown and as a page that stands alone.

In: a folder with runs at any depth; published rows, where given. Out: Markdown, the same as HTML, and the pictures.
Invariant: every figure is the last checkpoint's unless it says best, on test images where the dataset has some; a
distilled run is compared only with plain runs that differ from it in nothing but the teacher, and what is compared over
other epochs says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kd.errors import DataError, RunError, UsageError
from kd.files import require_no_input, write_all
from kd.locks import hold
from kd.reports.device import device_figure, device_table, find_benches, machine, measured
from kd.reports.figures import detections_figure, gflops_figure, inline, teacher_runs
from kd.reports.markdown import text
from kd.reports.page import embedded, to_html
from kd.reports.published import Published, contradictions, file_of, read_published
from kd.reports.tables import (
    class_differences_table,
    class_names,
    differences_table,
    distilled_table,
    hardware_table,
    plain_table,
    runs_table,
    settings_line,
)
from kd.runs.arms import Arm, Contrast, arms_of, contrasts_of
from kd.runs.record import CONFIG, RESULTS, RUN, Run, read_runs
from kd.runs.statistics import LEAST_PAIRS
from schemas.strict import StrictError, read_json, read_yaml

HOW_TO_READ = (
    "Scores are in per cent, those of the last checkpoint and not the best: a best checkpoint is chosen on the "
    "validation images and flatters itself. They are of the test images, or of the validation images where a dataset "
    "has no test split. A column with a class's name is that class's mAP50-95. Where a row has several seeds it gives "
    "their mean \N{PLUS-MINUS SIGN} standard deviation."
)
HOW_PAIRED = (
    "Each run against the plain run of the same seed, all else being equal; the mean difference in percentage points, "
    f"its 95 % interval by Student's t, and how many pairs went up. Fewer than {LEAST_PAIRS} pairs prove nothing."
)

PLAN = "plan.yaml"  # in a sweep's folder
RUN_FILES = ("README.md", CONFIG, RUN, RESULTS)


@dataclass
class Pages:
    """What will be written: parts of the Markdown, pictures by file name, and their markup in the page."""

    stem: str
    parts: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    markup: dict[str, str] = field(default_factory=dict)

    def add(self, *parts: str) -> None:
        """Add parts, those that are empty left out."""
        self.parts += filter(None, parts)

    def picture(self, name: str, words: str, png: bytes, svg: bytes | None = None) -> None:
        """Add a picture: the Markdown shows the PNG, the page the SVG where there is one."""
        file = f"{self.stem}_{name}.png"
        self.files[file] = png
        link = quote(os.fsencode(file))
        self.markup[link] = inline(svg, words) if svg else embedded(png, words)
        self.add(f"![{words}]({link})")
        if svg:
            self.files[f"{self.stem}_{name}.svg"] = svg


def report(
    folder: str | Path,
    out: str | Path,
    *,
    published: str | Path | None = None,
    images: int = 4,
    device: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Write the report of all runs below ``folder``; returns ``{runs, pairs, unfinished, out, html}``.

    One process at a time writes it, all of its files or none.

    The page is ``out`` with the ending .html, pictures lie beside both. ``published`` is for `read_published`, by
    default what the plan of a sweep in ``folder`` names; ``images`` is how many Figure A1 shows, 0 for none; ``device``
    are bench.json files of `kd device-bench`, beside those below ``folder``. Raises RunError where there is no finished
    run, or a bench.json is none, DataError for published rows that are none, UsageError for another ending of ``out``.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix.lower() != ".md":
        raise UsageError(f"--out: got '{out}', expected a file name that ends in .md")
    with hold(out.with_name(f".{out.name}"), f"{out}: another process is writing this report"):
        return _report(folder, out, published, images, [Path(path) for path in device])


def _report(
    folder: Path, out: Path, published: str | Path | None, images: int, device: Sequence[Path]
) -> dict[str, Any]:
    html = out.with_suffix(".html")
    runs, unfinished = read_runs(folder)
    if not runs:
        found = f"{len(unfinished)} unfinished" if unfinished else "none"
        raise RunError(f"{folder}: got {found}, expected finished runs of kd train (run.json) at any depth below it")
    planned, complaint = _published_of_plan(folder)
    published = published or planned
    read = [run.folder / name for run in runs for name in RUN_FILES] + ([file_of(published)] if published else [])
    read += device
    require_no_input("--out", (out, html), read)
    rows = read_published(published) if published else []
    benches, broken = find_benches(folder, device)
    datasets = _by_dataset(runs)
    _require_known(rows, [name for name, _ in datasets], published)
    pages, pairs = Pages(out.stem), 0
    pages.add("# Runs with and without distillation", HOW_TO_READ)
    left_out = {**unfinished, **_failures(folder), **complaint, **broken}
    for i, (name, members) in enumerate(datasets):
        arms, repeats = arms_of(members)
        left_out |= repeats
        contrasts = contrasts_of(arms)
        pairs += sum(len(contrast.pairs) for contrast in contrasts if not contrast.longer)
        mine = [row for row in rows if row.data in (None, name)]
        _dataset(pages, f"_{i + 1}" if i else "", name, arms, contrasts, mine, images)
    for i, bench in enumerate(benches):
        _device(pages, f"_{i + 1}" if i else "", bench)
    pages.add("## Appendix", "### All runs, all seeds", runs_table(runs, out.parent))
    if left_out:
        lines = [f"- {text(name)}: {text(reason)}" for name, reason in sorted(left_out.items())]
        pages.add("### Unfinished and failed runs, counted nowhere", "\n".join(lines))
    pages.add("### Hardware and versions", hardware_table(runs))
    markdown = "\n\n".join(pages.parts) + "\n"
    page = to_html(markdown, pages.markup, pages.parts[0].removeprefix("# "))
    pictures = {out.with_name(name): content for name, content in pages.files.items()}
    write_all({**pictures, html: page, out: markdown})
    return {"runs": len(runs), "pairs": pairs, "unfinished": len(left_out), "out": str(out), "html": str(html)}


def _dataset(
    pages: Pages, number: str, name: str, arms: list[Arm], contrasts: list[Contrast], rows: list[Published], images: int
) -> None:
    """Tables 2 and 3, the paired differences, Figures 2 and A1 of one dataset."""
    runs = [run for arm in arms for run in arm]
    classes = class_names(runs)
    split = "test" if "test" in runs[0].record["metrics"]["last"] else "val"
    counted = runs[0].scores()
    pages.add(f"## {text(name)}", f"{counted['images']} {split} images with {counted['instances']} objects. "
              f"{settings_line(arms)}".strip())  # fmt: skip
    if rows:
        pages.add(
            f"*In italics, and as hollow marks: figures as published by {_sources(rows)}. They are theirs, on their "
            "data, and were not measured here.*"
        )
        pages.add(_footnote(rows))
    pages.add("### Table 2: trained without distillation", plain_table(arms, classes, rows))
    if any(arm[0].taught for arm in arms) or any(row.teacher for row in rows):
        pages.add("### Table 3: trained with distillation", distilled_table(arms, contrasts, classes, rows))
    if contrasts:
        pages.add("### Paired differences", HOW_PAIRED, differences_table(contrasts))
    elif any(arm[0].taught for arm in arms):
        pages.add("No distilled run here has a plain twin: same student, data, seed, epochs, image size and settings.")
    taught = teacher_runs(runs)
    figure = gflops_figure(arms, [arm for arm in arms if any(run in taught for run in arm)], rows, split)
    if figure:
        pages.add("### Figure 2: mAP against GFLOPs")
        pages.picture(f"figure2{number}", "mAP50-95 against GFLOPs", *figure)
        pages.add("Small dots are single runs, marks are means over seeds. Arms of one model stand side by side at its "
                  f"GFLOPs. The same as [SVG]({quote(os.fsencode(f'{pages.stem}_figure2{number}.svg'))}).")  # fmt: skip
    if images and contrasts:
        found = detections_figure(contrasts, runs, images)
        if isinstance(found, str):
            pages.add(f"Figure A1, detections side by side, is left out: {text(found)}.")
        else:
            pages.add("### Figure A1: detections side by side")
            pages.picture(
                f"figureA1{number}", "Detections of the plain student, the distilled one and the teacher", found[0]
            )
            pages.add(text(found[1]))
        pages.add(_times(rows))
    if contrasts and classes:
        pages.add("### Paired differences by class", class_differences_table(contrasts, classes))


def _device(pages: Pages, number: str, bench: dict[str, Any]) -> None:
    """Table and picture of what models cost on one machine."""
    pages.add(f"## On the device: {text(machine(bench))}", text(measured(bench)), device_table(bench))
    if figure := device_figure(bench):
        pages.picture(f"device{number}", "mAP50-95 against milliseconds", *figure)


def _by_dataset(runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Runs on the same files together, under the name of their dataset: ``tiles/data.yaml``."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.record["data_sha256"], []).append(run)
    return [("/".join(Path(group[0].config["data"]).parts[-2:]), group) for group in groups.values()]


def _failures(folder: Path) -> dict[str, str]:
    """What sweeps below ``folder`` noted as failed: run -> reason."""
    failed: dict[str, str] = {}
    for path in sorted(folder.rglob("failures.json")):
        home = path.parent.relative_to(folder)
        try:
            found = read_json(path)
        except (OSError, StrictError):
            found = None
        rows = found if isinstance(found, dict) else {path.name: "no list of failed runs that kd sweep wrote"}
        failed |= {(home / name).as_posix(): str(reason) for name, reason in rows.items()}
    return failed


def _require_known(rows: Sequence[Published], datasets: Sequence[str], path: str | Path | None) -> None:
    for i, row in enumerate(rows, 1):
        if row.data not in (None, *datasets):
            raise DataError(f"{path}: row {i}: data: got {row.data!r}, expected one of {', '.join(datasets)}")


def _published_of_plan(folder: Path) -> tuple[str | None, dict[str, str]]:
    """What the plan of a sweep in ``folder`` names as published rows; for one that cannot be read, what is amiss."""
    try:
        plan = read_yaml(folder / PLAN)
    except FileNotFoundError:
        return None, {}
    except (OSError, StrictError):
        return None, {PLAN: "no plan that kd sweep wrote"}
    named = plan.get("published") if isinstance(plan, dict) else None
    return (named if isinstance(named, str) else None), {}


def _footnote(rows: Iterable[Published]) -> str:
    """What cannot be right in published rows; nothing where all may be."""
    odd = [text(line) for line in contradictions(rows)]
    words = "Some of these rows are odd in themselves: a score is the mean of its classes' scores, and here they differ"
    return f"{words} by more than rounding explains: {'; '.join(odd)}." if odd else ""


def _times(rows: Iterable[Published]) -> str:
    """Published inference times, for the caption of Figure A1."""
    times = [f"{text(row.title)} {row.inference_ms:g} ms" for row in rows if row.inference_ms]
    return f"*As published, on their hardware: {', '.join(times)}.*" if times else ""


def _sources(rows: Iterable[Published]) -> str:
    return "; ".join(text(source) for source in dict.fromkeys(row.source for row in rows))
