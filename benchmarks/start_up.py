"""Time of help and other light commands, relative to `python -c "import click"`; medians over interleaved rounds.

    nox -s start_up [-- --rounds 15]

Targets: root help takes at most 1.5 times as long as `import click`, `train --help` at most 6 times.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("smollm3")
COMMANDS = {
    "import click": [sys.executable, "-c", "import click"],
    "smollm3 --help": [str(SCRIPT), "--help"],
    "smollm3 train --help": [str(SCRIPT), "train", "--help"],
    "smollm3 train --adapter lora --help": [str(SCRIPT), "train", "--adapter", "lora", "--help"],
    "smollm3 generate --help": [str(SCRIPT), "generate", "--help"],
    "smollm3 plugins list": [str(SCRIPT), "plugins", "list"],
    "smollm3 config validate --adapter full": [str(SCRIPT), "config", "validate", "--adapter", "full"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds, after one warm-up round")
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for n in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            if n:
                times[name].append(taken)
    base = times["import click"]
    print("| command | median, ms | ratio to `import click`, median of pairs |\n|---|---|---|")
    for name, taken in times.items():
        ratio = statistics.median(t / b for t, b in zip(taken, base, strict=True))
        print(f"| `{name}` | {1000 * statistics.median(taken):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
