"""What the commands of `kd` print: results in, text on stdout.

Invariant: a value is one line of printable characters, whatever a file or a name holds; the standard library alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.text import one_line

NAME = 60  # characters of a class's name in a table


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2))


def warn(line: str) -> None:
    """A warning on stderr."""
    print(one_line(f"warning: {' '.join(line.split())}"), file=sys.stderr)


def say(line: str) -> None:
    """One line on stdout."""
    print(one_line(line))


def print_scores(title: str, scores: dict[str, Any]) -> None:
    """A line for all classes, and one for each."""
    names = [one_line(name, NAME) for name in scores["per_class"]]
    width = max(map(len, ("all", *names))) + 2
    skipped = f", {count(scores['skipped'], 'image')} left out" if scores.get("skipped") else ""
    say(f"{title}: {count(scores['images'], 'image')}, {count(scores['instances'], 'object')}{skipped}")
    print(f"  {'':<{width}}{'mAP50':>8}{'mAP50-95':>10}{'precision':>11}{'recall':>8}")
    print(
        f"  {'all':<{width}}{share(scores['map50']):>8}{share(scores['map50_95']):>10}"
        f"{share(scores['precision']):>11}{share(scores['recall']):>8}"
    )
    for name, row in zip(names, scores["per_class"].values(), strict=True):
        print(f"  {name:<{width}}{share(row['map50']):>8}{share(row['map50_95']):>10}")


def print_groups(scores: dict[str, Any]) -> None:
    """A line for each size and each city of whole frames, and what became of the tiles' detections."""
    print(f"  {'shorter side':<16}{'lights':>8}{'mAP50':>8}{'mAP50-95':>10}{'recall':>8}")
    for name, row in scores["per_size"].items():
        print(
            f"  {name + ' px':<16}{row['instances']:>8}{share(row['map50']):>8}{share(row['map50_95']):>10}"
            f"{share(row['recall']):>8}"
        )
    print(f"  {'city':<16}{'lights':>8}{'mAP50':>8}{'mAP50-95':>10}{'frames':>8}")
    for name, row in scores["per_city"].items():
        print(
            f"  {one_line(name, NAME):<16}{row['instances']:>8}{share(row['map50']):>8}{share(row['map50_95']):>10}"
            f"{row['frames']:>8}"
        )
    merged, ignored = count(scores["merged"], "detection"), count(scores["ignored"], "light")
    print(f"{count(scores['frames'], 'frame')}: {merged} merged away, {ignored} ignored")


def print_analysis(found: dict[str, Any]) -> None:
    """What each model misses, its errors by kind with the AP50 they cost, and where the page is."""
    noun, models = "frame" if found["full_frame"] else "image", found["models"]
    say(f"{found['split']}: {count(found['frames'], noun)}, {count(found['objects'], 'object')}")
    for row in models:
        its, what = row["critical"], found["critical"]["what"]
        ends = "" if its["interval95"] is None else f" [{', '.join(map(percent, its['interval95']))}]"
        say(
            f"{row['title']}: misses {its['missed']} of {its['objects']} {what}, {percent(its['share_missed'])} %{ends}"
        )
        rates = f"AP50 {percent(row['ap50'])}, recall {percent(row['recall'])}, precision {percent(row['precision'])}"
        say(f"  {rates}, {row['false_alarms_per_frame']:.2f} false alarms per {noun}")
    titles = [one_line(row["title"], NAME) for row in models]
    print(f"  {'errors, AP50 they cost':<24}{''.join(f'{title:>{max(16, len(title) + 2)}}' for title in titles)}")
    for kind in models[0]["errors"]:
        cells = [f"{row['errors'][kind]['count']}{percent(row['errors'][kind]['ap50_cost']):>7}" for row in models]
        shown = (f"{cell:>{max(16, len(title) + 2)}}" for cell, title in zip(cells, titles, strict=True))
        print(f"  {kind:<24}{''.join(shown)}")
    if pair := found["pair"]:
        alone = f"{titles[0]} alone finds {pair['first_alone']}, {titles[1]} alone {pair['second_alone']}"
        say(f"both find {pair['both']}, {alone}, neither {pair['neither']}; p = {pair['p']:.2g}")
    say(f"likely label errors: {len(found['suspects']['labels'])}")
    for place in filter(None, (found["label_errors"], found["out"])):
        say(place)


