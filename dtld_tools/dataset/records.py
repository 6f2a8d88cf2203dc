"""Frames and images of a dataset in, their lines of frames.jsonl and manifest.jsonl and their labels out, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dtld_tools.types import Box, Dropped, FrameRecord, ImageRecord, SequenceId, Target, Window


def frame_to_json(frame: FrameRecord) -> dict[str, Any]:
    """A frame as its line of frames.jsonl; see schemas/frame.schema.json."""
    return {
        "frame": frame.frame,
        **frame.sequence._asdict(),
        "split": frame.split,
        "width": frame.width,
        "height": frame.height,
        "lights": [_light_to_json(light) for light in frame.lights],
        "dropped": [_dropped_to_json(dropped) for dropped in frame.dropped],
    }


def frame_from_json(line: Mapping[str, Any]) -> FrameRecord:
    """The inverse of `frame_to_json`."""
    return FrameRecord(
        frame=line["frame"],
        sequence=SequenceId(line["city"], line["route"], line["sequence"]),
        split=line["split"],
        width=line["width"],
        height=line["height"],
        lights=tuple(
            Target(light["class"], Box(*light["box"]), light["id"], light.get("attributes"), light.get("distance_m"))
            for light in line["lights"]
        ),
        dropped=tuple(map(_dropped_from_json, line["dropped"])),
    )


def image_to_json(image: ImageRecord) -> dict[str, Any]:
    """An image as its line of manifest.jsonl; see schemas/manifest.schema.json."""
    return {
        "name": image.name,
        "split": image.split,
        "frame": image.frame,
        **image.sequence._asdict(),
        "window": image.window._asdict(),
        "scale": image.scale,
        "augmentation": image.augmentation,
        "targets": image.targets,
        "slivers": image.slivers,
        "masked": image.masked,
    }


def image_from_json(line: Mapping[str, Any]) -> ImageRecord:
    """The inverse of `image_to_json`."""
    return ImageRecord(
        name=line["name"],
        split=line["split"],
        frame=line["frame"],
        sequence=SequenceId(line["city"], line["route"], line["sequence"]),
        window=Window(**line["window"]),
        scale=line["scale"],
        augmentation=line["augmentation"],
        targets=tuple(line["targets"]),
        slivers=tuple(line["slivers"]),
        masked=tuple(line["masked"]),
    )


def label_text(targets: Sequence[Target], size_wh: tuple[int, int]) -> str:
    """A YOLO label file: ``class xc yc w h`` per target, shares of the image's size with 6 decimals.

    >>> label_text([Target(1, Box(0, 0, 64, 32), 7)], (640, 640))
    '1 0.050000 0.025000 0.100000 0.050000\\n'
    """
    width, height = size_wh
    return "".join(
        f"{t.class_id} {(t.box.x1 + t.box.x2) / 2 / width:.6f} {(t.box.y1 + t.box.y2) / 2 / height:.6f} "
        f"{t.box.width / width:.6f} {t.box.height / height:.6f}\n"
        for t in targets
    )


def _light_to_json(light: Target) -> dict[str, Any]:
    line: dict[str, Any] = {"id": light.light_id, "class": light.class_id, "box": list(light.box)}
    return line | _described(light)


def _dropped_to_json(dropped: Dropped) -> dict[str, Any]:
    line: dict[str, Any] = {"id": dropped.light_id, "reason": dropped.reason}
    if dropped.class_id is not None:
        line["class"] = dropped.class_id
    if dropped.box is not None:
        line["box"] = list(dropped.box)
    return line | _described(dropped)


def _dropped_from_json(line: Mapping[str, Any]) -> Dropped:
    box = Box(*line["box"]) if "box" in line else None
    return Dropped(line["id"], line["reason"], line.get("class"), box, line.get("attributes"), line.get("distance_m"))


def _described(light: Target | Dropped) -> dict[str, Any]:
    """What is known of a light beside its class and its place."""
    known = {"attributes": light.attributes, "distance_m": light.distance_m}
    return {key: value for key, value in known.items() if value is not None}
