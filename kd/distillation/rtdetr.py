"""The terms of an RT-DETR student, whose model gives its criterion neither images nor features.

In: what passes the hooks of a student in training. Out: the model's loss and items, the terms appended.
Invariant: the student's own criterion stays Ultralytics', and no copy of the student has a hook.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kd.distillation.criterion import Distillation


class RTDETRDistillation(Distillation):
    """Terms that a hook on the model appends to what its `loss` returns, and a hook on its decoder the features to."""

    _seen: dict[str, Any]  # what the decoder has read and said last

    def adopt(self, model: nn.Module) -> None:
        """Hook into the student, of which the average must have been copied before."""
        model.model[-1].register_forward_hook(self._see)
        model.register_forward_hook(self._append)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """The inputs of the student's decoder and its queries in training, by the names of `inputs`."""
        self.model(images)
        return self._taken()

    def _see(self, decoder: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        boxes, logits, _, _, denoising = outputs  # [L, B, N, .], those for denoising before the others
        first = denoising["dn_num_split"][0] if denoising else 0
        queries = {"logits": logits[:, :, first:].transpose(0, 1), "boxes": boxes[:, :, first:].transpose(0, 1)}
        self._seen = {"feats": inputs[0], "queries": queries}

    def _taken(self) -> dict[str, Any]:
        """What the decoder was seen to read and say, and no longer kept: a step's graph hangs on it."""
        seen, self._seen = self._seen, {}
        return seen

    def _append(self, model: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """The loss and items of a batch with the terms; what comes of images alone stays as it is."""
        if not isinstance(inputs[0], Mapping):
            return output
        return self.append(self._taken(), inputs[0], *output, scale=1)  # its loss is a mean already
