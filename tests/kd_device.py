"""Results of `kd device-bench` written by hand, and what a process of its may do; nothing here loads torch."""

from __future__ import annotations

import json
import os
import signal
import time

import jsonschema

import schemas

TEACHER, STUDENT = "a" * 64, "b" * 64


def row(name, format="openvino", precision="float32", *, of=TEACHER, ms=20.0, map50_95=0.5, speed=1.0, **changes):
    return {
        "model": f"files/{name}", "name": name, "format": format, "imgsz": 192, "sha256": "c" * 64,
        "checkpoint_sha256": of, "bytes": 12_800_000, "device": "cpu", "precision": precision, "peak_mib": 800.4,
        "model_mib": 100.6, "median_ms": ms, "p95_ms": 1.2 * ms, "whole_median_ms": ms + 3, "whole_p95_ms": 1.3 * ms,
        "speed": speed, "map50": 0.8, "map50_95": map50_95, **changes,
    }  # fmt: skip


def found(*rows, processor="AMD EPYC", **changes):
    """A bench.json of these rows, by default of a float teacher, its INT8 form and a student of another format."""
    rows = rows or (
        row("teacher"),
        row("teacher-int8", precision="INT8 + float32", ms=9.0, map50_95=0.497, speed=2.222, bytes=3_600_000),
        row("student", "onnx", of=STUDENT, ms=8.0, map50_95=None, speed=2.5, peak_mib=None, model_mib=None),
    )
    bench = {
        "data": "/somewhere/tiles/data.yaml", "data_sha256": "d" * 64, "split": "test", "images": 72, "instances": 925,
        "threads": 1, "runs": 100, "versions": {"dtld-kd": "0.1.0", "openvino": "2026.4.1"}, "models": list(rows),
        "hardware": {"processor": processor, "features": ["avx512_vnni"], "cores": 2, "system": "Linux x86_64"},
        **changes,
    }  # fmt: skip
    jsonschema.validate(bench, schemas.load("device"))
    return bench


def canned(models, images, rounds, quiet):
    """In place of what the processes measure: 20 ms of the first model, 8 of the next, every fifth run slower."""
    own = {"device": "cpu", "precision": "float32", "peak_mib": 800.0, "model_mib": 50.0}
    slow = [[(ms, ms + 2)] * 4 + [(3 * ms, 3 * ms + 2)] for ms in (20.0, 8.0)]
    return [times * rounds for times in slow][: len(models)], [own] * len(models)


def write(path, bench):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bench))
    return path


def die(_):
    """As a process that has no memory left."""
    os._exit(1)


def kill_the_command(_):
    """As a machine without memory does to the largest process; what calls it lives on."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(20)
    os._exit(1)
