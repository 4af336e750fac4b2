"""Draws the README's two pictures from a real run: docs/train.svg (the terminal) and docs/loss.svg (the loss).

    python scripts/readme_pictures.py

Runs `smollm3 train` and `smollm3 generate` in a temporary directory; takes about a minute on two cores. Run it again
when the output of these commands has changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

DOCS = Path(__file__).parents[1] / "docs"
PROMPT = "What is the opposite of hot?"
SHOWN_STEPS = (1, 15, 30, 45, 60)
"""The steps whose progress lines are shown, so that the picture fits on a page."""
COLUMNS = 92
# Each color is legible on GitHub's light and dark backgrounds.
GRAY, BLUE, ORANGE = "#7d8590", "#3b82c4", "#d9722e"
# rich's own template loads a font from a website, which pictures in a README may not do.
TERMINAL = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>smollm3 train in a terminal</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""  # noqa: E501  (one element of the template)


def smollm3(directory: Path, *arguments: str) -> str:
    """The output of a command, with both streams in the order of printing."""
    command = [sys.executable, "-m", "smollm3_finetune.main", *arguments]
    environment = {**os.environ, "SMOLLM3_CACHE": str(directory / "cache"), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout.rstrip()


def terminal(commands: list[tuple[str, str]]) -> str:
    """A picture of a terminal with these commands and their output."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for command, printed in commands:
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            for line in printed.splitlines():
                if not _is_hidden(line):
                    console.print(_colored(line))
            console.print()
        return console.export_svg(title="smollm3", theme=DIMMED_MONOKAI, code_format=TERMINAL)


def _is_hidden(line: str) -> bool:
    if line.startswith("tokenizing"):
        return True
    return line.startswith("step ") and int(line.split()[1].partition("/")[0]) not in SHOWN_STEPS


def _colored(line: str) -> Text:
    """Color the labels and losses of a line, because the output of a pipe has no colors."""
    text = Text(line)
    text.highlight_regex(r"^[a-z-]+( [a-z]+)?  +", "cyan")
    text.highlight_regex(r"^step \d+/\d+", "cyan")
    text.highlight_regex(r"^held-out loss.*|(?<=  )loss \d\.\d+", "yellow")
    text.highlight_regex(r"Hello! .*", "green")
    return text


def curve(metrics: list[dict[str, Any]], before: float, after: float) -> str:
    """The loss of each step as a line; the held-out loss before and after as two points."""
    width, height, left, top, right, bottom = 720, 300, 48, 40, 70, 44
    steps = [row["step"] for row in metrics if "loss" in row]
    losses = [row["loss"] for row in metrics if "loss" in row]
    highest = int(max(*losses, before)) + 1

    def x(step: float) -> float:
        return left + (width - left - right) * step / int(steps[-1])

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (1 - loss / highest)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13" fill="{GRAY}" role="img"><title>Loss of each step, and held-out loss</title>'
    ]
    for tick in range(highest + 1):
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{GRAY}" '
            f'stroke-opacity="{0.8 if tick == 0 else 0.25}"/>'
            f'<text x="{left - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for step in range(0, steps[-1] + 1, max(steps[-1] // 6, 1)):
        parts.append(f'<text x="{x(step):.1f}" y="{height - bottom + 20}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{x(steps[-1] / 2):.1f}" y="{height - 4}" text-anchor="middle">optimizer step</text>')
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, losses, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    for step, loss, apart in ((0, before, 44), (steps[-1], after, 10)):  # so that the first label is not on the line
        parts.append(
            f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="5" fill="{ORANGE}"/>'
            f'<text x="{x(step) + apart:.1f}" y="{y(loss) + 4:.1f}" fill="{ORANGE}" font-weight="bold">'
            f"{loss:.2f}</text>"
        )
    parts.append(
        f'<line x1="{left}" x2="{left + 24}" y1="16" y2="16" stroke="{BLUE}" stroke-width="2"/>'
        f'<text x="{left + 32}" y="20">training loss</text>'
        f'<circle cx="{left + 162}" cy="16" r="5" fill="{ORANGE}"/>'
        f'<text x="{left + 174}" y="20">held-out loss, before and after</text>'
    )
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        trained = smollm3(directory, "train")
        (run,) = (directory / "runs").iterdir()
        name = run.relative_to(directory).as_posix()
        answer = smollm3(directory, "generate", name, "--prompt", PROMPT)
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    commands = [("smollm3 train", trained), (f"smollm3 generate {name} --prompt '{PROMPT}'", answer)]
    (DOCS / "train.svg").write_text(terminal(commands), encoding="utf-8")
    losses = (report["before"]["held_out_loss"], report["after"]["held_out_loss"])
    (DOCS / "loss.svg").write_text(curve(metrics, *losses), encoding="utf-8")


if __name__ == "__main__":
    main()
