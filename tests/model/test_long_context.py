"""`context` of the loader `hf`: YaRN, refused models, and the check that an adapter has the base it was trained on.

The reference for the numbers is the embedded model, copied into a directory, with transformers' own YaRN.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune import load_model
from smollm3_finetune.builtin.tiny_loader import DIRECTORY
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError

NATIVE = 2048
QUICK = ("--adapter", "full", "--max-steps", "2", "--set", "data.limit=40", "--set", "train.sample_tokens=4",
         "--learning-rate", "1e-3")  # fmt: skip


class Said:
    """A `Progress` that records its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DIRECTORY, tmp_path / "small"))


def change_config(model: Path, **values: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    config = {k: v for k, v in {**config, **values}.items() if v is not None}
    (model / "config.json").write_text(json.dumps(config))


def loaded(model: Path, context: int | None = None, **more: Any) -> Any:
    return load_model(model, loader_options={"context": context}, dtype="float64", device="cpu", **more)


def logits(of: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = of(input_ids=ids).logits
    return out


def tokens(count: int) -> torch.Tensor:
    return torch.randint(5, 2000, (1, count), generator=torch.Generator().manual_seed(0))


def by_hand(model: Path, context: int) -> Any:
    """The model with the rope parameters that YaRN's authors and transformers' documentation ask for."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model))
    config.max_position_embeddings = context
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 2000000.0,
        "factor": context / NATIVE,
        "original_max_position_embeddings": NATIVE,
    }
    return AutoModelForCausalLM.from_pretrained(str(model), config=config, dtype=torch.float64)


@pytest.mark.parametrize("context", [4096, 5000])
def test_logits_equal_those_of_transformers_yarn(model: Path, context: int) -> None:
    ids = tokens(200)
    found = loaded(model, context).model
    assert torch.equal(logits(found, ids), logits(by_hand(model, context), ids))
    assert (logits(found, ids) - logits(loaded(model).model, ids)).abs().max() > 0.1
    assert found.config.max_position_embeddings == context


def test_the_frequencies_are_those_of_the_paper(model: Path) -> None:
    """Fast pairs keep their frequency, slow ones are divided by the factor, and the attention is scaled."""
    plain, long = (loaded(model, c).model.model.rotary_emb for c in (None, 4 * NATIVE))
    ratio = plain.inv_freq / long.inv_freq  # (32,)
    turns = NATIVE * plain.inv_freq / (2 * math.pi)  # in the native context
    assert (turns > 32).any() and (turns < 1).any()
    assert torch.allclose(ratio[turns > 40], torch.ones(()))
    assert torch.allclose(ratio[turns < 0.7], torch.tensor(4.0))
    assert long.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_layers_without_rope_are_unchanged(model: Path) -> None:
    """A model in which no layer has rope computes the same with any context."""
    change_config(model, no_rope_layers=[0] * 8)
    ids = tokens(64)
    assert torch.equal(logits(loaded(model, 8192).model, ids), logits(loaded(model).model, ids))


def test_rope_theta_and_other_keys_of_rope_are_kept(model: Path) -> None:
    change_config(model, rope_theta=5000.0, rope_parameters=None)
    rope = loaded(model, 4096).model.config.rope_parameters
    assert rope == {
        "rope_type": "yarn", "rope_theta": 5000.0, "factor": 2.0, "original_max_position_embeddings": NATIVE,
    }  # fmt: skip


def test_one_line_warns(model: Path) -> None:
    said: Any = Said()
    loaded(model, 4096, progress=said)
    (line,) = said.lines
    assert line.startswith("warning: YaRN extends ")
    assert "from 2048 to 4096 tokens (factor 2)" in line
    assert "static, so it also changes results for short texts" in line


@pytest.mark.parametrize("context", [1, 1024, NATIVE])
def test_a_context_that_already_fits_changes_nothing_and_is_reported(model: Path, context: int) -> None:
    said: Any = Said()
    same = loaded(model, context, progress=said)
    assert said.lines == [f"context={context} has no effect: {model} already takes 2048 tokens"]
    plain = loaded(model)
    assert same.base.fingerprint == plain.base.fingerprint
    assert torch.equal(logits(same.model, tokens(50)), logits(plain.model, tokens(50)))


def test_the_fingerprint_depends_on_the_scaling(model: Path) -> None:
    found = {loaded(model, c).base.fingerprint for c in (None, 4096, 8192, 4096)}
    assert len(found) == 3


def test_a_source_in_another_directory_is_scaled_too(model: Path, tmp_path: Path) -> None:
    """As a quantizer that writes a checkpoint loads it afterwards."""
    source = loaded(model, 4096).plan.source
    written = Path(shutil.copytree(model, tmp_path / "written"))
    again = source.at(written)
    assert again.config["max_position_embeddings"] == 4096
    ids = tokens(30)
    assert torch.equal(logits(again.load(dtype=torch.float64), ids), logits(by_hand(model, 4096), ids))


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
        "already scaled (yarn)",
    ),
    "older spelling": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "already scaled (linear)",
    ),
    "several ropes": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "different kinds of rope",
    ),
    "no rope": ({"model_type": "opt", "rope_parameters": None, "rope_theta": None}, "has no rope"),
}


@pytest.mark.parametrize("config", REFUSED)
def test_a_model_that_does_not_support_yarn_is_refused(model: Path, config: str) -> None:
    changes, words = REFUSED[config]
    change_config(model, **changes)
    with pytest.raises(IncompatibleError) as caught:
        loaded(model, 4096)
    assert words in caught.value.message
    assert "omit context" in str(caught.value.hint)


@pytest.mark.parametrize("context", [0, -5, 1.5, "many"])
def test_a_context_that_is_not_a_number_of_tokens_is_refused(model: Path, context: Any) -> None:
    with pytest.raises(ConfigError, match="context"):
        loaded(model, context)


def test_a_run_generates_and_resumes_with_its_context(cli: Callable[..., Any], model: Path) -> None:
    common = ("train", "--model", model, "--loader-opt", "context=4096", *QUICK, "--set", "train.schedule=constant")
    made = cli(*common, "--output", "out", "--set", "train.save_every=1", "--json")
    assert made.code == 0, made.stderr
    assert made.stderr.count("YaRN extends") == 1
    report = json.loads(made.stdout)
    prompt = report["prompt"][-1]["content"]
    answered = cli("generate", "out", "--prompt", prompt, "--max-new-tokens", "4", "--json")
    assert answered.code == 0, answered.stderr
    assert json.loads(answered.stdout)["answer"] == report["after"]["sample"]
    restored = load_model(
        model, adapter="full", adapter_path="out/adapter", loader_options={"context": 4096}, device="cpu"
    )
    assert restored.model.config.rope_parameters["rope_type"] == "yarn"
    resumed = cli("train", "--resume", "out", "--max-steps", "3", "--json")
    assert resumed.code == 0, resumed.stderr
    assert "YaRN extends" in resumed.stderr

    other = cli("generate", "out", "--prompt", prompt, "--loader-opt", "context=8192")
    assert other.code == 2
    assert "--loader-opt context cannot be used with the run out" in other.stderr
    refused = cli("generate", model, "--adapter-path", "out/adapter", "--prompt", prompt)
    assert refused.code == 6
    assert "was trained with context=4096" in refused.stderr
    assert "hint: --loader-opt context=4096" in refused.stderr
    right = ("--adapter-path", "out/adapter", "--loader-opt", "context=4096", "--max-new-tokens", "4")
    assert cli("generate", model, *right, "--prompt", prompt).code == 0
    forced = ("--adapter-path", "out/adapter", "--any-base", "--max-new-tokens", "4")
    assert cli("generate", model, *forced, "--prompt", prompt).code == 0

    merging = ("merge", model, "--adapter-path", "out/adapter", "--output", "merged")
    refused = cli(*merging)
    assert refused.code == 6
    assert "was trained with context=4096" in refused.stderr
    assert not Path("merged").exists()
    assert cli(*merging, "--loader-opt", "context=4096").code == 0
    with pytest.raises(ModelError, match="was trained with context=4096"):
        load_model(model, adapter_path="out/adapter", device="cpu")


def test_an_adapter_without_a_context_is_refused_on_a_scaled_base(cli: Callable[..., Any], model: Path) -> None:
    assert cli("train", "--model", model, *QUICK, "--output", "out").code == 0
    refused = cli("generate", model, "--adapter-path", "out/adapter", "--loader-opt", "context=4096", "--prompt", "a")
    assert refused.code == 6
    assert "omit --loader-opt context" in refused.stderr
    harmless = ("--adapter-path", "out/adapter", "--loader-opt", "context=1000", "--max-new-tokens", "2")
    assert cli("generate", model, *harmless, "--prompt", "a").code == 0


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_rows_longer_than_the_context_are_an_early_error(
    cli: Callable[..., Any], model: Path, isolated: Path, dry: list[str]
) -> None:
    (model / "model.safetensors").write_bytes(b"not weights")
    refused = cli("train", "--model", model, *QUICK, "--max-length", "3000", *dry)
    assert (refused.code, refused.stdout) == (2, "")
    assert f"data.max_length=3000 is more than the 2048 tokens that '{model}' supports" in refused.stderr
    assert "hint: --loader-opt context=3000 (YaRN), or --max-length 2048" in refused.stderr
    assert list(isolated.iterdir()) == []
    assert cli("train", "--model", model, *QUICK, "--max-length", "2048", "--dry-run").code == 0
    mended = ("--max-length", "3000", "--loader-opt", "context=3000", "--dry-run")
    assert cli("train", "--model", model, *QUICK, *mended).code == 0


def test_the_hint_depends_on_the_model(cli: Callable[..., Any], model: Path) -> None:
    embedded = cli("train", "--adapter", "full", "--max-length", "3000", "--dry-run")
    assert "hint: --max-length 2048\n" in embedded.stderr
    change_config(model, model_type="opt", rope_parameters=None, rope_theta=None, max_position_embeddings=512)
    refused = cli("train", "--model", model, "--adapter", "full", "--dry-run")
    assert "data.max_length=1024 (the default) is more than the 512 tokens" in refused.stderr
    assert "hint: --max-length 512\n" in refused.stderr


def test_a_context_in_yaml(cli: Callable[..., Any], model: Path) -> None:
    text = f"model: {model}\nloader: {{name: hf, context: 4096}}\nadapter: full\ndata: {{max_length: 4000}}\n"
    Path("run.yaml").write_text(text)
    shown = cli("train", "--config", "run.yaml", "--dry-run", "--json")
    assert shown.code == 0, shown.stderr
    assert json.loads(shown.stdout)["config"]["loader"]["context"] == 4096
