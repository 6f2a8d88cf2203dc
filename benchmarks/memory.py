"""Peak memory of `dtld prepare` at two numbers of frames, and the start-up time of `dtld --help`.

Memory is the greatest sum of resident memory over the command's processes, sampled every 20 ms, and the peak of its
main process as the kernel counts it. Start-up is compared with a Typer program that does nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from prepare import make_tree

EMPTY = "import typer; app = typer.Typer()\n@app.command()\ndef main(): '''Nothing.'''\napp(['--help'])"


def peak_mib(command: list[str]) -> tuple[float, float]:
    """The peaks of a command: of the sum over its processes, and of its main process alone, in MiB."""
    run = psutil.Popen(command, stdout=subprocess.DEVNULL)
    total = main = 0.0
    while run.poll() is None:
        try:
            main = max(main, run.memory_info().rss)
            total = max(total, sum(p.memory_info().rss for p in [run, *run.children(recursive=True)]))
        except psutil.Error:  # one of them has ended
            continue
        time.sleep(0.02)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {run.returncode}")
    return total / 2**20, main / 2**20


def start_up() -> tuple[float, float]:
    """Median seconds of `dtld --help` and of an empty Typer program's."""
    commands = ([sys.executable, "-c", "import cli; cli.dtld()", "--help"], [sys.executable, "-c", EMPTY])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(15):
        for command, measured in zip(commands, times, strict=True):
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            measured.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=400)
    parser.add_argument("--many", type=int, default=4000)
    options = parser.parse_args()
    ours, empty = start_up()
    print(f"dtld --help {ours:.3f} s, an empty Typer program {empty:.3f} s, {os.cpu_count()} cores\n")
    print("| workers | frames | peak of all processes, MiB | of the main process | ratio | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for workers in (1, 2):
        first = None
        for count in (options.few, options.many):
            with tempfile.TemporaryDirectory() as scratch:
                root = Path(scratch, "raw")
                labels = make_tree(root, count)
                arguments = ["prepare", str(labels), "--root", str(root), "--out", str(Path(scratch, "out"))]
                command = [sys.executable, "-c", "import cli; cli.dtld()", *arguments, "--workers", str(workers)]
                total, alone = peak_mib([*command, "--layout", "halves", "--copies", "0", "--quiet"])
            first = first or (total, alone)
            ratios = f"{total / first[0]:.2f} | {alone / first[1]:.2f}"
            print(f"| {workers} | {count:,} | {total:.0f} | {alone:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