def print_run(out: Path, record: dict[str, Any]) -> None:
    """What `kd train` made: scores per split, weights that were measured, time, and where the student is."""
    for split, scores in record["metrics"]["last"].items():
        print_scores(f"{split}, last epoch", scores)
    if measured := record.get("batch_auto", {}).get("measured"):
        peak, memory = dict(measured)[record["config"]["batch"]] / 1e9, record["batch_auto"]["memory_bytes"] / 1e9
        say(f"batch: {record['config']['batch']}, measured to take {peak:.1f} of {memory:.1f} GB")
    if balanced := (record["kd"] or {}).get("balanced_weights"):
        say(f"balanced weights: {named_weights(balanced)}")
    say(f"{out}: {count(record['epochs'], 'epoch')} in {record['wall_time_s']:.0f} s on {record['device']}")
    say(f"weights: {out / 'weights' / 'best.pt'}, {out / 'weights' / 'last.pt'}")


def print_inherited(found: dict[str, Any]) -> None:
    """The share of the teacher's variance that each layer of a student reproduces, and its score before training."""
    say(f"{found['student']}, {count(found['images'], 'image')} at {found['imgsz']} px, {found['seconds']:.0f} s")
    print(f"  {'layer':<8}{'reproduced':>12}")
    for layer, reproduced in found["reproduced"].items():
        print(f"  {layer:<8}{share(reproduced):>12}")
    for name, what in (("fresh", "left as drawn"), ("copied", "copied channel by channel")):
        if found[name]:
            say(f"{count(len(found[name]), 'convolution')} {what}: {', '.join(found[name])}")
    say(f"val, before any training: mAP50 {share(found['map50'])}, mAP50-95 {share(found['map50_95'])}")
    say(f"{found['out']}: {found['params'] / 1e6:.2f} M parameters; go on with kd train --student {found['out']}")


def print_cached(found: dict[str, Any]) -> None:
    """What `kd cache` has written."""
    images, each = count(found["images"], "image"), found["bytes"] / found["images"]
    say(f"{found['teacher']} at {found['imgsz']} px: {count(found['rows'], 'detection')} in {images}")
    say(f"{found['out']}: {each:.0f} bytes an image, {found['seconds']:.0f} s; go on with kd train --teacher-cache")


def print_exported(found: dict[str, Any]) -> None:
    """What `kd export` has written, and how near it is to the checkpoint."""
    metadata, checked = found["metadata"], found["checked"]
    say(f"{found['out']}: {found['format']}, {found['imgsz']} px, {found['bytes'] / 1e6:.1f} MB")
    if checked:
        images = count(checked["images"], "training image") if checked["data"] else "an image of noise"
        px, score = f"{checked['max_px']:.2g} px, on average {checked['mean_px']:.2g} px", f"{checked['max_score']:.2g}"
        say(f"checked on {images}: boxes differ by up to {px}, scores by up to {score}")
        say(f"allowed for this format: {checked['tolerance']}")
    say(f"in its metadata: {', '.join(f'{key} {value}' for key, value in metadata.items())}")


def print_quantized(found: dict[str, Any]) -> None:
    """What `kd quantize` has written, what was tried, and what INT8 costs and gains."""
    say(f"{found['out']}: INT8, {found['format']}, {found['imgsz']} px, {found['bytes'] / 1e6:.2f} MB")
    say(f"on {count(found['images'], 'training image')}, mAP50-95 and ms of the network here:")
    for name in ("float", "int8"):
        row = found[name]
        say(f"  {name:<6} {100 * row['map50_95']:5.1f}  {row['ms']:7.2f} ms  {row['bytes'] / 1e6:6.2f} MB")
    for row in found["tried"]:
        chosen = "stays float" if row["kept_float"] == found["kept_float"] else "was tried"
        say(f"{chosen}: {row['kept_float']} ({100 * row['map50_95']:.1f})")


DEVICE_WORDS = ("model", "format", "precision")
DEVICE_COLUMNS = (
    *DEVICE_WORDS, "px", "MB", "ms", "p95", "ms with NMS", "speed", "peak MiB", "model MiB", "mAP50", "mAP50-95",
)  # fmt: skip


def device_cells(row: Mapping[str, Any]) -> list[str]:
    """A model of `kd device-bench` as a row of a table with `DEVICE_COLUMNS`."""
    memory = [row[key] for key in ("peak_mib", "model_mib")]
    return [
        one_line(row["name"], NAME),
        row["format"],
        row["precision"] or "-",
        str(row["imgsz"]),
        f"{row['bytes'] / 1e6:.1f}",
        *(f"{row[key]:.1f}" for key in ("median_ms", "p95_ms", "whole_median_ms")),
        f"{row['speed']:.2f}",
        *("-" if mib is None else f"{mib:.0f}" for mib in memory),
        *(percent(row[key]) for key in ("map50", "map50_95")),
    ]


