"""A trained teacher and a fresh student of its family in, the student with weights solved from the teacher's out.

Convolution by convolution in the order of execution: the teacher's channels that say most about all of them are
chosen, as one where shortcuts tie them; then the student's kernel is solved by ridge least squares, so that from the
student's own inputs it gives the teacher's outputs before normalisation. The normalisation is copied, its mean takes
the offset. Related: Weight Selection (Xu et al., ICLR 2024) slices, channel pruning (He et al., ICCV 2017)
reconstructs layer by layer, Net2Net (Chen et al., ICLR 2016) goes the other way.
Invariant: deterministic; no label and no gradient is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.nn.modules.block import C2f, TorchVision

from kd.errors import ModelError
from kd.inheritance.lockstep import in_lockstep
from kd.inheritance.places import draw, seen
from kd.inheritance.regression import solve, telling_columns
from kd.inheritance.wiring import Segment, Wiring, convolutions, wiring
from kd.ultra import classic
from kd.ultra.model_files import has_decoder

RIDGE = 3e-3  # of the mean variance of a convolution's inputs
PLACES = 12_000  # drawn per convolution, over all images
PARTS = 4  # of a batch, of which all outputs are held at once


@dataclass
class Inherited:
    """What became of each convolution of the student: the share of variance reproduced, or why it was not solved."""

    reproduced: dict[str, tuple[float, float]] = field(default_factory=dict)  # that share, and the variance
    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def by_stage(self) -> dict[str, float]:
        """The share reproduced per layer of the model, weighted by variance."""
        stages: dict[str, list[tuple[float, float]]] = {}
        for name, pair in self.reproduced.items():
            stages.setdefault(name.split(".")[1], []).append(pair)
        return {
            stage: sum(s * v for s, v in pairs) / (sum(v for _, v in pairs) or 1) for stage, pairs in stages.items()
        }


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, batches: Sequence[Tensor], *, solving: bool = True) -> Inherited:
    """Give ``student`` its weights; both are detection models in evaluation mode, ``batches`` images [B, 3, H, W].

    Rows of the head that stand for classes go by the models' ``names``; those of a class that the teacher does not have
    stay as they are. A classic student has the teacher's anchors, as many at least.

    Without ``solving`` channels are only sliced, evenly spaced, for comparison. Raises ModelError for a pair that does
    not go together.
    """
    require_family(student, teacher)
    image = batches[0][:1]
    heads = [model.model[-1] for model in (student, teacher)]
    for head in heads:
        head.training = True  # alone, not what is in it: maps, not boxes
    try:
        own, theirs = wiring(student, image), wiring(teacher, image)
        birth = _Birth(student, teacher, own, theirs, solving)
        places = birth.watch_teacher(batches)
        in_lockstep(student, birth.convolutions, batches, lambda name, inputs: birth.visit(name, inputs, places))
    finally:
        for head in heads:
            head.training = False
    return birth.result


class _Birth:
    """The state of one inheritance: which of the teacher's channels each segment of the student has become."""

    def __init__(self, student: nn.Module, teacher: nn.Module, own: Wiring, theirs: Wiring, solving: bool) -> None:
        self.student, self.teacher, self.own, self.theirs, self.solving = student, teacher, own, theirs, solving
        self.convolutions = dict(convolutions(student))
        self.of_teacher = dict(convolutions(teacher))
        self.counterpart = _counterparts(student, teacher, own, theirs)
        self.rows = _rows_by_meaning(student, teacher)
        self.chosen: dict[Segment, np.ndarray] = {}  # within the teacher's segment
        self.targets: dict[str, list[Tensor]] = {}
        self.result = Inherited()

    # ------------------------------------------------------------ the teacher

    def watch_teacher(self, batches: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Keep the teacher's outputs before normalisation at drawn places; returns those, [B, n] per batch."""
        generator = torch.Generator().manual_seed(0)
        count = math.ceil(PLACES / sum(map(len, batches)))
        places: dict[str, list[Tensor]] = {}
        with _outputs_of({name: self.of_teacher[name] for name in set(self.counterpart.values())}) as outputs:
            for batch in batches:
                drawn: dict[str, list[Tensor]] = {}
                for part in batch.split(max(1, len(batch) // PARTS)):
                    sure = seen(self.teacher(part), self.teacher.model[-1])
                    for name, output in outputs.items():
                        at = draw(sure, output.shape[2:], count, generator).to(output.device)
                        rows = output.flatten(2).gather(2, at[:, None].expand(-1, output.shape[1], -1))
                        self.targets.setdefault(name, []).append(rows.transpose(1, 2).flatten(0, 1).half())
                        drawn.setdefault(name, []).append(at)
                for name, parts in drawn.items():
                    places.setdefault(name, []).append(torch.cat(parts))
        return places

    # ------------------------------------------------------------ the student

    def visit(self, name: str, inputs: list[Tensor], places: Mapping[str, list[Tensor]]) -> None:
        """Give a convolution its weights, those before it having theirs."""
        theirs = self.counterpart.get(name)
        if theirs is None:
            self.result.fresh.append(name)
            return
        conv = self.convolutions[name]
        if conv.groups > 1:
            self._copy_depthwise(name, theirs)
            return
        rows = torch.cat(self.targets.pop(theirs) if self._last_use(name, theirs) else self.targets[theirs]).float()
        index, kept = self._choose(name, theirs, rows)
        if not rows.isfinite().all():
            raise ModelError(
                f"inherit: got outputs of the teacher's {theirs} that 16 bits cannot hold, expected others"
            )
        if not len(index):
            self.result.fresh.append(name)
            return
        self._copy_norm(name, theirs, index, kept)
        if self.solving:
            self._solve(name, inputs, places[theirs], rows[:, index], kept)
        else:
            self._slice(name, theirs, index, kept)

    def _last_use(self, name: str, theirs: str) -> bool:
        rest = self.own.order[self.own.order.index(name) + 1 :]
        return not any(self.counterpart.get(other) == theirs for other in rest)

    def _choose(self, name: str, theirs: str, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The teacher's channels that outputs of the convolution become, and which outputs those are.

        Where the teacher has fewer the rest stay as drawn: of copies, training would never tell one from another.
        """
        out = self.convolutions[name].out_channels
        if name in self.rows:
            own, its = np.array(self.rows[name], int).reshape(-1, 2).T
            return its, own
        if out == rows.shape[1]:
            index = np.arange(out)
            for segment in self.own.outputs[name]:
                self.chosen.setdefault(self.own.tied.get(segment, segment), np.arange(segment.stop - segment.start))
            return index, index
        if _norm(self.student, name) is None:  # boxes in other bins
            return np.array([], int), np.array([], int)
        heads, of = _attention(self.student, name), _attention(self.teacher, theirs)
        if heads and out // heads != rows.shape[1] // of:  # heads of another size
            return np.array([], int), np.array([], int)
        values = self._activated(theirs, rows)
        index, kept = [], []
        for mine, other in zip(self.own.outputs[name], self.theirs.outputs[theirs], strict=True):
            part = values[:, other.start : other.stop]
            root, count = self.own.tied.get(mine, mine), min(mine.stop - mine.start, part.shape[1])
            if root not in self.chosen or len(self.chosen[root]) != count:
                if heads:
                    self.chosen[root] = _rows_of_heads(part, heads, of)
                elif self.solving:
                    self.chosen[root] = telling_columns(part, count)
                else:
                    self.chosen[root] = np.arange(count) * part.shape[1] // count
            index.append(other.start + self.chosen[root])
            kept.append(mine.start + np.arange(count))
        return np.concatenate(index), np.concatenate(kept)

    def _activated(self, theirs: str, rows: Tensor) -> Tensor:
        block = self.teacher.get_submodule(theirs.rpartition(".")[0])
        norm = _norm(self.teacher, theirs)
        values = nn.functional.batch_norm(
            rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
        return block.act(values) if hasattr(block, "act") else values

    def _solve(self, name: str, inputs: list[Tensor], places: list[Tensor], targets: Tensor, kept: np.ndarray) -> None:
        conv, rows = self.convolutions[name], torch.from_numpy(kept)
        read = (patches(conv, x, at) for x, at in zip(inputs, places, strict=True))
        fit = solve(zip(read, targets.split([at.numel() for at in places]), strict=True), RIDGE)
        conv.weight[rows] = fit.weight.T.reshape(len(kept), *conv.weight.shape[1:]).float()
        norm = _norm(self.student, name)
        if norm is None:
            conv.bias[rows] = fit.offset.float()
        else:
            norm.running_mean[rows] -= fit.offset.float()
        variance = float(fit.variance.sum())
        left = float((fit.left * fit.variance).sum())
        self.result.reproduced[name] = (1 - left / variance if variance else 1.0, variance)

    def _slice(self, name: str, theirs: str, index: np.ndarray, kept: np.ndarray) -> None:
        weight = self.of_teacher[theirs].weight[torch.from_numpy(index)]
        read = self._read(name, theirs)
        if read is None or len(read) != self.convolutions[name].in_channels:
            count, of = self.convolutions[name].in_channels, weight.shape[1]
            read = np.arange(count) * of // count
        if weight.shape[2:] != self.convolutions[name].weight.shape[2:]:
            self.result.fresh.append(name)
            return
        gain = weight.shape[1] / len(read)
        rows = torch.from_numpy(kept)
        self.convolutions[name].weight[rows] = weight[:, torch.from_numpy(read)] * gain
        if self.convolutions[name].bias is not None:
            self.convolutions[name].bias[rows] = self.of_teacher[theirs].bias[torch.from_numpy(index)]
        self.result.copied.append(name)

    def _read(self, name: str, theirs: str) -> np.ndarray | None:
        """Which of the teacher's input channels the student's inputs are."""
        own, other = self.own.inputs[name], self.theirs.inputs[theirs]
        if own is None or other is None or len(own) != len(other):
            return None
        index, at = [], 0
        for mine, its in zip(own, other, strict=True):
            chosen = self.chosen.get(self.own.tied.get(mine, mine))
            if chosen is None:
                return None
            index.append(at + chosen)
            at += its.stop - its.start
        return np.concatenate(index)

    def _copy_depthwise(self, name: str, theirs: str) -> None:
        conv, source = self.convolutions[name], self.of_teacher[theirs]
        read = self._read(name, theirs)
        if read is None:
            read = self._values_of_heads(name)
        if read is None or len(read) != conv.out_channels or source.weight.shape[2:] != conv.weight.shape[2:]:
            self.result.fresh.append(name)
            return
        for segment in self.own.outputs.get(name, ()):
            self.chosen[segment] = read
        conv.weight.copy_(source.weight[torch.from_numpy(read)])
        self._copy_norm(name, theirs, read, np.arange(len(read)))
        self.result.copied.append(name)

    def _values_of_heads(self, name: str) -> np.ndarray | None:
        """Of the positional convolution of an attention: the channels of the heads that were chosen."""
        block = name.rpartition(".")[0].rpartition(".")[0]
        attention = _attention(self.student, f"{block}.qkv.conv")
        qkv = self.own.outputs.get(f"{block}.qkv.conv")
        if attention is None or not qkv or qkv[0] not in self.chosen:
            return None
        per_head = (qkv[0].stop - qkv[0].start) // attention
        heads = self.chosen[qkv[0]][::per_head] // per_head
        width = self.convolutions[name].out_channels // attention
        return np.concatenate([np.arange(h * width, (h + 1) * width) for h in heads])

    def _copy_norm(self, name: str, theirs: str, index: np.ndarray, kept: np.ndarray) -> None:
        norm, source = _norm(self.student, name), _norm(self.teacher, theirs)
        if norm is not None and source is not None:
            at, rows = torch.from_numpy(index), torch.from_numpy(kept)
            for key in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, key)[rows] = getattr(source, key)[at]


@contextmanager
def _outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What these modules have given last, by name."""
    found: dict[str, Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, i, out, name=n: found.update({name: out})) for n, m in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def patches(conv: nn.Conv2d, images: Tensor, places: Tensor) -> Tensor:
    """What a convolution reads of images [B, I, H, W] for its outputs at places [B, n]: [B * n, I * k * k]."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    padded = nn.functional.pad(images, (pw, pw, ph, ph))
    windows = padded.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)[..., ::dh, ::dw]
    width = windows.shape[3]
    batch = torch.arange(len(images), device=images.device)[:, None].expand_as(places)
    return windows[batch, :, places // width, places % width].flatten(2).flatten(0, 1)


def _rows_by_meaning(student: nn.Module, teacher: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """The last convolutions of a head that tell classes: which of their rows are which of the teacher's, by class name.

    A convolution of a classic head has A times four rows of a box, one of the objectness and K of classes; objectness
    is that of the teacher's classes, and means nothing without any of them.
    """
    known = {name: i for i, name in teacher.names.items()}
    there = [known.get(student.names[i]) for i in sorted(student.names)]
    classes = [(own, its) for own, its in enumerate(there) if its is not None]
    head, layer = student.model[-1], f"model.{len(student.model) - 1}"
    if isinstance(head, classic.Detect):
        boxes = [(i, i) for i in range(5 if classes else 4)]
        of_anchor = [*boxes, *((5 + own, 5 + its) for own, its in classes)]
        size, theirs = head.no, teacher.model[-1].no
        rows = [(a * size + own, a * theirs + its) for a in range(head.na) for own, its in of_anchor]
        return {f"{layer}.m.{level}": rows for level in range(head.nl)}
    return {
        f"{layer}.{branch}.{level}.{len(block) - 1}": classes
        for branch in ("cv3", "one2one_cv3")
        for level, block in enumerate(getattr(head, branch, ()))
    }


def _norm(model: nn.Module, conv: str) -> nn.BatchNorm2d | None:
    block, _, place = conv.rpartition(".")
    around = model.get_submodule(block)
    following = list(around)[int(place) + 1 :] if isinstance(around, nn.Sequential) else []  # as torchvision has it
    norm = getattr(around, "bn", next(iter(following), None))
    return norm if isinstance(norm, nn.BatchNorm2d) else None


def _attention(model: nn.Module, conv: str) -> int | None:
    """The number of heads, where the convolution makes their queries, keys and values."""
    if not conv.endswith(".qkv.conv"):
        return None
    return int(model.get_submodule(conv.removesuffix(".qkv.conv")).num_heads)


def _rows_of_heads(values: Tensor, heads: int, of: int | None) -> np.ndarray:
    """The rows of the ``heads`` heads whose outputs vary most, all of a head's rows together."""
    width = values.shape[1] // (of or 1)
    strength = values.var(0).unflatten(0, (of or 1, width)).sum(1)
    best = np.sort(strength.argsort(descending=True)[:heads].cpu().numpy())  # all where the teacher has fewer
    return np.concatenate([np.arange(h * width, (h + 1) * width) for h in best])


def _counterparts(student: nn.Module, teacher: nn.Module, own: Wiring, theirs: Wiring) -> dict[str, str]:
    """For each of the student's convolutions the teacher's of the same place; where a teacher repeats a block more
    often, its last ones count, evenly spaced.
    """
    found = {}
    for name in own.order:
        other = _same_place(student, teacher, name)
        if other in theirs.order and len(own.outputs.get(name, ())) == len(theirs.outputs.get(other, ())):
            found[name] = other
    return found


def require_family(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ModelError unless two detection models have the same layers, whatever their width and repeats."""
    for model in (student, teacher):
        require_head(model.yaml)
    layers = list(zip(student.model, teacher.model, strict=False))
    if len(student.model) != len(teacher.model) or not all(m.f == t.f and _alike(m, t) for m, t in layers):
        raise ModelError("inherit: got a teacher of another family, expected one whose layers are those of the student")
    if not any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules()):
        raise ModelError("inherit: got a teacher whose batch norms are folded, expected one as training has left it")


def require_head(layout: Mapping[str, Any]) -> None:
    """Raise ModelError for the model yaml of an RT-DETR."""
    if has_decoder(layout):
        raise ModelError("inherit: got an RT-DETR, expected a model with a Detect head: others inherit no weights yet")


def _alike(own: nn.Module, other: nn.Module) -> bool:
    """Whether two blocks do the same; those of C2f's kind do around whatever they repeat, torchvision's as a whole."""
    if isinstance(own, TorchVision):
        return list(map(type, own.modules())) == list(map(type, other.modules()))
    return type(own) is type(other) or (isinstance(own, C2f) and isinstance(other, C2f))


def _same_place(student: nn.Module, teacher: nn.Module, name: str) -> str | None:
    own, other, path = student, teacher, []
    for part in name.split("."):
        if isinstance(own, (nn.ModuleList, nn.Sequential)) and own is not student.model and part.isdecimal():
            part_there = str(round((int(part) + 1) * len(other) / len(own)) - 1) if len(other) != len(own) else part
        else:
            part_there = part
        own = getattr(own, part) if not part.isdecimal() else own[int(part)]
        try:
            other = getattr(other, part_there) if not part_there.isdecimal() else other[int(part_there)]
        except (AttributeError, IndexError):
            return None
        if not _alike(own, other):
            return None
        path.append(part_there)
    return ".".join(path)
