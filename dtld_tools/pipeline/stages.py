"""The only place where the stages meet: a plan is made from labels or a dataset, then carried out in workers.

Every command gives the same bytes (all but report.json) for any number of workers, and again after being
interrupted: an image that has its name is complete, so a second run makes only what is missing.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from dtld_tools.dataset.consistency import read_classes, read_sound_report
from dtld_tools.dataset.data_yaml import write_data_yaml
from dtld_tools.dataset.folder import finish, line_files, output, remove_dataset
from dtld_tools.dataset.reading import read_frames, read_images
from dtld_tools.dataset.tally import Tally
from dtld_tools.errors import DatasetError, ImageError, UsageError
from dtld_tools.files import refuse_inputs, told_when_full
from dtld_tools.importing.imported import Crowd
from dtld_tools.importing.reading import form_of, read_import
from dtld_tools.labels.collapse import load_rules, rules_file
from dtld_tools.labels.parse import Labels, read_labels
from dtld_tools.pipeline.render import Render
from dtld_tools.pipeline.workers import Executor, Map
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.pixels.disparity import Stereo
from dtld_tools.planning.plan import Cut, Plan, plan_copies, plan_images
from dtld_tools.planning.sources import Classes, Skipped, dataset_sources, find_sources, select
from dtld_tools.planning.split import SplitSpec, assign_splits, from_label_files
from dtld_tools.types import SequenceId, Split, TileSpec
from dtld_tools.versions import package_version

PACKAGES = {"dtld-kd": "dtld-kd", "opencv": "opencv-python", "numpy": "numpy", "shapely": "shapely"}
FULL_FRAMES = TileSpec(layout="frame", min_visible=0, min_side_px=0)
ONE_WORKER = Executor()
ImageFormat = Literal["jpg", "png"]
MaxImages = Mapping[Split, int] | None  # the most originals of a split


@dataclass(frozen=True, slots=True)
class Run:
    """How to carry a plan out; nothing here changes the bytes."""

    executor: Executor = ONE_WORKER
    overwrite: bool = False
    strict: bool = False
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of which label files, where their images lie, and what their lights are called.

    ``val_labels`` and ``test_labels`` are that split. All are DTLD's, or a dataset to import. ``rules`` and ``stereo``
    (disparity images give distances) are for DTLD's, ``sequence_from`` and ``crowd`` for an import.
    """

    labels: tuple[Path, ...]
    root: Path
    rules: Path | None = None
    cities: tuple[str, ...] = ()
    limit: int | None = None
    follow_symlinks: bool = False
    sequence_from: str | None = None
    crowd: Crowd = "drop"
    stereo: Stereo | None = None
    val_labels: tuple[Path, ...] = ()
    test_labels: tuple[Path, ...] = ()


# --- the commands ----------------------------------------------------------------------------------------


def convert(
    selection: Selection,
    out: Path,
    split: SplitSpec | None = None,
    *,
    image_format: ImageFormat | None = None,
    seed: int = 0,
    run: Run = Run(),
) -> dict[str, Any]:
    """Label files and their frames to a full-frame dataset in ``out``; returns its report. Raises DtldError.

    ``split`` None keeps the splits of an import that has some, ``image_format`` None the format of its images; else
    they are ``SplitSpec()`` and jpg.
    """
    cut = Cut(FULL_FRAMES, None, seed, image_format and f".{image_format}", stereo=selection.stereo)
    return _execute(
        lambda: _plan_labels("convert", selection, out, split, cut, None, None, run.strict), selection.root, out, run
    )


def prepare(
    selection: Selection,
    out: Path,
    split: SplitSpec | None,
    tiles: TileSpec,
    augment: AugmentSpec,
    *,
    empty_ratio: float | None = 0.1,
    max_images: MaxImages = None,
    image_format: ImageFormat | None = None,
    seed: int = 0,
    run: Run = Run(),
) -> dict[str, Any]:
    """`convert`, `tile` and `augment` in one pass: each frame is decoded once. Returns the report."""
    cut = Cut(tiles, augment, seed, image_format and f".{image_format}", stereo=selection.stereo)
    return _execute(
        lambda: _plan_labels("prepare", selection, out, split, cut, empty_ratio, max_images, run.strict),
        selection.root,
        out,
        run,
    )


