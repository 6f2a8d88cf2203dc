"""Every file and every option that a command of either tool reads, and sound examples of them to be damaged.

In: a new folder. Out: `World` values: inputs in ``in/``, commands to be run in ``scratch/``, whose paths begin with
``../in``. Invariant: undamaged, every reader's commands end with exit 0 in a fraction of a second; networks
have some thousand weights, images some thousand pixels.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import typer
import yaml

from tests.dtld_data import make_tree, random_raw, write_v1, write_v2
from tests.hostile import Answer, answer, complaint, empty, snapshot, tool
from tests.kd_fixtures import interrupted, write_dataset
from tests.mutators import FORGED, mutate

WORDS = (
    "", " ", "0", "-1", "1", "nan", "inf", "-inf", "1e308", "1e-320", str(2**31), str(2**63), str(2**200), "9" * 5000,
    "0x10", "1_000", "\u0663", "\u00b2", "\0", "a\0b", f"a\n{FORGED}", "\udcff", "a" * 300, "a" * 5000, "[" * 3000,
    "{}", "[]", "null", "2020-01-01", '!!int ""', "&a [*a]", "%s%n", "=", ",", "a=b=c", "x\u202e", "x.YAML", "x.pt",
)  # fmt: skip
# Options whose large values are asked for, and take as long as they must.
WORK = frozenset({"--frames", "--workers", "--steps", "--copies", "--jobs", "--batch", "--imgsz", "--teacher-imgsz"})
# Options of KEY=VALUE: half of the words stand as the value of one of these keys.
KEYS = {
    "train --set": ("lr0", "optimizer", "classes", "fraction", "cache", "workers", "mosaic", "close_mosaic", "freeze",
                    "multi_scale", "pretrained", "nbs", "warmup_epochs", "patience", "time", "rect", "single_cls"),
    "train --fgfi": ("threshold", "assigned", "mask", "soft", "kernel"),
    "train --method": ("fgfi", "cwd", "built-in"), "train --teacher": ("../in/model.pt",), "bench --method": ("pkd",),
    "prepare --max-images": ("train", "val"), "tile --max-images": ("train", "test"),
    "sweep --set": ("data", "seeds", "students", "settings", "settings.epochs", "settings.set", "settings.set.lr0",
                    "arms", "arms.plain", "arms.fgfi.method", "arms.fgfi.teacher", "teachers.n.student", "x.y.z"),
}  # fmt: skip

TRAIN = (
    "train", "--data", "../in/data/data.yaml", "--student", "../in/tiny.yaml", "--imgsz", "64", "--batch", "2",
    "--epochs", "2", "--device", "cpu", "--set", "mosaic=0.0", "--set", "workers=0",
)  # fmt: skip
TAUGHT = ("--teacher", "../in/model.pt", "--allow-weak-teacher")
MADE = ("--workers", "1", "--val", "0", "--test", "0", "--out", "out")
TINY = """nc: 2
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, C2f, [8, True]]
head:
  - [[2, 4], 1, Detect, [nc]]
"""


@dataclass(frozen=True)
class Reader:
    """A file that commands read: its place below ``in/``, how it is damaged, and commands that read it.

    ``copied`` is a folder of ``in/`` that the command gets a copy of, because it goes on in it. A file of a ``model``
    is not asked for sizes beyond a few hundred, which would be built.
    """

    tool: str
    name: str
    file: str
    form: str
    commands: tuple[tuple[str, ...], ...]
    copied: str | None = None
    model: bool = False


@dataclass(frozen=True)
class Case:
    """One damaged input or option: what was run, what came of it, and what is wrong with that, if anything is."""

    reader: str
    words: tuple[str, ...]
    content: bytes | None
    found: Answer
    defect: str | None


# --- the readers -----------------------------------------------------------------------------------------


def _of_dataset(folder: str, *more: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Commands that read a dataset of dtld's own."""
    place = f"../in/{folder}"
    return (
        ("validate", place, "--workers", "1"),
        ("split", place, "--out", "out", "--workers", "1"),
        ("augment", place, "--out", "out", "--workers", "1"),
        ("preview", place, "--out", "sheet.png"),
        ("export", place, "--out", "coco.json", "--json"),
        *more,
    )


