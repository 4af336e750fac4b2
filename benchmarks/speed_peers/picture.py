"""Bars of speed, memory and start-up time, as an SVG that is legible on light and dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from html import escape

from speed_peers.contestants import OURS
from speed_peers.figures import Round, floor_of
from speed_peers.measure import Result

WIDTH, LEFT, ROW, BAR, TOP = 720, 190, 26, 16, 40
OWN, OTHER, INK = "#2f7d5d", "#8a94a3", "#6b7280"


def bars(rounds: Sequence[Round], names: Sequence[str], caption: str) -> str:
    """The charts, one above the other."""
    floor = floor_of(rounds)
    charts: tuple[tuple[str, Callable[[Result], float], str], ...] = (
        ("real tokens per second of processor time (more is better)", lambda r: r.speed, ".0f"),
        ("GB of memory above imports and weights (less is better)", lambda r: r.peak_gb - floor, ".1f"),
        ("seconds of processor time to the end of the first step (less is better)", lambda r: r.first_cpu, ".0f"),
    )
    height = len(charts) * (TOP + ROW * len(names)) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img"><title>{escape(caption)}</title>'
    ]
    y = 0
    for title, get, form in charts:
        medians = {n: statistics.median(get(r[n]) for r in rounds if n in r) for n in names}
        parts.append(f'<text x="0" y="{y + 24}" fill="{INK}" font-weight="bold">{escape(title)}</text>')
        y += TOP
        for name, found in medians.items():
            length = max((WIDTH - LEFT - 60) * found / max(medians.values()), 1)
            color = OWN if name.startswith(OURS) else OTHER
            parts += [
                f'<text x="{LEFT - 8}" y="{y + 13}" fill="{INK}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{color}"/>',
                f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}" fill="{INK}">{found:{form}}</text>',
            ]
            y += ROW
    parts.append(f'<text x="0" y="{y + 20}" fill="{INK}" font-size="11">{escape(caption)}</text></svg>')
    return "\n".join(parts) + "\n"
