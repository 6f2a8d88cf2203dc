"""Adapters: the small convolutions that carry a student's features into its teacher's channels.

In: channels by stride and the methods. Out: a module whose parameters the optimizer takes and the sidecar keeps.
Invariant: a method's adapters start alike whatever other methods are beside it, no copy of a student carries any,
and making them leaves the random state as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kd.config import TrainConfig
from kd.methods.losses import Layers

# Method -> convolutions (with ReLU between them) for student's channels, teacher's channels and FGFI's kernel.
# Methods that compare what heads say have none: both heads speak of classes and boxes.
LAYERS: dict[str, Callable[[int, int, int], list[nn.Conv2d]]] = {
    "fgfi": lambda student, teacher, kernel: [nn.Conv2d(student, teacher, kernel, padding=kernel // 2)],
    # No bias: a softmax over cells and a zero mean take it out again.
    "cwd": lambda student, teacher, _: [nn.Conv2d(student, teacher, 1, bias=False)],
    "pkd": lambda student, teacher, _: [nn.Conv2d(student, teacher, 1, bias=False)],
    "score-l2": lambda student, teacher, _: [nn.Conv2d(student, teacher, 1), nn.Conv2d(teacher, teacher, 1)],
}


class Adapters(nn.ModuleDict):
    """Convolutions towards one teacher: keys are the method, the shared stride as text, the place in order.

    A deep copy is None: EMA and checkpoints are made by deep copies of the student, and so never carry adapters.
    """

    def __init__(self, channels: dict[int, tuple[int, int]], config: TrainConfig) -> None:
        """``channels``: stride -> (student's, teacher's), in the student's order."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            for method in (name for name, _ in config.methods if name in LAYERS):
                torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reach GPUs' as well
                levels = {str(s): nn.ModuleList(LAYERS[method](*c, config.fgfi.kernel)) for s, c in channels.items()}
                self[method] = nn.ModuleDict(levels)

    def __deepcopy__(self, memo: dict) -> None:
        """Leave adapters out of every copy of the student."""

    def layers(self) -> dict[str, dict[int, Layers]]:
        """Weights and biases by method and stride, as the methods take them."""
        return {
            method: {int(stride): [(conv.weight, conv.bias) for conv in convs] for stride, convs in levels.items()}
            for method, levels in self.items()
        }
