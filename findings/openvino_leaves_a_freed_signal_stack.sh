#!/usr/bin/env bash
# openvino 2026.4.1 (Python 3.11, Linux x86_64, CPU).
#
# The CPU plugin gives the thread that loads a model a signal stack (sigaltstack) of its own, and when the model is
# released gives back the one that it found. With two models, each of a Core of its own, the second finds the stack of
# the first: released in the order in which they were loaded, they leave the thread a stack that is freed already.
# Python's handlers run on that stack (SA_ONSTACK, since 3.10): with Ctrl-C, or where torch's DataLoader hears of the end
# of a worker, the process then ends by SIGSEGV, and faulthandler, whose stack was that one, has nothing to say.
# Seen, the thread's signal stack:
#
#   before: none; the first model: 11568 bytes; the second: 11568 bytes, elsewhere; both released: that of the first, which
#   is in no mapping of the process; released the other way round: none
#
# Whoever notes the stack before a model is loaded and gives it back at once is safe, in any order.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet openvino==2026.4.1
cat > "$work/stacks.py" <<'PYTHON'
import ctypes
import sys
from pathlib import Path

sys.modules["openvino_telemetry"] = None
import openvino
from openvino import opset13


class Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


LIBC = ctypes.CDLL(None)


def stack():
    found = Stack()
    LIBC.sigaltstack(None, ctypes.byref(found))
    return found.address


def is_mapped(address):
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


def load():
    x = opset13.parameter([1, 4])
    return openvino.Core().compile_model(openvino.Model([opset13.relu(x)], [x]), "CPU")


def release(order):
    models = [load()]
    first = stack()
    models.append(load())
    assert stack() not in (None, first)
    while models:
        models.pop(order)
    return first, stack()


before = stack()
_, after = release(-1)
print(f"openvino {openvino.__version__.partition('-')[0]}: the last one released first: {after}, before: {before}")
assert after == before is None
first, after = release(0)
print(f"the first one released first: that of the first model: {after == first}, mapped: {is_mapped(after)}")
assert after == first and not is_mapped(after)
LIBC.sigaltstack(ctypes.byref(Stack(None, 2, 0)), None)  # none, as before
PYTHON
"$work/venv/bin/python" "$work/stacks.py"
