"""Tests: the promises of every command (conformance kit), and the mean compared with dense matrices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune.api import load_parameters
from smollm3_finetune.testing import CommandConformance, finished_run
from smollm3_finetune.testing.commands import smollm3

pytest.importorskip("peft")
CHANGE = 1e-6
"""Float32 factors in one product or in two."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with different seeds, ranks and scales."""
    folder = tmp_path_factory.mktemp("runs")
    more = (["--adapter-opt", "rank=4"], ["--adapter-opt", "rank=8", "--adapter-opt", "alpha=8"])
    return [
        finished_run(folder / str(n), "--adapter", "lora", "--seed", str(n), "--learning-rate", "1e-2", *words)
        for n, words in enumerate(more)
    ]


def changes(adapter: Path) -> dict[str, torch.Tensor]:
    """The change of each weight, in float64."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {n: t.double() for n, t in load_parameters(adapter / "adapter_model.safetensors").items()}
    scale = config["lora_alpha"] / config["r"]
    names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
    return {n: scale * tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in names}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


class TestSoup(CommandConformance):
    component = "soup"

    @pytest.fixture(autouse=True)
    def _runs(self, runs: list[Path]) -> None:
        self.runs = [str(run) for run in runs]

    def works(self, directory: Path) -> Iterable[Sequence[str]]:
        return [[*self.runs, "--output", str(directory / "mean")]]

    def refused(self, directory: Path) -> Iterable[Sequence[str]]:
        return [
            [self.runs[0], "--output", str(directory / "one")],
            [*self.runs, "--output", str(directory)],
            [self.runs[0], "no-such-run", "--output", str(directory / "none")],
        ]

    def test_each_change_is_the_mean_of_the_changes(self, tmp_path: Path, runs: list[Path]) -> None:
        assert self.call(*self.runs, "--output", tmp_path / "mean").code == 0
        found, parts = changes(tmp_path / "mean"), [changes(run / "adapter") for run in runs]
        assert json.loads((tmp_path / "mean" / "adapter_config.json").read_text())["r"] == 12
        assert found.keys() == parts[0].keys() and len(found) > 10
        for name, change in found.items():
            mean = (parts[0][name] + parts[1][name]) / 2
            assert mean.norm() > 0 and apart(change, mean) < CHANGE, name

    def test_a_mean_of_factors_would_be_another_change(self, tmp_path: Path) -> None:
        """Why the ranks are added."""
        torch.manual_seed(0)
        (b1, b2), (a1, a2) = torch.randn(2, 12, 4), torch.randn(2, 4, 12)
        assert apart((b1 + b2) @ (a1 + a2) / 4, (b1 @ a1 + b2 @ a2) / 2) > 0.5

    def test_generate_and_merge_take_it(self, tmp_path: Path, runs: list[Path]) -> None:
        mean = tmp_path / "mean"
        assert self.call(*self.runs, "--output", mean).code == 0
        done = smollm3("generate", mean, "--prompt", "Hi", "--max-new-tokens", "3", "--device", "cpu")
        assert done.code == 0, done.stderr
        merged = smollm3("merge", "tiny", "--adapter-path", mean, "--output", tmp_path / "merged")  # checks the logits
        assert merged.code == 0, merged.stderr
        assert (tmp_path / "merged" / "config.json").is_file()

    @pytest.mark.parametrize(
        ("file", "key", "value", "problem"),
        [
            ("smollm3.json", "base_fingerprint", "another", "trained on different weights"),
            ("smollm3.json", "adapter", {"name": "smollm3-peft:dora"}, "is an adapter 'dora'"),
            ("adapter_config.json", "bias", "all", "has bias"),
            ("adapter_config.json", "init_lora_weights", "pissa", "has init_lora_weights=pissa"),
        ],
    )
    def test_adapters_without_an_exact_mean_are_refused(
        self, tmp_path: Path, runs: list[Path], file: str, key: str, value: Any, problem: str
    ) -> None:
        shutil.copytree(runs[1], tmp_path / "changed")
        about = tmp_path / "changed" / "adapter" / file
        about.write_text(json.dumps({**json.loads(about.read_text()), key: value}))
        done = self.call(self.runs[0], tmp_path / "changed", "--output", tmp_path / "mean")
        assert done.code == 3 and problem in done.stderr
        assert not list(tmp_path.glob("mean*"))
