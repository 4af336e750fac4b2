"""Runs, adapters and caches that version 0.1.0 wrote before its modules moved: they resume, generate and merge.

`saved_by_0.1.0.tar.xz` holds three runs of the embedded model, six steps each, saved at step 3, and the cache that
they used. Each adapter is the one that the uninterrupted run of that version ended with, so a resumed run has to
arrive at the same weights.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.plugins
ARCHIVE = Path(__file__).parent / "saved_by_0.1.0.tar.xz"
RUNS = ("none-lora", "bnb-4bit-dora", "gptq-lora")


@pytest.fixture
def saved(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with the runs and the cache in it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(isolated, filter="data")
    monkeypatch.setenv("SMOLLM3_CACHE", str(isolated / "cache"))
    return isolated


def weights(run: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_resumes_to_the_same_weights(cli: Callable[..., Any], saved: Path, name: str) -> None:
    import torch

    run = saved / "runs" / name
    expected, cached = weights(run), sorted((saved / "cache").rglob("*.safetensors"))
    done = cli("train", "--resume", f"runs/{name}", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 6
    found = weights(run)
    assert found.keys() == expected.keys()
    for key, value in expected.items():  # kernels of another processor may round differently
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)
    assert sorted((saved / "cache").rglob("*.safetensors")) == cached, "a base was quantized again"


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_generates_what_it_generated(cli: Callable[..., Any], saved: Path, name: str) -> None:
    run = saved / "runs" / name
    done = cli("generate", f"runs/{name}", "--prompt", "What is the opposite of hot?", "--max-new-tokens", "12")
    assert (done.code, done.stdout) == (0, (run / "answer.txt").read_text(encoding="utf-8")), done.stderr


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_merges(cli: Callable[..., Any], saved: Path, name: str) -> None:
    done = cli("merge", f"runs/{name}", "--output", "merged", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["fault"] is None


def test_the_saved_cache_is_kept_for_its_runs(cli: Callable[..., Any], saved: Path) -> None:
    listed = cli("cache", "list", "--json").report()["entries"]
    runs = {e["kind"]: e["runs"] for e in listed}
    assert runs.keys() == {"gptq", "tokens"}
    assert str(saved / "runs" / "gptq-lora") in runs["gptq"]
    cleaned = cli("cache", "clean", "--yes", "--json").report()
    assert [e["kind"] for e in cleaned["kept"]] == ["gptq"]
    assert [Path(path).parent.name for path in cleaned["deleted"]] == ["tokens"]
    assert list((saved / "cache").rglob("*.safetensors")), "the weights of a run's base were deleted"
    assert not list((saved / "cache").rglob("*.arrow"))


def test_saved_runs_are_listed_shown_and_compared(cli: Callable[..., Any], saved: Path) -> None:
    runs = {Path(run["path"]).name: run for run in cli("runs", "list", "--json").report()["runs"]}
    assert {name: (run["state"], run["steps"], run["adapter"]) for name, run in runs.items()} == {
        "none-lora": ("finished", 6, "smollm3-peft:lora"), "gptq-lora": ("finished", 6, "smollm3-peft:lora"),
        "bnb-4bit-dora": ("finished", 6, "smollm3-peft:dora"),
    }  # fmt: skip
    assert runs["gptq-lora"]["verdict"] is None and runs["gptq-lora"]["data"] == ["the embedded chat dataset"]
    shown = cli("runs", "show", "gptq-lora").stdout
    assert "held-out loss  4.353 → 3.947 (−0.406)" in shown and "data.long_text       cut" in shown
    compared = cli("runs", "compare", "none-lora", "bnb-4bit-dora", "--json").report()
    assert list(compared["different"]) == ["quant.name", "adapter.name"]
    assert [len(run["losses"]["training"]) for run in compared["runs"]] == [6, 6]
