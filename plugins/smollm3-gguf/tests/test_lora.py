"""The exporter `gguf-lora`: adapters of PEFT as llama.cpp's adapter files."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_gguf import check_adapter, lora_file
from smollm3_gguf.exporter import file_in
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.lora import GgufLoraExporter
from smollm3_gguf.lora_adapter import read_adapter
from smollm3_gguf.lora_file import read_file
from smollm3_gguf.lora_reference import _only_plain_layers
from smollm3_gguf.options import GgufOptions

import smollm3_finetune
from smollm3_finetune.api import (
    BuildContext,
    Exported,
    IncompatibleError,
    ModelError,
    ModelSource,
    NoOptions,
    directory_source,
)
from smollm3_finetune.testing import small_source

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDED = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"


def base() -> ModelSource:
    """The embedded model: 8 layers, without RoPE in layers 3 and 7."""
    return directory_source(EMBEDDED, ref="tiny")


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """Saves a PEFT adapter with random factors; `config` are the arguments of its config class."""

    def save(kind: str = "LoraConfig", **config: Any) -> Path:
        import peft

        path = tmp_path / "adapter"
        usual = {"target_modules": ALL, "r": 4, "lora_alpha": 6, "init_lora_weights": False}
        torch.manual_seed(0)
        model = base().load(dtype=torch.float32)
        arguments = usual | config if kind == "LoraConfig" else config
        with _only_plain_layers():
            adapted = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **arguments))
        adapted.save_pretrained(path, save_embedding_layers=False)
        return path

    return save


@pytest.fixture
def written(
    tmp_path: Path, context: Callable[..., BuildContext]
) -> Callable[[Path], tuple[GgufLoraExporter, Exported, Path]]:
    """Exports an adapter; returns the exporter, the subject and the directory."""

    def write(path: Path) -> tuple[GgufLoraExporter, Exported, Path]:
        subject = Exported(
            model=base(), adapter=path, name="tiny-lora", prompts=lambda: [[5, 900, 31, 7, 64, 8], [100, 200, 300]]
        )
        exporter, out = GgufLoraExporter(NoOptions()), tmp_path / "out"
        out.mkdir()
        exporter.write(subject, out, context())
        return exporter, subject, out

    return write


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on llama-cpp-python, tests/llama has those that do; nor on a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("smollm3_gguf.llama_process.installed", lambda: False)


def checks_of(made: tuple[GgufLoraExporter, Exported, Path], ctx: BuildContext) -> dict[str, Any]:
    exporter, subject, out = made
    return {check.name: check for check in exporter.verify(subject, out, ctx)}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"k_proj": 3}},
        {"target_modules": ["k_proj"], "layers_to_transform": [2, 3]},
    ],
    ids=["plain", "rslora", "patterns", "some layers"],
)
def test_an_adapter_is_exported_and_verified(
    config: dict[str, Any], adapter: Any, written: Any, context: Callable[..., BuildContext]
) -> None:
    checks = checks_of(written(adapter(**config)), context())
    assert [c.passed for c in checks.values()] == [True, True, None]
    assert checks["logits"].figures["difference"] < 3e-6
    assert checks["logits"].figures["limit"] == 1e-4  # of the merge check in float32
    assert "pip install" in checks["llama.cpp logits"].says


def test_the_factors_are_where_llama_cpp_looks(adapter: Any, written: Any, tiny_gguf: Any) -> None:
    path = adapter()
    _, _, out = written(path)
    saved = load_file(path / "adapter_model.safetensors")
    from smollm3_gguf.header import read_header

    with file_in(out).open("rb") as stream:
        header = read_header(stream)
        assert header.metadata["general.type"] == "adapter"
        assert header.metadata["adapter.lora.alpha"] == 6
        assert len(header.tensors) == 2 * 7 * 8
        for layer in (2, 3):  # with RoPE and without: the rows have the same order
            info = header.tensors[f"blk.{layer}.attn_k.weight.lora_b"]
            stream.seek(header.data_start + info.offset)
            found = torch.frombuffer(bytearray(stream.read(4 * 128 * 4)), dtype=torch.float32).reshape(info.shape)
            expected = saved[f"base_model.model.model.layers.{layer}.self_attn.k_proj.lora_B.weight"]
            assert torch.equal(found, torch.from_numpy(tiny_gguf.permuted(expected.numpy(), 2)))


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("LoraConfig", {"use_dora": True}, "this adapter is DoRA"),
        ("LoraConfig", {"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ("LoraConfig", {"bias": "lora_only"}, "bias"),
        ("LoraConfig", {"lora_bias": True}, "lora_bias"),
        ("LoraConfig", {"trainable_token_indices": [3]}, "trainable_token_indices"),
        ("LoraConfig", {"target_modules": ["embed_tokens"]}, "model.embed_tokens.lora_embedding"),
        ("LoraConfig", {"target_modules": ["lm_head"]}, "cannot adapt lm_head"),
        ("VeraConfig", {"target_modules": ["q_proj"]}, "this adapter is VERA"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_adapters_are_refused_with_the_line_to_type(
    kind: str, config: dict[str, Any], says: str, adapter: Any, written: Any
) -> None:
    with pytest.raises(IncompatibleError, match=says) as raised:
        written(adapter(kind, **config))
    assert raised.value.hint == "export the merged model: --to gguf"


def test_start_values_that_changed_the_base_are_refused(adapter: Any, written: Any) -> None:
    path = adapter()
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(IncompatibleError, match="pissa_niter_4 changed the base"):
        written(path)


def test_an_incomplete_adapter_is_refused(adapter: Any, written: Any) -> None:
    path = adapter()
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"only one of the two factors of model\.layers\.1\.mlp\.up_proj"):
        written(path)


def test_a_base_that_has_no_file_is_refused_before() -> None:
    with pytest.raises(IncompatibleError, match="no_rope_layers"):
        check_adapter(NoOptions(), small_source(biases=False))


def test_rows_in_transformers_order_are_found(
    adapter: Any, written: Any, context: Callable[..., BuildContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_file, "interleaved", lambda rows, heads: slice(None))
    checks = checks_of(written(adapter()), context())
    assert [c.passed for c in checks.values()] == [False]
    assert checks["factors"].says == "B of model.layers.0.self_attn.k_proj differs from the adapter's"


def test_another_alpha_is_found(adapter: Any, written: Any, context: Callable[..., BuildContext]) -> None:
    made = written(adapter())
    file = file_in(made[2])
    data = bytearray(file.read_bytes())
    at = data.index(b"adapter.lora.alpha") + len("adapter.lora.alpha") + 4
    data[at : at + 4] = struct.pack("<f", 12.0)
    file.write_bytes(data)
    assert checks_of(made, context())["factors"].says == "alpha is 12 instead of 6"


def test_a_wrong_scale_is_found_by_the_logits(
    adapter: Any, written: Any, context: Callable[..., BuildContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    import smollm3_gguf.lora as lora

    def half(path: Path) -> Any:
        right = read_adapter(path)
        return type(right)(alpha=right.alpha / 2, factors=right.factors)

    monkeypatch.setattr(lora, "read_adapter", half)
    checks = checks_of(written(adapter()), context())
    assert checks["factors"].passed
    assert checks["logits"].passed is False


def test_a_base_without_a_file_is_no_fault_of_the_adapter(
    adapter: Any, written: Any, context: Callable[..., BuildContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise IncompatibleError("the pre-tokenizer of this model is not one that can be exported to GGUF")

    made = written(adapter())
    monkeypatch.setattr("smollm3_gguf.lora.llama", contextlib.nullcontext)
    monkeypatch.setattr("smollm3_gguf.exporter.GgufExporter.write", refuse)
    check = checks_of(made, context())["llama.cpp logits"]
    assert check.passed is None
    assert "the base has no file here: the pre-tokenizer" in check.says


def test_the_file_is_read_back(adapter: Any, written: Any) -> None:
    path = adapter()
    _, subject, out = written(path)
    found, saved = read_file(file_in(out), subject.model.config), read_adapter(path)
    assert found.alpha == saved.alpha
    assert found.factors.keys() == saved.factors.keys()
    assert all(
        torch.equal(mine, theirs)
        for layer, pair in saved.factors.items()
        for mine, theirs in zip(pair, found.factors[layer], strict=True)
    )


def test_the_file_of_an_adapter_is_not_opened_as_a_model(
    adapter: Any, written: Any, context: Callable[..., BuildContext]
) -> None:
    _, _, out = written(adapter())
    with pytest.raises(ModelError, match="is of type 'adapter', not a model"):
        GgufLoader(GgufOptions()).open(str(file_in(out)), context())
