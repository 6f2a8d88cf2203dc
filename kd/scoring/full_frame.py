"""Tile detections mapped back to whole frames, merged across overlaps and scored there.

In: a model and a dataset that dtld made. Out: a dict of metrics per class, per size and per city.
Invariant: where tiles do not overlap, a frame's detections are its tiles', moved; none is changed or lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics import YOLO

from kd.config import require_number
from kd.errors import DataError
from kd.scoring.detection_metrics import SIZES, Detections, Outcome, box_iou, judge, recall_at, scores
from kd.scoring.evaluate import image_size, images_of, require_same_channels, require_same_classes, validate
from kd.scoring.frames import Frame, View, read_frames, require_names_of_report
from kd.ultra.data import resolve_data
from kd.ultra.exported import load_runnable
from kd.ultra.labels import check_splits
from kd.ultra.memory import enough_memory, fewer
from kd.ultra.session import check_device

EDGE_PX = 2.0  # pixels of a tile: a box that ends this near to a tile's inner edge may go on beyond it
SAME_IOU = 0.5  # two tiles' boxes that agree so well show one light: either would count as the other found


def evaluate_frames(
    data: str | Path,
    model: str | Path,
    *,
    split: str = "test",
    imgsz: int | None = None,
    batch: int = 16,
    device: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> dict:
    """Score a checkpoint or an exported file on the whole frames of a split: what ``kd evaluate --full-frame`` prints.

    Truth is every light in ``lights`` of frames.jsonl, whole. Lights dropped because they are too small or cut off
    (`kd.scoring.frames.UNSEEN`) are ignored: finding them is neither right nor wrong. Returns ``{model, data, split,
    imgsz, frames, images, instances, repeated, ignored, merged, map50, map50_95, precision, recall, confidence,
    per_class, per_size, per_city}``; ``merged`` counts the detections that merging took away, ``repeated`` the
    lights that have class and box of another one and do not count. ``tell`` gets a line of label rows that do not.
    Raises ModelError and DataError.
    """
    check_device(device)
    require_number("batch", batch)
    yolo = load_runnable(str(model), device, tell)
    imgsz = image_size(yolo, imgsz)
    content = resolve_data(data, split)
    images = images_of(content, data, split)
    require_same_classes(yolo, content["names"], data)
    require_same_channels(yolo, content["channels"], data)
    frames = read_frames(content["path"], split, images, len(content["names"]))
    require_names_of_report(content["path"], content["names"])
    if not any(frame.counted.any() for frame in frames):
        raise DataError(
            f"{data}: split '{split}': got {len(frames)} frames without one light: nothing to score against"
        )
    check_splits(data, content, [split], needed=(), tell=tell, quiet=quiet)
    views = [view for frame in frames for view in frame.views]
    with enough_memory(model, batch, imgsz, lambda: fewer(batch)):
        on_tiles = detect(yolo, views, content, imgsz=imgsz, batch=batch, device=device, quiet=quiet)
    on_frames, merged = [], 0
    for frame in frames:
        found = [on_tiles.pop(view.image) for view in frame.views]
        on_frames.append(merge(frame, found))
        merged += sum(map(len, found)) - len(on_frames[-1])
    return {
        "model": str(model),
        "data": str(data),
        "split": split,
        "imgsz": imgsz,
        "frames": len(frames),
        "images": len(views),
        "repeated": sum(frame.repeated for frame in frames),
        "ignored": int(sum((~frame.counted).sum() for frame in frames)),
        "merged": merged,
        **score_frames(frames, on_frames, content["names"]),
    }


def detect(
    yolo: YOLO,
    views: Sequence[View],
    content: Mapping[str, Any],
    *,
    imgsz: int,
    batch: int = 16,
    device: str | None = None,
    quiet: bool = False,
    single_cls: bool = False,
) -> dict[Path, Detections]:
    """What the model finds in each image, in its pixels, exactly as Ultralytics' validator has it for plain scores.

    With ``single_cls`` all classes are 0.
    """
    found: dict[Path, Detections] = {}

    class Collector(yolo.task_map[yolo.task]["validator"]):
        def update_metrics(self, preds: list, batch: dict) -> None:
            for i, pred in enumerate(preds):
                pred = self.scale_preds(self._prepare_pred(pred), self._prepare_batch(i, batch))
                boxes, conf, cls = (pred[key].float().cpu().numpy() for key in ("bboxes", "conf", "cls"))
                found[Path(batch["im_file"][i])] = Detections(boxes, conf, cls.astype(int))

        def get_stats(self) -> dict:
            return {}

        def print_results(self) -> None:
            pass

    images = [view.image for view in views]  # the originals alone, without augmented copies
    options = {"imgsz": imgsz, "batch": batch, "device": device, "quiet": quiet, "objects": {"single_cls": single_cls}}
    validate(yolo, content, images, split="val", validator=Collector, **options)
    if lost := [view.image for view in views if view.image not in found]:
        raise DataError(
            f"{lost[0]}: got an image or label file that Ultralytics leaves out as damaged ({len(lost)} in all), "
            f"expected sound ones: dtld validate names each"
        )
    return found


def merge(frame: Frame, found: Sequence[Detections]) -> Detections:
    """The frame's detections, in frame pixels, of those of its views, each in the pixels of its image.

    A box that ends at an inner edge of its tile may be half a light. If another tile has all of that box away from
    its own inner edges, the box is left out: that tile sees more of the light. Then two boxes of a class from two
    tiles are one light if they agree (`SAME_IOU`) on the area that both tiles see; the more confident stays. Where no
    tile has it whole, it is joined with its continuations, at most one per tile.
    """
    kept: list[Detections] = []
    for view, tile in zip(frame.views, found, strict=True):
        boxes = _to_frame(tile.boxes_xyxy, view, frame)
        better = np.zeros(len(tile), bool)
        if (cut := _ends_at_edge(boxes, view, frame)).any():
            for other in frame.views:
                better |= cut & ~_ends_at_edge(boxes, other, frame)
        kept.append(Detections(boxes, tile.confidences, tile.class_ids)[~better])
    tiles = np.repeat(np.arange(len(kept)), [len(tile) for tile in kept])
    every = Detections(
        np.concatenate([tile.boxes_xyxy for tile in kept]),
        np.concatenate([tile.confidences for tile in kept]),
        np.concatenate([tile.class_ids for tile in kept]),
    )
    order = np.argsort(-every.confidences, kind="stable")
    every, tiles = every[order], tiles[order]
    return _join(every, tiles, _partners(every, tiles, frame), frame)


def score_frames(frames: Sequence[Frame], found: Sequence[Detections], names: Mapping[int, str]) -> dict[str, Any]:
    """The metrics of whole frames: those of `scores`, and ``per_size`` and ``per_city``.

    Recall per size is the share of its lights found at the confidence at which precision and recall are given.
    """
    outcomes = [judge(detections, frame) for detections, frame in zip(found, frames, strict=True)]
    overall = scores(outcomes, names)
    per_size = {}
    for name, size in SIZES.items():
        of_size = [judge(detections, frame, size) for detections, frame in zip(found, frames, strict=True)]
        row = _row(of_size, names)
        per_size[name] = {**row, "recall": recall_at(of_size, overall["confidence"])}
    per_city = {}
    for city in sorted({frame.city for frame in frames}):
        there = [outcome for outcome, frame in zip(outcomes, frames, strict=True) if frame.city == city]
        per_city[city] = {"frames": len(there), **_row(there, names)}
    return {**overall, "per_size": per_size, "per_city": per_city}


def _row(outcomes: Sequence[Outcome], names: Mapping[int, str]) -> dict[str, Any]:
    found = scores(outcomes, names)
    return {key: found[key] for key in ("instances", "map50", "map50_95")}


def _to_frame(boxes_xyxy: np.ndarray, view: View, frame: Frame) -> np.ndarray:
    """Boxes [N, 4] from image to frame pixels, cut at the frame's edge (a small frame's image is padded)."""
    origin, size = np.tile(view.window_xyxy[:2], 2), np.tile(frame.size_wh, 2)
    return np.clip(origin + boxes_xyxy / view.scale, 0, size)


def _ends_at_edge(boxes_xyxy: np.ndarray, view: View, frame: Frame) -> np.ndarray:
    """Whether boxes [N, 4] reach to or beyond an inner edge of a view, one that is no edge of the frame: [N]."""
    near, (x1, y1, x2, y2), (width, height) = EDGE_PX / view.scale, view.window_xyxy, frame.size_wh
    low = [x1 + near if x1 > 0 else -np.inf, y1 + near if y1 > 0 else -np.inf]
    high = [x2 - near if x2 < width else np.inf, y2 - near if y2 < height else np.inf]
    return (boxes_xyxy[:, :2] <= low).any(1) | (boxes_xyxy[:, 2:] >= high).any(1)


def _partners(found: Detections, tiles: np.ndarray, frame: Frame) -> dict[int, list[int]]:
    """For each detection those of other tiles that show the same light, the most confident first.

    Only boxes in the overlap of two tiles are compared, tile by tile: hundreds with hundreds, never all with all.
    """
    pairs: list[np.ndarray] = []
    of_tile = [np.flatnonzero(tiles == i) for i in range(len(frame.views))]
    for i, j in combinations(range(len(frame.views)), 2):
        a, b = (np.array(frame.views[k].window_xyxy, float) for k in (i, j))
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        if (low >= high).any():
            continue
        mine, theirs = (_within(found.boxes_xyxy, of_tile[k], low, high) for k in (i, j))
        if not len(mine[0]) or not len(theirs[0]):
            continue
        same = box_iou(mine[1], theirs[1]) >= SAME_IOU
        same &= found.class_ids[mine[0]][:, None] == found.class_ids[theirs[0]]
        p, q = np.nonzero(same)
        pairs.append(np.column_stack([mine[0][p], theirs[0][q]]))
    partners: dict[int, list[int]] = {}
    for p, q in np.concatenate(pairs).tolist() if pairs else ():
        partners.setdefault(p, []).append(q)
        partners.setdefault(q, []).append(p)
    return {p: sorted(others) for p, others in partners.items()}


def _within(
    boxes_xyxy: np.ndarray, indices: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the boxes at ``indices`` those that show in the area from ``low`` to ``high``, and what shows of them."""
    boxes = boxes_xyxy[indices]
    parts = np.hstack([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)])
    there = (parts[:, :2] < parts[:, 2:]).all(1)
    return indices[there], parts[there]


def _join(found: Detections, tiles: np.ndarray, partners: dict[int, list[int]], frame: Frame) -> Detections:
    """One detection per light; ``found`` is in falling confidence, ``partners`` are their places in it."""
    boxes, gone = found.boxes_xyxy.copy(), np.zeros(len(found), bool)
    cut = np.ones(len(found), bool)  # in every tile, the others having gone
    for i, view in enumerate(frame.views):
        mine = tiles == i
        cut[mine] = _ends_at_edge(boxes[mine], view, frame)
    for i in sorted(partners):
        if gone[i]:
            continue
        members, seen_in = [i], {tiles[i]}
        for member in members:  # grows while it is read
            for other in partners[member]:
                if gone[other] or other in members:
                    continue
                gone[other] = True
                if cut[member] and cut[other] and tiles[other] not in seen_in:
                    members.append(other)
                    seen_in.add(tiles[other])
        parts = found.boxes_xyxy[members]
        boxes[i] = np.hstack([parts[:, :2].min(0), parts[:, 2:].max(0)])
    return Detections(boxes, found.confidences, found.class_ids)[~gone]
