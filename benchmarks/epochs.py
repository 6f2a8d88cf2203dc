"""What an epoch costs, plain and distilled, and what is paid once: first weights, and a teacher's cache.

In: a dataset and a trained teacher. Out: Markdown, and JSON where a file is named. Epochs are those of `kd train` and
of Ultralytics' own trainer with the threads that kd uses, of the same student, data and settings, each in a process of
its own, in turns: from the start of the second to that of the last, so with validation and checkpoints and without
what is done once. Seconds are the processor's, which other work disturbs least; give it one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.callbacks.base import default_callbacks

import cli
from kd.distillation.cache import ask
from kd.inheritance.weights import inherit_weights
from kd.ultra import session
from kd.ultra.data import image_files, resolve_data
from kd.ultra.models import SHIPPED
from kd.ultra.session import versions

PLAIN, THEIRS, THEIR_DISTILLING = "kd train", "Ultralytics", "Ultralytics, distill_model="
INHERIT, CACHE = "kd inherit", "kd cache"
EPOCHS = 4  # the first and the last do not count


def arms(options: argparse.Namespace, scratch: Path) -> dict[str, list[str]]:
    """By name the words of `kd train`, or of Ultralytics' trainer its settings as JSON."""
    shared = {"epochs": EPOCHS, "imgsz": options.imgsz, "batch": options.batch, "device": "cpu"}
    sets = {"workers": 0, "plots": False, "cache": "ram"}
    kd = ["train", "--data", options.data, "--student", options.student, "--overwrite", "--out", scratch / "run"]
    kd += [word for key, value in shared.items() for word in (f"--{key}", value)]
    kd += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    by = ["--teacher", options.teacher, "--allow-weak-teacher", "--method"]
    theirs = {"data": str(options.data), **shared, **sets, "save_dir": str(scratch / "theirs"), "exist_ok": True}
    found = {
        THEIRS: [json.dumps(theirs)],
        PLAIN: kd,
        f"{PLAIN} --method soft-labels": [*kd, *by, "soft-labels", "--teacher-cache", scratch / "cache.npz"],
        f"{PLAIN} --method fgfi": [*kd, *by, "fgfi"],
        THEIR_DISTILLING: [json.dumps({**theirs, "distill_model": str(options.teacher)})],
    }
    return {name: [str(word) for word in words] for name, words in found.items()}


def epoch(words: list[str], student: str) -> dict[str, float]:
    """The seconds of an epoch that this process trains."""
    starts: list[float] = []
    default_callbacks["on_train_epoch_start"].append(lambda trainer: starts.append(time.process_time()))
    if words[0] == "train":
        sys.argv = ["kd", *words]
        try:
            cli.kd()
        except SystemExit as ended:
            if ended.code:
                raise
    else:
        default_callbacks["on_train_start"].append(lambda trainer: torch.set_num_threads(session.TORCH_THREADS))
        YOLO(student).train(**json.loads(words[0]))
    return {"seconds": (starts[-1] - starts[1]) / (len(starts) - 2)}


def once(name: str, options: argparse.Namespace) -> dict[str, float]:
    """The seconds and the growth of memory in MiB of `kd inherit` and `kd cache`, of the latter the teacher's share."""
    forward = _Forward()
    view, device = resolve_data(options.data), session.check_device("cpu")
    teacher, files = str(options.teacher), image_files(view["train"])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if name == CACHE:
        ask(teacher, files, options.imgsz, view["channels"], device)
        images = len(files)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch, "student.pt")
            found = inherit_weights(teacher, options.student, options.data, out, imgsz=options.imgsz, device="cpu")
        images = found["images"]
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "forward": forward.seconds, "grown_mib": grown, "images": images}


class _Forward:
    """Seconds that whole detectors take in this thread from now on."""

    def __init__(self) -> None:
        self.seconds = self._started = 0.0
        nn.modules.module.register_module_forward_pre_hook(self._begin)
        nn.modules.module.register_module_forward_hook(self._end)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if isinstance(module, DetectionModel):
            self._started = time.thread_time()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, DetectionModel):
            self.seconds += time.thread_time() - self._started


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each arm's rounds took, the arms in turns, there and back, against drift."""
    with tempfile.TemporaryDirectory() as scratch:
        todo = {**arms(options, Path(scratch)), INHERIT: [], CACHE: []}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in todo}
        for number in range(options.rounds):
            for name in list(todo)[:: -1 if number % 2 else 1]:
                child = json.dumps([name, todo[name]])
                ended = subprocess.run([sys.executable, *sys.argv, "--child", child], capture_output=True, text=True)
                if ended.returncode:
                    raise SystemExit(f"{name}: exit {ended.returncode}\n{ended.stderr[-2000:]}")
                found[name].append(json.loads(ended.stdout.splitlines()[-1]))
                print(f"{name}: {found[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown of the medians, of what stands in other columns its share, and of every round."""
    median = {name: statistics.median(r["seconds"] for r in rounds) for name, rounds in found.items()}
    lines = [f"| an epoch of | s | of {PLAIN} | of {THEIR_DISTILLING} | rounds, s |", "| --- | --- | --- | --- | --- |"]
    for name, rounds in found.items():
        shares = " | ".join(f"{median[name] / median[other]:.2f}" for other in (PLAIN, THEIR_DISTILLING))
        each = " ".join(f"{r['seconds']:.2f}" for r in rounds)
        lines.append(f"| {name} | {median[name]:.2f} | {shares} | {each} |")
    mib = {name: max(r["grown_mib"] for r in found[name]) for name in (INHERIT, CACHE)}
    share = statistics.median(r["forward"] / r["seconds"] for r in found[CACHE])
    images = {name: int(found[name][0]["images"]) for name in mib}
    return "\n".join(
        [
            *lines,
            "",
            *(f"{name}: {images[name]} images, {mib[name]:.0f} MiB at its peak" for name in mib),
            f"{CACHE}: {share:.2f} of it are the teacher's forward passes, loading it included",
        ]
    )


def main() -> None:
    """Print Markdown; add the figures to a JSON file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="a checkpoint of the student's family")
    parser.add_argument("--student", default=str(SHIPPED / "yolov8p.yaml"), help="its architecture, a yaml")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to add the figures to, under this setting")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, words = options.child
        print(json.dumps(epoch(words, options.student) if words else once(name, options)))
        return
    setting = f"{options.teacher.stem} -> {Path(options.student).stem}, {options.imgsz} px, batches of {options.batch}"
    found = measure(options)
    device = session.device_name(session.check_device("cpu"))
    print(f"{setting}, {device}, {versions()}\n\n{table(found)}")
    if options.json:
        before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
        before[setting] = {"device": device, "versions": versions(), "rounds": found}
        options.json.write_text(json.dumps(before, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