_LABELS = (("inspect", "../in/raw/{}", "--json"), ("inspect", "../in/raw/{}", "--anchors", "1", "--tile-size", "64"),
           ("prepare", "../in/raw/{}", "--root", "../in/raw", "--tile-size", "64", *MADE))  # fmt: skip
_TILE = ("tile", "../in/full", "--out", "out", "--tile-size", "64", "--workers", "1")
_NEAR = ("validate", "../in/foreign", "--near-duplicates", "--workers", "1")
_LISTED = ("validate", "../in/listed", "--near-duplicates", "--workers", "1")
_REPORT = ("report", "../in/runs", "--out", "report.md", "--images", "0")
_COMPARE = ("compare", "../in/runs", "--json")
_SWEEP = ("sweep", "../in/plan.yaml", "--data", "../in/data/data.yaml", "--dry-run")
_DATA = (
    (*TRAIN, "--dry-run"),
    (*TRAIN, *TAUGHT, "--dry-run"),
    (
        "evaluate",
        "--data",
        "../in/data/data.yaml",
        "--model",
        "../in/model.pt",
        "--split",
        "val",
        "--imgsz",
        "64",
        "--device",
        "cpu",
    ),
)
_LIST = tuple(tuple(word.replace("in/data/", "in/lists/") for word in words) for words in _DATA)
_FRAMES = (("evaluate", "--data", "../in/tiles/data.yaml", "--model", "../in/lights.pt", "--split", "train",
            "--imgsz", "64", "--device", "cpu", "--full-frame"),)  # fmt: skip


def _filled(file: str, commands: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.format(file) for word in words) for words in commands)


def _inspect_by(rules: str) -> tuple[tuple[str, ...], ...]:
    return (("inspect", "../in/raw/all.json", "--rules", f"../in/{rules}", "--json"),)


