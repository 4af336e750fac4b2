"""`nox -s gpu`: the table names the device beside each figure, and the models have the stated shapes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_table_names_the_card_beside_each_figure_and_shows_what_failed(benchmark: Any) -> None:
    figures = [
        {"what": "speed", "value": 12345.6, "unit": "tokens/s"},
        {"what": "memory", "value": 9.2e9, "unit": "bytes"},
    ]
    about = {
        "date": "2026-11-30", "machine": {"name": "A Card 9000", "torch": "2.13.0"}, "rehearsal": False,
        "seconds": 61.0,
        "parts": {
            "qlora": {"fault": None, "figures": figures, "conditions": "a model"},
            "gptq": {"fault": "kernel a|b: off", "figures": []},
            "fsdp": {"skipped": "this machine has 1 GPU"},
        },
    }  # fmt: skip
    rows = [line for line in benchmark("gpu").page(about).splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| qlora | speed | 12346 tokens/s | A Card 9000 |",
        "| qlora | memory | 9.2 GB | A Card 9000 |",
        "| gptq | **failed**: kernel a/b: off | | A Card 9000 |",
        "| fsdp | not run: this machine has 1 GPU | | A Card 9000 |",
    ]
    assert benchmark("gpu").anonymous(f"File {BENCHMARKS}/gpu.py, {Path.home()}/x") == "File …/benchmarks/gpu.py, …/x"
    assert "rehearsal" in benchmark("gpu").page({**about, "rehearsal": True})


def test_only_tests_that_passed_count(benchmark: Any, tmp_path: Path) -> None:
    cases = (
        "<testcase/><testcase><skipped/></testcase><testcase><failure/></testcase><testcase><system-out/></testcase>"
    )
    file = tmp_path / "junit.xml"
    file.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", encoding="utf-8")
    assert benchmark("gpu").tests_passed(file) == 2


def test_random_models_have_the_stated_number_of_weights(benchmark: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    models = benchmark("gpu_models")
    assert 3.07e9 < models.SMOLLM3.parameters < 3.09e9
    directory = models.write_model(models.SHRUNKEN, tmp_path / "model", "float32")
    count = 0
    for file in directory.glob("*.safetensors"):
        with safe_open(str(file), "np") as stored:
            sizes = [stored.get_slice(name).get_shape() for name in stored.keys()]  # noqa: SIM118
        count += sum(s[0] * s[1] for s in sizes if len(s) == 2)
    assert count == models.SHRUNKEN.parameters
