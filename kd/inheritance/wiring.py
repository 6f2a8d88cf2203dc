"""A detector in, which channels of it belong together out: what a convolution reads, and what shortcuts tie.

Found by running the model once and following every channel through the tensor operations, so nothing here knows a
block by its name. Reshapes, as in attention, end the trail: what is read behind one is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
TOGETHER = (aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor)


@dataclass(frozen=True)
class Segment:
    """The channels ``start`` to ``stop`` of a convolution's output, which the model never takes apart."""

    conv: str
    start: int
    stop: int


@dataclass(frozen=True)
class Wiring:
    """What a detector's convolutions read and write; ``order`` is that of their execution."""

    order: tuple[str, ...]
    outputs: Mapping[str, tuple[Segment, ...]]
    inputs: Mapping[str, tuple[Segment, ...] | None]  # None behind a reshape
    tied: Mapping[Segment, Segment]  # a segment that a shortcut adds to an earlier one -> the first of them


def wiring(model: nn.Module, image: Tensor) -> Wiring:
    """Follow the channels of a model in evaluation mode through its run on an image [1, 3, H, W]."""
    names = {module.weight.data_ptr(): name for name, module in convolutions(model)}
    with torch.no_grad(), _Trace(names) as trace:
        model(image)
    return trace.wiring()


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """The convolutions that are learned, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith("dfl.conv"):
            yield name, module


class _Trace(TorchDispatchMode):
    """Gives every output channel of a convolution a number, and passes the numbers on along dimension 1."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.first: dict[str, int] = {}  # a convolution -> the number of its first channel
        self.sizes: dict[str, int] = {}
        self.read: dict[str, np.ndarray | None] = {}
        self.starts: set[int] = set()  # numbers at which a part of an output begins
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.numbers: dict[int, tuple[Tensor, np.ndarray]] = {}  # by id; the tensor is kept, so that ids stay apart

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is aten.convolution.default:
            self._convolve(args, result)
        elif func is aten.cat.default:
            self._concatenate(args, result)
        elif isinstance(result, (list, tuple)):
            self._take_apart(args, result)
        elif isinstance(result, Tensor):
            self._pass_on(func, args, result)
        return result

    def _convolve(self, args: Sequence[Any], result: Tensor) -> None:
        name = self.names.get(args[1].data_ptr())
        if name is None:
            return
        read = self._of(args[0])
        self.read[name] = read
        size = result.shape[1]
        if args[8] == size and read is not None and len(read) == size:  # depthwise: each channel stays itself
            self._set(result, read)
            return
        begin = sum(self.sizes.values())
        self.first[name], self.sizes[name] = begin, size
        self.starts.add(begin)
        self._set(result, np.arange(begin, begin + size))

    def _concatenate(self, args: Sequence[Any], result: Tensor) -> None:
        parts = [self._of(tensor) for tensor in args[0]]
        if (args[1] if len(args) > 1 else 0) == 1 and all(part is not None for part in parts):
            self._set(result, np.concatenate(parts))

    def _take_apart(self, args: Sequence[Any], results: Sequence[Any]) -> None:
        read = self._of(args[0]) if args and isinstance(args[0], Tensor) else None
        parts = [part for part in results if isinstance(part, Tensor) and part.ndim == 4]
        if read is None or not parts:
            return
        if parts[0].shape[1] == len(read):  # a batch norm or a pooling, with what else it returns
            self._set(parts[0], read)
        elif sum(part.shape[1] for part in parts) == len(read):
            at = 0
            for part in parts:
                self._set(part, read[at : at + part.shape[1]])
                self.starts.add(int(read[at]))
                at += part.shape[1]

    def _pass_on(self, func: Any, args: Sequence[Any], result: Tensor) -> None:
        read = [self._of(a) for a in args if isinstance(a, Tensor) and a.ndim == 4]
        read = [r for r in read if r is not None]
        if not read or result.ndim != 4:
            return
        if func is aten.slice.Tensor and args[1] == 1:
            begin = args[2] or 0
            self._set(result, read[0][begin : begin + result.shape[1]])
            self.starts.add(int(read[0][begin]))
        elif result.shape[1] == len(read[0]) and func not in (aten.view.default, aten.permute.default):
            self._set(result, read[0])
            if func in TOGETHER and len(read) == 2 and len(read[0]) == len(read[1]):
                self.pairs.append((read[0], read[1]))

    def _of(self, tensor: Tensor) -> np.ndarray | None:
        return self.numbers[id(tensor)][1] if id(tensor) in self.numbers else None

    def _set(self, tensor: Tensor, numbers: np.ndarray) -> None:
        self.numbers[id(tensor)] = tensor, numbers

    def wiring(self) -> Wiring:
        """What was seen, in segments."""
        for one, other in self.pairs:  # where one of two added maps is a part, the other is
            for a, b in ((one, other), (other, one)):
                self.starts |= {int(b[i]) for i, number in enumerate(a) if int(number) in self.starts}
        segment_at: dict[int, Segment] = {}
        outputs: dict[str, tuple[Segment, ...]] = {}
        for name, begin in self.first.items():
            cuts = [n - begin for n in sorted(self.starts) if begin <= n < begin + self.sizes[name]]
            found = [Segment(name, a, b) for a, b in zip(cuts, [*cuts[1:], self.sizes[name]], strict=True)]
            segment_at |= {begin + segment.start: segment for segment in found}
            outputs[name] = tuple(found)
        order = list(self.read)
        rank = {name: i for i, name in enumerate(order)}
        tied: dict[Segment, Segment] = {}
        for one, other in self.pairs:
            for a, b in zip(one, other, strict=True):
                if int(a) in segment_at and int(b) in segment_at:
                    pair = [_root(tied, segment_at[int(n)]) for n in (a, b)]
                    early, late = sorted(pair, key=lambda s: (rank[s.conv], s.start))
                    if early != late:
                        tied[late] = early
        inputs = {
            name: None if read is None else tuple(segment_at[int(n)] for n in read if int(n) in segment_at)
            for name, read in self.read.items()
        }
        return Wiring(tuple(order), outputs, inputs, {s: _root(tied, s) for s in tied})


def _root(tied: Mapping[Segment, Segment], segment: Segment) -> Segment:
    while segment in tied:
        segment = tied[segment]
    return segment
