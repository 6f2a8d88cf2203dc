"""Classic YOLOv5: Ultralytics' layers under the names of the official repository, and its anchor-based head.

In: a model yaml of that repository (releases 6.x and 7.0). Out: a DetectionModel that Ultralytics trains and scores.
Invariant: state dict, attributes and class names are those of the official code, so that a pickled module is a
checkpoint of that repository as it stands (kd/ultra/classic/files.py has the other half).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from ultralytics.nn import modules
from ultralytics.nn.modules import head as heads
from ultralytics.nn.tasks import BaseModel, DetectionModel
from ultralytics.utils import ROOT

from kd.config import CLASSIC
from kd.methods.batch import Prediction
from kd.methods.masks import YOLOV5_PRIORS
from kd.ultra.classic.loss import ClassicLoss

SCALES = "nsmlx"
OBJECTS = 8  # that an image of 640 px is taken to hold when the first biases are set


class Conv(modules.Conv):
    """Convolution, batch norm, SiLU."""

    __module__ = "models.common"


class Bottleneck(modules.Bottleneck):
    """Two convolutions with a shortcut."""

    __module__ = "models.common"


class C3(modules.C3):
    """A cross-stage block of three convolutions."""

    __module__ = "models.common"


class SPPF(modules.SPPF):
    """Spatial pyramid pooling."""

    __module__ = "models.common"


class Concat(modules.Concat):
    """Joins channels."""

    __module__ = "models.common"


class Detect(heads.Detect):
    """The anchor-based head: per level a convolution whose channels are A anchors times (x, y, w, h, objectness, K).

    A Detect of Ultralytics by its attributes and by what it returns; none of its branches is there.
    """

    __module__ = "models.yolo"

    cv2, cv3 = (), None  # Ultralytics looks at them: as of an empty head that is not fused away
    reg_max = 1

    def __init__(self, nc: int, anchors: Sequence[Sequence[float]], stride: Tensor, channels: Sequence[int]) -> None:
        """``anchors`` per level: widths and heights in turn, in pixels; ``stride`` [L] in pixels per cell."""
        nn.Module.__init__(self)
        self.nc, self.no, self.nl, self.na = nc, nc + 5, len(anchors), len(anchors[0]) // 2
        self.stride = stride
        sizes = torch.tensor(anchors, dtype=torch.float32).view(self.nl, -1, 2)
        self._buffers["anchors"] = sizes / stride.view(-1, 1, 1).to(sizes)  # in cells; Ultralytics has the name taken
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * self.na, 1) for width in channels)
        self.inplace = True
        self.grid = self.anchor_grid = [torch.empty(0)] * self.nl  # the official code's caches
        self.bias_init()

    @property
    def anchors(self) -> Tensor:
        """Anchor sizes [L, A, 2] in cells of their level."""
        return self._buffers["anchors"]

    def set_anchors(self, sizes_px: Any) -> None:
        """Take other anchors: widths and heights in pixels, as many as there are, level after level."""
        sizes = torch.as_tensor(sizes_px, dtype=torch.float32).to(self.anchors.device).view_as(self.anchors)
        self.anchors.copy_(sizes / self.stride.to(sizes).view(-1, 1, 1))

    @property
    def sizes_px(self) -> NDArray[np.float64]:
        """Anchor sizes (width, height) in pixels, level after level, [L A, 2]."""
        return (self.anchors.double() * self.stride.view(-1, 1, 1)).flatten(0, 1).cpu().numpy()

    @property
    def priors(self) -> dict[int, tuple[tuple[float, float], ...]]:
        """Anchor sizes (width, height) in pixels by stride."""
        levels = self.sizes_px.reshape(self.nl, self.na, 2).tolist()
        return {int(s): tuple(map(tuple, level)) for s, level in zip(self.stride.tolist(), levels, strict=True)}

    def bias_init(self) -> None:
        """Let the head begin with few objects, all classes being rare."""
        if self.stride.is_meta:
            return
        for layer, stride in zip(self.m, self.stride.tolist(), strict=True):
            bias = layer.bias.detach().view(self.na, -1)
            bias[:, 4] += math.log(OBJECTS / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))

    def forward(self, x: list[Tensor]) -> dict[str, list[Tensor]] | Tensor | tuple[Tensor, dict[str, list[Tensor]]]:
        """Raw outputs per level in training; in eval mode (boxes xywh in pixels and scores [B, 4 + K, N], raw ones).

        The raw ones are a dict: ``feats``, the levels as they came, and ``raw`` [B, A, H, W, 5 + K].
        """
        preds = {"feats": list(x), "raw": self.raw(x)}
        if self.training:
            return preds
        found = self.decode(preds["raw"])
        return found if self.export else (found, preds)

    def raw(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What the convolutions make of the levels [B, C, H, W], each [B, A, H, W, 5 + K]."""
        outputs = [layer(level).unflatten(1, (self.na, self.no)) for layer, level in zip(self.m, levels, strict=True)]
        return [output.permute(0, 1, 3, 4, 2) for output in outputs]

    def predictions(self, raw: Sequence[Tensor]) -> list[Prediction]:
        """Raw outputs per level as methods on heads compare them: boxes as distances from their cell's centre."""
        levels = []
        for output, anchors in zip(raw, self.anchors.float(), strict=True):
            xy, wh, objectness, scores = output.float().split((2, 2, 1, self.nc), 4)
            off, half = 2 * xy.sigmoid() - 1, (2 * wh.sigmoid()).square() * anchors[:, None, None] / 2  # in cells
            maps = (scores, torch.cat((half - off, half + off), 4), objectness)
            levels.append(Prediction(*(m.flatten(1, 2).permute(0, 3, 1, 2) for m in maps)))  # [B, ..., A H, W]
        return levels

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """Boxes xywh in pixels and class scores times objectness, [B, 4 + K, N], from raw outputs per level."""
        levels = []
        for output, anchors, stride in zip(raw, self.anchors, self.stride, strict=True):
            height, width = output.shape[2:4]
            xy, wh, objectness, scores = output.sigmoid().split((2, 2, 1, self.nc), 4)
            rows = torch.arange(height, device=output.device, dtype=output.dtype)
            columns = torch.arange(width, device=output.device, dtype=output.dtype)
            corner = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), 2)  # [H, W, 2] x, y of each cell
            xy = (2 * xy - 0.5 + corner) * stride
            wh = (2 * wh).square() * (anchors * stride)[:, None, None]
            levels.append(torch.cat((xy, wh, objectness * scores), 4).flatten(1, 3))  # [B, A H W, 4 + K]
        return torch.cat(levels, 1).transpose(1, 2)