READERS = (
    Reader("dtld", "labels v2", "raw/all.json", "json", _filled("all.json", _LABELS)),
    Reader("dtld", "labels v1", "raw/all.yml", "yaml", _filled("all.yml", _LABELS)),
    Reader("dtld", "rules, JSON", "rules.json", "json", _inspect_by("rules.json")),
    Reader("dtld", "rules, YAML", "rules.yaml", "yaml", _inspect_by("rules.yaml")),
    Reader("dtld", "split file", "splits.txt", "text", (
        ("split", "../in/tiles", "--split-file", "../in/splits.txt", "--out", "out", "--workers", "1"),)),
    Reader("dtld", "data.yaml, own", "tiles/data.yaml", "yaml", _of_dataset("tiles")),
    Reader("dtld", "frames.jsonl", "tiles/frames.jsonl", "jsonl", _of_dataset("tiles")),
    Reader("dtld", "frames.jsonl, whole frames", "full/frames.jsonl", "jsonl", (_TILE,)),
    Reader("dtld", "manifest.jsonl", "tiles/manifest.jsonl", "jsonl", _of_dataset("tiles")),
    Reader("dtld", "manifest.jsonl, whole frames", "full/manifest.jsonl", "jsonl", (_TILE,)),
    Reader("dtld", "report.json", "tiles/report.json", "json", _of_dataset("tiles")),
    Reader("dtld", "report.json, whole frames", "full/report.json", "json", (_TILE,)),
    Reader("dtld", "label file, own", "tiles/labels/train/{0}.txt", "text", _of_dataset("tiles")),
    Reader("dtld", "image, own", "full/images/train/{0}.jpg", "image", _of_dataset("full", _TILE)),
    Reader("dtld", "COCO JSON", "coco.json", "json", (
        ("export", "../in/coco.json", "--format", "yolo", "--out", "out", "--json"),)),
    Reader("dtld", "raw frame, TIFF", "one/a/b/c/frame.tiff", "image", (
        ("prepare", "../in/one/tiff.json", "--root", "../in/one", "--tile-size", "64", *MADE),
        ("inspect", "../in/one/tiff.json", "--root", "../in/one"))),
    Reader("dtld", "raw frame, PNG", "one/a/b/c/frame.png", "image", (
        ("convert", "../in/one/png.json", "--root", "../in/one", *MADE),)),
    Reader("dtld", "raw frame, JPEG", "one/a/b/c/frame.jpg", "image", (
        ("convert", "../in/one/jpg.json", "--root", "../in/one", *MADE),)),
    Reader("dtld", "data.yaml, foreign", "foreign/data.yaml", "yaml", (_NEAR,)),
    Reader("dtld", "image, foreign", "foreign/images/train/000.png", "image", (_NEAR,)),
    Reader("dtld", "image list", "listed/train.txt", "text", (_LISTED,)),
    Reader("kd", "data.yaml", "data/data.yaml", "yaml", _DATA),
    Reader("kd", "image list", "lists/train.txt", "text", _LIST),
    Reader("kd", "label file", "data/labels/train/000.txt", "text", _DATA),
    Reader("kd", "label file, val", "data/labels/val/000.txt", "text", _DATA),
    Reader("kd", "image", "data/images/train/000.png", "image", _DATA),
    Reader("kd", "image, JPEG", "lists/images/001.jpg", "image", (
        *_LIST, ("predict", "../in/lists/images/001.jpg", "--model", "../in/model.pt", "--out", "a1.png"))),
    Reader("kd", "image without labels", "unlabeled/000.png", "image", (
        (*TRAIN, *TAUGHT, "--method", "cwd", "--unlabeled", "../in/unlabeled", "--dry-run"),)),
    Reader("kd", "plan", "plan.yaml", "yaml", ((*_SWEEP, "--out", "out"),)),
    Reader("kd", "OUT/plan.yaml", "sweep/plan.yaml", "yaml", ((*_SWEEP, "--out", "../in/sweep"),)),
    Reader("kd", "OUT/run.json of a sweep", "sweep/runs/tiny/plain/seed0/run.json", "json", (
        (*_SWEEP, "--out", "../in/sweep"),)),
    Reader("kd", "run.json", "runs/fgfi/seed0/run.json", "json", (_REPORT, _COMPARE)),
    Reader("kd", "config.json", "runs/cut/config.json", "json", (_REPORT, _COMPARE)),
    Reader("kd", "results.csv", "runs/cut/results.csv", "text", (_REPORT, _COMPARE)),
    Reader("kd", "failures.json", "runs/failures.json", "json", (_REPORT,)),
    Reader("kd", "published rows, YAML", "published.yaml", "yaml", (
        (*_REPORT, "--published", "../in/published.yaml"),)),
    Reader("kd", "published rows, JSON", "published.json", "json", (
        (*_REPORT, "--published", "../in/published.json"),)),
    Reader("kd", "published rows, CSV", "published.csv", "text", ((*_REPORT, "--published", "../in/published.csv"),)),
    Reader("kd", "priors", "priors.json", "json", ((*TRAIN, *TAUGHT, "--dry-run", "--priors", "../in/priors.json"),)),
    Reader("kd", "frames.jsonl", "tiles/frames.jsonl", "jsonl", _FRAMES),
    Reader("kd", "manifest.jsonl", "tiles/manifest.jsonl", "jsonl", _FRAMES),
    Reader("kd", "model yaml", "tiny.yaml", "yaml", ((*TRAIN, "--dry-run"),), model=True),
    Reader("kd", "checkpoint, scored", "model.pt", "pt", (
        _DATA[2], ("predict", "../in/data/images/val", "--model", "../in/model.pt", "--out", "a1.png"))),
    Reader("kd", "checkpoint, student", "model.pt", "pt", (
        tuple(word.replace("tiny.yaml", "model.pt") for word in (*TRAIN, "--dry-run")),)),
    Reader("kd", "checkpoint, teacher", "model.pt", "pt", ((*TRAIN, *TAUGHT, "--dry-run"),)),
    Reader("kd", "config.json, resumed", "killed/config.json", "json", ((*TRAIN, "--out", "killed", "--resume"),),
           "killed"),
    Reader("kd", "last.pt, resumed", "killed/weights/last.pt", "pt", ((*TRAIN, "--out", "killed", "--resume"),),
           "killed"),
    Reader("kd", "last.kd.pt, resumed", "killed/weights/last.kd.pt", "pt", ((*TRAIN, "--out", "killed", "--resume"),),
           "killed"),
    Reader("kd", "results.csv, resumed", "killed/results.csv", "text", ((*TRAIN, "--out", "killed", "--resume"),),
           "killed"),
)  # fmt: skip

