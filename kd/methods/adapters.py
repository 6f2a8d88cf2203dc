"""Adapters: the small convolutions that carry a student's features into its teacher's channels.

In: channels by stride and the methods. Out: a module whose parameters the optimizer takes and the sidecar keeps.
Invariant: a method's adapters start alike whatever the other methods are, no copy of a student carries any, and making
them leaves the random state as it was.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.config import TrainConfig
from kd.methods.batch import Layers
from kd.methods.facts import FACTS, ON_FEATURES, Adapter


class Adapters(nn.ModuleDict):
    """Convolutions towards one teacher: keys are the method, the shared stride as text, the place in order.

    A deep copy is None: EMA and checkpoints are made by deep copies of the student, and so never carry adapters.
    """

    def __init__(self, channels: dict[int, tuple[int, int]], config: TrainConfig) -> None:
        """``channels``: stride -> (student's, teacher's), in the student's order."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            for method, adapter in ((name, FACTS[name].adapter) for name, _ in config.methods if name in ON_FEATURES):
                assert adapter  # which is what ON_FEATURES says
                torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reach GPUs' as well
                kernel = config.fgfi.kernel if method == "fgfi" else 1
                self[method] = nn.ModuleDict(
                    {str(stride): _convolutions(adapter, *c, kernel) for stride, c in channels.items()}
                )

    def __deepcopy__(self, memo: dict) -> None:
        """Leave adapters out of every copy of the student."""

    def layers(self) -> dict[str, dict[int, Layers]]:
        """Weights and biases by method and stride, as the methods take them."""
        return {
            method: {
                int(stride): [(conv.weight, conv.bias) for conv in convs]
                for stride, convs in levels.items()  # type: ignore[operator]  # a ModuleDict, but typed as a Module
            }
            for method, levels in self.items()
        }


def _convolutions(adapter: Adapter, student: int, teacher: int, kernel: int) -> nn.ModuleList:
    """The convolutions of one level, from the student's channels to the teacher's; the grid of cells stays."""
    channels = [student, *[teacher] * adapter.convolutions]
    return nn.ModuleList(nn.Conv2d(*c, kernel, padding=kernel // 2, bias=adapter.bias) for c in pairwise(channels))


def project(features: Tensor, layers: Layers) -> Tensor:
    """Student features in the teacher's channels: convolutions with ReLU between them, [B, Cs, H, W] -> [B, Ct, H, W].

    None after the last one, as SiLU targets are negative in places. Returns float32, under autocast too.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        for i, (weight, bias) in enumerate(layers):
            features = features.relu() if i else features
            bias = None if bias is None else bias.float()
            features = F.conv2d(features, weight.float(), bias, padding=weight.shape[-1] // 2)
        return features
