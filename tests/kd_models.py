"""An untrained detector that nevertheless detects, for the tests of kd that need no trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


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


def save_small_detector(path: Path, names: dict[int, str], *, imgsz: int = 96) -> str:
    """An untrained detector whose boxes are small, and whose scores are no ties at 0 and 1; returns the path."""
    import torch

    save_detector(path, names, imgsz=imgsz)
    checkpoint = torch.load(path, weights_only=False)
    head = checkpoint["model"].model[-1]
    for boxes, classes in zip(head.cv2, head.cv3, strict=True):
        boxes[-1].bias.data = torch.linspace(6, -6, 16).repeat(4)
        classes[-1].weight.data /= 10
    torch.save(checkpoint, path)
    return str(path)


def tiny_classic() -> dict:
    """The official yolov5n at half its width, with one block each, for two classes."""
    from kd.ultra import classic

    return {**classic.read_architecture("classic/yolov5n"), "nc": 2, "depth_multiple": 0.1, "width_multiple": 0.125}


def save_classic(path: Path, names: dict[int, str], *, imgsz: int = 64, seed: int = 0, **layout: object) -> str:
    """Write a classic detector whose random objectness and scores lie around 0.5; returns the path.

    ``layout`` overrides keys of its model yaml.
    """
    import torch

    from kd.ultra import classic

    torch.manual_seed(seed)
    model = classic.Model({**tiny_classic(), **layout}, nc=len(names))
    model.names = names
    for layer in model.model[-1].m:
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.zeros_(layer.bias)
    path.parent.mkdir(parents=True, exist_ok=True)
    with classic.official_names():
        torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect", "imgsz": imgsz}}, path)
    return str(path)


def as_trained(model: nn.Module, images: Tensor) -> nn.Module:
    """A fresh model whose channels differ and whose running statistics are those of ``images``, in evaluation mode."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.3)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()
