#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2 (Python 3.11, Linux x86_64, CPU).
#
# quantize_static's defaults make a network of convolutions and SiLU, as most detectors are today, slower than it was in
# float. Activations are signed 8-bit integers by default. Between convolutions and ReLU that costs nothing, but where x
# times sigmoid(x) stands between them the CPU provider has no fast convolution for signed ones on x86-64, on processors
# with VNNI neither. With activation_type=QuantType.QUInt8, and nothing else changed, the same network is faster than
# float. Who tries the defaults alone, as exporters of detectors do, concludes that INT8 saves size there and costs time.
# Seen, on an AMD EPYC with AVX512-VNNI, one thread, six 3x3 convolutions of 64 channels on 48 x 48:
#
#   with ReLU: float 9.23 ms, signed (default)  2.63 ms, unsigned 2.56 ms
#   with SiLU: float 9.35 ms, signed (default) 12.42 ms, unsigned 3.07 ms
#
# Times vary. Asserted: with ReLU signed is faster than float; with SiLU it takes longer than float, and at least twice as
# long as unsigned.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON' 2> /dev/null
from statistics import median
from time import perf_counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

rng = np.random.default_rng(0)
SHAPE = [1, 64, 48, 48]


def save_stack(silu):
    nodes, weights = [], []
    for i in range(6):
        kernel = (rng.standard_normal((64, 64, 3, 3)) / 24).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        if silu:
            nodes.append(helper.make_node("Sigmoid", [f"c{i}"], [f"s{i}"], f"sigmoid{i}"))
            nodes.append(helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"x{i + 1}"], f"mul{i}"))
        else:
            nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"], f"relu{i}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x0", "x6")]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "float.onnx")


class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(4)]

    def get_next(self):
        return {"x0": self.left.pop()} if self.left else None


def milliseconds():
    quantize_static("float.onnx", "signed.onnx", Reader())
    quantize_static("float.onnx", "unsigned.onnx", Reader(), activation_type=QuantType.QUInt8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {name: ort.InferenceSession(f"{name}.onnx", options) for name in ("float", "signed", "unsigned")}
    times = {name: [] for name in sessions}
    image = rng.standard_normal(SHAPE).astype(np.float32)
    for _ in range(40):
        for name, session in sessions.items():
            begun = perf_counter()
            session.run(None, {"x0": image})
            times[name].append(1000 * (perf_counter() - begun))
    return {name: median(values[8:]) for name, values in times.items()}


seen = {}
for name in ("ReLU", "SiLU"):
    save_stack(name == "SiLU")
    seen[name] = milliseconds()
    listed = ", ".join(f"{kind} {value:.2f} ms" for kind, value in seen[name].items())
    print(f"onnxruntime {ort.__version__}, {name}: {listed}")
assert seen["ReLU"]["signed"] < seen["ReLU"]["float"], seen
assert seen["SiLU"]["signed"] > seen["SiLU"]["float"], seen
assert seen["SiLU"]["signed"] > 2 * seen["SiLU"]["unsigned"], seen
PYTHON
