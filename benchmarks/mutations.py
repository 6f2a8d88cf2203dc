"""Hostile input to every reader of both tools: damaged files and options, in this process, from a seed.

    python benchmarks/mutations.py [N] [--seed S] [--only TEXT] [--keep DIR]

N inputs in all, 10,000 if not given, shared evenly among the readers of tests/mutated_readers.py. Prints a table:
reader, inputs, how many were refused in one line, how many read, how many answers broke the contract of
tests/hostile.py. Each kind of defect is told once with its command, ``--keep`` writes its smallest input. Exit 1 with
any.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from mutated_readers import READERS, Case, damaged, hostile_options, write_world  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="?", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this text")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs behind defects")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        home = write_world(Path(folder) / "world")
        sources = {f"{reader.tool}: {reader.name}": reader for reader in READERS}
        sources |= {f"{name}: options": name for name in ("dtld", "kd")}
        # Options are many: they get as much as eight readers.
        shares = {name: 1 if name in sources and "options" not in name else 8 for name in sources if asked.only in name}
        each = asked.inputs / sum(shares.values())
        print(f"{'reader':<36}{'inputs':>8}{'refused':>9}{'read':>7}{'defects':>9}{'s':>8}")
        total, told = Counter(), {}
        for name, share in shares.items():
            source, count = sources[name], max(1, round(share * each))
            make = hostile_options if isinstance(source, str) else damaged
            total += tally(name, make(home, source, asked.seed, count), told)
        print(f"{'all':<36}{total['inputs']:>8}{total['refused']:>9}{total['read']:>7}{total['defects']:>9}"
              f"{time.monotonic() - began:>8.0f}")  # fmt: skip
    for number, (kind, case) in enumerate(sorted(told.items())):
        print(f"\n{case.reader}: {case.defect}\n  {' '.join(map(ascii, case.words))[:400]}")
        if asked.keep and case.content is not None:
            asked.keep.mkdir(parents=True, exist_ok=True)
            path = asked.keep / f"{number:03d} {re.sub(r'[^A-Za-z0-9.]+', '-', kind[0])}"
            path.write_bytes(case.content)
            print(f"  {path}")
    return 1 if total["defects"] else 0


def tally(name: str, cases: Iterable[Case], told: dict[tuple[str, str], Case]) -> Counter:
    """Count a reader's cases, print their row, and remember the smallest input of each kind of defect."""
    began, counts = time.monotonic(), Counter()
    for case in cases:
        counts["inputs"] += 1
        if case.defect:
            counts["defects"] += 1
            kind = (name, re.sub(r"\d+|'[^']*'|\"[^\"]*\"|\S*/\S*", "~", case.defect)[:120])
            if kind not in told or len(case.content or b"") < len(told[kind].content or b""):
                told[kind] = case
        else:
            counts["read" if case.found.code == 0 else "refused"] += 1
    print(f"{name:<36}{counts['inputs']:>8}{counts['refused']:>9}{counts['read']:>7}{counts['defects']:>9}"
          f"{time.monotonic() - began:>8.1f}", flush=True)  # fmt: skip
    return counts


if __name__ == "__main__":
    sys.exit(main())
