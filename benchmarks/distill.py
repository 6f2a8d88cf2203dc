"""What distilling costs on this machine: training steps of every method, and an epoch against Ultralytics' own.

Steps are those of `kd bench`. An epoch is one of `kd train --method fgfi` and one of Ultralytics' `distill_model=`, of
the same models, data and settings, each in a process of its own, in turns. Ultralytics leaves one core unused on a CPU;
it is timed as it comes and, to be fair, with the threads that kd uses. An epoch ends with its validation and the saving
of its checkpoints, as Ultralytics counts it in results.csv; loading and the last scoring are outside.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from kd.training.bench import bench
from kd.training.record import versions
from kd.ultra import session
from kd.ultra.data import image_files, resolve_data

STUDENT, TEACHER = "yolov5n", "yolov5s"
KD, BUILT_IN, EQUAL = "kd train --method fgfi", "built-in as it comes", "built-in, threads as kd"


def steps_table(found: dict[str, Any]) -> str:
    """Markdown of `kd bench`'s answer, times as ratios of the plain step."""
    plain = found["arms"]["plain"]["seconds"]
    lines = ["| step | ms | of a plain step | (step - plain) / teacher | peak MiB |", "| --- | --- | --- | --- | --- |"]
    for name, arm in found["arms"].items():
        over, peak = (
            "-" if arm[key] is None else f"{arm[key]:{form}}"
            for key, form in (("over_teacher", ".2f"), ("peak_mib", ".0f"))
        )
        lines.append(f"| {name} | {1000 * arm['seconds']:.1f} | {arm['seconds'] / plain:.3f} | {over} | {peak} |")
    return "\n".join([*lines, "", f"fgfi's masks: {found['mask_share']:.2%} of its step"])


def epoch_seconds(arm: str, data: Path, teacher: Path, options: argparse.Namespace) -> float:
    """Seconds of an epoch from fresh weights, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "run")
        if arm == KD:
            command = [
                "-c", "import cli; cli.kd()", "train", "--data", data, "--student", STUDENT, "--teacher", teacher,
                "--allow-weak-teacher", "--epochs", 1, "--imgsz", options.imgsz, "--batch", options.batch,
                "--device", "cpu", "--set", "workers=0", "--out", run,
            ]  # fmt: skip
        else:
            settings = {
                "data": str(data), "distill_model": str(teacher), "epochs": 1, "imgsz": options.imgsz,
                "batch": options.batch, "device": "cpu", "workers": 0, "plots": False, "save_dir": str(run),
            }  # fmt: skip
            command = [__file__, "--built-in", json.dumps(settings), *(["--equal-threads"] if arm == EQUAL else [])]
        ended = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{arm}: exit {ended.returncode}\n{ended.stderr[-2000:]}")
        with (run / "results.csv").open(encoding="utf-8") as file:
            return float(list(csv.DictReader(file))[-1]["time"])


def built_in(settings: dict[str, Any], equal_threads: bool) -> None:
    """Train by Ultralytics alone, as its user would."""
    model = YOLO(f"{STUDENT}.yaml")
    if equal_threads:
        model.add_callback("on_train_start", lambda _: torch.set_num_threads(session.TORCH_THREADS))
    model.train(**settings)


def epochs(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per arm and round, the arms in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        teacher = Path(scratch, "teacher.pt")
        names = resolve_data(options.data)["names"]
        model = DetectionModel(f"{TEACHER}.yaml", nc=len(names), verbose=False)
        model.names = names
        torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect"}}, teacher)
        seconds: dict[str, list[float]] = {KD: [], BUILT_IN: [], EQUAL: []}
        for number in range(options.rounds):
            for arm in list(seconds)[:: -1 if number % 2 else 1]:  # there and back, against drift
                seconds[arm].append(epoch_seconds(arm, options.data, teacher, options))
                print(f"{arm}: {seconds[arm][-1]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def epochs_table(seconds: dict[str, list[float]]) -> str:
    """Markdown of the medians and of kd's share in the others'."""
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    lines = ["| an epoch of | s | kd's share of it | rounds, s |", "| --- | --- | --- | --- |"]
    for arm, median in medians.items():
        rounds = " ".join(f"{value:.1f}" for value in seconds[arm])
        lines.append(f"| {arm} | {median:.1f} | {medians[KD] / median:.2f} | {rounds} |")
    return "\n".join(lines)


def main() -> None:
    """Print Markdown; add the figures to a JSON file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="data.yaml for the epochs; without it, steps alone")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="epochs per arm")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per arm; 0 for none")
    parser.add_argument("--json", type=Path, help="file to add the figures to")
    parser.add_argument("--built-in", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--equal-threads", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.built_in:
        built_in(options.built_in, options.equal_threads)
        return
    device = session.check_device("cpu")
    print(f"{session.device_name(device)}, {versions()}\n")
    found: dict[str, Any] = {"device": session.device_name(device), "versions": versions()}
    if options.steps:
        found["steps"] = bench(
            STUDENT, TEACHER, imgsz=options.imgsz, batch=options.batch, device="cpu", steps=options.steps
        )
        print(f"{TEACHER} -> {STUDENT}, {options.imgsz} px, batch {options.batch}\n\n{steps_table(found['steps'])}\n")
    if options.data:
        images = {split: len(image_files(files)) for split, files in _splits(options.data).items()}
        settings = {"data": options.data.resolve().parent.name, "images": images, "imgsz": options.imgsz}
        found["epochs"] = {**settings, "batch": options.batch, "seconds": epochs(options)}
        print(f"{settings['data']}, {images} images\n\n{epochs_table(found['epochs']['seconds'])}")
    if options.json:
        before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**before, **found}, indent=2) + "\n", encoding="utf-8")


def _splits(data: Path) -> dict[str, list[Path]]:
    found = resolve_data(data)
    return {split: found[split] for split in ("train", "val")}


if __name__ == "__main__":
    main()
