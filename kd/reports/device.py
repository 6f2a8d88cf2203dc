"""What `kd device-bench` measured, as a table and a picture: mAP against milliseconds, a machine at a time.

In: bench.json files, from whatever machines. Out: Markdown, PNG and SVG.
Invariant: times of two files never stand in one table, for they were not taken in turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kd.errors import RunError
from kd.files import whole_folder
from kd.reports.figures import COLOURS, GREY, PAPER, STYLE, encoded, frame, plain
from kd.reports.markdown import table, text
from kd.runs.record import read_by_schema
from kd.show import DEVICE_COLUMNS, count, device_cells

BENCH = "bench.json"
MARKS = {"pt": "o", "onnx": "s", "openvino": "D", "engine": "^", "ncnn": "v"}  # of formats; of others a P
Row = dict[str, Any]


def read_bench(path: Path) -> dict[str, Any]:
    """The content of a bench.json. Raises RunError where it is none of kd device-bench."""
    return read_by_schema(path, "device", "kd device-bench")


def find_benches(folder: Path, given: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What the given files hold, then every bench.json below ``folder``, and of those by name what is amiss with some.

    A file counts once. Raises RunError for a given one that is none.
    """
    known = {path.resolve(): path for path in given}
    found, amiss = [read_bench(path) for path in known.values()], {}
    for path in (path for path in sorted(folder.rglob(BENCH)) if path.resolve() not in known):
        try:
            found.append(read_bench(path))
        except RunError as error:
            amiss[path.relative_to(folder).as_posix()] = str(error).removeprefix(f"{path}: ")
    return found, amiss


def write_bench(found: dict[str, Any], folder: Path) -> None:
    """Write bench.json and its picture into a new folder."""
    png, svg = device_figure(found) or (b"", b"")
    with whole_folder(folder) as partial:
        (partial / BENCH).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        for name, content in (("figure.png", png), ("figure.svg", svg)):
            if content:
                (partial / name).write_bytes(content)


def machine(found: dict[str, Any]) -> str:
    """'AMD EPYC (avx512_vnni), 1 thread on 2 cores, Linux x86_64'.

    >>> hardware = {"processor": "Cortex-A78AE", "features": [], "cores": 6, "system": "Linux aarch64"}
    >>> machine({"hardware": hardware, "threads": 4, "models": [{"device": "cpu"}, {"device": "Orin"}]})
    'Cortex-A78AE, 4 threads on 6 cores, Orin, Linux aarch64'
    """
    own = found["hardware"]
    features = f" ({', '.join(own['features'])})" if own["features"] else ""
    devices = [name for name in dict.fromkeys(row["device"] for row in found["models"]) if name != "cpu"]
    cores = f"{count(found['threads'], 'thread')} on {count(own['cores'], 'core')}"
    return ", ".join([own["processor"] + features, cores, *devices, own["system"]])


def measured(found: dict[str, Any]) -> str:
    """Of what the figures of a table are."""
    data = "/".join(Path(found["data"]).parts[-2:])
    images, objects, runs = (
        count(found[key], noun) for key, noun in (("images", "image"), ("instances", "object"), ("runs", "run"))
    )
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{images} of {data}, {found['split']}, with {objects}, padded to squares. ms is the median of {runs} of the "
        "network alone, at batch 1, the models in turns; with NMS has letterbox and NMS, too; speed is the median of "
        "the first row over a row's own. Peak MiB is the resident memory of a process with Python and torch, model MiB "
        f"what the model and its runtime added. {versions}."
    )


def device_table(found: dict[str, Any]) -> str:
    """A row per model, in Markdown."""
    return table(list(DEVICE_COLUMNS), [list(map(text, device_cells(row))) for row in found["models"]])


def device_figure(found: dict[str, Any]) -> tuple[bytes, bytes] | None:
    """mAP50-95 against the network's median time: a colour per checkpoint, a mark per format, hollow for INT8.

    A line joins what one runtime makes of one checkpoint. Returns PNG and SVG; None where nothing has a score.
    """
    rows = [row for row in found["models"] if row["map50_95"] is not None]
    if not rows:
        return None
    colours = _colours(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        times = [row["median_ms"] for row in rows]
        cores = count(found["threads"], "thread")
        frame(
            axes, times, f"ms per image: the network alone, batch 1, {cores}", f"mAP50-95 on {found['split']} images, %"
        )
        scores = [100 * row["map50_95"] for row in rows]
        room = max(0.12 * (max(scores) - min(scores)), 1)
        axes.set_ylim(max(-room / 4, min(scores) - room), max(scores) + room)
        for key in dict.fromkeys((_origin(row), row["format"]) for row in rows):
            mine = sorted(
                (row for row in rows if (_origin(row), row["format"]) == key), key=lambda row: row["median_ms"]
            )
            points = [row["median_ms"] for row in mine], [100 * row["map50_95"] for row in mine]
            axes.plot(*points, "-", lw=1.2, color=colours[key[0]], alpha=0.6)
            for row, x, y in zip(mine, *points, strict=True):
                axes.plot([x], [y], **_mark(row, colours[key[0]]), zorder=3)
        handles = _legend(rows, colours)
        figure.set_figheight(4.6 + 0.2 * -(-len(handles) // 2))
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
        return encoded(figure)


def _origin(row: Row) -> str:
    """What a file and its INT8 form have in common."""
    return row["checkpoint_sha256"] or row["sha256"]


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    origins = dict.fromkeys(map(_origin, rows))
    return {origin: COLOURS[i % len(COLOURS)] for i, origin in enumerate(origins)}


def _mark(row: Row, colour: str) -> dict[str, Any]:
    face = PAPER if "INT8" in (row["precision"] or "") else colour
    return {"marker": MARKS.get(row["format"], "P"), "ms": 8, "mfc": face, "mec": colour, "mew": 1.4, "ls": ""}


def _legend(rows: Sequence[Row], colours: dict[str, str]) -> list[Line2D]:
    """A line per checkpoint, called by the first of its rows, and a mark per kind of file."""
    names: dict[str, str] = {}
    for row in rows:
        names.setdefault(_origin(row), row["name"])
    kinds = {(row["format"], row["precision"]): row for row in rows}
    return [
        *(Line2D([], [], color=colours[origin], lw=2.5, label=plain(name)) for origin, name in names.items()),
        *(
            Line2D([], [], **_mark(row, GREY), label=plain(", ".join(filter(None, kind))))
            for kind, row in kinds.items()
        ),
    ]