def print_device(machine: str, found: dict[str, Any]) -> None:
    """What `kd device-bench` measured, a row for each model."""
    say(machine)
    say(f"{found['data']}, {found['split']}: {count(found['images'], 'image')}, {count(found['instances'], 'object')}")
    columns = list(zip(DEVICE_COLUMNS, *map(device_cells, found["models"]), strict=True))
    for line in zip(*map(_aligned, columns), strict=True):
        say(f"  {'  '.join(line)}")
    say(f"ms: the network alone, median of {count(found['runs'], 'run')} in turns at batch 1; with NMS also letterbox")


def _aligned(column: Sequence[str]) -> list[str]:
    """A column's cells of one width: words to the left, figures to the right."""
    width = max(map(len, column))
    return [cell.ljust(width) if column[0] in DEVICE_WORDS else cell.rjust(width) for cell in column]


def print_predictions(out: Path, found: dict[str, Any]) -> None:
    """A line for each model of `kd predict`, and the picture."""
    for row in found["models"]:
        detections = count(row["detections"], "detection")
        say(f"{row['name']}: {detections}, {row['mean_ms']:.1f} ms per image on {found['device']}")
    say(f"{out}: {count(found['images'], 'image')}")


def print_tiled(found: dict[str, Any]) -> None:
    """What `kd predict --tiled` found, how fast, and where it is."""
    frames, boxes = count(found["frames"], "frame"), count(found["detections"], "detection")
    say(f"{found['model']}: {boxes} in {frames}, {found['frames_per_s']:.2f} frames/s on {found['device']}")
    say(f"{found['looked_at']} of {count(found['tiles'], 'tile')} looked at, seen at {found['imgsz']} px")
    for place in (found[key] for key in ("out", "save_txt", "coco") if found[key]):
        say(place)


def print_bench(pair: str, batch: int, steps: int, found: dict[str, Any]) -> None:
    """A row for each kind of step that `kd bench` timed."""
    say(
        f"{pair}, {found['imgsz']} px, batches of {batch} with {found['boxes']} boxes, "
        f"median of {count(steps, 'step')} on {found['device']}"
    )
    say(f"  {'':<20}{'ms':>9}{'(step - plain) / teacher':>27}{'peak MiB':>11}")
    for name, arm in found["arms"].items():
        over = "-" if arm["over_teacher"] is None else f"{arm['over_teacher']:.2f}"
        peak = "-" if arm["peak_mib"] is None else f"{arm['peak_mib']:.0f}"
        say(f"  {name:<20}{1000 * arm['seconds']:>9.1f}{over:>27}{peak:>11}")
    if found["mask_share"] is not None:
        say(f"fgfi's masks: {found['mask_share']:.2%} of its step")
    for name, reason in found["left_out"].items():
        say(f"left out: {name}: {reason}")


def print_report(out: Path, written: dict[str, Any]) -> None:
    """What is in the report."""
    runs, pairs = count(written["runs"], "run"), count(written["pairs"], "pair")
    left = f", {written['unfinished']} unfinished or failed" if written["unfinished"] else ""
    say(f"{out}: {runs}, {pairs} of a distilled and a plain run{left}; the same as {written['html']}")


def print_sweep(out: Path, found: dict[str, Any]) -> None:
    """How far a sweep is; of a dry run, each run as well.

    >>> print_sweep(Path("out"), {"runs": 2, "finished": 2, "seconds_left": 0})
    out: 2 runs, 2 finished
    """
    for row in found.get("plan", ()):
        seconds = "" if row["seconds"] is None else f", about {row['seconds']:.0f} s"
        models = "".join(f", {key} {row[key]}" for key in ("inherit", "teacher") if row[key])
        say(f"{row['run']}: {row['state']}, epochs {row['epochs']}{models}{seconds}")
    left = "" if not found["seconds_left"] else f", about {found['seconds_left'] / 60:.0f} min left"
    say(f"{out}: {count(found['runs'], 'run')}, {found['finished']} finished{left}")


def share(value: float | None) -> str:
    """A share of 1 with three decimals, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share of 1 in per cent, or a dash where there is none.

    >>> percent(0.31), percent(-1e-9), percent(None)
    ('31.0', '0.0', '-')
    """
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, '+1.0', or a dash where there is none."""
    return "-" if difference is None else f"{100 * difference:+.1f}"


def named_weights(weights: Mapping[str, float]) -> str:
    """Weights by name.

    >>> named_weights({"fgfi": 0.012345, "cwd": 1})
    'fgfi 0.01235, cwd 1'
    """
    return ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