BASES = {
    "dtld": (
        ("sample", "out", "--frames", "1", "--workers", "1"),
        ("inspect", "../in/raw/all.json", "--anchors", "1", "--tile-size", "64"),
        ("convert", "../in/raw/all.json", "--root", "../in/raw", *MADE),
        _TILE,
        ("augment", "../in/tiles", "--out", "out", "--workers", "1"),
        ("split", "../in/tiles", "--out", "out", "--workers", "1"),
        ("prepare", "../in/raw/all.json", "--root", "../in/raw", "--tile-size", "64", *MADE),
        ("preview", "../in/tiles", "--out", "sheet.png"),
        _NEAR,
        ("export", "../in/tiles", "--out", "coco.json"),
        ("export", "../in/coco.json", "--format", "yolo", "--out", "out"),
    ),
    "kd": (
        (*TRAIN, "--dry-run"),
        (*TRAIN, *TAUGHT, "--dry-run"),
        _DATA[2],
        ("predict", "../in/data/images/val", "--model", "../in/model.pt", "--out", "a1.png"),
        # To measure takes a process for each method: here it is refused before, for want of a student.
        ("bench", "--student", "absent.pt", "--teacher", "../in/tiny.yaml", "--imgsz", "64", "--batch", "2",
         "--steps", "1", "--device", "cpu"),
        _REPORT,
        _COMPARE,
        (*_SWEEP, "--out", "out"),
    ),
}  # fmt: skip


# --- sound inputs ----------------------------------------------------------------------------------------


def write_world(home: Path, tools: Sequence[str] = ("dtld", "kd")) -> Path:
    """Write the inputs of all readers into ``home/in`` and make ``home/scratch``; returns ``home``."""
    inputs = home / "in"
    (home / "scratch").mkdir(parents=True)
    write_dtld_inputs(inputs)
    if "kd" in tools:
        write_kd_inputs(inputs, home / "scratch")
    empty(home / "scratch")
    return home


def write_dtld_inputs(inputs: Path) -> None:
    """Raw frames, label files, rules, datasets of tiles and of whole frames, a COCO JSON, a foreign dataset."""
    images = make_tree(inputs / "raw", sequences=2, frames=1, lights=4, size_wh=(128, 64), seed=2)
    write_v2(inputs / "raw/all.json", images)
    write_v1(inputs / "raw/all.yml", images)
    rules = {"classes": ["relevant", "rest"],
             "rules": [{"class": "drop", "when": {"pictogram": ["tram"]}},
                       {"class": "relevant", "when": {"relevance": ["relevant"]}}, {"class": "rest"}]}  # fmt: skip
    (inputs / "rules.json").write_text(json.dumps(rules))
    (inputs / "rules.yaml").write_text(yaml.safe_dump(rules, sort_keys=False))
    run, raw = tool("dtld"), str(inputs / "raw")
    labels = f"{raw}/all.json"
    # By city and route, as in 'Aachen/Aachen1/2015-04-01_10-50-05 val'.
    sequences = sorted({"/".join(entry["image_path"][2:].split("/")[:3]) for entry in images})
    splits = ("train", "train", "val", "test")
    (inputs / "splits.txt").write_text(
        "".join(f"{name} {split}\n" for name, split in zip(sequences, splits, strict=True))
    )
    by = ("--split-file", str(inputs / "splits.txt"), "--workers", "1", "--quiet")
    sound(run, ("prepare", labels, "--root", raw, "--out", str(inputs / "tiles"), "--tile-size", "64",
                "--empty-ratio", "all", "--copies", "0", "--image-format", "png", *by), inputs)  # fmt: skip
    sound(run, ("convert", labels, "--root", raw, "--out", str(inputs / "full"), *by), inputs)
    sound(run, ("export", str(inputs / "tiles"), "--out", str(inputs / "coco.json")), inputs)
    pixels = random_raw(np.random.default_rng(3), 64, 32)
    lamp = images[0]["labels"][:1] or next(entry["labels"] for entry in images if entry["labels"])[:1]
    for ending in ("tiff", "png", "jpg"):
        path = inputs / f"one/a/b/c/frame.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels if ending != "jpg" else (cv2.merge([pixels] * 3) >> 4).astype(np.uint8))
        light = [each | {"x": 5, "y": 5, "w": 9, "h": 20} for each in lamp]
        entry = {"image_path": f"a/b/c/{path.name}", "time_stamp": 1.0, "labels": light}
        write_v2(inputs / f"one/{ending}.json", [entry])
    write_dataset(inputs / "foreign", train=2, val=1, side=64)
    shutil.copytree(inputs / "foreign", inputs / "listed")
    (inputs / "listed/train.txt").write_text("./images/train/000.png\n./images/train/001.png\n")
    (inputs / "listed/data.yaml").write_text("train: train.txt\nval: images/val\nnames: [red, green]\n")