def tile(
    root: Path,
    out: Path,
    tiles: TileSpec,
    *,
    empty_ratio: float | None = 0.1,
    max_images: MaxImages = None,
    seed: int = 0,
    run: Run = Run(),
) -> dict[str, Any]:
    """A full-frame dataset to a dataset of tiles; returns its report. Raises DtldError."""
    refuse_inputs(out, [root])
    settings = {"command": "tile", **_tiling(tiles, empty_ratio, max_images), "seed": seed}

    def plan() -> Plan:
        return plan_images(
            settings,
            read_classes(root),
            lambda: dataset_sources(root),
            Cut(tiles, None, seed, None),
            empty_ratio=empty_ratio,
            max_images=max_images,
        )

    return _execute(plan, root, out, run)


def augment(root: Path, out: Path, spec: AugmentSpec, *, seed: int = 0, run: Run = Run()) -> dict[str, Any]:
    """A dataset with changed copies beside its originals; returns its report. Raises DtldError."""
    refuse_inputs(out, [root])
    _refuse_augmented(root, "augment the one it was made from")
    settings = {"command": "augment", "augment": asdict(spec), "tiles": _tiles_of(root), "seed": seed}
    return _execute(lambda: plan_copies(settings, root, spec, seed, lambda frame: frame.split), root, out, run)


def split(root: Path, out: Path, spec: SplitSpec, *, seed: int = 0, run: Run = Run()) -> dict[str, Any]:
    """A dataset split anew; returns its report. Raises DtldError for one with augmented copies."""
    refuse_inputs(out, [root, spec.split_file])
    _refuse_augmented(root, "copies of a training image must not end up in test; split first, then augment")
    splits = assign_splits(Counter(frame.sequence for frame in read_frames(root)), spec, seed)
    settings = {"command": "split", "split": _plain(spec), "tiles": _tiles_of(root), "seed": seed}
    return _execute(
        lambda: plan_copies(settings, root, None, seed, lambda frame: splits[frame.sequence]), root, out, run
    )


def _plan_labels(
    command: str,
    selection: Selection,
    out: Path,
    split: SplitSpec | None,
    cut: Cut,
    empty_ratio: float | None,
    max_images: MaxImages,
    strict: bool,
) -> Plan:
    given = _read_import(selection, out, split, cut) or _read_labels(selection, out, split or SplitSpec(), cut)
    found = find_sources(
        select(given.labels, selection.cities, selection.limit),
        selection.root,
        given.classes,
        given.assign,
        strict=strict,
        follow_symlinks=selection.follow_symlinks,
        shown=given.cut.shown,
        with_disparity=selection.stereo is not None,
    )
    settings = {
        "command": command,
        **given.settings,
        "cities": selection.cities,
        "limit": selection.limit,
        **_tiling(cut.spec, empty_ratio, max_images),
        "augment": cut.augment and asdict(cut.augment),
        "image_format": given.cut.suffix and given.cut.suffix.lstrip("."),
        "seed": cut.seed,
    }
    plan = plan_images(
        settings,
        given.classes.class_names,
        found.sources,
        given.cut,
        empty_ratio=empty_ratio,
        max_images=max_images,
        skipped=found.skipped,
    )
    return replace(plan, notes=(*given.notes, *found.notes))


@dataclass(frozen=True, slots=True)
class _Given:
    """What LABELS say, whoever wrote them: frames, classes, the splits of sequences, and how frames are cut then."""

    labels: Labels
    classes: Classes
    settings: Mapping[str, Any]
    assign: Callable[[Mapping[SequenceId, int]], Mapping[SequenceId, Split]]
    cut: Cut
    notes: tuple[str, ...] = ()


