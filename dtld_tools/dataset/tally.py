"""Frame lines and image lines in, the counts of report.json out: what must add up is counted in one place.

Invariant: lights in = kept + dropped + those of skipped frames. `dtld validate` counts again and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dtld_tools.types import SPLITS, FrameRecord, ImageRecord


class Tally:
    """Counts lights, targets, frames and images as their lines go by; tallies of parts merge into one."""

    def __init__(self, class_names: Sequence[str] = ()) -> None:
        self.class_names = class_names
        self.frames: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.lights: Counter[int] = Counter()
        self.targets: Counter[tuple[int | None, str]] = Counter()

    def add(self, frame: FrameRecord, images: Iterable[ImageRecord]) -> None:
        """Count one frame and its images; copies count as images, their targets are not counted again."""
        self.frames[frame.split] += 1
        self.dropped.update(dropped.reason for dropped in frame.dropped)
        self.lights.update(light.class_id for light in frame.lights)
        self.sums["distances"] += sum(light.distance_m is not None for light in frame.lights)
        self.sums["equal"] += len(frame.lights) - len({(light.class_id, light.box) for light in frame.lights})
        class_of = {light.light_id: light.class_id for light in frame.lights}
        padded = False
        for image in images:
            self.images[image.split] += 1
            if image.augmentation is not None:
                self.sums["copies"] += 1
                continue
            self.empty[image.split] += not image.targets
            self.sums["slivers"] += len(image.slivers)
            self.sums["masked"] += len(image.masked)
            self.targets.update((class_of.get(light_id), image.split) for light_id in image.targets)
            x, y, w, h = image.window
            padded |= x + w > frame.width or y + h > frame.height
        self.sums["padded"] += padded

    def merge(self, part: Tally) -> None:
        """Add the counts of another tally."""
        for name, counts in vars(part).items():
            if isinstance(counts, Counter):
                getattr(self, name).update(counts)

    def notes(self) -> list[str]:
        """What the counts alone do not tell: lights whose label lines a trainer takes for one."""
        equal = self.sums["equal"]
        if not equal:
            return []
        return [
            f"{equal} lights have the class and the box of another of their frame under another id: "
            "Ultralytics counts equal label lines once"
        ]

    def counts(self, skipped_lights: int) -> dict[str, Any]:
        """The counts as they stand in report.json; see schemas/report.schema.json."""
        kept, dropped = sum(self.lights.values()), dict(sorted(self.dropped.items()))
        return {
            "lights": {
                "in": kept + sum(dropped.values()) + skipped_lights,
                "kept": kept,
                "dropped": dropped,
                "in_skipped_frames": skipped_lights,
            },
            "classes": {
                name: {
                    "lights": self.lights[index],
                    "targets": {split: self.targets[index, split] for split in SPLITS},
                }
                for index, name in enumerate(self.class_names)
            },
            "frames": {split: self.frames[split] for split in SPLITS},
            "images": {split: self.images[split] for split in SPLITS},
            "empty_images": {split: self.empty[split] for split in SPLITS},
            "augmented_copies": self.sums["copies"],
            "slivers": self.sums["slivers"],
            "masked_slivers": self.sums["masked"],
            "padded_frames": self.sums["padded"],
            **({"lights_with_distance": self.sums["distances"]} if self.sums["distances"] else {}),
        }
