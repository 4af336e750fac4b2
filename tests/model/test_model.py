"""`load_model` combines components by name: built-in, from plugin files, and from installed entry points."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import smollm3_finetune
from smollm3_finetune import load_model
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError, UnsupportedOp
from smollm3_finetune.testing import dense_copy

HERE = Path(__file__).parents[1] / "out_of_tree"
NAMES = ("one_way_quantizer", "scale_adapter", "vault_loader")
FILES = tuple(str(HERE / f"{name}.py") for name in NAMES)
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
IDS = torch.arange(5, 21).reshape(2, 8)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return out


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "vault"
    shutil.copytree(TINY, folder / "small")
    monkeypatch.setenv("VAULT", str(folder))
    return folder


def test_without_an_adapter_the_base_is_returned_unchanged() -> None:
    loaded = load_model()
    assert loaded.adapted is None
    assert loaded.model is loaded.base.model
    assert not any(p.requires_grad for p in loaded.model.parameters())
    with pytest.raises(UnsupportedOp):
        loaded.disabled()
    with pytest.raises(UnsupportedOp):
        loaded.save(Path("nowhere"))


def test_the_embedded_model_is_a_smollm3_with_tied_embeddings_and_nope_layers() -> None:
    model: Any = load_model().model
    assert type(model).__name__ == "SmolLM3ForCausalLM"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert [i for i, rope in enumerate(model.config.no_rope_layers) if not rope] == [3, 7]
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            assert layer.in_features % 128 == 0, name
            assert layer.out_features % 128 == 0, name
    assert (TINY / "model.safetensors").stat().st_size <= 4_000_000


@pytest.mark.parametrize("how", ["files", "installed"])
def test_out_of_tree_loader_quantizer_and_adapter_compose(
    how: str, vault: Path, fake_distribution: Callable[..., Path]
) -> None:
    plugins: tuple[str, ...] = FILES
    if how == "installed":
        for name in NAMES:
            source = (HERE / f"{name}.py").read_text().replace(f"{name}:", f"installed_{name}:")
            dist = f"stranger-{name.replace('_', '-')}"
            fake_distribution(dist, "2.0", {f"installed_{name}": source}, {name: f"installed_{name}"})
        plugins = ()
    loaded = load_model("vault://small", quant="rows-int8", adapter="scale", purpose="train", plugins=plugins)
    assert loaded.plan.loader.component.spec.name == "vault"
    assert loaded.plan.quantizer.component.distribution.startswith("stranger" if how == "installed" else "one_way")
    assert next(n for n, p in loaded.model.named_parameters() if p.requires_grad).endswith("output_scale")
    loaded.save(Path("adapter"))
    again = load_model("vault://small", adapter_path="adapter", plugins=plugins)
    assert again.plan.quantizer.component.spec.name == "rows-int8", "a saved adapter knows the quantizer of its base"
    assert torch.equal(logits(again.model), logits(loaded.model))


def test_a_prequantized_checkpoint_is_claimed_and_never_loaded_dense(tmp_path: Path) -> None:
    cache = Path(load_model("tiny", quant="rows-int8", plugins=FILES).plan.context.cache.root)
    checkpoint = next(p for p in (cache / "rows-int8").iterdir() if p.is_dir())
    loaded = load_model(checkpoint, plugins=FILES)
    assert loaded.plan.quantizer.component.spec.name == "rows-int8"
    with pytest.raises(IncompatibleError, match="already quantized by 'rows-int8'"):
        load_model(checkpoint, quant="none", plugins=FILES)
    with pytest.raises(IncompatibleError, match="no installed plugin reads it"):
        load_model(checkpoint)


def test_the_dense_copy_computes_what_the_quantized_base_computes() -> None:
    loaded = load_model("tiny", quant="rows-int8", dtype="float64", purpose="train", plugins=FILES)
    dense = dense_copy(loaded.base, torch.float64)
    # nn.Linear instead of an explicit product: float64 rounding through eight layers
    assert torch.allclose(logits(dense), logits(loaded.model), rtol=1e-12, atol=1e-12)
    head: Any = dense
    assert head.get_output_embeddings().weight is head.get_input_embeddings().weight


def test_an_adapter_is_refused_on_another_base() -> None:
    trained = load_model("tiny", quant="rows-int8", adapter="scale", plugins=FILES)
    trained.save(Path("adapter"))
    with pytest.raises(ModelError, match="was not trained on the weights"):
        load_model("tiny", quant="none", adapter_path="adapter", plugins=FILES)
    load_model("tiny", quant="none", adapter_path="adapter", plugins=FILES, check_base=False)


def test_the_two_rounded_bases_of_different_bits_have_different_fingerprints() -> None:
    four = load_model("tiny", quant="rows-int8", quant_options={"bits": 4}, plugins=FILES)
    eight = load_model("tiny", quant="rows-int8", plugins=FILES)
    assert four.base.fingerprint != eight.base.fingerprint


def test_a_local_directory_needs_safetensors_unless_pickle_is_allowed(tmp_path: Path) -> None:
    directory = tmp_path / "pickled"
    shutil.copytree(TINY, directory)
    state = load_model(directory).model.state_dict()
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        load_model(directory)
    loaded = load_model(directory, loader_options={"pickle": True})
    assert torch.equal(logits(loaded.model), logits(load_model().model.float()))


def test_code_of_a_model_runs_only_if_allowed(tmp_path: Path) -> None:
    directory = tmp_path / "coded"
    shutil.copytree(TINY, directory)
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        config.replace("{", '{"auto_map": {"AutoModelForCausalLM": "mine.Mine", "AutoConfig": "mine.Conf"},', 1)
    )
    (directory / "mine.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(ModelError, match="Python code of its own"):
        load_model(directory)


def test_full_weights_save_and_restore() -> None:
    loaded = load_model("tiny", adapter="full", purpose="train", adapter_options={"parameters": ["*.mlp.*"]})
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".mlp." in n for n in trained)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.01)
    loaded.save(Path("full"))
    again = load_model("tiny", adapter_path="full")
    assert torch.equal(logits(again.model), logits(loaded.model))


def test_the_public_names_are_importable() -> None:
    from smollm3_finetune.model import load_model as from_module

    assert smollm3_finetune.load_model is from_module
    assert smollm3_finetune.hookimpl is not None
    with pytest.raises(AttributeError):
        _ = smollm3_finetune.nothing  # type: ignore[attr-defined]


@pytest.mark.plugins
def test_the_seed_determines_an_adapter_and_the_random_state_is_restored() -> None:
    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed + 7)
        loaded = load_model("tiny", adapter="lora", purpose="train", seed=seed)
        first = next(p for n, p in loaded.model.named_parameters() if "lora_A" in n)
        return first.detach().clone(), torch.rand(3)

    one, after = drawn(1)
    again = next(
        p
        for n, p in load_model("tiny", adapter="lora", purpose="train", seed=1).model.named_parameters()
        if "lora_A" in n
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, drawn(2)[0])
    torch.manual_seed(8)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.plugins
def test_a_component_may_be_a_mapping_as_in_yaml() -> None:
    adapter = {"name": "lora", "rank": 3, "target_modules": ["q_proj"]}
    loaded = load_model("tiny", adapter=adapter, adapter_options={"alpha": 6.0}, purpose="train", device="cpu")
    assert loaded.plan.adapter is not None
    options = loaded.plan.adapter.options
    assert (options.rank, options.alpha, options.target_modules) == (3, 6.0, ("q_proj",))
    named = load_model("tiny", adapter="lora", adapter_options={"rank": 3}, purpose="train", device="cpu")
    assert named.plan.adapter is not None and named.plan.adapter.options.rank == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": 4}, "quant: expected a name, got 4"),
        ({"name": "none", "bits": 4}, "quantizer 'none' has no option 'bits'"),
    ],
)
def test_a_wrong_mapping_is_refused(given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_model("tiny", quant=given)
