"""Finished runs written by hand, for the tests of what reads them."""

from __future__ import annotations

import json

import jsonschema

import schemas

DATA, OTHER_DATA, WEIGHTS = "a" * 64, "b" * 64, "c" * 64
ADAMW = {"name": "AdamW", "lr0": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0}
MUSGD = {"name": "MuSGD", "lr0": 0.01, "momentum": 0.937, "warmup_bias_lr": 0.0}


def scores(map50, map50_95, classes=("relevant", "not_relevant"), images=20):
    return {
        "images": images, "instances": 50, "map50": map50, "map50_95": map50_95, "precision": 0.5, "recall": 0.5,
        "per_class": {
            classes[0]: {"map50": map50, "map50_95": map50_95}, classes[1]: {"map50": None, "map50_95": None},
        },
    }  # fmt: skip


def write_run(
    folder,
    last,
    *,
    seed=0,
    teacher=None,
    student="yolov5n",
    data=DATA,
    test=True,
    gflops=None,
    optimizer=ADAMW,
    inherit=None,
    anchors=None,
    **config,
):
    """A finished run whose last checkpoint has these shares (mAP50, mAP50-95); its best ones are 0.01 higher.

    ``teacher`` and ``inherit`` are names of runs.
    """
    folder.mkdir(parents=True)
    best = tuple(share + 0.01 for share in last)
    asked = {
        "data": "/somewhere/tiles/data.yaml", "student": student, "out": str(folder), "device": "cpu", "seed": seed,
        "teachers": [f"/somewhere/{teacher}/weights/best.pt"] if teacher else [],
        "methods": {"fgfi": 0.01} if teacher else {}, "epochs": 30, "imgsz": 640, "batch": 16, "freeze": 0,
        "settings": {}, **({"inherit": f"/somewhere/{inherit}/weights/best.pt"} if inherit else {}), **config,
    }  # fmt: skip
    inherited = {
        "teacher_sha256": WEIGHTS, "worth": {"images": 5, "teacher_map50": 0.8, "student_map50": None}, "images": 80,
        "seconds": 9.4, "reproduced": {"0": 0.99}, "copied": [], "fresh": [], "map50": 0.4, "map50_95": 0.2,
    }  # fmt: skip
    taught = {
        "sha256": WEIGHTS, "weight": 1, "adapter_params": 9, "levels": [
            {"stride": 8, "teacher_stride": 8, "student_channels": 64, "teacher_channels": 128}
        ], "worth": {"images": 5, "teacher_map50": 0.8, "student_map50": None},
    }  # fmt: skip
    record = {
        "config": asked, "data_sha256": data, "student_sha256": None, "kd": {"teachers": [taught]} if teacher else None,
        "images": {"train": 80, "val": 10, "test": 20 if test else 0},
        "metrics": {
            name: {"val": scores(0.11, 0.05, images=10), **({"test": scores(*shares)} if test else {})}
            for name, shares in (("last", last), ("best", best))
        },
        "params": 25_300_000 if student == "yolov5m" else 2_650_000,
        "gflops": gflops or (64.0 if student == "yolov5m" else 7.7),
        "versions": {"dtld-kd": "0.1.0", "python": "3.11", "torch": "2.15", "ultralytics": "8.4.190"},
        "device": "cpu x86_64, 2 threads", "epochs": 30, "resumed": False, "wall_time_s": 61.4,
        "optimizer": optimizer, **({"inherited": inherited} if inherit else {}),
        **({"anchors": anchors} if anchors else {}),
    }  # fmt: skip
    jsonschema.validate(record, schemas.load("run"))
    (folder / "config.json").write_text(json.dumps({"config": asked}))
    (folder / "run.json").write_text(json.dumps(record))
    return folder
