"""torchvision's weights for a MobileNet student (kd/models), from a file that the user has: nothing is downloaded.

In: a student and a state dict as torchvision publishes them (.pth). Out: the student with that backbone.
Invariant: the file is read without running code of it, and either the whole backbone is taken or none of it.
"""

from __future__ import annotations

import torch
from torch import nn
from ultralytics.nn.modules.block import TorchVision

from kd.errors import ModelError
from kd.ultra import session
from kd.ultra.model_files import TORCHVISION

FEATURES = "features."  # what torchvision calls the layers before the classifier
COUNTER = "num_batches_tracked"  # of a batch norm, which older files do not have


def load_backbone(student: nn.Module, path: str) -> None:
    """Copy a backbone's weights into a student's first layer; the neck and head stay as they are.

    Raises ModelError for a student without a backbone of torchvision's, and for a file that has not its weights.
    """
    layer = student.model[0]
    if not isinstance(layer, TorchVision):
        raise ModelError(
            f"{path}: got weights without their model, expected a .pt that Ultralytics 8 saved; torchvision's are for "
            f"{' and '.join(TORCHVISION)}"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name.removeprefix(FEATURES): value for name, value in content.items() if name.startswith(FEATURES)}
    except Exception as error:  # whatever a damaged or foreign file makes of the unpickler
        raise ModelError(
            f"{path}: got no usable weights ({session.first_line(error)}), expected a state dict that torchvision "
            f"published"
        ) from error
    own = {name: value for name, value in layer.m.state_dict().items() if name in weights or COUNTER not in name}
    for name, value in own.items():
        shape = getattr(weights.get(name), "shape", None)
        if shape != value.shape:
            raise ModelError(
                f"{path}: {FEATURES}{name}: got {'nothing' if shape is None else list(shape)}, expected "
                f"{list(value.shape)}: weights of this student's backbone, as torchvision published them"
            )
    layer.m.load_state_dict({name: weights[name] for name in own}, strict=False)
