"""Classic YOLOv5, anchor-based, as the official repository has it: network, loss, checkpoints."""

from kd.ultra.classic.anchors import better, sides_px
from kd.ultra.classic.files import ClassicYOLO, is_classic, official_names, read_architecture
from kd.ultra.classic.network import Detect, Model, anchor_free, become_classic, is_classic_yaml, with_anchors

__all__ = [
    "ClassicYOLO",
    "Detect",
    "Model",
    "anchor_free",
    "become_classic",
    "better",
    "is_classic",
    "is_classic_yaml",
    "official_names",
    "read_architecture",
    "sides_px",
    "with_anchors",
]