def with_anchors(layout: Mapping[str, Any], anchors: Iterable[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """A model yaml with these anchors, (width, height) in pixels of each level.

    >>> with_anchors({"nc": 2}, [[(10, 13), (16, 30)]])
    {'nc': 2, 'anchors': [[10, 13, 16, 30]]}
    """
    return {**layout, "anchors": [[side for size in sizes for side in size] for sizes in anchors]}


class Model(DetectionModel):
    """A classic YOLOv5. Release 7.0 calls it DetectionModel, and still knows this name, which 6.x wants."""

    __module__ = "models.yolo"

    def __init__(self, cfg: Mapping[str, Any], ch: int = 3, nc: int | None = None, verbose: bool = False) -> None:
        """``cfg`` is a model yaml of the official repository, ``ch`` the channels of images, ``nc`` the classes."""
        super().__init__(anchor_free(cfg), ch, nc, verbose=verbose)
        become_classic(self, cfg)

    def init_criterion(self) -> ClassicLoss:
        """The official loss."""
        return ClassicLoss(self)


OFFICIAL = {cls.__base__: cls for cls in (Conv, Bottleneck, C3, SPPF, Concat)}


def become_classic(model: BaseModel, cfg: Mapping[str, Any]) -> None:
    """Make a model that was built by `anchor_free` of a yaml the classic one that the yaml describes, in place."""
    for layer in model.modules():
        layer.__class__ = OFFICIAL.get(type(layer), type(layer))
    old = model.model[-1]
    channels = [branch[0].conv.in_channels for branch in old.cv2]
    nc = model.yaml["nc"]
    head = Detect(nc, anchors_of(cfg, len(channels)), old.stride, channels)
    head.f, head.i, head.np = old.f, old.i, sum(weight.numel() for weight in head.parameters())
    model.model[-1] = head
    for layer in model.model:
        layer.type = f"{type(layer).__module__}.{type(layer).__name__}"
    model.yaml = {**deepcopy(dict(cfg)), "nc": nc, "ch": model.yaml["channels"], "channels": model.yaml["channels"]}


def anchor_free(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """An official model yaml as one that Ultralytics can parse: the same layers, its own head."""
    *rows, (source, repeats, _, _) = cfg["head"]
    without = {key: deepcopy(value) for key, value in cfg.items() if key != "anchors"}
    return {**without, "head": [*deepcopy(rows), [source, repeats, "Detect", ["nc"]]]}


def anchors_of(cfg: Mapping[str, Any], levels: int) -> list[list[float]]:
    """The anchors of an official model yaml per level; a bare number of them is a placeholder for what is trained."""
    anchors = cfg["anchors"]
    return [list(range(1, 2 * anchors + 1))] * levels if isinstance(anchors, int) else anchors


def is_classic_yaml(content: Any) -> bool:
    """Whether this is a model yaml of the official repository: Ultralytics' have no anchors."""
    return isinstance(content, Mapping) and "anchors" in content and "backbone" in content


def named_yaml(name: str) -> dict[str, Any] | None:
    """The official yaml of ``classic/yolov5`` and a scale, from Ultralytics' copy of its layers; None for others."""
    scale = name.removeprefix(f"{CLASSIC}yolov5")
    if not name.startswith(f"{CLASSIC}yolov5") or len(scale) != 1 or scale not in SCALES:
        return None
    content = yaml.safe_load((ROOT / "cfg" / "models" / "v5" / "yolov5.yaml").read_text(encoding="utf-8"))
    depth, width, _ = content.pop("scales")[scale]
    *rows, (source, repeats, _, _) = content["head"]
    return {
        **content,
        "depth_multiple": depth,
        "width_multiple": width,
        "anchors": [list(chain.from_iterable(sizes)) for sizes in YOLOV5_PRIORS.values()],
        "head": [*rows, [source, repeats, "Detect", ["nc", "anchors"]]],
    }
