"""Whether one arm of runs beats another: paired by seed, with a 95 % interval, the signs, and what it rests on.

In: folders with runs. Out: means, mean difference, interval and signs, over all and per class, as shares of 1.
Invariant: a pair is two runs of one seed on the same data, student, epochs and image size; what is left out is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kd.errors import RunError
from kd.runs.record import Pair, Run, comparable_settings, find_pairs, read_runs
from kd.show import NAME
from schemas.text import one_line

LEAST_PAIRS = 5
METRICS = ("map50_95", "map50")


def compare(
    runs: Sequence[str | Path],
    baseline: Sequence[str | Path] = (),
    *,
    checkpoint: str = "last",
    any_epochs: bool = False,
) -> dict[str, Any]:
    """Compare runs with ``baseline``, or each distilled arm among ``runs`` with its plain twins.

    Folders are searched for runs at any depth. Returns ``{checkpoint, comparisons, warnings}``; the keys of a sole
    comparison stand beside them. ``any_epochs`` lets the epochs differ, as for a plain student at equal wall-clock
    time. Raises RunError, with the first difference, for runs that no pair can be made of.
    """
    found, warnings = _collect(runs)
    if baseline:
        others, more = _collect(baseline)
        warnings += more
        results = [_against(found, others, checkpoint, any_epochs)]
    else:
        results = _twins(found, checkpoint)
    alone = results[0] if len(results) == 1 else {}
    return {"checkpoint": checkpoint, **alone, "comparisons": results, "warnings": warnings}


def interval95(differences: Sequence[float]) -> list[float] | None:
    """The 95 % interval of a mean, by Student's t; None for fewer than two values.

    >>> [round(end, 2) for end in interval95([1, 2, 3])]
    [-0.48, 4.48]
    """
    n = len(differences)
    if n < 2:
        return None
    mean, reach = fmean(differences), t975(n - 1) * stdev(differences) / math.sqrt(n)
    return [mean - reach, mean + reach]


def t975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: what 95 % of its absolute values stay below.

    Exact by its distribution's finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)
    with t = sqrt(freedom) tan(angle), halved down to the last bit; scipy is no dependency of kd.

    >>> round(t975(4), 3)
    2.776
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _t_within(angle: float, freedom: int) -> float:
    """P(|T| < t) for t = sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    power, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(odd, freedom - 1, 2):  # terms cos^k, each k + 1 / (k + 2) times the one before, cos squared aside
        total += power
        power *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
    if odd:
        return (angle + math.sin(angle) * total) * 2 / math.pi
    return math.sin(angle) * total


# ---------------------------------------------------------------- who is compared with whom


