"""Whether one arm of runs beats another: paired by seed, with a 95 % interval, the signs, and what it rests on.

In: folders with runs. Out: means, mean difference, interval and signs, over all and per class, as shares of 1.
Invariant: a pair is two runs of one seed on the same data, student, epochs and image size; what is left out is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from kd.errors import RunError
from kd.runs.arms import COMPARABLE, Pair, arm_key, pair_by_seed, twins_of, unlike
from kd.runs.record import Run, read_runs
from kd.runs.statistics import LEAST_PAIRS, Differences, differences
from kd.show import NAME, percent, points
from schemas.text import one_line

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
        _require_comparable(run, baseline[0], any_epochs)
    own, theirs = _by_seed(runs), _by_seed(baseline)
    pairs = pair_by_seed(runs, baseline)
    if not pairs:
        seeds = [", ".join(map(str, sorted(side))) for side in (own, theirs)]
        raise RunError(
            f"{runs[0].folder}: seeds: got {seeds[0]}, expected some of the baseline's {seeds[1]}: pairs share a seed"
        )
    alone = [run for side, other in ((own, theirs), (theirs, own)) for seed, run in side.items() if seed not in other]
    return _comparison(pairs, alone, checkpoint)


def _twins(runs: list[Run], checkpoint: str) -> list[dict[str, Any]]:
    """Each distilled arm with its plain twins."""
    pairs = twins_of(runs)
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.taught:
            arms.setdefault(arm_key(run), []).append(run)
    if not arms:
        raise RunError(f"{runs[0].folder}: got plain runs alone, expected distilled ones too: or name a --baseline")
    if not pairs:
        distilled = next(iter(arms.values()))[0]
        plain = [run for run in runs if not run.taught]
        if not plain:
            raise RunError(f"{distilled.folder}: got distilled runs alone, expected plain twins: or name a --baseline")
        nearest = min(plain, key=lambda run: len(unlike(distilled, run)))
        name, got, expected = unlike(distilled, nearest)[0]
        raise RunError(
            f"{distilled.folder}: {name}: got {got}, expected {expected} as in {nearest.folder}, the nearest plain "
            f"run: pairs differ in nothing but the teacher"
        )
    results = []
    for arm in arms.values():
        mine = sorted((pair for pair in pairs if pair.run in arm), key=lambda pair: pair.run.seed)
        paired = [pair.run for pair in mine]
        _by_seed(paired)
        results.append(_comparison(mine, [run for run in arm if run not in paired], checkpoint, arm[0]))
    return results


def _by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    seeds: dict[int, Run] = {}
    for run in runs:
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise RunError(
                f"{run.folder}: seed {run.seed}: got it in {other.folder} too, expected a run per seed: "
                f"compare one arm with one other"
            )
    return seeds


def _require_comparable(run: Run, other: Run, any_epochs: bool) -> None:
    for name, got, expected in unlike(run, other, [key for key in COMPARABLE if key != "epochs" or not any_epochs]):
        hint = ", or --any-epochs for a comparison at equal time" if name == "epochs" else ""
        raise RunError(
            f"{run.folder}: {name}: got {got}, expected {expected} as in {other.folder}: "
            f"compare runs that share it{hint}"
        )


# ---------------------------------------------------------------- the figures


def _comparison(pairs: list[Pair], alone: list[Run], checkpoint: str, run: Run | None = None) -> dict[str, Any]:
    """The figures of one arm's pairs; ``alone`` are its runs, or the other's, whose seed has no partner."""
    run = run or pairs[0].run
    scores = [(pair.run.scores(checkpoint), pair.baseline.scores(checkpoint)) for pair in pairs]
    by_metric = {metric: differences((own[metric], base[metric]) for own, base in scores) for metric in METRICS}
    names = list(dict.fromkeys(name for own, _ in scores for name in own["per_class"]))
    per_class = {
        name: {
            metric: asdict(differences((own["per_class"][name][metric], base["per_class"].get(name, {}).get(metric))
                                       for own, base in scores if name in own["per_class"]))
            for metric in METRICS
        }
        for name in names
    }  # fmt: skip
    times = [fmean(side.record["wall_time_s"] for side in sides) for sides in zip(*pairs, strict=True)]
    return {
        "runs": _describe(run),
        "baseline": _describe(pairs[0].baseline) if pairs else None,
        "split": "test" if "test" in run.record["metrics"][checkpoint] else "val",
        "pairs": len(pairs),
        "seeds": [pair.run.seed for pair in pairs],
        "left_out": [str(other.folder) for other in alone],
        **asdict(by_metric["map50_95"]),
        **{metric: asdict(found) for metric, found in by_metric.items()},
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
        rows: list[tuple[str, ...]] = [("", "", "baseline", "runs", "difference", "95 % interval", "up")]
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
    interval = "[{}, {}]".format(*map(points, row["interval95"])) if row["interval95"] else "-"
    up = f"{row['signs']['up']} of {len(row['differences'])}"
    return percent(row["means"]["baseline"]), percent(row["means"]["runs"]), points(row["difference"]), interval, up


def _describe(run: Run) -> str:
    return f"{run.student} from {run.teacher}, {run.method}" if run.taught else f"{run.student}, plain"


def _verdict(found: Differences) -> str:
    """One line: the difference in points with its interval, the signs, and what they show."""
    count = len(found.differences)
    if not count:
        return "no pairs: nothing to compare"
    line = f"{points(found.difference)} points mAP50-95"
    if found.interval95 is None:
        return f"{line}, one pair: no interval, nothing is shown"
    line += " [{}, {}]".format(*map(points, found.interval95)) + f", {found.signs['up']} of {count} pairs up"
    if found.verdict != "unproven":
        return f"{line}: {found.verdict}"
    why = f"fewer than {LEAST_PAIRS} pairs" if count < LEAST_PAIRS else "the interval holds zero"
    return f"{line}: {why}, nothing is shown"


def _warnings(pairs: list[Pair], alone: list[Run]) -> list[str]:
    lines = [f"{run.folder}: seed {run.seed} has no partner and is left out" for run in alone]
    if pairs and len(pairs) < LEAST_PAIRS:
        lines.append(f"{len(pairs)} pair{'s' * (len(pairs) > 1)}: fewer than {LEAST_PAIRS} prove nothing")
    seen = set()
    for run, baseline in pairs:
        epochs, *made_on = ((key, run.record[key], baseline.record[key]) for key in ("epochs", "device", "versions"))
        for key, own, other in (epochs, *unlike(run, baseline, ("batch", "freeze", "settings")), *made_on):
            if own != other and key not in seen:
                seen.add(key)
                lines.append(f"{run.folder}: {key}: {own}, but {other} in {baseline.folder}")
    return lines
