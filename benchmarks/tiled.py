"""`kd predict --tiled` and `--sparse` beside SAHI's get_sliced_prediction: time, recall, agreement of boxes.

In: a checkpoint or export of it, and a folder of frames as `dtld convert` makes it. Out: a line for each of the three.
Same model, tile size, threads and confidence; windows lie as far apart as SAHI's whole pixels of overlap let them. The
three take turns on each frame. SAHI's default further look at the whole frame is left out.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from sahi import AutoDetectionModel
from sahi.predict import get_sliced_prediction

from kd.scoring.detection_metrics import Detections, box_iou
from kd.scoring.shots import Shot, read_shots
from kd.scoring.sparse import FAINT, Attention
from kd.scoring.tiled import detect_frames
from kd.scoring.tiles import Grid, TileDetector
from kd.ultra.exported import load_runnable
from kd.ultra.session import check_device, silence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a dataset of dtld convert")
    parser.add_argument("--model", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--tile-size", type=int, default=640)
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sahi-batch", type=int, default=1, help="SAHI's default is 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    grid, side = Grid(options.tile_size, options.overlap), options.tile_size
    lines = map(json.loads, (options.data / "frames.jsonl").read_text().splitlines())
    truth = {name(line): line for line in lines if line["split"] == options.split}
    files = {path.stem: path for path in sorted((options.data / "images" / options.split).iterdir())}
    some = [stem for stem in truth if stem in files][: options.frames]
    # A sequence is a folder for kd; here all frames lie in one, so it is told by the frames' lines.
    shots = [
        Shot(shot.name, shot.file_name, Path(truth[shot.name]["sequence"]), shot.picture)
        for shot in read_shots([files[stem] for stem in some], print)
    ]

    device, common = check_device(options.device), {"imgsz": side, "batch": options.batch}
    with silence():
        dense, faint = (
            TileDetector(load_runnable(options.model, options.device), conf=conf, device=device, **common)
            for conf in (options.conf, FAINT * options.conf)
        )
        sahi = AutoDetectionModel.from_pretrained(
            "ultralytics", model_path=options.model, confidence_threshold=options.conf, image_size=side,
            device="cpu" if device.type == "cpu" else "cuda:0",
        )  # fmt: skip
    attention = Attention(side)
    overlaps = [overlap_px(grid, length, side) / side for length in shots[0].size_wh]

    def sliced(shot: Shot) -> Detections:
        found = get_sliced_prediction(
            np.ascontiguousarray(shot.picture[..., ::-1]), sahi, slice_height=side, slice_width=side,
            overlap_width_ratio=overlaps[0], overlap_height_ratio=overlaps[1], perform_standard_pred=False, verbose=0,
            batch_size=options.sahi_batch,
        ).object_prediction_list  # fmt: skip
        return Detections(
            np.array([each.bbox.to_xyxy() for each in found], float).reshape(-1, 4),
            np.array([each.score.value for each in found]),
            np.array([each.category.id for each in found], int),
        )

    arms = {
        "sahi": sliced,
        "tiled": lambda shot: next(iter(detect_frames([shot], dense, grid, options.conf))).found,
        "sparse": lambda shot: next(iter(detect_frames([shot], faint, grid, options.conf, attention))).found,
    }
    seconds = {arm: [] for arm in arms}
    found = {arm: [] for arm in arms}
    with silence():
        for arm in ("sahi", "tiled"):
            arms[arm](shots[0])  # warm-up
        torch.set_num_threads(options.threads)
        for number, shot in enumerate(shots):
            for arm in sorted(arms, key=lambda arm: (list(arms).index(arm) + number) % len(arms)):
                wall, cpu = time.perf_counter(), time.process_time()
                found[arm].append(arms[arm](shot))
                seconds[arm].append((time.process_time() - cpu, time.perf_counter() - wall))
    print(
        f"{len(shots)} frames, {len(grid.views(shots[0].size_wh, Path()))} tiles of {side} px, conf {options.conf}, "
        f"{torch.get_num_threads()} threads, device {device}, batch {options.batch}, SAHI's {options.sahi_batch}"
    )
    lights = [truth_of(truth[shot.name]) for shot in shots]
    for arm in arms:
        cpu, wall = np.sum(seconds[arm], 0) / len(shots)
        base_cpu, base_wall = np.sum(seconds["sahi"], 0) / len(shots)
        print(
            f"{arm:<7} {1000 * cpu:6.0f} ms CPU {1000 * wall:6.0f} ms wall a frame, {base_cpu / cpu:.2f} and "
            f"{base_wall / wall:.2f} times SAHI's speed; {share(lights, found[arm]):.3f} of the lights found; "
            f"{share(found['sahi'], found[arm]):.3f} of SAHI's boxes, "
            f"{share(found[arm], found['sahi']):.3f} of its own are SAHI's, {sum(map(len, found[arm]))} boxes"
        )


def name(line: dict) -> str:
    return "_".join((line["city"], line["route"], line["sequence"], Path(line["frame"]).stem))


def overlap_px(grid: Grid, length: int, side: int) -> int:
    """SAHI's windows begin a whole number of pixels apart, the last one at the edge: as far as ours do, rounded up."""
    starts = sorted({view.window_xyxy[0] for view in grid.views((length, side), Path())})
    return side - max(np.diff(starts), default=side)


def truth_of(line: dict) -> Detections:
    boxes = np.array([light["box"] for light in line["lights"]], float).reshape(-1, 4)
    return Detections(boxes, np.ones(len(boxes)), np.array([light["class"] for light in line["lights"]], int))


def share(ones: list[Detections], others: list[Detections]) -> float:
    """The share of boxes for which the others have one of the class with an IoU above 0.5."""
    hits = []
    for one, other in zip(ones, others, strict=True):
        iou = box_iou(one.boxes_xyxy, other.boxes_xyxy) * (one.class_ids[:, None] == other.class_ids)
        hits += (iou.max(1, initial=0) > 0.5).tolist()
    return float(np.mean(hits)) if hits else float("nan")


if __name__ == "__main__":
    main()
