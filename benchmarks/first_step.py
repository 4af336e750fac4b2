"""Time to the first step of `smollm3 train` on the built-in model, here and in another checkout, in interleaved rounds.

    git worktree add /tmp/before COMMIT
    nox -s first_step -- --against /tmp/before

Prints the medians of wall time to the first step, wall time of the process and CPU time of the process, with the median
ratio of the rounds. The warm-up round tokenizes the rows; the others find them in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
MEASURES = ("first step, s", "process, s", "process, CPU s")


def path_of(checkout: Path) -> str:
    """PYTHONPATH with core and the plugins of a checkout."""
    return os.pathsep.join(map(str, [checkout, *sorted((checkout / "plugins").glob("*/"))]))


def run(checkout: Path, steps: int, arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Train once; the three MEASURES."""
    env = {**os.environ, "PYTHONPATH": path_of(checkout), "SMOLLM3_CACHE": str(folder / "cache")}
    output = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "smollm3_finetune.main", "train", "--json", "--max-steps", str(steps)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, "--output", output, *arguments], env=env, cwd=folder, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr}")
    report = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(report["seconds_to_first_step"]), wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up round")
    parser.add_argument("--steps", type=int, default=1, help="steps of each run")
    parser.add_argument("--against", type=Path, help="another checkout, to which the ratio is computed")
    parser.add_argument("arguments", nargs="*", help="more arguments of `smollm3 train`, after --")
    given = parser.parse_args()
    checkouts = {"here": HERE, **({"before": given.against.resolve()} if given.against else {})}
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for n in range(given.rounds + 1):
            for name, checkout in checkouts.items():
                own = Path(folder) / name
                own.mkdir(exist_ok=True)
                figures = run(checkout, given.steps, given.arguments, own)
                if n:
                    taken[name].append(figures)
                    print(n, name, *(f"{figure:.2f}" for figure in figures), file=sys.stderr)
    print("| measure |", *(f"{name} |" for name in checkouts), "ratio, median of rounds |" if given.against else "")
    print("|---|" + "---|" * (len(checkouts) + bool(given.against)))
    for i, measure in enumerate(MEASURES):
        columns = [f"{statistics.median(row[i] for row in rows):.1f} |" for rows in taken.values()]
        if given.against:
            ratios = [a[i] / b[i] for a, b in zip(taken["here"], taken["before"], strict=True)]
            columns.append(f"{statistics.median(ratios):.2f} |")
        print(f"| {measure} |", *columns)


if __name__ == "__main__":
    main()
