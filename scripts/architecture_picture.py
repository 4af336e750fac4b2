"""Draw docs/architecture.svg from the layers that a test enforces.

    python scripts/architecture_picture.py [--layers FILE] [--check]

Run it from the repository root after you change `LAYERS` in tests/startup/test_layers.py or the table in
docs/architecture.md. The layers come from the test, and the text beside a package from the table. `--check` writes
nothing and exits with 1 if the picture on disk is out of date. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Layers = Sequence[Sequence[str]]

ROOT = Path(__file__).resolve().parents[1]
LAYERS_FILE = ROOT / "tests/startup/test_layers.py"
PAGE = ROOT / "docs/architecture.md"
PICTURE = ROOT / "docs/architecture.svg"

WIDTH, ROW, BOX_HEIGHT = 640, 34, 26  # pixels
LEFT, GAP, TOP = 40, 10, 34
CHARACTER = 7.6  # width of a character of a box's name, at most
LETTER, LINE = 6.4, 14  # of a purpose: width of a character on average, height of a line
BOX, BOX_TEXT, TEXT = "#2f7d5d", "#ffffff", "#717a86"  # legible on white and on GitHub's dark background


def read_layers(source: str) -> tuple[tuple[str, ...], ...]:
    """The value of `LAYERS` in the source of a module, bottom to top, without importing the module."""
    for node in ast.parse(source).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(t, ast.Name) and t.id == "LAYERS" for t in targets):
            return tuple(tuple(row) for row in ast.literal_eval(value))
    raise ValueError("LAYERS is not assigned at module level")


def read_purposes(page: str) -> dict[str, str]:
    """The first two columns of the page's table: the name of a package and its purpose."""
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE))


def picture(layers: Layers, purposes: Mapping[str, str]) -> str:
    """An SVG: the top layer first, each layer a row of boxes. A row of one box shows its purpose too."""
    height = TOP + ROW * len(layers) + 6
    column = max((CHARACTER * len(n) + 20 for row in layers if len(row) == 1 for n in row), default=120)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" role="img"><title>The layers of smollm3_finetune, top to bottom: '
        f"{escape(', '.join(n for row in reversed(layers) for n in row))}</title>",
        f'<text x="{LEFT}" y="18" fill="{TEXT}" font-weight="bold">Each layer imports only from layers below it</text>',
        f'<path d="M18 {TOP} V{height - 16} m-5 -8 l5 8 l5 -8" fill="none" stroke="{TEXT}" stroke-width="2"/>',
    ]
    for number, row in enumerate(reversed(layers)):
        y = TOP + ROW * number
        width = column if len(row) == 1 else (WIDTH - LEFT - GAP * len(row)) / len(row)
        for at, name in enumerate(row):
            x = LEFT + at * (width + GAP)
            lines += [
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BOX_HEIGHT}" rx="4" fill="{BOX}"/>',
                f'<text x="{x + width / 2:.1f}" y="{y + 18}" fill="{BOX_TEXT}" text-anchor="middle">'
                f"{escape(name)}</text>",
            ]
        if len(row) == 1 and row[0] in purposes:
            x = LEFT + column + 14
            parts = textwrap.wrap(purposes[row[0]].replace("`", ""), int((WIDTH - x) / LETTER))
            first = y + 18 - LINE * (len(parts) - 1) / 2
            for at, part in enumerate(parts):
                lines.append(f'<text x="{x:.1f}" y="{first + LINE * at:g}" fill="{TEXT}">{escape(part)}</text>')
    return "\n".join(lines) + "\n</svg>\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw docs/architecture.svg from the layers that a test enforces.")
    parser.add_argument("--layers", type=Path, default=LAYERS_FILE, help="Python file that assigns LAYERS.")
    parser.add_argument(
        "--check", action="store_true", help="Write nothing; exit with 1 if the picture is out of date."
    )
    arguments = parser.parse_args()
    if not arguments.layers.is_file():
        parser.error(f"{arguments.layers} does not exist")
    layers = read_layers(arguments.layers.read_text(encoding="utf-8"))
    new = picture(layers, read_purposes(PAGE.read_text(encoding="utf-8")))
    if arguments.check:
        current = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == new
        print("up to date" if current else "out of date: python scripts/architecture_picture.py")
        return 0 if current else 1
    PICTURE.write_text(new, encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}: {len(layers)} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
