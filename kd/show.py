"""What the commands of `kd` print: results in, text on stdout.

Invariant: a value is one line of printable characters, whatever a file or a name holds; the standard library alone.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from schemas.text import one_line

NAME = 60  # characters of a class's name in a table


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2))


def warn(line: str) -> None:
    """A warning on stderr."""
    print(one_line(f"warning: {' '.join(line.split())}"), file=sys.stderr)


def say(line: str) -> None:
    """One line on stdout."""
    print(one_line(line))


def print_scores(title: str, scores: dict[str, Any]) -> None:
    """A line for all classes, and one for each."""
    names = [one_line(name, NAME) for name in scores["per_class"]]
    width = max(map(len, ("all", *names))) + 2
    skipped = f", {count(scores['skipped'], 'image')} left out" if scores.get("skipped") else ""
    say(f"{title}: {count(scores['images'], 'image')}, {count(scores['instances'], 'object')}{skipped}")
    print(f"  {'':<{width}}{'mAP50':>8}{'mAP50-95':>10}{'precision':>11}{'recall':>8}")
    print(
        f"  {'all':<{width}}{share(scores['map50']):>8}{share(scores['map50_95']):>10}"
        f"{share(scores['precision']):>11}{share(scores['recall']):>8}"
    )
    for name, row in zip(names, scores["per_class"].values(), strict=True):
        print(f"  {name:<{width}}{share(row['map50']):>8}{share(row['map50_95']):>10}")


def print_groups(scores: dict[str, Any]) -> None:
    """A line for each size and each city of whole frames, and what became of the tiles' detections."""
    print(f"  {'shorter side':<16}{'lights':>8}{'mAP50':>8}{'mAP50-95':>10}{'recall':>8}")
    for name, row in scores["per_size"].items():
        print(
            f"  {name + ' px':<16}{row['instances']:>8}{share(row['map50']):>8}{share(row['map50_95']):>10}"
            f"{share(row['recall']):>8}"
        )
    print(f"  {'city':<16}{'lights':>8}{'mAP50':>8}{'mAP50-95':>10}{'frames':>8}")
    for name, row in scores["per_city"].items():
        print(
            f"  {one_line(name, NAME):<16}{row['instances']:>8}{share(row['map50']):>8}{share(row['map50_95']):>10}"
            f"{row['frames']:>8}"
        )
    merged, ignored = count(scores["merged"], "detection"), count(scores["ignored"], "light")
    print(f"{count(scores['frames'], 'frame')}: {merged} merged away, {ignored} ignored")


def share(value: float | None) -> str:
    """A share of 1 with three decimals, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share of 1 in per cent, '31.0', or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, '+1.0', or a dash where there is none."""
    return "-" if difference is None else f"{100 * difference:+.1f}"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
