"""Measured pairs: `smollm3 compat --measure`, the sweep that it runs, and the published results."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import AdapterSpec, QuantizerSpec
from smollm3_finetune.compatibility.collect import OWN_FILE
from smollm3_finetune.compatibility.matrix import State
from smollm3_finetune.compatibility.results import Use, read
from smollm3_finetune.compatibility.small_model import write_small_model
from smollm3_finetune.compatibility.sweep import Pair, Sweep
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.registry import RegisteredComponent

ROOT = Path(__file__).parents[2]
OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree"

CRASHING = """
from smollm3_finetune.api import AdapterSpec, Op, hookimpl

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="crashing", summary="s", factory="crashing:Adapter", merges=False, api=2)]

class Adapter:
    def __init__(self, options): pass
    def restore(self, base, path, ctx, total_steps): pass
    def attach(self, base, ctx, total_steps):
        import os
        os._exit(3)
"""


@pytest.mark.long
def test_measuring_finds_a_one_way_kernel_and_survives_a_crash(run_cli: Any, plugin_file: Any, tmp_path: Path) -> None:
    crashing = plugin_file("crashing", CRASHING)
    files = [str(OUT_OF_TREE / f"{name}.py") for name in ("one_way_quantizer", "scale_adapter")] + [str(crashing)]
    plugins = [word for file in files for word in ("-p", file)]
    out = tmp_path / "results.json"
    done = run_cli("compat", "--no-plugins", *plugins, "--quant", "rows-int8-unpinned",
                   "--purpose", "train", "--purpose", "merge", "--measure", str(out))  # fmt: skip
    assert done.code == 0, done.stderr
    results = {(r["adapter"], r["purpose"]): r for r in json.loads(out.read_text())["results"]}
    scaled, crashed = results["scale_adapter:scale", "train"], results["crashing:crashing", "train"]
    assert not scaled["holds"]
    assert scaled["figures"]["gradients"] > 0.1
    assert scaled["note"].startswith("gradients: error ")
    assert not crashed["holds"]
    assert crashed["note"].startswith("the process ended with exit code 3")
    assert set(scaled["versions"]) == {
        "one_way_quantizer", "scale_adapter", "smollm3-finetune", "torch", "transformers"
    }  # fmt: skip
    again = run_cli("compat", "--no-plugins", *plugins, "--quant", "rows-int8", "--adapter", "scale",
                    "--measure", str(out))  # fmt: skip
    assert "rows-int8 × scale train: works" in again.stdout
    kept = json.loads(out.read_text())["results"]
    assert len(kept) == len(results) + 3, "to train, to merge and to prefer, added to the file"


def test_preferences_find_a_reference_that_drifts_and_mixed_branches_which_training_does_not(tmp_path: Path) -> None:
    from smollm3_finetune.compatibility.measure import Bench, Measured, measure

    files = tuple(str(OUT_OF_TREE / f"{name}.py") for name in ("faulty_preferences", "scale_adapter"))
    registry = discover(PluginSelection.of(files, no_plugins=True))
    bench = Bench(registry=registry, model=write_small_model(tmp_path / "model"), device="cpu", work=tmp_path)

    def measured(adapter: str, use: Use) -> Measured:
        return measure(bench, "none", adapter, {}, use, force=False)

    for adapter in ("drifting", "mixing"):
        assert measured(adapter, Use.TRAIN).fault is None
    drifting, mixing = (measured(adapter, Use.PREFER) for adapter in ("drifting", "mixing"))
    assert drifting.fault is not None and drifting.fault.startswith("reference: error ")
    assert mixing.fault is not None and mixing.fault.startswith("branches: error ")
    assert drifting.figures["branches"] < 1e-5 and mixing.figures["reference"] == 0, "each has one fault"
    sound = measured("scale", Use.PREFER)
    assert sound.fault is None
    assert sound.figures["margin"] == sound.figures["reference"] == 0
    assert "branches" in sound.figures


WORKER = """
import json, os, sys, time
job = json.load(sys.stdin)
for index, pair in enumerate(job["pairs"]):
    print(json.dumps({"begins": index}), flush=True)
    name = pair["adapter"].partition(":")[2]
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    figures = {"logits": 1.2345e-7, "drift": float("nan"), "trained": 281}
    print(json.dumps({"ended": index, "figures": figures, "fault": None}), flush=True)
"""


def test_a_pair_that_hangs_or_crashes_does_not_stop_the_others(fake_distribution: Any, tmp_path: Path) -> None:
    fake_distribution("acme", "1.0", {"acme_worker": WORKER})

    def pair(adapter: str) -> Pair:
        spec = AdapterSpec(name=adapter, summary="s", factory="a:B", api=2)
        quantizer = QuantizerSpec(name="packed", summary="s", factory="a:B", api=2)
        about = {"distribution": "acme", "version": "1.0", "plugin": "acme"}
        return Pair(
            quantizer=RegisteredComponent(kind=QUANTIZER, spec=quantizer, **about),
            adapter=RegisteredComponent(kind=ADAPTER, spec=spec, **about),
            purpose=Use.TRAIN,
        )

    sweep = Sweep(
        work=tmp_path, command="again {quantizer} {adapter}", limit=1.0, worker="acme_worker", device="cuda:1"
    )
    names = ["shift", "hangs", "scale", "dies", "reader"]
    results = {r.adapter: r for _, r, _ in sweep.run([pair(n) for n in names])}
    assert list(results) == [f"acme:{n}" for n in names]
    assert {n: r.holds for n, r in results.items() if not r.holds} == {"acme:hangs": False, "acme:dies": False}
    assert results["acme:hangs"].note == "timed out after 1 s"
    assert results["acme:dies"].note == "the process ended with signal 9: the last words"
    assert results["acme:scale"].figures == {"logits": 1.2e-07, "drift": None, "trained": 281}
    assert (results["acme:scale"].command, results["acme:scale"].device) == ("again acme:packed acme:scale", "cuda")


SKIPS = """
import json, sys
for index, pair in enumerate(json.load(sys.stdin)["pairs"]):
    print(json.dumps({"begins": index}), flush=True)
    skipped = pair["adapter"] == "acme:picky"
    fault = "adapter.rank: a value is required" if skipped else None
    print(json.dumps({"ended": index, "figures": {}, "fault": fault, "skipped": skipped}), flush=True)
