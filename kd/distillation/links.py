"""Teachers linked to a student: their adapters, the levels that both have, and what cannot be linked.

In: a configuration and the bare student. Out: a link per teacher, or a refusal that names what would fit.
Invariant: of a link the adapters alone are trained.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kd.config import GRID_PX, TrainConfig, require_side
from kd.distillation.teacher import Teacher, anchors_of, load_detector, probe_levels
from kd.errors import DistillationError
from kd.methods.adapters import Adapters
from kd.methods.facts import FACTS, HEADLESS, NEEDS_QUERIES, ON_FEATURES, ON_HEADS, either
from kd.methods.fgfi_config import Priors
from kd.methods.masks import Anchors


@dataclass(frozen=True)
class TeacherLink:
    """A teacher, the adapters from the student towards it, and its ``share`` in the distillation terms, 0..1.

    ``levels`` are the shared ones: the student's stride -> the teacher's, each in pixels of the images it sees.
    """

    teacher: Teacher
    adapters: Adapters
    levels: Mapping[int, int]
    share: float


def link_teachers(
    config: TrainConfig, student: nn.Module, names: dict[int, str], device: torch.device
) -> list[TeacherLink]:
    """A link per teacher, refused unless it can be compared with the bare ``student`` as the methods do.

    ``names`` are the classes that the student has, or will have when it is trained. Each teacher's adapters start as
    they would if it were the only one. Raises ModelError, UsageError or DistillationError.
    """
    methods = {name for name, _ in config.methods}
    ratio = (config.teacher_imgsz or config.imgsz) / config.imgsz
    own, anchors = probe_levels(student), anchors_of(student)
    if anchors:
        anchors = dict(given_anchors(config) or anchors)
    links = []
    for spec, share in zip(config.teachers, config.shares, strict=True):
        head = {"with_head": config.needs_head or config.chooses, "with_queries": bool(methods & NEEDS_QUERIES)}
        teacher = Teacher(spec, device, ratio=ratio, **head)
        if config.teacher_imgsz:
            require_side("teacher-imgsz", config.teacher_imgsz, max(GRID_PX, *teacher.levels))
        require_comparable(teacher, methods, names, getattr(student.model[-1], "reg_max", 0))
        levels = match_levels(own, teacher.levels, spec, ratio)
        if compares_heads(config):
            require_equal_anchors(teacher, anchors, levels)
        if config.needs_head:
            require_equal_grids(config, own, teacher.levels, spec)
        channels = {s: (own[s], teacher.levels[t]) for s, t in levels.items()}
        links.append(TeacherLink(teacher, Adapters(channels, config).to(device), levels, share))
    return links


def matching_classes(student: Mapping[int, str], teacher: Mapping[int, str]) -> list[int] | None:
    """The teacher's class of the same name for each of the student's, or None where one has none.

    >>> matching_classes({0: "bus", 1: "car"}, {0: "car", 1: "van", 2: "bus"})
    [2, 0]
    """
    index = {name: i for i, name in teacher.items()}
    return [index[student[i]] for i in sorted(student)] if index.keys() >= set(student.values()) else None


def require_comparable(teacher: Teacher, methods: Collection[str], names: Mapping[int, str], reg_max: int) -> None:
    """Raise DistillationError unless the teacher's head can be compared with the student's as the methods do.

    ``names`` are the student's classes, ``reg_max`` the bins of its box distributions, 0 for a head without.
    """
    for facts in (facts for name, facts in FACTS.items() if name in methods):
        if facts.same_classes and matching_classes(names, teacher.names) is None:
            missing = [name for name in names.values() if name not in teacher.names.values()]
            raise DistillationError(
                f"{teacher.spec}: {facts.name}: got a teacher without the class {', '.join(missing[:5])}, expected "
                f"each of the student's by name: train it on this data, or choose a method that looks at no classes, "
                f"such as cwd"
            )
        if facts.same_bins and not reg_max == teacher.reg_max > 1:
            raise DistillationError(
                f"{teacher.spec}: {facts.name}: got reg_max {teacher.reg_max} with the student's {reg_max}, expected "
                f"the same above 1 (box distributions of equal bins): choose box, which compares the boxes themselves"
            )


def given_anchors(config: TrainConfig) -> Priors | None:
    """The anchors that a run gives a classic student: those asked for, or of a teacher whose head it is to be like.

    That is one that it inherits from or, for a student without weights, one that a method compares heads with. None: it
    has its own. Raises ModelError for a teacher that cannot be loaded.
    """
    if config.fgfi.priors:
        return config.fgfi.priors
    teachers = [config.inherit] if config.inherit else list(config.teachers[:1]) if compares_heads(config) else []
    if not teachers or config.student.lower().endswith(".pt"):
        return None
    found = anchors_of(load_detector(teachers[0]).model)
    return tuple(found.items()) if found else None


def compares_heads(config: TrainConfig) -> bool:
    """Whether a method compares what the heads of student and teacher say."""
    return any(name in ON_HEADS for name, _ in config.methods)


def require_equal_anchors(teacher: Teacher, own: Anchors | None, levels: Mapping[int, int]) -> None:
    """Raise DistillationError unless a student with the anchors ``own`` predicts for the same boxes as its teacher.

    ``levels`` are the shared ones, as in `TeacherLink`. Anchors count in cells, to the hundredth that files round to.
    """
    theirs = teacher.priors
    if not own and not theirs:
        return

    def sides(anchors: Anchors, strides: Iterable[int]) -> list[float]:
        return [side / stride for stride in strides for size in anchors[stride] for side in size]

    if own and theirs:
        pair = sides(own, levels), sides(theirs, levels.values())
        if len(pair[0]) == len(pair[1]) and all(math.isclose(*both, rel_tol=0.01) for both in zip(*pair, strict=True)):
            return
    like = "inherit from it (--inherit), or give its anchors by --priors RUN/run.json, or " if own and theirs else ""
    raise DistillationError(
        f"{teacher.spec}: methods on heads: got a teacher with {_told(theirs)} and a student with {_told(own)}, "
        f"expected equal ones: {like}choose a method on features: {either(ON_FEATURES)}"
    )


def _told(anchors: Anchors | None) -> str:
    """Anchors in words.

    >>> _told({8: [(10, 13), (16, 30)]}), _told(None)
    ('anchors 10x13, 16x30 at stride 8', 'no anchors')
    """
    levels = (f"{', '.join(f'{w:g}x{h:g}' for w, h in sizes)} at stride {s}" for s, sizes in (anchors or {}).items())
    return f"anchors {'; '.join(levels)}" if anchors else "no anchors"


def match_levels(student: Iterable[int], teacher: Iterable[int], spec: str, ratio: float = 1.0) -> dict[int, int]:
    """The teacher's stride for each of the student's at which it has a level; DistillationError when there is none.

    A teacher that sees images ``ratio`` times as large has its levels at strides / ratio of the student's pixels: at
    ratio 2 its stride 16 is the student's grid at 8 (Qi et al., Multi-Scale Aligned Distillation, CVPR 2021). The
    nearest one counts, within a factor of the square root of 2.

    >>> match_levels([8, 16, 32], [4, 8, 16, 32], "yolov8s-p2")
    {8: 8, 16: 16, 32: 32}
    >>> match_levels([8, 16, 32], [8, 16, 32], "yolov8s", ratio=2)
    {8: 16, 16: 32}
    """
    teacher = {stride: stride / ratio for stride in teacher}
    matches = {own: min(teacher, key=lambda theirs: abs(math.log(teacher[theirs] / own))) for own in student}
    matches = {own: theirs for own, theirs in matches.items() if 0.5 <= (teacher[theirs] / own) ** 2 <= 2}
    if not matches:
        raise DistillationError(
            f"{spec}: teacher: got levels at strides {', '.join(f'{s:g}' for s in teacher.values())}, expected at "
            f"least one of the student's: {', '.join(map(str, student))}"
        )
    return matches


def require_equal_grids(config: TrainConfig, own: Collection[int], theirs: Collection[int], spec: str) -> None:
    """Raise DistillationError, with sizes that fit, unless all shared levels have the same cells at every batch.

    ``own`` and ``theirs`` are the strides of the student and the teacher, in pixels of the images that each sees.
    """
    grid, step = (max(GRID_PX, *strides) for strides in (own, theirs))
    varies = any(dict(config.settings).get(key) for key in ("rect", "multi_scale"))
    side = grid if varies else math.ceil(config.imgsz / grid) * grid

    def fits(size: int) -> bool:
        try:
            matches = match_levels(own, theirs, spec, size / config.imgsz)
        except DistillationError:
            return False
        whole = side * size % (config.imgsz * step) == 0
        return whole and all(t * config.imgsz == s * size for s, t in matches.items())

    got = config.teacher_imgsz or config.imgsz
    if not fits(got):
        powers = (config.imgsz // 4, config.imgsz // 2, config.imgsz, config.imgsz * 2, config.imgsz * 4)
        sizes = " or ".join(str(size) for size in powers if fits(size))
        raise DistillationError(
            f"{spec}: --teacher-imgsz: got {got} with --imgsz {config.imgsz} and a method that compares heads, "
            f"expected equal grids of cells in both: choose {sizes or 'another --imgsz'}, or {HEADLESS}"
        )


def require_wired(links: Sequence[TeacherLink], optimizer: torch.optim.Optimizer) -> None:
    """Raise DistillationError unless the adapters can learn and the teachers cannot.

    Each condition is one that published implementations missed while their losses went on looking plausible.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for link in links:
        _require_wired(link, trained)


def _require_wired(link: TeacherLink, trained: set[int]) -> None:
    teacher = list(link.teacher.model.parameters())
    checks = {
        "adapters outside the optimizer": all(id(p) in trained for p in link.adapters.parameters()),
        "frozen adapters": all(p.requires_grad for p in link.adapters.parameters()),
        "a teacher in the optimizer": not any(id(p) in trained for p in teacher),
        "a teacher with gradients": not any(p.requires_grad for p in teacher),
        "a teacher in training mode": not any(
            m.training
            for m in link.teacher.model.modules()
            if not isinstance(m, nn.SiLU)  # Ultralytics shares one activation object between all models
        ),
        "an adapter that is not finite": all(
            math.isfinite(float(p.detach().sum())) for p in link.adapters.parameters()
        ),
    }
    for wrong, fine in checks.items():
        if not fine:
            raise DistillationError(
                f"{link.teacher.spec}: distillation: got {wrong}, expected trained adapters and a frozen "
                f"teacher; please report this with your Ultralytics version"
            )
