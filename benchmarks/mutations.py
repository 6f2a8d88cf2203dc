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

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.mutated_readers import READERS, Case, damaged, hostile_options, write_world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="?", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this text")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs behind defects")
    asked = parser.parse_args()
    began, total, told = time.monotonic(), Counter(), {}
    sources = {f"{reader.tool}: {reader.name}": reader for reader in READERS}
    sources |= {f"{name}: options": name for name in ("dtld", "kd")}
    # Options are many: they get as much as eight readers.
    shares = {name: 8 if isinstance(source, str) else 1 for name, source in sources.items() if asked.only in name}
    try:
        with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
            home = write_world(Path(folder) / "world")
            print(f"{'reader':<36}{'inputs':>8}{'refused':>9}{'read':>7}{'defects':>9}{'s':>8}")
            for name, share in shares.items():
                source, count = sources[name], max(1, round(share * asked.inputs / sum(shares.values())))
                make = hostile_options if isinstance(source, str) else damaged
                total += tally(name, make(home, source, asked.seed, count), told)
    finally:  # Ctrl-C too: what was found is told
        print(f"{'all':<36}{total['inputs']:>8}{total['refused']:>9}{total['read']:>7}{total['defects']:>9}"
              f"{time.monotonic() - began:>8.0f}")  # fmt: skip
        for number, (kind, case) in enumerate(sorted(told.items())):
            tell(number, kind[0], case, asked.keep)
    return 1 if total["defects"] else 0


def tell(number: int, reader: str, case: Case, keep: Path | None) -> None:
    """Print a defect with the command that shows it, and write its input below ``keep``."""
    print(f"\n{reader}: {case.defect}\n  {' '.join(map(ascii, case.words))[:400]}")
    if keep and case.content is not None:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{number:03d}-{re.sub(r'[^A-Za-z0-9.]+', '-', reader)}"
        path.write_bytes(case.content)
        print(f"  {path}")


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