"""


def test_a_pair_with_an_option_that_must_be_set_is_not_measured(fake_distribution: Any, tmp_path: Path) -> None:
    fake_distribution("acme", "1.0", {"acme_worker": SKIPS})
    about = {"distribution": "acme", "version": "1.0", "plugin": "acme"}
    made = {n: AdapterSpec(name=n, summary="s", factory="a:B", api=2) for n in ("picky", "plain")}
    quantizer = RegisteredComponent(
        kind=QUANTIZER, spec=QuantizerSpec(name="q", summary="s", factory="a:B", api=2), **about
    )
    pairs = [
        Pair(quantizer=quantizer, adapter=RegisteredComponent(kind=ADAPTER, spec=s, **about), purpose=Use.TRAIN)
        for s in made.values()
    ]
    skipped: list[tuple[str, str]] = []
    sweep = Sweep(work=tmp_path, command="", worker="acme_worker")
    measured = [p.title for p, _, _ in sweep.run(pairs, lambda pair, why: skipped.append((pair.title, why)))]
    assert measured == ["q × plain train"]
    assert skipped == [("q × picky train", "adapter.rank: a value is required")]


def test_compat_names_a_component_with_an_option_that_must_be_set(
    cli: Any, plugin_file: Callable[[str, str], Path], tmp_path: Path
) -> None:
    file = plugin_file("mine", REQUIRED)
    done = cli("compat", "-p", file, "--quant", "mine", "--adapter", "full", "--measure", tmp_path / "out.json")
    assert done.code == 3
    assert done.stdout.splitlines()[0] == "mine × full train: not measured: quant.bits: a value is required"
    assert not (tmp_path / "out.json").exists()


REQUIRED = """
from dataclasses import dataclass
from smollm3_finetune.api import QuantizerSpec, hookimpl

@dataclass(frozen=True, kw_only=True)
class Options:
    bits: int

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="mine", summary="s", factory="mine:Options", options="mine:Options", api=2)]
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that measures the bundled plugins."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("compatibility")


@pytest.mark.plugins
def test_the_page_contains_the_published_results(benchmark: Any) -> None:
    page = importlib.import_module("compatibility_page")
    cells = benchmark.cells([])
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    found = text.partition(page.BEGIN)[2].partition(page.END)[0]
    assert found == page.generated(cells), "nox -s compat -- --page"
    assert all(c.evidence for c in cells), "nox -s compat"
    allowed = [c for c in cells if c.state is not State.REFUSED]
    assert all(c.holds for c in allowed), "a pair that is allowed does not hold"
    assert not [c for c in cells if c.state is State.REFUSED and c.holds], "a refusal is out of date"


def test_every_shipped_result_is_readable_and_of_a_bundled_pair(benchmark: Any) -> None:
    results = read(OWN_FILE)
    assert len({r.key for r in results}) == len(results) > 300
    assert {r.quantizer.partition(":")[0] for r in results} <= benchmark.BUNDLED
    assert {r.adapter.partition(":")[0] for r in results} <= benchmark.BUNDLED
    quantized = [r for r in results if r.purpose == "train" and r.holds and not r.quantizer.endswith(":none")]
    assert all(r.figures["moved"] > 1e-4 for r in quantized if not r.adapter.endswith(":full"))


def test_a_sampled_figure_is_compared_with_the_published_one(benchmark: Any) -> None:
    figures = {"gradients": 1e-6, "drift": 1e-5, "moved": 0.1}
    old = dataclasses.replace(read(OWN_FILE)[0], figures=figures)

    def worse(**changes: float) -> str | None:
        now: str | None = benchmark._worse(dataclasses.replace(old, figures={**figures, **changes}), old)
        return now

    assert worse() is None
    assert worse(gradients=9e-6) is None, "below the floor"
    assert worse(drift=9e-5) is None, "below ten times as much"
    assert worse(moved=5.0) is None, "no error"
    assert worse(drift=2e-4) == "drift was 1.0e-05 and is now 0.0002 (limit 1.0e-04)"
    assert worse(gradients=2e-5) == "gradients was 1.0e-06 and is now 2e-05 (limit 1.0e-05)"


@pytest.mark.plugins
@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.long)])
def test_published_cells_chosen_by_the_commit_are_reproduced(count: int) -> None:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    chosen_by = git.stdout.strip() or "no commit"
    command = [sys.executable, "benchmarks/compatibility.py", "--sample", str(count), "--by", chosen_by]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} of {count} hold" in done.stdout
