"""A quantizer with installed adapters: trained, saved, restored, merged, through the API and the command line.

The tests apply to a conformance class that names `adapters`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from smollm3_finetune.api import ModelError
from smollm3_finetune.compatibility.composition import check_composition
from smollm3_finetune.model.compare import ROUNDING, apart, logits
from smollm3_finetune.testing.commands import OFFLINE, Result, smollm3
from smollm3_finetune.testing.conformance import demand, outcome, plugin_path, skip
from smollm3_finetune.testing.parts import plan
from smollm3_finetune.testing.quantizer_case import QuantizerCase
from smollm3_finetune.testing.small import small_model_directory, token_ids

if TYPE_CHECKING:
    import pytest

    from smollm3_finetune.model.load import LoadedModel

NOISE, RATE = 0.05, 0.05
"""Added to a fresh adapter, so that it changes the model; and the rate of the one step."""
MOVED = 0.05
"""How far an adapter must move the logits, relative, so that a merge without it would be noticed."""
COMMAND_MERGE = 1e-3
"""The largest merge error of a run of two steps in the dtype that a run chooses by itself."""


class TrainingTests(QuantizerCase):
    """The tests with adapters that are installed."""

    adapters: ClassVar[tuple[str, ...]] = ()
    """Adapters of installed plugins to train with, such as `("lora", "dora")`; empty: these tests are skipped."""

    def test_adapters_train_as_on_the_dense_copy(self, tmp_path: Path) -> None:
        bound = ROUNDING["float64"]
        for adapter in self.named():
            result = check_composition(
                plan(
                    self.reference(), quant=self.component, quant_options=self.options, adapter=adapter,
                    dtype="float64", device=self.device, plugins=self.files(),
                )
            )  # fmt: skip
            demand(result.moved > 1e-3, f"{adapter} moves the logits by {result.moved:.2g}: nothing can be compared")
            figures = {
                **{f"the gradients ({point})": error for point, error in result.gradients.items()},
                **{f"the logits ({point})": error for point, error in result.logits.items()},
                "the restored adapter's logits": result.restored,
            }
            for what, error in figures.items():
                demand(
                    error <= bound,
                    f"with {adapter} in float64, {what} differ by {error:.2g} from those on the dense copy, and at "
                    f"most {bound:.2g} is allowed",
                )
            changed = [point for point, error in result.weights.items() if error]
            demand(not changed, f"with {adapter}, the weights that are read change ({', '.join(changed)})")
            demand(not result.base_trained, f"{adapter} trains parameters of the base: {result.base_trained[:1]}")

    def test_a_step_lowers_the_loss_and_is_restored_exactly(self, tmp_path: Path) -> None:
        for adapter in self.named():
            loaded = self.loaded(adapter=adapter, purpose="train")
            before = _step(loaded)
            with torch.no_grad():
                after = _loss(loaded).item()
            demand(after < before, f"a step with {adapter} takes the loss from {before:.4f} to {after:.4f}")
            path = tmp_path / adapter
            loaded.save(path)
            again = self.loaded(adapter_path=path)
            error = apart(_logits(again), _logits(loaded))
            demand(error == 0, f"{adapter} was saved and restored, and the logits differ by {error:.2g}")

    def test_an_adapter_is_refused_on_another_base(self, tmp_path: Path) -> None:
        for adapter in self.named():
            if not self.altering:
                skip("no options that alter the weights are named (`altering`)")
            self.loaded(adapter=adapter, purpose="train").save(tmp_path / adapter)
            for options in self.altering:
                _, error = outcome(lambda o=options, a=adapter: self.loaded(o, adapter_path=tmp_path / a))
                demand(
                    isinstance(error, ModelError) and "was not trained on the weights" in str(error),
                    f"{adapter} was trained with other options, and a base with {dict(options)} does not refuse it: "
                    "the fingerprint must depend on them",
                )

    def test_a_merge_computes_what_the_adapter_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import AutoModelForCausalLM

        self.isolate(tmp_path, monkeypatch)
        bound = ROUNDING["float32"]
        for adapter in self.named():
            alone = _logits(self.loaded())
            loaded = self.loaded(adapter=adapter, purpose="train")
            _step(loaded)
            loaded.save(tmp_path / adapter)
            right = _logits(loaded)
            moved = apart(right, alone)
            demand(moved > MOVED, f"{adapter} moves the logits by {moved:.2g}: its merge cannot be judged")
            out = tmp_path / f"merged-{adapter}"
            done = self.command(
                "merge", self.reference(), *self.chosen(), "--adapter-path", tmp_path / adapter,
                "--output", out, "--dtype", "float32", "--json",
            )  # fmt: skip
            excess = json.loads(done.stdout)["figures"]["excess"]
            demand(excess <= bound, f"the merge of {adapter} reports an error of {excess:.2g}, more than {bound:.2g}")
            merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(self.device)
            error = apart(logits(merged, token_ids(6, 40).to(self.device)), right)
            demand(error <= bound, f"merged {adapter} is {error:.2g} from it on its base, more than {bound:.2g}")
            dense = "quantization_config" not in json.loads((out / "config.json").read_text(encoding="utf-8"))
            demand(dense, "the merged model's config.json has a quantization_config")

    def test_a_run_is_trained_asked_and_merged_by_commands(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = self.named()[-1]
        self.isolate(tmp_path, monkeypatch)
        self.command(
            "train", *self.chosen(), "--adapter", adapter, "--max-steps", "2", "--batch-size", "2", "--output", "run",
            "--set", "train.sample_tokens=4",
        )  # fmt: skip
        demand(any(Path("run", "adapter").iterdir()), "the run saved no adapter")
        self.command("generate", "run", *self.given_files(), "--prompt", "Hello!", "--max-new-tokens", "3")
        done = self.command("merge", "run", *self.given_files(), "--json")
        excess = json.loads(done.stdout)["figures"]["excess"]
        demand(
            math.isfinite(excess) and excess <= COMMAND_MERGE,
            f"the merge of the run reports an error of {excess:.2g}, more than {COMMAND_MERGE:.2g}",
        )

    # ------------------------------------------------------------------------------------------ helpers

    def named(self) -> tuple[str, ...]:
        """The adapters; skips the test if there are none."""
        if not self.adapters:
            skip("no adapters are named (`adapters`)")
        return self.adapters

    def reference(self) -> str:
        """The small model on disk."""
        return str(small_model_directory(biases=self.biases))

    def files(self) -> tuple[str, ...]:
        return tuple(str(plugin_path(type(self), p)) for p in self.plugins)

    def given_files(self) -> list[str]:
        return [argument for file in self.files() for argument in ("-p", file)]

    def chosen(self) -> list[str]:
        """The quantizer on the command line."""
        options = [a for k, v in self.options.items() for a in ("--quant-opt", f"{k}={_text(v)}")]
        return [*self.given_files(), "--quant", self.component, *options]

    def loaded(self, options: Mapping[str, Any] | None = None, **more: Any) -> LoadedModel:
        from smollm3_finetune.model.load import load_model

        return load_model(
            self.reference(), quant=self.component, quant_options={**self.options, **(options or {})},
            device=self.device, dtype="float32", plugins=self.files(), **more,
        )  # fmt: skip

    def isolate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For commands: a working directory and a cache of their own, and no Hub."""
        monkeypatch.chdir(tmp_path)
        for name, value in {**OFFLINE, "SMOLLM3_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)

    def command(self, *args: Any) -> Result:
        done = smollm3(*args, "--device", self.device)
        demand(done.code == 0, f"smollm3 {args[0]} ended with {done.code}: {done.stderr.strip()}")
        return done


def _step(loaded: LoadedModel) -> float:
    """One step of gradient descent from a fresh adapter with noise on it; the loss before it."""
    model, generator = loaded.model.train(), torch.Generator().manual_seed(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator).to(parameter))
    loss = _loss(loaded)
    loss.backward()
    with torch.no_grad():
        for parameter in trained:
            demand(parameter.grad is not None, "no gradient reaches a parameter of the adapter")
            parameter -= RATE * parameter.grad
    return float(loss.item())


def _loss(loaded: LoadedModel) -> Tensor:
    ids = token_ids(6, 40).to(next(loaded.model.parameters()).device)
    loss: Tensor = loaded.model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def _logits(loaded: LoadedModel) -> Tensor:
    return logits(loaded.model, token_ids(6, 40).to(next(loaded.model.parameters()).device))


def _text(value: Any) -> str:
    """An option's value as it is typed."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
