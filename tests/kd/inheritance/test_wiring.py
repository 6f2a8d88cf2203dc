"""Which channels belong together, on small networks whose answer is known and on detectors of every family."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from torch import nn

from kd.inheritance.wiring import Segment, convolutions, wiring
from kd.ultra.models import load_model


class Net(nn.Module):
    """A convolution whose second half a shortcut adds to, a depthwise one, and one that reads both halves."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.deep, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        a, b = nn.functional.silu(self.first(x)).chunk(2, 1)
        b = b + self.norm(self.inner(b))
        return self.last(self.deep(nn.functional.max_pool2d(torch.cat((b, a), 1), 2)))


def test_halves_shortcuts_and_depthwise_convolutions():
    found = wiring(Net().eval(), torch.rand(1, 3, 8, 8))
    first, second = Segment("first", 0, 4), Segment("first", 4, 8)
    assert found.order == ("first", "inner", "deep", "last")
    assert found.outputs == {
        "first": (first, second), "inner": (Segment("inner", 0, 4),), "last": (Segment("last", 0, 2),)
    }  # fmt: skip
    assert found.inputs == {"first": None, "inner": (second,), "deep": (second, first), "last": (second, first)}
    assert found.tied == {Segment("inner", 0, 4): second}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).split(4, 1)
        return self.out((v @ (q.transpose(1, 2) @ k).softmax(-1)).unflatten(2, x.shape[2:]))


def test_behind_a_reshape_nothing_is_known():
    found = wiring(Attention().eval(), torch.rand(1, 3, 4, 4))
    assert found.inputs == {"qkv": None, "out": None}


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n-p2", "yolov9t", "yolov10n", "yolo11m", "yolo12n", "yolo26n"])
def test_every_convolution_of_a_detector_is_seen_and_read(name):
    model = load_model(name).model.eval()
    model.model[-1].training = True
    found = wiring(model, torch.rand(1, 3, 64, 64))
    assert set(found.order) == {name for name, _ in convolutions(model)}
    unknown = [name for name, read in found.inputs.items() if read is None and not name.endswith("attn.pe.conv")]
    assert unknown == ["model.0.conv"]
    for conv, read in found.inputs.items():
        if read is not None:
            assert sum(segment.stop - segment.start for segment in read) == model.get_submodule(conv).in_channels


def test_bottlenecks_with_a_shortcut_are_tied_to_what_they_add_to():
    found = wiring(load_model("yolov8n").model.eval(), torch.rand(1, 3, 64, 64))
    tied = {late.conv: (early.conv, early.start) for late, early in found.tied.items()}
    assert tied == {
        "model.2.m.0.cv2.conv": ("model.2.cv1.conv", 16),
        "model.4.m.0.cv2.conv": ("model.4.cv1.conv", 32),
        "model.4.m.1.cv2.conv": ("model.4.cv1.conv", 32),
        "model.6.m.0.cv2.conv": ("model.6.cv1.conv", 64),
        "model.6.m.1.cv2.conv": ("model.6.cv1.conv", 64),
        "model.8.m.0.cv2.conv": ("model.8.cv1.conv", 128),
    }
