"""An untrained detector that nevertheless detects, for the tests of kd that need no trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMES = {0: "red", 1: "green"}


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


def squares(images):
    """Images [images, 3, 64, 64] of coloured squares."""
    import torch

    return torch.nn.functional.interpolate(torch.rand(images, 3, 8, 8), 64)


def save_lively(path, seed=0, names=NAMES, imgsz=64):
    """A small untrained detector whose activations do not fade: its batch norms have seen coloured squares."""
    import torch

    from kd.ultra.models import SHIPPED

    save_detector(path, names, imgsz=imgsz, seed=seed, architecture=str(SHIPPED / "yolov8p"))
    checkpoint = torch.load(path, weights_only=False)
    network = checkpoint["model"].train()
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average
    network(squares(8))
    for norm in norms:
        norm.momentum = 0.03
    for boxes, classes in zip(network.model[-1].cv2, network.model[-1].cv3, strict=True):
        boxes[-1].bias.data = torch.linspace(4, -4, 16).repeat(4)  # small ones
        classes[-1].weight.data /= 4  # or all scores were 0 or 1
    torch.save(checkpoint, path)
    return path
