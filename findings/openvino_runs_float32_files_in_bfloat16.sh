#!/usr/bin/env bash
# openvino 2026.4.1 (Python 3.11, Linux x86_64, CPU).
#
# A model whose weights and operations are all float32 is compiled to bfloat16, eight bits of mantissa, on every processor
# that has AVX512-BF16 or AMX, without being asked: the outputs of one file differ from machine to machine, by some
# thousandths of their size. A detector exported to OpenVINO in float32 so differs from its checkpoint by pixels on a
# server and not on a laptop, and a table that compares float32 with INT8 there compares bfloat16 with INT8.
# INFERENCE_PRECISION_HINT=f32 gives float32 back.
# Seen, on a processor with AVX512-BF16, one 3x3 convolution of 64 channels and unit weights over random numbers, the
# largest difference from numpy over the largest output:
#
#   as compiled by default: bf16, 0.00233
#   with the hint f32:      f32, 0.00000
#
# On a processor without either both are f32, and the script says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet openvino==2026.4.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

rng = np.random.default_rng(0)
image = rng.standard_normal((1, 64, 24, 24)).astype(np.float32)
weights = (rng.standard_normal((64, 64, 3, 3)) / 24).astype(np.float32)
source = ops.parameter([1, 64, 24, 24], np.float32)
model = ov.Model([ops.convolution(source, ops.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])], [source])

windows = np.lib.stride_tricks.sliding_window_view(image[0].astype(np.float64), (3, 3), axis=(1, 2))
want = np.einsum("chwij,ocij->ohw", windows, weights.astype(np.float64))
seen = {}
for name, options in (("default", {}), ("f32", {"INFERENCE_PRECISION_HINT": "f32"})):
    compiled = ov.Core().compile_model(model, "CPU", options)
    got = compiled(image)[0][0]
    kind = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    seen[name] = (kind, float(np.abs(got - want).max() / np.abs(want).max()))
    print(f"openvino {ov.__version__.partition('-')[0]}, {name}: {kind}, {seen[name][1]:.5f}")

flags = Path("/proc/cpuinfo").read_text().split()
assert seen["f32"][0] == "f32" and seen["f32"][1] < 1e-5, seen
if {"avx512_bf16", "amx_bf16"} & set(flags):
    assert "bf" in seen["default"][0] and seen["default"][1] > 5e-4, seen
else:
    print("a processor without bfloat16: both are float32")
    assert seen["default"] == seen["f32"], seen
PYTHON
