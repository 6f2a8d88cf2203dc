"""A model card for a run: what its weights are, of what, and how good.

In: the content of run.json. Out: Markdown for RUN/README.md.
Invariant: every figure on the card is in run.json; of paths only the last parts are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd.reports.markdown import gflops, table, text
from kd.runs.record import Run, optimizer_settings, title
from kd.show import percent


def model_card(record: dict[str, Any]) -> str:
    """The card of a finished run; ``record`` is as schemas/run.schema.json has it."""
    config = record["config"]
    name = title(str(Path(config["out"], "weights", "last.pt")))
    run = Run(Path(config["out"]), name, record)
    data = "/".join(Path(config["data"]).parts[-2:])
    taught = f"distilled from {text(run.teacher)}" if run.distils else "trained without a teacher"
    taught += f", from first weights of {text(title(config['inherit']))}" if "inherited" in record else ""
    epochs = f"{record['epochs']} epoch{'' if record['epochs'] == 1 else 's'}"
    counts = ", ".join(f"{split} {count}" for split, count in record["images"].items() if count)
    parts = [
        "---\nlicense: agpl-3.0\nlibrary_name: ultralytics\npipeline_tag: object-detection\n---",
        f"# {text(name)}",
        f"{text(run.student)}, {taught}, on {text(data)}: {epochs} at {config['imgsz']} px, "
        f"batch {config['batch']}, seed {config['seed']}. It has {record['params'] / 1e6:.2f} M parameters and "
        f"{gflops(record['gflops'])} GFLOPs per image.",
        f"```python\n{_use(record)}\n```",
        "## Scores",
        "Of the last checkpoint, in per cent. `weights/best.pt` is the epoch that was best on the validation images.",
        _scores(record["metrics"]["last"]),
        "## Data",
        f"Images: {counts}.{_left_out(record)} "
        f"SHA-256 of the data.yaml, image names and sizes, and labels: `{record['data_sha256']}`.",
    ]
    if run.distils:
        parts += ["## Teachers", f"Methods and weights: {text(run.method)}.", _teachers(config, record["kd"])]
    if "inherited" in record:
        parts += ["## First weights", _inherited(record["inherited"], title(config["inherit"]))]
    rest = {**config["settings"], **({"freeze": config["freeze"]} if config["freeze"] else {})}
    rest |= optimizer_settings(record)
    versions = ", ".join(f"{text(key)} {text(value)}" for key, value in record["versions"].items())
    parts += [
        "## Settings",
        ", ".join(f"{text(key)} {text(str(value))}" for key, value in sorted(rest.items())),
        "## Made with",
        f"{text(record['device'])}, {record['wall_time_s']:.0f} s; {versions}. Everything else stands in `run.json`.",
        "## Licence",
        "AGPL-3.0, which Ultralytics asks for models trained with it; see its licence, and that of the data.",
    ]
    return "\n\n".join(parts) + "\n"


def _use(record: dict[str, Any]) -> str:
    """How the weights are run: by Ultralytics' package or, where they have anchors, by the official YOLOv5's code."""
    imgsz = record["config"]["imgsz"]
    if "anchors" in record:
        load = 'torch.hub.load("ultralytics/yolov5", "custom", "weights/best.pt")'
        return f'import torch\n\n{load}("image.jpg", size={imgsz}).print()'
    return f'from ultralytics import YOLO\n\nYOLO("weights/best.pt").predict("image.jpg", imgsz={imgsz})'


def _left_out(record: dict[str, Any]) -> str:
    """Sentences of what the data have and the run has not used as it is."""
    said = {
        "skipped": "Left out, as they or their labels cannot be used: images",
        "repeated_labels": "Not counted, as they equal another row of their label file: rows",
        "shared_images": "Not independent: training images that stand there too",
    }
    found = {text: record[key] for key, text in said.items() if key in record}
    return "".join(f" {text} {', '.join(f'{k} {n}' for k, n in by_split.items())}." for text, by_split in found.items())


def _scores(by_split: dict[str, Any]) -> str:
    """A row for all classes and one for each, per split."""
    rows = []
    for split, scores in by_split.items():
        rows.append([split, "all", *(percent(scores[key]) for key in ("map50", "map50_95", "precision", "recall"))])
        rows += [
            [split, text(name), percent(row["map50"]), percent(row["map50_95"]), "-", "-"]
            for name, row in scores["per_class"].items()
        ]
    return table(["images", "class", "mAP50", "mAP50-95", "precision", "recall"], rows)


def _inherited(account: dict[str, Any], teacher: str) -> str:
    """Where the first weights are from, and what they were worth."""
    digest = f" (SHA-256 `{account['teacher_sha256']}`)" if account["teacher_sha256"] else ", of random weights"
    fresh = f" {len(account['fresh'])} convolutions have no counterpart there." if account["fresh"] else ""
    return (
        f"Solved from those of {text(teacher)}{digest}, on {account['images']} training images without their labels in "
        f"{account['seconds']:.0f} s.{fresh} Before any training the student scored {percent(account['map50'])} mAP50, "
        f"{percent(account['map50_95'])} mAP50-95 on val images."
    )


def _teachers(config: dict[str, Any], kd: dict[str, Any]) -> str:
    """A row per teacher: its share, its worth before training, its file's hash."""
    rows = [
        [
            text(title(spec)),
            f"{100 * teacher['weight']:.0f} %",
            percent(teacher["worth"]["teacher_map50"]),
            f"`{teacher['sha256']}`" if teacher["sha256"] else "-",
        ]
        for spec, teacher in zip(config["teachers"], kd["teachers"], strict=True)
    ]
    return table(["teacher", "share", "mAP50 on val images beforehand", "SHA-256"], rows)
