"""What the files of a run say about it: config.json at the start, run.json at the end (schemas/run.schema.json).

In: a configuration, the models and data behind it. Out: dicts that go to JSON as they are.
Invariant: inputs are identified by hashes, so a run can be resumed and compared wherever they lie by then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils.torch_utils import get_flops

from kd.config import TrainConfig
from kd.distillation.balance import medians
from kd.distillation.links import link_teachers
from kd.distillation.teacher import probe_levels
from kd.distillation.unlabeled import check_unlabeled
from kd.files import sha256
from kd.runs.record import optimizer_of
from kd.scoring.evaluate import score
from kd.training.builtin import nearest_own
from kd.training.checkpoints import load_sidecar, sidecar_of
from kd.training.worth import Worth
from kd.ultra import classic, models
from kd.ultra.data import hash_data
from kd.ultra.labels import Found
from kd.ultra.session import versions


@dataclass(frozen=True)
class Checked:
    """What a run starts from, once all of it has been found possible."""

    record: dict[str, Any]  # of config.json
    data: dict[str, Any]  # as `kd.ultra.data.resolve_data` has it
    model: str  # what Ultralytics builds the student from
    found: dict[str, Found]  # by split
    shared: dict[str, int]  # images of val and test that train has too

    def with_worths(self, worths: list[Worth]) -> Checked:
        """The same with what each teacher is worth."""
        kd = self.record["kd"]
        taught = [{**one, "worth": worth.to_json()} for one, worth in zip(kd["teachers"], worths, strict=True)]
        return replace(self, record={**self.record, "kd": {**kd, "teachers": taught}})

    def with_inherited(self, account: dict[str, Any]) -> Checked:
        """The same with more of how the first weights came about."""
        return replace(self, record={**self.record, "inherited": {**self.record["inherited"], **account}})

    def with_cache(self, account: dict[str, Any]) -> Checked:
        """The same with an account of the teacher's cached detections."""
        return replace(self, record={**self.record, "kd": {**self.record["kd"], "cache": account}})

    def with_batch(self, batch: int, account: dict[str, Any]) -> Checked:
        """The same with the batch that was measured, and how: from here on it is a number as if it had been given."""
        config = {key: value for key, value in self.record["config"].items() if key != "batch_auto"}
        return replace(self, record={**self.record, "config": {**config, "batch": batch}, "batch_auto": account})

    def as_before(self, record: dict[str, Any]) -> Checked:
        """The same with what the run's config.json says of its teachers and batch: they are not looked at again."""
        kept = {key: record[key] for key in ("kd", "inherited") if key in self.record}
        kept |= {key: record[key] for key in ("batch_auto",) if key in record}
        return replace(self, record={**self.record, **kept})


def config_json(
    config: TrainConfig, data: dict[str, Any], student: torch.nn.Module, names: dict[int, str]
) -> dict[str, Any]:
    """What config.json holds: options, hashes of what is read, what is learned from whom.

    Raises ModelError, DistillationError or DataError for teachers and unlabelled images that cannot be learned from.
    """
    record = {
        "config": config.to_json(),
        "data_sha256": hash_data(config.data, data),
        "student_sha256": _file_hash(config.student),
        "kd": {"teachers": _teachers(config, student, names)} if config.distils else None,
    }
    if config.unlabeled:
        record["kd"]["unlabeled"] = check_unlabeled(config.unlabeled, data)
    if config.inherit:
        record["inherited"] = {"teacher_sha256": _file_hash(config.inherit)}
    return record


def run_json(config: TrainConfig, checked: Checked, out: Path, quiet: bool) -> dict[str, Any]:
    """What run.json holds of a trained student: images, metrics of its checkpoints, sizes, versions."""
    last, best = out / "weights" / "last.pt", out / "weights" / "best.pt"
    record = checked.record
    if config.balance:
        samples = load_sidecar(sidecar_of(last), mmap=True)["balance"]
        record = {**record, "kd": {**record["kd"], "balanced_weights": medians(samples)}}
    return {
        **record,
        "images": {split: one.images for split, one in checked.found.items()},
        **_counts("skipped", {split: one.skipped for split, one in checked.found.items()}),
        **_counts("repeated_labels", {split: one.repeated for split, one in checked.found.items()}),
        **_counts("shared_images", checked.shared),
        "metrics": {path.stem: _metrics(path, config, checked.data, quiet) for path in (last, best)},
        **_size(last, config.imgsz),
        "versions": versions(),
    }


def _teachers(config: TrainConfig, student: torch.nn.Module, names: dict[int, str]) -> list[dict[str, Any]]:
    """What each teacher shares with the student; one that shares nothing, or cannot be compared, is refused here."""
    if config.cached:  # nothing of it runs beside the student
        alone = {"sha256": _file_hash(config.teachers[0]), "weight": 1.0, "levels": [], "adapter_params": 0}
        return [{**alone, "worth": None}]
    config = nearest_own(config) if config.built_in else config
    channels = probe_levels(student)
    return [
        {
            "sha256": _file_hash(link.teacher.spec),
            "weight": link.share,
            "levels": [
                {
                    "stride": own,
                    "teacher_stride": theirs,
                    "student_channels": channels[own],
                    "teacher_channels": link.teacher.levels[theirs],
                }
                for own, theirs in link.levels.items()
            ],
            "adapter_params": sum(p.numel() for p in link.adapters.parameters()),
            "worth": None,
        }
        for link in link_teachers(config, student, names, torch.device("cpu"))
    ]


def _file_hash(spec: str) -> str | None:
    path = Path(spec)
    return sha256(path) if path.is_file() else None


def _counts(key: str, by_split: dict[str, int]) -> dict[str, dict[str, int]]:
    """The splits with any, or no such key."""
    some = {split: count for split, count in by_split.items() if count}
    return {key: some} if some else {}


def _metrics(checkpoint: Path, config: TrainConfig, data: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Scores of a checkpoint on val, and on test where there is one."""
    yolo = models.load_model(str(checkpoint))
    options = {"imgsz": config.imgsz, "batch": config.batch, "device": config.one_device, **config.view}
    return {
        split: score(yolo, config.data, split=split, quiet=quiet, **options) for split in ("val", "test") if data[split]
    }


def _size(checkpoint: Path, imgsz: int) -> dict[str, Any]:
    """A checkpoint's optimizer, parameters, GFLOPs and, where it has some, anchors."""
    yolo = models.load_model(str(checkpoint))
    return {
        "optimizer": optimizer_of(yolo.ckpt["train_args"]),
        "params": sum(p.numel() for p in yolo.model.parameters()),
        "gflops": round(get_flops(yolo.model, imgsz), 3) or None,  # None: Ultralytics could not measure
        **anchors_of(yolo.model),
    }


def anchors_of(model: torch.nn.Module) -> dict[str, Any]:
    """The anchors of a classic model, {anchors: {stride: [[width, height], ...]}} in pixels; of others nothing."""
    if not isinstance(model, classic.Model):
        return {}
    levels = model.model[-1].priors.items()
    return {"anchors": {str(stride): [[round(side, 2) for side in size] for size in sizes] for stride, sizes in levels}}
