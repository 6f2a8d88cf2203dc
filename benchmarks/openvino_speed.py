"""OpenVINO folders against each other in float32 and in bfloat16: CPU time of one thread for one image, in turns.

In: folders of `kd export` and `kd quantize`, the first the one to compare with. Out: a line for each and each
precision. `kd device-bench` times what a runtime chooses by itself, which for a float file is bfloat16 where the
processor has it; the hint INFERENCE_PRECISION_HINT=f32 stands for processors without. ONEDNN_MAX_CPU_ISA=AVX2 in the
environment stands for those without VNNI; there bfloat16 is left out (`--hints f32`).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import openvino


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--hints", nargs="+", default=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=150)
    options = parser.parse_args()

    core, requests, rng = openvino.Core(), {}, np.random.default_rng(0)
    for folder in options.folders:
        for hint in options.hints:
            settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
            compiled = core.compile_model(str(next(folder.glob("*.xml"))), "CPU", settings)
            image = rng.random(compiled.input(0).shape, np.float32)
            requests[folder.name, hint] = compiled.create_infer_request(), image
    times: dict[tuple[str, str], list[float]] = {key: [] for key in requests}
    for _ in range(options.rounds):
        for key, (request, image) in requests.items():
            begun = time.process_time()
            request.infer([image])
            times[key].append(1000 * (time.process_time() - begun))
    medians = {key: float(np.median(values[options.rounds // 10 :])) for key, values in times.items()}
    first = next(iter(medians.values()))
    for (name, hint), value in medians.items():
        print(f"{name:<40} {hint:<5} {value:7.2f} ms  {first / value:5.2f} times the first")


if __name__ == "__main__":
    main()
