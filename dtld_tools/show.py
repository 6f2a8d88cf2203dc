"""Results in, text for a person out: what the commands of `dtld` print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from schemas.text import one_line

NAME = 80  # characters of a name among others in a line


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line. Names and values in it are other people's, so none can begin a line of its own."""
    print(one_line(line), file=file)


def print_json(value: dict[str, Any]) -> None:
    """One object, indented, on stdout."""
    print(json.dumps(value, indent=2))


def print_report(out: Path, report: dict[str, Any], as_json: bool) -> None:
    """The closing lines of a command that made a dataset; skipped frames go to stderr by name."""
    if as_json:
        print_json(report)
        return
    lights, images = report["lights"], report["images"]
    dropped = ", ".join(f"{reason} {n}" for reason, n in lights["dropped"].items())
    say(
        f"{out}: "
        + ", ".join(f"{split} {n}" for split, n in images.items())
        + f" images from {sum(report['frames'].values())} frames"
    )
    say(
        f"lights: {lights['in']} in = {lights['kept']} kept + {sum(lights['dropped'].values())} dropped"
        + (f" ({dropped})" if dropped else "")
        + f" + {lights['in_skipped_frames']} in skipped frames"
    )
    for name, counts in report["classes"].items():
        say(f"  {name}: {counts['lights']} lights, {sum(counts['targets'].values())} targets")
    if known := report.get("lights_with_distance"):
        say(f"{known} of {lights['kept']} lights have a distance")
    if report["padded_frames"]:
        say(f"{report['padded_frames']} frames are smaller than a tile and were padded with grey")
    for note in report["notes"]:
        say(f"note: {note}", file=sys.stderr)
    for skip in report["frames_skipped"][:10]:
        say(f"skipped: {skip['frame']}: {skip['reason']}", file=sys.stderr)
    if len(report["frames_skipped"]) > 10:
        say(f"skipped: {len(report['frames_skipped'])} frames in all, see report.json", file=sys.stderr)
    say(
        f"{len(report['frames_skipped'])} frames skipped; {report['wall_time_s']:.1f} s, "
        f"{report['frames_per_s']:.1f} frames/s"
    )


def print_inspection(found: dict[str, Any]) -> None:
    """What `dtld inspect` found, a few lines per topic."""
    cities = ", ".join(f"{one_line(city, NAME)} {n}" for city, n in found["cities"].items())
    say(f"{found['frames']:,} frames in {found['sequences']:,} sequences ({cities})")
    say(f"{found['lights']:,} lights, {found['attribute_combinations']} attribute combinations")
    for name, counts in found["attributes"].items():
        say(f"  {name:<12}" + _counts(counts))
    say("classes: " + _counts(found["classes"]))
    widths = found["box_width_px"]
    if widths:
        say("box width: " + ", ".join(f"{name} {value:g}" for name, value in widths.items()) + " px")
    say("problems: " + (", ".join(f"{kind} {n:,}" for kind, n in found["problems"].items()) or "none"))
    for value, n in found["unlisted_values"].items():
        say(f"  unlisted {value}: {n:,}, treated as unknown")
    if "anchors" in found:
        _print_anchors(found["anchors"], found["anchor_fit"])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{one_line(name, NAME)} {n:,}" for name, n in counts.items())


def _print_anchors(anchors: dict[str, list[list[float]]], fit: dict[str, Any]) -> None:
    """The priors by stride, and whether they fit better than YOLOv5's."""
    ours, theirs = fit["mean_best_iou"], fit["mean_best_iou_yolov5"]
    say(f"anchors: {fit['targets']:,} targets in tiles, mean best IoU {ours:.3f} (YOLOv5's anchors: {theirs:.3f})")
    for stride, priors in anchors.items():
        say(f"  stride {stride:<5}" + ", ".join(f"{width:g} x {height:g}" for width, height in priors) + " px")


def print_verdict(dataset: Path, found: dict[str, Any], as_json: bool) -> None:
    """What `dtld validate` found: defects and pairs of near duplicates by name on stderr, the verdict on stdout."""
    for defect in found["defects"]:
        say(f"error: {dataset}: {defect}", file=sys.stderr)
    pairs = found.get("near_duplicates", [])
    for pair in pairs[:20]:
        alike = "has the bytes of" if pair["identical"] else "is nearly"
        bits = "" if pair["identical"] else f", {pair['distance']} bits differ"
        say(f"error: {dataset}: {pair['b']} {alike} {pair['a']}{bits}", file=sys.stderr)
    if len(pairs) > 20:
        say(f"error: {dataset}: {len(pairs) - 20} more near duplicates; --json names all", file=sys.stderr)
    if as_json:
        print_json(found)
        return
    if "frames" in found:
        verdict = f"{len(found['defects'])} defects" if found["defects"] else "sound"
        say(f"{dataset}: {verdict}; {found['images']} images, {found['targets']} targets, {found['frames']} frames")
    else:
        say(f"{dataset}: was not made by dtld, so only near duplicates were looked for")
    if "near_duplicates" in found:
        say(f"{len(pairs)} near duplicates across splits among {found['compared']} images, {found['plain']} plain")


def print_export(made: dict[str, Any]) -> None:
    """What `dtld export` wrote, and for label files what a trainer will find by data.yaml."""
    if made.get("splits"):
        say("data.yaml: " + ", ".join(f"{split} {n:,}" for split, n in made["splits"].items()) + " images")
    notes = {
        "in_no_split": "images are in no split: no folder of theirs is called train, val or test",
        "missing_images": "images of these are missing in their folders",
        "unlisted_images": "images are there that the COCO file lacks: they train as images without objects",
    }
    for key, note in notes.items():
        if made.get(key):
            say(f"{made[key]:,} {note}")
    left_out = ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in made.get("left_out", {}).items())
    say(
        f"{made['out']}: {made['images']:,} images, {made['annotations']:,} boxes, {len(made['categories'])} classes"
        + (f"; left out: {left_out}" if left_out else "")
    )
