"""An untrained detector that nevertheless detects, for the tests of kd that need no trained one."""

from __future__ import annotations

from pathlib import Path


def save_detector(
    path: Path,
    names: dict[int, str],
    *,
    imgsz: int = 96,
    seed: int = 0,
    architecture: str = "yolov5n",
    channels: int = 3,
) -> str:
    """Write a detector whose random scores lie around 0.5, so that it finds many boxes; returns the path."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(seed)
    model = DetectionModel(f"{architecture}.yaml", ch=channels, nc=len(names), verbose=False)
    model.names = names
    head = model.model[-1]
    for branch in (*head.cv3, *getattr(head, "one2one_cv3", ())):
        torch.nn.init.normal_(branch[-1].weight, std=0.3)
        torch.nn.init.zeros_(branch[-1].bias)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect", "imgsz": imgsz}}, path)
    return str(path)


def save_rtdetr(path: Path, names: dict[int, str], *, imgsz: int = 96, seed: int = 0) -> str:
    """Write an RT-DETR whose random scores lie around 0.5 and whose boxes are of middle size; returns the path."""
    import torch
    from ultralytics.nn.tasks import RTDETRDetectionModel

    from kd.ultra.models import SHIPPED

    torch.manual_seed(seed)
    model = RTDETRDetectionModel(str(SHIPPED / "rtdetr-p.yaml"), nc=len(names), verbose=False)
    model.names = names
    head = model.model[-1]
    for scores in (head.enc_score_head, *head.dec_score_head):
        torch.nn.init.normal_(scores.weight, std=0.3)
        torch.nn.init.zeros_(scores.bias)
    torch.nn.init.normal_(head.dec_bbox_head[-1].layers[-1].weight, std=0.2)
    head.enc_bbox_head.layers[-1].bias.data[2:] = 0.9  # of the logits of width and height
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect", "imgsz": imgsz}}, path)
    return str(path)