def _read_labels(selection: Selection, out: Path, split: SplitSpec, cut: Cut) -> _Given:
    """The label files of DTLD."""
    val, test = (*selection.val_labels, *split.val_labels), (*selection.test_labels, *split.test_labels)
    split = replace(split, val_labels=val, test_labels=test)
    files = [*selection.labels, rules_file(selection.rules), split.split_file, *split.val_labels, *split.test_labels]
    # In ROOT it may lie: frames are only looked for by name.
    refuse_inputs(out, [*files, selection.root], inside=False)
    for option, is_given in (("--sequence-from", selection.sequence_from), ("--crowd", selection.crowd != "drop")):
        if is_given:
            raise UsageError(f"{option}: is for a data.yaml or a COCO JSON, got label files of DTLD; leave it out")
    rules = load_rules(selection.rules)
    labels = read_labels([*selection.labels, *split.val_labels, *split.test_labels])
    decided = _split_labels(selection, labels, split)
    return _Given(
        labels,
        rules,
        {
            "rules": rules.table,
            "split": _plain(split),
            **({"disparity": asdict(selection.stereo)} if selection.stereo else {}),
        },
        lambda sequences: assign_splits(sequences, split, cut.seed, decided),
        cut if cut.suffix else replace(cut, suffix=".jpg"),
    )


def _read_import(selection: Selection, out: Path, split: SplitSpec | None, cut: Cut) -> _Given | None:
    """The dataset of others that LABELS are, if they are one."""
    forms = {path: form for path in selection.labels if (form := form_of(path))}
    if not forms:
        return None
    (path, form), *_ = forms.items()
    said = split or SplitSpec()
    others: list[tuple[Path, Split]] = [(file, "val") for file in (*selection.val_labels, *said.val_labels)]
    others += [(file, "test") for file in (*selection.test_labels, *said.test_labels)]
    if len(selection.labels) > 1:
        raise UsageError(
            f"LABELS: got {len(selection.labels)} files, expected {path} alone: one is imported at a time; COCO files "
            "of other splits go with --val-labels and --test-labels"
        )
    if selection.rules:
        raise UsageError(f"--rules: is for the attributes of DTLD's lights, but {path} names classes; leave it out")
    if selection.stereo:
        raise UsageError(f"--disparity: is for DTLD's disparity images, but {path} names none; leave it out")
    if others and form != "coco":
        raise UsageError(f"--val-labels, --test-labels: are for files of DTLD or COCO, got {path}; leave them out")
    # Not in ROOT either: images are looked for in whole folders of it.
    files: list[tuple[Path, Split | None]] = [(path, "train" if others else None), *others]
    refuse_inputs(out, [*(file for file, _ in files), split.split_file if split else None, selection.root])
    found = read_import(form, files, selection.root, selection.sequence_from, selection.crowd)
    notes = found.notes
    if split is None and found.splits:
        own = found.split_of_sequences()
        notes += ("the source's own splits are kept; --val, --test and the like split anew by whole sequences",)
    else:
        own, split = {}, said
        if others:
            notes += ("--val-labels and --test-labels are no splits now: --val, --test and the like split all anew",)

    def assign(sequences: Mapping[SequenceId, int]) -> Mapping[SequenceId, Split]:
        return assign_splits(sequences, split, cut.seed) if split else own

    made_by = {"form": form, "sequence_from": selection.sequence_from, "crowd": selection.crowd}
    return _Given(
        Labels(found.frames, {}, {}),
        found.classes,
        {"import": {**made_by, "classes": found.classes.class_names}, "split": split and _plain(split)},
        assign,
        replace(cut, shown=True),
        notes,
    )


def _split_labels(selection: Selection, labels: Labels, spec: SplitSpec) -> dict[SequenceId, Split]:
    """The sequences of the label files that are a split of their own. Raises UsageError where nothing else is left."""
    given = {path.resolve() for path in selection.labels}
    for option, paths in (("--val-labels", spec.val_labels), ("--test-labels", spec.test_labels)):
        if paths and given <= {path.resolve() for path in paths}:
            raise UsageError(
                f"{option}: got {', '.join(map(str, paths))}, which is all that LABELS has, expected LABELS to hold "
                f"frames for train too: name DTLD_train.json (or DTLD_all.json) as LABELS and DTLD_test.json here"
            )
    files: dict[Split, tuple[Path, ...]] = {"val": spec.val_labels, "test": spec.test_labels}
    listed = {
        split: Counter(frame.sequence for frame in read_labels(paths).frames) for split, paths in files.items() if paths
    }
    return from_label_files(listed, Counter(frame.sequence for frame in labels.frames))