def write_kd_inputs(inputs: Path, scratch: Path) -> None:
    """A dataset, as folders and as lists, a model, runs finished and killed, a sweep, published rows, priors."""
    from tests.kd_models import save_detector
    from tests.kd_runs import write_run

    (inputs / "tiny.yaml").write_text(TINY)
    for name, classes in (("model", ("red", "green")), ("lights", ("relevant", "not_relevant"))):
        names = dict(enumerate(classes))
        save_detector(inputs / f"{name}.pt", names, imgsz=64, architecture=str(inputs / "tiny"))
    # Every image has objects: the third of each kind would have none.
    write_dataset(inputs / "data", train=2, val=1, test=1, side=64)
    (inputs / "lists/images").mkdir(parents=True)
    (inputs / "lists/labels").mkdir()
    for number, split in enumerate(("train", "train", "val")):
        source = inputs / f"data/images/{split}/{number % 2 if split == 'train' else 0:03d}.png"
        cv2.imwrite(str(inputs / f"lists/images/{number:03d}.jpg"), cv2.imread(str(source)))
        label = Path(str(source).replace("images", "labels")).with_suffix(".txt")
        shutil.copy(label, inputs / f"lists/labels/{number:03d}.txt")
    (inputs / "lists/train.txt").write_text("./images/000.jpg\n./images/001.jpg\n")
    (inputs / "lists/val.txt").write_text("./images/002.jpg\n")
    (inputs / "lists/data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [red, green]\n")
    (inputs / "unlabeled").mkdir()
    cv2.imwrite(str(inputs / "unlabeled/000.png"), np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8))
    for seed in (0, 1):
        write_run(inputs / f"runs/plain/seed{seed}", (0.6, 0.3), seed=seed)
        write_run(inputs / f"runs/fgfi/seed{seed}", (0.62, 0.31 + seed / 50), seed=seed, teacher="m")
    cut = inputs / "runs/cut"
    cut.mkdir()
    (cut / "config.json").write_text((inputs / "runs/plain/seed0/config.json").read_text())
    (cut / "results.csv").write_text("epoch,time,train/box_loss\n1,2.5,0.1\n2,5.0,0.05\n")
    (inputs / "runs/failures.json").write_text(json.dumps({"runs/a/plain/seed0": "killed", "runs/a/kd/seed0": "x"}))
    rows = [
        {"model": "Nano", "gflops": 6.1, "map50": 55.5, "map50_95": 33.3, "source": "Nobody 1900"},
        {"model": "Nano", "teacher": "Big", "method": "magic", "map50_95": 35, "source": "Nobody 1900"},
    ]
    (inputs / "published.json").write_text(json.dumps(rows))
    (inputs / "published.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
    (inputs / "published.csv").write_text(
        "model,teacher,method,gflops,map50,map50_95,source\nNano,,,6.1,55.5,33.3,Nobody\n"
    )
    (inputs / "priors.json").write_text(
        json.dumps({"anchors": {"8": [[4, 8], [5.5, 12]], "16": [[9, 20]]}, "boxes": 9})
    )
    plan = {"settings": {"epochs": 2, "imgsz": 64, "batch": 2, "device": "cpu", "set": {"lr0": 0.01, "workers": 0}},
            "students": ["tiny.yaml"], "teachers": {"n": {"student": "yolov5n", "epochs": 3}},
            "arms": {"plain": {}, "fgfi": {"teacher": "n", "method": {"fgfi": 0.05}, "fgfi": ["soft=true"]},
                     "longer": {"wall_time_of": "fgfi"}}, "seeds": [0, 1]}  # fmt: skip
    (inputs / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    from kd.sweeps.plan import read_plan

    content = read_plan(inputs / "plan.yaml", inputs / "data/data.yaml")
    write_run(inputs / "sweep/runs/tiny/plain/seed0", (0.6, 0.3))
    (inputs / "sweep/plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    _kill_a_run(inputs, scratch)


def _kill_a_run(inputs: Path, scratch: Path) -> None:
    """Leave ``in/killed`` as a run that was interrupted in its second epoch."""
    with interrupted():
        found = answer(tool("kd"), (*TRAIN, "--out", "../in/killed"), scratch)
    assert found.code == 130, found
    assert (inputs / "killed/weights/last.kd.pt").exists()


def sound(run, words: Sequence[str], cwd: Path) -> None:
    """Run a command that must succeed."""
    found = answer(run, words, cwd)
    assert found.code == 0, (words, found)


# --- damage ----------------------------------------------------------------------------------------------


def damaged(home: Path, reader: Reader, seed: int, count: int) -> Iterator[Case]:
    """Run ``count`` damaged versions of a reader's file, each through one of its commands; the sound one comes back."""
    rng, run = random.Random(f"{reader.tool} {reader.name} {seed}"), tool(reader.tool)
    path = located(home / "in", reader.file)
    whole = path.read_bytes()
    try:
        for number in range(count):
            content = mutate(rng, whole, reader.form)
            while content == whole or (reader.model and _is_large(content)):
                content = mutate(rng, whole, reader.form)
            words = reader.commands[number % len(reader.commands)]
            path.write_bytes(content)
            yield replace(_case(home, run, f"{reader.tool}: {reader.name}", words, reader.copied), content=content)
    finally:
        path.write_bytes(whole)


def undamaged(home: Path, name: str) -> Iterator[Case]:
    """Run each command of a tool's readers on sound files, once."""
    commands = {
        (words, reader.copied): reader.name for reader in READERS if reader.tool == name for words in reader.commands
    }
    for (words, copied), reader in commands.items():
        yield _case(home, tool(name), f"{name}: {reader}", words, copied)


def hostile_options(home: Path, name: str, seed: int, count: int) -> Iterator[Case]:
    """Run commands with a hostile word for one of their options or for their argument, all options in turn."""
    rng, run = random.Random(f"{name} options {seed}"), tool(name)
    places = [(base, option) for base in BASES[name] for option in (*options_of(name, base[0]), None)]
    rng.shuffle(places)
    for number in range(count):
        base, option = places[number % len(places)]
        word = rng.choice(WORDS if option not in WORK else [word for word in WORDS if not _is_much(word)])
        keys = KEYS.get(f"{base[0]} {option}")
        if keys and rng.random() < 0.7:
            word = f"{rng.choice(keys)}={word}"
        words = (*base, option, word) if option else (base[0], word, *base[2:])
        yield _case(home, run, f"{name}: options", words)


def options_of(name: str, command: str) -> list[str]:
    """The long options of a command that take a value."""
    if name == "dtld":
        from dtld_tools.commands import app
    else:
        from kd.commands import app
    parameters = typer.main.get_command(app).commands[command].params
    return [max(p.opts, key=len) for p in parameters if p.opts[0].startswith("-") and not getattr(p, "is_flag", False)]


def located(inputs: Path, file: str) -> Path:
    """A reader's file; ``{0}`` stands for the first name there."""
    if "{0}" not in file:
        return inputs / file
    return next(path for path in sorted(inputs.glob(file.replace("{0}", "*"))) if path.stat().st_size)


def _case(home: Path, run, reader: str, words: tuple[str, ...], copied: str | None = None) -> Case:
    scratch = home / "scratch"
    empty(scratch)
    if copied:
        shutil.copytree(home / "in" / copied, scratch / copied)
    before = snapshot(home / "in")
    found = answer(run, words, scratch)
    if reader.startswith("dtld"):  # Ultralytics, imported by a test of kd, has put words into Pillow
        found = replace(found, err=re.sub("WARNING.*Ultralytics requirement.*\n", "", found.err))
    defect = complaint(found)
    after = snapshot(home / "in")
    if before != after:
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        defect = f"inputs changed ({', '.join(changed)[:200]}): {defect or found.err.strip()[:200]}"
    return Case(reader, words, None, found, defect)


def _is_much(word: str) -> bool:
    try:
        return float(word) > 100
    except ValueError:
        return False


def _is_large(content: bytes) -> bool:
    """Whether a model yaml asks for more than some hundred of anything, or for repeated layers."""
    # Of 190:20:30 YAML 1.1 makes one number.
    numbers = re.findall(rb"\d[\d_]*(?::\d+)*", content)
    return any(not number.isdigit() or len(number) > 3 or int(number) > 256 for number in numbers)
