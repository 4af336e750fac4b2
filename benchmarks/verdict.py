"""The error rates of the verdict, by simulation on real losses of rows; writes docs/verdict.md.

    python benchmarks/verdict.py [--runs 1000]

The rows come from results/verdict-rows-*.json, which verdict_rows.py measured. A simulated run draws rows with
replacement and asks `compare` for its verdict:

* A/A: each row's losses before and after are those of two different null adapters or the base, drawn at random for each
  row, so that the true difference is exactly zero. "better" and "worse" are errors.
* coverage: before and after are the base and the trained adapter; the true difference is that of all rows.
* power: the change of each row is that of the trained adapter, shifted so that the true difference is the given one.

Writes results/verdict.json and the tables of docs/verdict.md.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smollm3_finetune.evaluation import bootstrap
from smollm3_finetune.evaluation.bootstrap import Floats, Ints
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.verdict import Comparison, compare

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "verdict.md"
BEGIN, END = "<!-- measured from here: python benchmarks/verdict.py -->\n", "<!-- measured to here -->\n"
ROWS = (30, 60, 100, 300, 1000)
DIFFERENCES = (0.005, 0.01, 0.02, 0.05, 0.1)
NAMES = {"tiny": "embedded model", "smollm2": "SmolLM2-135M"}


@dataclass(frozen=True)
class Population:
    """Rows with the losses of several models; the rows of each source are drawn in the proportion of their number."""

    name: str
    base: Floats
    trained: Floats
    nulls: Floats
    """(K, R): of the base and of null adapters."""
    terms: Ints
    sources: Ints

    def draw(self, rows: int, random: np.random.Generator) -> Ints:
        """Indices of `rows` rows, drawn with replacement: the same share of each source as here, two rows at least."""
        counts = np.bincount(self.sources)
        wanted = np.maximum(2, np.round(rows * counts / counts.sum()).astype(int))
        wanted[0] += rows - wanted.sum()
        starts = np.cumsum([0, *counts[:-1]])
        return np.concatenate(
            [start + random.integers(0, count, n) for start, count, n in zip(starts, counts, wanted, strict=True)]
        )

    def true_difference(self, rows: int) -> float:
        """The expected change of the loss over the expected terms, for samples of `rows` rows."""
        counts = np.bincount(self.sources)
        wanted = np.maximum(2, np.round(rows * counts / counts.sum()).astype(int))
        wanted[0] += rows - wanted.sum()
        weights = (wanted / counts)[self.sources]
        return float(weights @ self.change) / float(weights @ self.terms)

    @cached_property
    def change(self) -> Floats:
        return self.trained - self.base

    def compare(self, rows: Ints, before: Floats, after: Floats, seed: int) -> Comparison:
        """The comparison of the drawn rows with their losses."""
        about: Any = {"terms": self.terms[rows], "sources": self.sources[rows]}
        about["titles"] = ("rows",)  # by source is not simulated: the strata come from `sources`
        found = compare(RowLosses(sums=before, **about), RowLosses(sums=after, **about), seed=seed)
        assert found is not None
        return found


def populations(only: Sequence[str] = tuple(NAMES)) -> Iterator[Population]:
    """Of each model: the rows of the first source alone, and of both."""
    for file in sorted(RESULTS.glob("verdict-rows-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["model"] not in only:
            continue
        counts = found["rows_by_source"]
        losses = {key: np.array(found[key]) for key in ("base", "trained", "terms")}
        nulls = np.array([found["base"], *(null["losses"] for null in found["null"])])
        for sources in (1, len(counts)):
            kept = slice(0, sum(counts[:sources]))
            yield Population(
                name=f"{NAMES[found['model']]}, {sources} source{'s'[: sources > 1]}",
                base=losses["base"][kept],
                trained=losses["trained"][kept],
                nulls=nulls[:, kept],
                terms=losses["terms"][kept],
                sources=np.repeat(np.arange(sources), counts[:sources]),
            )


def seed_of(*cell: Any) -> int:
    """A seed for each cell of a table, so that cells do not share their draws."""
    return zlib.crc32(repr(cell).encode())


def repeated(runs: int, seed: int, one: Callable[[np.random.Generator, int], bool]) -> float:
    """The share of simulated runs for which `one` is true."""
    random = np.random.default_rng(seed)
    return sum(one(random, seed + run) for run in range(runs)) / runs


def false_verdicts(population: Population, rows: int, runs: int) -> float:
    def wrong(random: np.random.Generator, seed: int) -> bool:
        drawn = population.draw(rows, random)
        models = len(population.nulls)
        before = random.integers(0, models, rows)
        after = (before + random.integers(1, models, rows)) % models  # another one, each as often
        pair = population.nulls[before, drawn], population.nulls[after, drawn]
        return population.compare(drawn, *pair, seed).verdict != "cannot tell"

    return repeated(runs, seed_of("A/A", population.name, rows), wrong)


def coverage(population: Population, rows: int, runs: int) -> float:
    truth = population.true_difference(rows)

    def covered(random: np.random.Generator, seed: int) -> bool:
        drawn = population.draw(rows, random)
        found = population.compare(drawn, population.base[drawn], population.trained[drawn], seed)
        return found.low is not None and found.high is not None and found.low <= truth <= found.high

    return repeated(runs, seed_of("coverage", population.name, rows), covered)


def power(population: Population, rows: int, difference: float, runs: int) -> float:
    shift = -difference - population.true_difference(rows)

    def found(random: np.random.Generator, seed: int) -> bool:
        drawn = population.draw(rows, random)
        after = population.trained[drawn] + shift * population.terms[drawn]
        return population.compare(drawn, population.base[drawn], after, seed).verdict == "better"

    return repeated(runs, seed_of("power", population.name, rows, difference), found)


def fixed_adapter(population: Population, rows: int, runs: int) -> Mapping[str, float]:
    """What is said of one null adapter, which does change the loss a little: its true difference, and the verdicts."""
    null = population.nulls[1]

    def verdict(random: np.random.Generator, seed: int) -> str:
        drawn = population.draw(rows, random)
        return population.compare(drawn, population.base[drawn], null[drawn], seed).verdict

    random = np.random.default_rng(seed_of("fixed", population.name, rows))
    said = [verdict(random, run) for run in range(runs)]
    truth = float((null - population.base).sum() / population.terms.sum())
    return {"difference": truth, **{v: said.count(v) / runs for v in ("better", "worse", "cannot tell")}}


def cell(population: Population, what: str, rows: int, difference: float, runs: int, resamples: int) -> float:
    """One number of a table."""
    bootstrap.RESAMPLES = resamples
    if what == "power":
        return power(population, rows, difference, runs // 4)
    return (false_verdicts if what == "false_verdicts" else coverage)(population, rows, runs)


def simulate(runs: int, resamples: int, jobs: int, only: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": runs, "resamples": resamples, "rows": ROWS, "differences": DIFFERENCES}
    found["populations"] = {}
    tables = [("false_verdicts", 0.0), ("coverage", 0.0), *(("power", d) for d in DIFFERENCES)]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {
            (population.name, what, difference): [
                pool.submit(cell, population, what, rows, difference, runs, resamples) for rows in ROWS
            ]
            for population in populations(only)
            for what, difference in tables
        }
        for population in populations(only):
            values = {key[1:]: [one.result() for one in w] for key, w in waiting.items() if key[0] == population.name}
            bootstrap.RESAMPLES = resamples
            part = {
                "rows_measured": len(population.base),
                "true_difference": float(population.change.sum() / population.terms.sum()),
                "false_verdicts": values["false_verdicts", 0.0],
                "coverage": values["coverage", 0.0],
                "power": [values["power", d] for d in DIFFERENCES],
                "null_adapter": fixed_adapter(population, 300, runs // 4),
            }
            print(population.name, json.dumps(part), flush=True)
            found["populations"][population.name] = part
    return found


def page(found: Mapping[str, Any]) -> str:
    """The tables."""
    parts, runs = found["populations"], found["runs"]
    columns = [f"{n:,} rows" for n in found["rows"]]

    def table(title: str, rows: Sequence[tuple[str, Sequence[float]]], digits: int) -> str:
        head = f"| {title} | {' | '.join(columns)} |\n|---{'|---:' * len(columns)}|\n"
        return head + "".join(
            f"| {name} | {' | '.join(f'{100 * value:.{digits}f} %' for value in values)} |\n" for name, values in rows
        )

    blocks = [
        f'Verdicts of "better" or "worse" where nothing has changed (A/A), of {runs:,} runs each; at most 5 % are '
        "wanted:\n",
        table("A/A", [(name, part["false_verdicts"]) for name, part in parts.items()], 1),
        f"How often the 95 % interval holds the true difference, of {runs:,} runs each:\n",
        table("coverage", [(name, part["coverage"]) for name, part in parts.items()], 1),
    ]
    for name, part in parts.items():
        blocks += [
            f"How often an improvement is called better, {name}, of {runs // 4:,} runs each:\n",
            table(
                "true difference, in nats",
                [(f"−{d:g}", values) for d, values in zip(found["differences"], part["power"], strict=True)],
                0,
            ),
        ]
    return "\n".join(blocks)


def write_page(found: Mapping[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{page(found)}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of each cell; of power, a quarter")
    parser.add_argument(
        "--resamples",
        type=int,
        default=399,
        help="resamples of each interval, fewer than in `compare` to take less time",
    )
    parser.add_argument("--only", choices=tuple(NAMES), nargs="+", default=tuple(NAMES), help="only these models")
    parser.add_argument("--jobs", type=int, default=2, help="processes that simulate")
    args = parser.parse_args()
    file = RESULTS / "verdict.json"
    known = json.loads(file.read_text(encoding="utf-8"))["populations"] if file.exists() else {}
    found = simulate(args.runs, args.resamples, args.jobs, args.only)
    found["populations"] = {**known, **found["populations"]}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(found)


if __name__ == "__main__":
    main()
