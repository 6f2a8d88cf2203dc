"""Torch-Pruning beside `kd prune` on one budget: channels pruned, tuned, written for OpenVINO in INT8, scored.

In: a teacher, its data, and the multiply-adds to come down to (those of the student of `kd prune`). Out: a line of
JSON. Torch-Pruning 1.6 fails on C2f's split of one tensor, so a C2f becomes two convolutions first, as its authors
advise, and plain Ultralytics would build the pruned network anew at full width, so a trainer here keeps it. Channels
go by the norms of their groups, evenly over all layers; the head's last convolutions stay. Needs `pip install torch-
pruning==1.6.1`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch_pruning
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules import C2f, Conv, Detect
from ultralytics.utils.torch_utils import ModelEMA

from kd.device.images import Images, training_images
from kd.device.int8 import quantize_openvino, recipes
from kd.device.writing import load_checkpoint, write
from kd.scoring.evaluate import evaluate, image_size, score
from kd.ultra.exported import size_bytes
from kd.ultra.session import silence


class TwoHalves(nn.Module):
    """A C2f whose first convolution is two, one for each half of its outputs."""

    def __init__(self, block: C2f) -> None:
        super().__init__()
        self.i, self.f, self.type, self.np = block.i, block.f, block.type, block.np
        self.first, self.second = (self._half(block.cv1, at) for at in (0, 1))
        self.cv2, self.m = block.cv2, block.m

    @staticmethod
    def _half(conv: Conv, at: int) -> Conv:
        count = conv.conv.out_channels // 2
        rows = slice(at * count, (at + 1) * count)
        half = Conv(conv.conv.in_channels, count, 1).eval()
        half.conv.weight.data = conv.conv.weight.data[rows].clone()
        half.bn.eps, half.bn.momentum, half.act = conv.bn.eps, conv.bn.momentum, conv.act
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(half.bn, name).data = getattr(conv.bn, name).data[rows].clone()
        return half

    def forward(self, x: Tensor) -> Tensor:
        """What the C2f gave."""
        parts = [self.first(x), self.second(x)]
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


def prune(network: nn.Module, image: Tensor, goal: float) -> float:
    """Take channels away until the multiply-adds for ``image`` are at most ``goal``; returns what they are."""
    network.requires_grad_(True)
    for at, block in enumerate(network.model):
        if isinstance(block, C2f):
            network.model[at] = TwoHalves(block)
    head = next(part for part in network.modules() if isinstance(part, Detect))
    stay = [head.dfl, *(branch[-1] for branch in (*head.cv2, *head.cv3))]
    pruner = torch_pruning.pruner.MagnitudePruner(
        network, image, importance=torch_pruning.importance.GroupMagnitudeImportance(), iterative_steps=200,
        pruning_ratio=0.95, ignored_layers=stay, round_to=8,
    )  # fmt: skip
    while True:
        count = torch_pruning.utils.count_ops_and_params(network, image)[0]
        if count <= goal:
            return count
        pruner.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--student", type=Path, required=True, help="a student of kd prune, for the budget")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr0", type=float, default=0.002)
    options = parser.parse_args()

    yolo = load_checkpoint(options.teacher)
    side = image_size(yolo)
    image = torch.rand(1, 3, side, side)
    student = load_checkpoint(options.student).model.float().eval()
    goal = torch_pruning.utils.count_ops_and_params(student, image)[0]
    network = yolo.model.float().eval()
    whole = network(image)[0].detach()
    count = prune(network, image, goal)
    print(f"multiply-adds: {count / 1e6:.0f} M of {goal / 1e6:.0f} M allowed, outputs {tuple(whole.shape)}", flush=True)

    class Trainer(DetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):  # noqa: ANN001, ANN202
            return network

        def save_model(self) -> None:
            """Keep nothing on disk: the averaged weights are read below."""

        def final_eval(self) -> None:
            """No best.pt is there."""

    with tempfile.TemporaryDirectory() as folder, silence():
        settings = {"optimizer": "AdamW", "nbs": options.batch, "warmup_bias_lr": 0, "workers": 0, "cache": "ram"}
        trainer = Trainer(overrides={
            "model": str(options.teacher), "data": options.data, "epochs": options.epochs, "imgsz": side,
            "batch": options.batch, "device": "cpu", "seed": options.seed, "lr0": options.lr0, "plots": False,
            "save_dir": folder, **settings,
        })  # fmt: skip
        trainer.train()
        averaged: ModelEMA = trainer.ema
        yolo.model = averaged.ema.float().eval()
        yolo.model.names, yolo.model.args = network.names, vars(trainer.args)
        found = {"seed": options.seed, "epochs": trainer.epoch + 1, "multiply_adds": count}
        found["checkpoint"] = score(yolo, options.data, split="test", imgsz=side, device="cpu", quiet=True)["map50_95"]
        made = write(
            yolo, "openvino", side, Path(folder) / "pruned", {"checkpoint": "x", "sha256": 64 * "0", "threshold": 0.25}
        )
        images = Images(training_images(yolo, options.data, 300), side)
        small = quantize_openvino(
            made, images, recipes(yolo.model, "openvino")[0], yolo.model, Path(folder) / "q_openvino_model"
        )
        for name, file in (("float", made), ("int8", small)):
            scores = evaluate(options.data, str(file), split="test", device="cpu", quiet=True)
            found[name] = {"map50_95": scores["map50_95"], "bytes": size_bytes(file)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
