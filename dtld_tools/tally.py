"""Frame lines and image lines in, the counts of report.json out: what must add up is counted in one place.

Invariant: lights in = kept + dropped + those of skipped frames. `dtld validate` counts again and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dtld_tools.types import SPLITS, FrameRecord, ImageRecord


class Tally:
    """Counts lights, targets, frames and images as their lines go by."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.frames: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.copies = self.slivers = self.padded = self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.lights: Counter[int] = Counter()
        self.targets: Counter[tuple[int | None, str]] = Counter()

    def add(self, frame: FrameRecord, images: Iterable[ImageRecord]) -> None:
        """Count one frame and its images; copies count as images, their targets are not counted again."""
        self.frames[frame.split] += 1
        self.kept += len(frame.lights)
        self.dropped.update(dropped.reason for dropped in frame.dropped)
        self.lights.update(light.class_id for light in frame.lights)
        class_of = {light.light_id: light.class_id for light in frame.lights}
        padded = False
        for image in images:
            self.images[image.split] += 1
            if image.augmentation is not None:
                self.copies += 1
                continue
            self.empty[image.split] += not image.targets
            self.slivers += len(image.slivers)
            self.targets.update((class_of.get(light_id), image.split) for light_id in image.targets)
            x, y, w, h = image.window
            padded |= x + w > frame.width or y + h > frame.height
        self.padded += padded

    def counts(self, skipped_lights: int) -> dict[str, Any]:
        """The counts as they stand in report.json; see schemas/report.schema.json."""
        dropped = dict(sorted(self.dropped.items()))
        return {
            "lights": {
                "in": self.kept + sum(dropped.values()) + skipped_lights,
                "kept": self.kept,
                "dropped": dropped,
                "in_skipped_frames": skipped_lights,
            },
            "classes": {
                name: {"lights": self.lights[index], "targets": self._by_split(index)}
                for index, name in enumerate(self.class_names)
            },
            "frames": {split: self.frames[split] for split in SPLITS},
            "images": {split: self.images[split] for split in SPLITS},
            "empty_images": {split: self.empty[split] for split in SPLITS},
            "augmented_copies": self.copies,
            "slivers": self.slivers,
            "padded_frames": self.padded,
        }

    def _by_split(self, class_id: int) -> dict[str, int]:
        return {split: self.targets[class_id, split] for split in SPLITS}
