"""Flips single bits in the files of runs, adapters and cache entries, and runs the command that reads them.

    python tests/faults/flips.py --flips 20 --seed 0

In each trial, one bit of one file is flipped. It is named if standard error says more than that of an undisturbed
command, by an error or a warning; harmless if the final files equal those of an undisturbed command bit for bit. A
flip that is neither is silently wrong.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from forks import HANG, Scenario, digest, import_everything, prepare, rerun_with_shim, scenarios, start, wait

NAMED = ("error: ", "warning: ", "damaged", "differ")
OUTCOMES = ("named, refused", "named, result equal", "harmless", "silently wrong", "unexpected", "hung")


@dataclass(frozen=True)
class Target:
    """Files whose bits are flipped, and the scenario whose command reads them."""

    name: str
    scenario: str
    files: str
    """A pattern below the directory."""
    cached: bool = False
    """Whether the files are made by the command itself: it is run before, and its output is deleted."""


TARGETS = (
    Target("run and checkpoints, resumed", "resume", "out/**/*"),
    Target("run, merged", "merge", "out/**/*"),
    Target("run on a quantized base, merged", "merge bnb-4bit dora", "out/**/*"),
    Target("cached tokens", "tokens", "cache/tokens/**/*", cached=True),
    Target("cached GGUF conversion", "train gguf lora", "cache/**/*", cached=True),
    Target("cached quantized base", "train gptq lora", "cache/**/*"),
)


def files_of(directory: Path, pattern: str) -> Iterator[Path]:
    yield from sorted(p for p in directory.glob(pattern) if p.is_file() and p.stat().st_size)


def flip(file: Path, rng: random.Random) -> str:
    """Flip a bit, in place and with the same times, as a disk would."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"byte {place} of {len(content)}, bit {bit}"


def attempt(scenario: Scenario, base: Path, expected: str, file: Path, rng: random.Random) -> tuple[str, str]:
    """The outcome of one trial, and what happened."""
    directory = base.parent / "trial"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory)
    place = flip(directory / file, rng)
    ended = wait(start(directory, scenario.command), directory, HANG)
    about = f"{file}, {place}: exit code {ended.code}\n{ended.stderr[-1200:]}"
    if ended.code is None:
        return "hung", about
    if "unexpected" in ended.stderr or "Traceback" in ended.stderr or ended.code < 0:
        return "unexpected", about
    if ended.code != 0:
        return ("named, refused" if "error: " in ended.stderr else "unexpected"), about
    equal, named = digest(directory, scenario.results) == expected, any(word in ended.stderr for word in NAMED)
    if equal:
        return ("named, result equal" if named else "harmless"), about
    return ("named, refused" if named else "silently wrong"), about


def trials(options: argparse.Namespace, work: Path) -> int:
    import_everything()
    rng, failures, made = random.Random(options.seed), [], {s.name: s for s in scenarios()}
    table: dict[str, collections.Counter[str]] = {}
    for number, target in enumerate(TARGETS):
        if options.only and not any(word in target.name for word in options.only):
            continue
        scenario, place = made[target.scenario], work / str(number)
        place.mkdir()
        base, expected, _, _ = prepare(scenario, place)
        if target.cached:
            base = place / "whole"
            shutil.rmtree(base / "out")
        files = [file.relative_to(base) for file in files_of(base, target.files)]
        counts = table[target.name] = collections.Counter({"files": len(files)})
        for file in files:
            for _ in range(options.flips):
                outcome, about = attempt(scenario, base, expected, file, rng)
                counts.update(("flips", outcome))
                if outcome in OUTCOMES[3:]:
                    failures.append(f"{target.name}: {outcome}: {about}")
                    print(failures[-1], file=sys.stderr, flush=True)
    columns = ("files", "flips", *OUTCOMES)
    print("| read | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, row in (*table.items(), ("all", sum(table.values(), collections.Counter[str]()))):
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")
    return int(bool(failures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=20, help="flips in each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="targets whose name contains one of these words")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return trials(options, options.work)
    return rerun_with_shim("flips")


if __name__ == "__main__":
    sys.exit(main())
