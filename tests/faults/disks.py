"""Runs commands on small disks and with a limit of the size of files, then again with room, and compares the results.

    python tests/faults/disks.py --trials 60 --seed 0

Needs Linux and the right to mount a tmpfs. Each trial runs a command in a file system that is too small, or with
`ulimit -f`. It must end with a WriteError that names a file, or complete; the next command, with room, must complete,
and the final files must equal those of an undisturbed command bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from forks import HANG, Scenario, digest, import_everything, prepare, rerun_with_shim, scenarios, start, wait

KINDS = ("small disk", "ulimit -f")
LEAST = 16_384
"""Bytes of the smallest limit of a file: the messages of a command fit."""
WRITE_ERROR = 8
PAGE = 4096


def size_of(directory: Path) -> int:
    """Bytes of a directory's files on a tmpfs, whose unit is a page; another page for each file and directory."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE * path.is_file() + PAGE for path in directory.rglob("*"))


def wrong_with(code: int | None, stderr: str) -> list[str]:
    """What is wrong with the end of a disturbed command."""
    found = []
    if code not in (0, WRITE_ERROR):
        found.append(f"exit code {code}")
    if code == WRITE_ERROR and not any(words in stderr for words in ("cannot be written", "free")):
        found.append("no file is named")
    if "unexpected" in stderr or "Traceback" in stderr:
        found.append("unexpected error")
    return found


def attempt(scenario: Scenario, base: Path, whole: Path, expected: str, kind: str, rng: random.Random) -> list[str]:
    """One trial; returns what is wrong, or raises LookupError if the command was not disturbed."""
    disk = base.parent / "disk"
    disk.mkdir(exist_ok=True)
    needed, largest = size_of(whole), 0
    room = max(size_of(base) + 65_536, int(rng.uniform(0, 1) * needed)) if kind == "small disk" else 16 * needed
    if kind != "small disk":
        largest = int(rng.uniform(LEAST, max(f.stat().st_size for f in whole.rglob("*") if f.is_file())))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], check=True)
    try:
        directory = disk / "trial"
        shutil.copytree(base, directory)
        ended = wait(start(directory, scenario.command, largest=largest), directory, HANG)
        if ended.code == 0 and scenario.completed(directory):
            raise LookupError("not disturbed")
        wrong = wrong_with(ended.code, ended.stderr)
        subprocess.run(["mount", "-o", f"remount,size={16 * needed}", str(disk)], check=True)
        if not scenario.completed(directory):
            again = wait(start(directory, scenario.again(directory)), directory, HANG)
            if again.code != 0:
                wrong.append(f"the next command ended with {again.code}: {again.stderr[-600:]}")
        if digest(directory, scenario.results) != expected:
            wrong.append("other files")
        return [f"{text} (room {room}, limit {largest}): {ended.stderr[-600:]}" for text in wrong]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def trials(options: argparse.Namespace, work: Path) -> int:
    import_everything()
    rng, failures = random.Random(options.seed), []
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    chosen = [s for s in scenarios() if not options.only or any(word in s.name for word in options.only)]
    made = {}
    for number, scenario in enumerate(chosen):
        place = work / str(number)
        place.mkdir()
        base, expected, _, _ = prepare(scenario, place)
        made[scenario.name] = (base, place / "whole", expected)
    for trial in range(options.trials):
        scenario, kind = chosen[trial % len(chosen)], KINDS[trial // len(chosen) % len(KINDS)]
        try:
            wrong = attempt(scenario, *made[scenario.name], kind, rng)
        except LookupError:
            counts[scenario.name]["not disturbed"] += 1
            continue
        counts[scenario.name].update((kind, "failed" if wrong else "equal"))
        failures += [f"{scenario.name}, {kind}: {text}" for text in wrong]
    columns = (*KINDS, "not disturbed", "equal", "failed")
    total: collections.Counter[str] = sum(counts.values(), collections.Counter())
    print("| command | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, row in (*counts.items(), ("all", total)):
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")
    print("\n".join(failures), file=sys.stderr)
    return int(bool(failures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="commands whose name contains one of these words")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return trials(options, options.work)
    return rerun_with_shim("disks")


if __name__ == "__main__":
    sys.exit(main())