def _collect(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The finished runs below all folders, each once, and a line for each that is not finished."""
    runs: dict[Path, Run] = {}
    warnings = []
    for folder in map(Path, folders):
        finished, unfinished = read_runs(folder)
        if not finished and not unfinished:
            raise RunError(
                f"{folder}: got no runs, expected finished runs of kd train (run.json) at any depth below it"
            )
        runs |= {run.folder.resolve(): run for run in finished}
        warnings += [f"{folder}: {name} is not finished and left out: {state}" for name, state in unfinished.items()]
    if not runs:
        raise RunError(f"{folders[0]}: got unfinished runs alone, expected finished ones: {warnings[0]}")
    return list(runs.values()), warnings


def _against(runs: list[Run], baseline: list[Run], checkpoint: str, any_epochs: bool) -> dict[str, Any]:
    """All of one arm with all of another, by seed."""
    for side in (runs, baseline):
        for run in side:
            if run.method != side[0].method:
                raise RunError(
                    f"{run.folder}: method: got {run.method}, expected {side[0].method} as in {side[0].folder}: "
                    f"compare one arm with one other"
                )
    for run in (*runs, *baseline):
        _require_alike(run, baseline[0], any_epochs)
    own, theirs = _by_seed(runs), _by_seed(baseline)
    pairs = [Pair(own[seed], theirs[seed]) for seed in sorted(own.keys() & theirs.keys())]
    if not pairs:
        seeds = [", ".join(map(str, sorted(side))) for side in (own, theirs)]
        raise RunError(
            f"{runs[0].folder}: seeds: got {seeds[0]}, expected some of the baseline's {seeds[1]}: pairs share a seed"
        )
    alone = [run for side, other in ((own, theirs), (theirs, own)) for seed, run in side.items() if seed not in other]
    return _comparison(pairs, alone, checkpoint)


def _twins(runs: list[Run], checkpoint: str) -> list[dict[str, Any]]:
    """Each distilled arm with its plain twins."""
    pairs = find_pairs(runs)
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.distils:
            arms.setdefault(run.arm_key, []).append(run)
    if not arms:
        raise RunError(f"{runs[0].folder}: got plain runs alone, expected distilled ones too: or name a --baseline")
    if not pairs:
        distilled = next(iter(arms.values()))[0]
        plain = [run for run in runs if not run.distils]
        if not plain:
            raise RunError(f"{distilled.folder}: got distilled runs alone, expected plain twins: or name a --baseline")
        nearest = min(plain, key=lambda run: len(list(_differences(distilled, run))))
        name, got, expected = next(_differences(distilled, nearest))
        raise RunError(
            f"{distilled.folder}: {name}: got {got}, expected {expected} as in {nearest.folder}, the nearest plain "
            f"run: pairs differ in nothing but the teacher"
        )
    results = []
    for arm in arms.values():
        mine = sorted((pair for pair in pairs if pair.distilled in arm), key=lambda pair: pair.distilled.config["seed"])
        _by_seed([pair.distilled for pair in mine])
        paired = [pair.distilled for pair in mine]
        results.append(_comparison(mine, [run for run in arm if run not in paired], checkpoint, arm[0]))
    return results


def _by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    seeds: dict[int, Run] = {}
    for run in runs:
        other = seeds.setdefault(run.config["seed"], run)
        if other is not run:
            raise RunError(
                f"{run.folder}: seed {run.config['seed']}: got it in {other.folder} too, expected a run per seed: "
                f"compare one arm with one other"
            )
    return seeds


def _facts(run: Run) -> dict[str, Any]:
    """What must be the same in all runs of a comparison; the first ones are what people get wrong first."""
    return {
        "data": run.record["data_sha256"][:12],
        "epochs": run.config["epochs"],
        "imgsz": run.config["imgsz"],
        "student": run.record["student_sha256"] or run.config["student"],
        "optimizer": run.optimizer,  # None: of before run.json said so
    }


def _require_alike(run: Run, other: Run, any_epochs: bool) -> None:
    for name, expected in _facts(other).items():
        got = _facts(run)[name]
        if got != expected and None not in (got, expected) and not (any_epochs and name == "epochs"):
            hint = ", or --any-epochs for a comparison at equal time" if name == "epochs" else ""
            raise RunError(
                f"{run.folder}: {name}: got {got}, expected {expected} as in {other.folder}: "
                f"compare runs that share it{hint}"
            )


def _differences(run: Run, other: Run) -> Iterable[tuple[str, Any, Any]]:
    """What keeps a distilled run and a plain one from being twins: name, its value, the other's."""
    sides = [_facts(side) | {key: side.config[key] for key in ("batch", "freeze", "settings", "seed")} for side in
             (run, other)]  # fmt: skip
    both = ((key, value, sides[1][key]) for key, value in sides[0].items())
    return (row for row in both if row[1] != row[2] and None not in row)


# ---------------------------------------------------------------- the figures


def _comparison(pairs: list[Pair], alone: list[Run], checkpoint: str, run: Run | None = None) -> dict[str, Any]:
    """The figures of one arm's pairs; ``alone`` are its runs, or the other's, whose seed has no partner."""
    run = run or pairs[0].distilled
    result: dict[str, Any] = {
        "runs": _describe(run),
        "baseline": _describe(pairs[0].plain) if pairs else None,
        "split": "test" if "test" in run.record["metrics"][checkpoint] else "val",
        "pairs": len(pairs),
        "seeds": [pair.distilled.config["seed"] for pair in pairs],
        "left_out": [str(other.folder) for other in alone],
    }
    scores = [(pair.distilled.scores(checkpoint), pair.plain.scores(checkpoint)) for pair in pairs]
    by_metric = {metric: _statistics([(own[metric], base[metric]) for own, base in scores]) for metric in METRICS}
    names = list(dict.fromkeys(name for own, _ in scores for name in own["per_class"]))
    per_class = {
        name: {
            metric: _statistics([(own["per_class"][name][metric], base["per_class"].get(name, {}).get(metric))
                                 for own, base in scores if name in own["per_class"]])
            for metric in METRICS
        }
        for name in names
    }  # fmt: skip
    times = [fmean(side.record["wall_time_s"] for side in sides) for sides in zip(*map(_sides, pairs), strict=True)]
    return {
        **result,
        **by_metric["map50_95"],
        **by_metric,
        "per_class": per_class,
        "mean_wall_time_s": dict(zip(("runs", "baseline"), times, strict=True)) if times else None,
        "verdict": _verdict(by_metric["map50_95"]),
        "warnings": _warnings(pairs, alone),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """What `compare` found, as text: a table for each comparison and its verdict; figures in per cent."""
    text = []
    for result in found["comparisons"]:
        seeds = ", ".join(map(str, result["seeds"])) or "none"
        text += [
            f"{result['runs']}, against {result['baseline'] or 'nothing'}",
            f"{result['split']}, {found['checkpoint']} checkpoint, seeds {seeds}",
        ]
        rows = [("", "", "baseline", "runs", "difference", "95 % interval", "up")]
        for metric, name in zip(METRICS, ("mAP50-95", "mAP50"), strict=True):
            rows.append((name, "all", *_cells(result[metric])))
            rows += [("", one_line(label, NAME), *_cells(row[metric])) for label, row in result["per_class"].items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            text.append(f"  {'  '.join(cells)}".rstrip())
        text += [result["verdict"], ""]
    return [one_line(line) for line in text[:-1]]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["difference"] is None:
        return ("-",) * 5
    base, own = (f"{100 * row['means'][side]:.1f}" for side in ("baseline", "runs"))
    interval = "[{:+.1f}, {:+.1f}]".format(*(100 * end for end in row["interval95"])) if row["interval95"] else "-"
    return base, own, f"{100 * row['difference']:+.1f}", interval, f"{row['signs']['up']} of {len(row['differences'])}"


def _sides(pair: Pair) -> tuple[Run, Run]:
    return pair.distilled, pair.plain


def _describe(run: Run) -> str:
    return f"{run.student} from {run.teacher}, {run.method}" if run.distils else f"{run.student}, plain"


def _statistics(values: Iterable[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Means, mean difference, interval and signs of (run, baseline) pairs; a pair without both scores is not counted.

    >>> _statistics([(0.5, 0.25), (0.5, 0.75)])["means"]
    {'runs': 0.5, 'baseline': 0.5}
    """
    both = [(own, base) for own, base in values if own is not None and base is not None]
    differences = [own - base for own, base in both]
    return {
        "means": {
            name: fmean(side) if both else None
            for name, side in zip(("runs", "baseline"), zip(*both, strict=True) if both else ((), ()), strict=True)
        },
        "difference": fmean(differences) if both else None,
        "interval95": interval95(differences),
        "signs": {
            "up": sum(difference > 0 for difference in differences),
            "down": sum(difference < 0 for difference in differences),
            "same": sum(difference == 0 for difference in differences),
        },
        "differences": differences,
    }


def _verdict(found: dict[str, Any]) -> str:
    """One line: the difference in points with its interval, the signs, and what they show."""
    count = len(found["differences"])
    if not count:
        return "no pairs: nothing to compare"
    line = f"{100 * found['difference']:+.1f} points mAP50-95"
    if found["interval95"] is None:
        return f"{line}, one pair: no interval, nothing is shown"
    low, high = found["interval95"]
    line += f" [{100 * low:+.1f}, {100 * high:+.1f}], {found['signs']['up']} of {count} pairs up"
    return f"{line}: " + ("better" if low > 0 else "worse" if high < 0 else "the interval holds zero, nothing is shown")


def _warnings(pairs: list[Pair], alone: list[Run]) -> list[str]:
    lines = [f"{run.folder}: seed {run.config['seed']} has no partner and is left out" for run in alone]
    if pairs and len(pairs) < LEAST_PAIRS:
        lines.append(f"{len(pairs)} pair{'s' * (len(pairs) > 1)}: fewer than {LEAST_PAIRS} prove nothing")
    seen = set()
    for pair in pairs:
        own, base = ({**side.config, **side.record} for side in _sides(pair))
        own["settings"], base["settings"] = comparable_settings(*_sides(pair))
        for key in ("epochs", "batch", "freeze", "settings", "device", "versions"):
            if own[key] != base[key] and key not in seen:
                seen.add(key)
                lines.append(f"{pair.distilled.folder}: {key}: {own[key]}, but {base[key]} in {pair.plain.folder}")
    return lines
