"""The sweep over architectures: tiny models from shrunk configs, the states of cells, and the generated page."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_a_shrunk_model_is_tiny_and_loads(benchmark: Any, tmp_path: Path, kind: str) -> None:
    cells = benchmark("architecture_cells")
    cells.build(kind, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 4 * cells.MOST
    cells.CELLS["load"](tmp_path / "model")


def test_a_model_that_stays_large_is_not_built(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = benchmark("architecture_cells")
    monkeypatch.setattr(cells, "MOST", 1000)
    with pytest.raises(cells.NotTiny, match="million parameters after shrinking"):
        cells.build("gpt2", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_sizes_that_a_config_has_are_set(benchmark: Any) -> None:
    cells = benchmark("architecture_cells")
    config = SimpleNamespace(hidden_size=4096, num_hidden_layers=32, layer_types=["full"] * 32, tie=True, num_heads=2)
    cells._shrink(config, cells.SIZES)
    assert vars(config) == {
        "hidden_size": 64, "num_hidden_layers": 2, "layer_types": ["full"] * 2, "tie": True, "num_heads": 2
    }  # fmt: skip


def test_a_cell_that_ends_its_process_is_a_result_and_the_next_ones_run(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = benchmark("architectures")
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "for column in sys.argv[4:]:\n"
        "    if column == 'lora':\n"
        "        print('the last words', flush=True)\n"
        "        os._exit(3)\n"
        "    if column == 'hqq':\n"
        "        import time; time.sleep(60)\n"
        "    print(json.dumps({'column': column, 'state': 'works', 'note': None}), file=open(sys.argv[3], 'a'))\n"
    )
    monkeypatch.setattr(sweep, "CELLS", worker)
    found = sweep.measured("llama", ["load", "lora", "dora", "hqq"], tmp_path, 0.7)
    assert {c: r["state"] for c, r in found.items()} == {
        "load": "works", "lora": "fails", "dora": "works", "hqq": "fails"
    }  # fmt: skip
    assert found["lora"]["note"] == "exit code 3: the last words"
    assert found["hqq"]["note"] == "timed out after 1 s"


def test_the_page_is_made_of_the_results(benchmark: Any) -> None:
    page, sweep = benchmark("architecture_page"), benchmark("architectures")
    results = json.loads(sweep.RESULTS.read_text(encoding="utf-8"))
    assert page.generated(results) in page.PAGE.read_text(encoding="utf-8"), "nox -s architectures -- --page"
    about = {"date": "2026-11-29", "versions": "torch 2.13.0"}
    text = page.generated({
        "a": {"load": {"state": "works", "note": None, **about}, "gptq": {"state": "refused", "note": "x|y", **about}},
        "b": {"load": {"state": "unbuilt", "note": "too large", **about}},
        "c": {},
    })  # fmt: skip
    assert "1 work, 1 are refused with a reason, 0 fail, and 7 were not run" in text
    assert "| `a` | ● | ○ |" in text
    assert "| refused | a (gptq) | x\\|y |" in text
    assert "Not built by shrinking the config (1): `b`." in text
    assert "Not run yet (1): `c`." in text