def _tiling(tiles: TileSpec, empty_ratio: float | None, max_images: MaxImages) -> dict[str, Any]:
    return {"tiles": asdict(tiles), "empty_ratio": empty_ratio, "max_images": dict(max_images or {})}


def _tiles_of(root: Path) -> dict[str, Any]:
    """How a dataset was tiled: what is copied from it is held against that, too. Raises DatasetError."""
    return read_sound_report(root)["configuration"]["tiles"]


def _plain(split: SplitSpec) -> dict[str, Any]:
    def text(value: Any) -> Any:
        if isinstance(value, tuple):
            return [text(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: text(value) for key, value in asdict(split).items()}


def _refuse_augmented(root: Path, advice: str) -> None:
    for image in read_images(root):
        if image.augmentation is not None:
            raise DatasetError(f"{root}: holds augmented copies such as {image.name}; {advice}")


# --- carrying a plan out ---------------------------------------------------------------------------------


def _execute(make_plan: Callable[[], Plan], source_root: Path, out: Path, run: Run) -> dict[str, Any]:
    """Make a plan, write its dataset, or what is still missing of it, and its report."""
    with run.executor.started(Render) as map_frames:
        plan = make_plan()
        started = time.monotonic()
        with told_when_full(out), output(out, plan.identity, overwrite=run.overwrite):
            tally, skipped, notes = _make_frames(plan, map_frames, source_root, out, run)
            write_data_yaml(out, plan.class_names)
            report = _report(replace(plan, notes=(*plan.notes, *notes)), tally, skipped, time.monotonic() - started)
            finish(out, report)
    return report


def _report(plan: Plan, tally: Tally, skipped: Sequence[Skipped], seconds: float) -> dict[str, Any]:
    return {
        "identity": plan.identity,
        "configuration": plan.settings,
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(package) for name, package in PACKAGES.items()},
        },
        "seed": plan.settings["seed"],
        **tally.counts(sum(skip.lights for skip in skipped)),
        "notes": [*plan.notes, *tally.notes()],
        "frames_skipped": [{"frame": s.frame, "reason": s.reason, "lights": s.lights} for s in skipped],
        "wall_time_s": round(seconds, 3),
        "frames_per_s": round(plan.frames / seconds, 2),
    }


def _make_frames(
    plan: Plan, map_frames: Map, source_root: Path, out: Path, run: Run
) -> tuple[Tally, list[Skipped], list[str]]:
    """Write images, labels and lines of every frame; returns their counts, the frames left out, and notes."""
    tally, skipped, failed = Tally(plan.class_names), list(plan.skipped), 0
    blind: list[str] = []
    bar = tqdm(total=plan.frames, unit="frame", desc=plan.settings["command"], disable=True if run.quiet else None)
    with bar, line_files(out) as (frame_lines, image_lines):
        for made in map_frames(Render(plan.cut, str(out.absolute())), plan.items()):
            bar.update()
            if made.failure is None:
                frame_lines.write(made.frame_line)
                image_lines.write(made.image_lines)
                tally.merge(made.tally)
                if made.blind:
                    if run.strict:
                        raise ImageError(made.blind)
                    blind.append(made.blind)
                continue
            if run.strict or made.verbatim:
                raise ImageError(made.failure)
            skipped.append(Skipped(made.frame, f"unreadable: {made.failure}", made.lights))
            failed += 1
        if failed and not tally.images:
            first = skipped[len(plan.skipped)].reason
            remove_dataset(out)
            raise DatasetError(f"{source_root}: none of {failed} frames could be read; the first: {first}")
    notes = (
        [f"{len(blind)} disparity images cannot be read, so their lights have no distance: {blind[0]}"] if blind else []
    )
    return tally, skipped, notes
