"""The pairs of student and teacher that are trained for a step: the one source of a test and of the table
in docs/distilling.md."""

from __future__ import annotations

from kd.methods.facts import DEFAULT_WEIGHTS, NEEDS_QUERIES

# The methods for two models with YOLO's head, with their default weights.
YOLO_METHODS = {name: weight for name, weight in DEFAULT_WEIGHTS.items() if name not in NEEDS_QUERIES}

# Student -> teachers with the strides they share. Every student has two teachers, every teacher a student.
PAIRS: dict[str, dict[str, tuple[int, ...]]] = {
    "yolov3-tiny": {"yolov8n-p6": (16, 32), "yolo26n": (16, 32)},
    "yolov5n": {"yolov3-tiny": (16, 32), "rtdetr-l": (8, 16, 32)},
    "yolov5n-p6": {"yolov8n-p6": (8, 16, 32, 64), "yolov9t": (8, 16, 32)},
    "yolov6n": {"yolov6n": (8, 16, 32), "yolov8n-seg": (8, 16, 32)},
    "yolov8n": {"yolov8n-p2": (8, 16, 32), "yolo11n-seg": (8, 16, 32)},
    "yolov8n-p2": {"yolo26n-p2": (4, 8, 16, 32), "yolov5n-p6": (8, 16, 32)},
    "yolov8n-p6": {"yolo26n-p6": (8, 16, 32, 64), "yolov10n": (8, 16, 32)},
    "yolov8n-ghost": {"yolov8n": (8, 16, 32), "yolov8n-ghost": (8, 16, 32)},
    "yolov9t": {"yolo12n": (8, 16, 32), "yolov8n-rtdetr": (8, 16, 32)},
    "yolov10n": {"yolov10n": (8, 16, 32), "yolo26n-seg": (8, 16, 32)},
    "yolo11n": {"yolo11n": (8, 16, 32), "yolov5n": (8, 16, 32)},
    "yolo12n": {"yolo26n-p6": (8, 16, 32), "yolov8n-pose": (8, 16, 32)},
    "yolo26n": {"yolov8n-p2": (8, 16, 32), "yolo26n": (8, 16, 32)},
    "yolo26n-p2": {"yolov8n-p2": (4, 8, 16, 32), "yolo11n": (8, 16, 32)},
    "yolo26n-p6": {"yolov5n-p6": (8, 16, 32, 64), "yolo12n": (8, 16, 32)},
    "mobilenet_v2": {"yolov8n": (8, 16, 32), "mobilenet_v3_small": (8, 16, 32)},
    "mobilenet_v3_small": {"yolo11n": (8, 16, 32), "mobilenet_v2": (8, 16, 32)},
    "rtdetr-p": {"yolov8n": (8, 16, 32), "rtdetr-p": (8, 16, 32)},
}

# Students and teachers that no method on cells goes with: a decoder in the head's place.
DECODERS = frozenset({"rtdetr-l", "yolov8n-rtdetr", "rtdetr-p"})

# Architectures that are no students.
REFUSED = ("yolov8n-seg", "yolo26n-pose", "yolo11n-obb", "yolov8n-cls", "yolov8n-world")


def table() -> str:
    """The table of pairs in docs/distilling.md: a row per student, its teachers with the shared strides."""
    lines = ["| student | taught for a step by (shared strides) |", "| --- | --- |"]
    for student, teachers in PAIRS.items():
        cells = (f"{teacher} ({', '.join(map(str, strides))})" for teacher, strides in teachers.items())
        lines.append(f"| {student} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"
