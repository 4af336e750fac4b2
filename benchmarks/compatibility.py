"""Runs every bundled quantizer with every bundled adapter, and publishes the results.

    python benchmarks/compatibility.py                      pairs without a result for the installed versions
    python benchmarks/compatibility.py --again              all pairs; takes a quarter of an hour or more
    python benchmarks/compatibility.py --only gptq/dora     one quantizer with one adapter; '*' means all
    python benchmarks/compatibility.py --purpose prefer     only this purpose: train, merge or prefer
    python benchmarks/compatibility.py --sample 5 --by HASH five published pairs, chosen by a hash; writes nothing

Results are written to the file that core ships, and from there to docs/compatibility.md. Refused pairs are run too,
without the check. If one works, it is reported, because then its descriptor may be outdated.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import awq_checkpoint
import gptq_checkpoint
from compatibility_page import write_page

from smollm3_finetune.compatibility.collect import OWN_FILE, collect
from smollm3_finetune.compatibility.matrix import Cell, State, table
from smollm3_finetune.compatibility.results import Result, Use, read, write
from smollm3_finetune.compatibility.small_model import write_small_model
from smollm3_finetune.compatibility.sweep import Pair, Sweep
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, discover
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.registry import Registry

ROOT = Path(__file__).parents[1]
BUNDLED = {CORE_DISTRIBUTION, *(p.parent.name for p in (ROOT / "plugins").glob("*/pyproject.toml"))}
OPTIONS: dict[str, dict[str, Any]] = {"trainable-tokens": {"token_ids": [3, 5, 7]}}
"""Options of adapters whose defaults do not fit the small model."""
PREQUANTIZED = {"awq": awq_checkpoint.write_checkpoint, "gptq": gptq_checkpoint.write_checkpoint}
"""Quantizers that are measured on an already quantized checkpoint, and what writes it."""
SLACK, FLOOR = 10.0, 1e-5
"""A sampled figure may be at most `SLACK` times the published one; any figure up to `FLOOR` is accepted."""
SIZES = ("moved", "trained", "quantized")
"""Figures that are not errors."""


def cells(only: list[str]) -> list[Cell]:
    """The cells of the bundled components, or of the pairs in `only`."""
    registry = discover()
    registry = Registry(
        components=tuple(o for o in registry.components if o.distribution in BUNDLED), plugins=registry.plugins
    )
    wanted = [text.partition("/")[::2] for text in only]
    for kind, names in ((QUANTIZER, {q for q, _ in wanted}), (ADAPTER, {a for _, a in wanted})):
        for name in names - {"*"}:
            registry.find(kind, name)
    found = table(registry, collect(registry), "cpu")
    return [c for c in found if not wanted or any(_names(c, q, a) for q, a in wanted)]


def _names(cell: Cell, quantizer: str, adapter: str) -> bool:
    sides = ((quantizer, cell.quantizer), (adapter, cell.adapter))
    return all(name in ("*", component.spec.name, component.full_name) for name, component in sides)


def pair_of(cell: Cell, work: Path) -> Pair:
    name = cell.quantizer.spec.name
    return Pair(
        quantizer=cell.quantizer,
        adapter=cell.adapter,
        purpose=cell.purpose,
        force=cell.state is State.REFUSED,
        options=OPTIONS.get(cell.adapter.spec.name, {}),
        model=work / name if name in PREQUANTIZED else None,
    )


def prepare(work: Path) -> None:
    dense = write_small_model(work / "model")
    for name, quantize in PREQUANTIZED.items():
        quantize(dense, work / name)


def measure_all(chosen: list[Cell], limit: float, work: Path) -> None:
    """Measure cells, and write each result immediately."""
    results = {r.key: r for r in (read(OWN_FILE) if OWN_FILE.exists() else [])}
    sweep = Sweep(work=work, command="nox -s compat -- --only {quantizer}/{adapter}", limit=limit)
    began = time.monotonic()
    pairs = sorted((pair_of(c, work) for c in chosen), key=lambda p: p.quantizer.full_name)
    for number, (pair, result, seconds) in enumerate(sweep.run(pairs), 1):
        results[result.key] = result
        write(OWN_FILE, list(results.values()))
        print(f"{number}/{len(pairs)} {pair.title}: {says(pair, result)} ({seconds:.1f} s)", flush=True)
    print(f"{len(pairs)} measured in {time.monotonic() - began:.0f} s")


def says(pair: Pair, result: Result) -> str:
    if pair.force:
        if result.holds:
            return "refused, but works when run anyway; the descriptor may be outdated"
        return f"confirmed: fails when run: {result.note}"
    return "holds" if result.holds else f"FAILS: {result.note}"


def sample(count: int, by: str, limit: float, work: Path) -> int:
    """Measure published cells again, chosen by a hash; returns the exit code: 1 if one no longer holds."""
    every = {_key(c): c for c in cells([])}
    published = [r for r in read(OWN_FILE) if r.holds and (r.quantizer, r.adapter, r.purpose) in every]
    published.sort(key=lambda r: hashlib.sha256(f"{by} {r.quantizer} {r.adapter} {r.purpose}".encode()).digest())
    before = {(r.quantizer, r.adapter, r.purpose): r for r in published[:count]}
    sweep = Sweep(work=work, command="", limit=limit)
    worse = 0
    for pair, result, seconds in sweep.run([pair_of(every[key], work) for key in before]):
        old = before[result.quantizer, result.adapter, result.purpose]
        fault = result.note if not result.holds else _worse(result, old)
        worse += fault is not None
        print(f"{pair.title}: {fault or 'holds'} ({seconds:.1f} s)", flush=True)
    print(f"{len(before) - worse} of {len(before)} hold")
    return 1 if worse or len(before) < count else 0


def _key(cell: Cell) -> tuple[str, str, Any]:
    return cell.quantizer.full_name, cell.adapter.full_name, cell.purpose


def _worse(now: Result, old: Result) -> str | None:
    for name, was in old.figures.items():
        found = now.figures.get(name)
        if name in SIZES or was is None:
            continue
        bound = max(SLACK * was, FLOOR)
        if found is None or found > bound:
            return f"{name} was {was:.1e} and is now {found} (limit {bound:.1e})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="QUANT/ADAPTER")
    parser.add_argument("--purpose", action="append", choices=[*map(str, Use)], help="only this purpose; repeatable")
    parser.add_argument("--again", action="store_true", help="also pairs with a result for these versions")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--by", default="", metavar="HASH")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="time limit for one pair")
    parser.add_argument("--page", action="store_true", help="only write docs/compatibility.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        if not arguments.page:
            prepare(work)
        if arguments.sample is not None:
            return sample(arguments.sample, arguments.by, arguments.limit, work)
        if not arguments.page:
            every = [c for c in cells(arguments.only) if c.purpose in (arguments.purpose or tuple(Use))]
            fresh = arguments.again or arguments.only
            measure_all([c for c in every if fresh or not c.evidence or c.stale], arguments.limit, work)
    write_page(cells([]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
