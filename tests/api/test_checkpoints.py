"""Quantized checkpoints: written with `write_checkpoint`, and read with `load_into` into layers of a plugin."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, Phi3Config, Phi3ForCausalLM

from smollm3_finetune.api import (
    Base,
    ConfigError,
    IncompatibleError,
    ModelError,
    ModelSource,
    WriteError,
    architecture_of,
    check_group_size,
    converted_source,
    directory_source,
    frozen_linear,
    layer_shapes,
    linear_shapes,
    load_into,
    open_checkpoint,
    ops_for_layers,
    write_checkpoint,
)
from smollm3_finetune.testing import context, dense_copy, small_source

QUANTIZATION = {"quant_method": "toy", "bits": 8}
IDS = torch.arange(3, 19)[None]
SMALL = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


class ToyLinear(nn.Module):  # type: ignore[misc]
    """Rows of 8-bit codes with a scale for each."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = bias

    def dense(self) -> Tensor:
        """(out, in)"""
        weight: Tensor = self.codes * self.scale
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dense, self.bias)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) and scales (out, 1) of a weight (out, in)."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def toy_load(source: ModelSource, tmp_path: Path, dtype: str = "float64", **kwargs: Any) -> Base:
    ctx = context(tmp_path / "cache", dtype=dtype)

    def make(name: str, linear: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        assert linear.weight.is_meta
        return ToyLinear(tensors["codes"], tensors["scale"].to(ctx.torch_dtype), linear.bias)

    ops = ops_for_layers(ToyLinear, ToyLinear.dense, ctx.torch_dtype)
    return load_into(source, ctx, make, name="toy", ops=ops, **kwargs)


def toy_tensors(source: ModelSource, *, transposed: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a source with its linear layers quantized, one by one."""
    stored = open_checkpoint(source)
    for name, tensor in stored.items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and tensor.ndim == 2 and re.search(r"\.\d+\.", name):
            yield f"{layer}.codes", (made := rounded(tensor.T.contiguous() if transposed else tensor))[0]
            yield f"{layer}.scale", made[1]
        else:
            yield name, tensor


def toy_write(source: ModelSource, out: Path, **kwargs: Any) -> ModelSource:
    tensors = toy_tensors(source, transposed=kwargs.pop("transposed", False))
    write_checkpoint(source, out, tensors, ctx=context(out.parent / "cache"), quantization=QUANTIZATION, **kwargs)
    return directory_source(out, ref=str(out))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


def source_of(model: Any, directory: Path) -> ModelSource:
    """A saved model with random biases and norms."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1 + parameter.data
    model.save_pretrained(directory)
    return directory_source(directory, ref="dense")


def edit(directory: Path, change: Any) -> None:
    """Change the tensors of a checkpoint in one file."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the small model, whose head is tied; copy it before you change it."""
    out = tmp_path_factory.mktemp("toy") / "toy"
    toy_write(small_source(), out)
    return out


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copied"))


# -------------------------------------------------------------------------------------------------- load_into


def test_logits_are_those_of_the_dequantized_model(written: Path, tmp_path: Path) -> None:
    """transformers' own model with codes · scale in each weight, in float64, whose sums round at 1e-15."""
    base = toy_load(directory_source(written, ref="toy"), tmp_path)
    right = small_source().load(dtype=torch.float64)
    state = load_file(written / "model.safetensors")
    count = 0
    for name, module in right.named_modules():
        if f"{name}.codes" in state:
            module.weight.data = state[f"{name}.codes"].double() * state[f"{name}.scale"].double()
            count += 1
    assert count == 14  # seven layers in each block, with biases
    torch.testing.assert_close(logits(base.model), logits(right), rtol=1e-12, atol=1e-12)
    assert logits(base.model).dtype == torch.float64


def test_the_model_is_frozen_ordinary_and_tied(written: Path, tmp_path: Path) -> None:
    base = toy_load(directory_source(written, ref="toy"), tmp_path, dtype="bfloat16", identity=("a",))
    model = base.model
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.bias.dtype == torch.bfloat16
    assert type(model).__name__ == "SmolLM3ForCausalLM"
    assert type(model).__module__.startswith("transformers.")
    assert not hasattr(model.config, "quantization_config")
    assert getattr(model, "hf_quantizer", None) is None
    assert model.name_or_path == "toy"
    assert base.ops_for(model.lm_head) is None
    torch.testing.assert_close(logits(dense_copy(base)), logits(model).float(), rtol=0.1, atol=0.1)
    other = toy_load(directory_source(written, ref="toy"), tmp_path, dtype="bfloat16", identity=("b",))
    assert other.fingerprint != base.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"model.norm.scale": torch.ones(1)}), r"no place for: model\.norm\.scale$"),
        (lambda t: t.update({"model.extra": torch.ones(1)}), r"no place for: model\.extra$"),
        (lambda t: t.update({"model.layers.0.mlp.more.codes": torch.ones(1)}), r"'model\.layers\.0\.mlp\.more', which"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.zeros": torch.ones(1)}),
            r"not read: model\.layers\.1\.mlp\.up_proj\.zeros$",
        ),
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.scale"),
            r"has no tensor 'model\.layers\.1\.mlp\.up_proj\.scale'",
        ),
        (lambda t: t.pop("model.norm.weight"), r"no weights for model\.norm\.weight"),
        (lambda t: t.pop("model.layers.0.mlp.up_proj.bias"), r"no weights for model\.layers\.0\.mlp\.up_proj\.bias"),
        (
            lambda t: [t.pop(f"model.layers.0.mlp.up_proj.{n}") for n in ("codes", "scale")],
            r"no weights for model\.layers\.0\.mlp\.up_proj\.weight",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.codes": torch.ones(128, 32, dtype=torch.int8)}),
            r"'model\.layers\.0\.mlp\.up_proj' has the shape \(128, 32\), but the architecture has \(128, 64\)",
        ),
        (
            lambda t: t.update({"lm_head.codes": torch.ones(2048, 64, dtype=torch.int8)}),
            r"'lm_head', but its config\.json ties the weight",
        ),
    ],
)
def test_a_tensor_too_many_and_one_too_few_are_named(copied: Path, tmp_path: Path, change: Any, message: str) -> None:
    edit(copied, change)
    with pytest.raises(ModelError) as caught:
        toy_load(directory_source(copied, ref="toy"), tmp_path)
    assert re.search(message, caught.value.message), caught.value.message


def test_tensors_may_be_ignored_on_purpose(copied: Path, tmp_path: Path) -> None:
    edit(copied, lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.self_attn\.k_scale"):
        toy_load(directory_source(copied, ref="toy"), tmp_path)
    toy_load(directory_source(copied, ref="toy"), tmp_path, ignore=("*.k_scale",))


def test_a_wrong_shape_is_found_before_weights_are_read(copied: Path, tmp_path: Path) -> None:
    edit(copied, lambda t: t.update({"model.layers.0.mlp.up_proj.codes": torch.ones(128, 32, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"does not fit its architecture: .*\(128, 32\)"):
        toy_load(directory_source(copied, ref="toy"), tmp_path, shape_of=lambda tensors: tensors.shape("codes"))


def test_a_checkpoint_without_quantized_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no quantized layer"):
        toy_load(small_source(), tmp_path)


def test_a_loader_that_reads_weights_itself_is_refused(written: Path, tmp_path: Path) -> None:
    inner = directory_source(written, ref="toy")

    class Own:
        ref, config, path, fingerprint = inner.ref, inner.config, inner.path, "f"

        def load(self, **kwargs: Any) -> Any:
            return None

    with pytest.raises(IncompatibleError, match="its loader reads the weights itself"):
        toy_load(Own(), tmp_path)  # type: ignore[arg-type]


def test_conv1d_layers_are_linear_layers_out_in(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    source = source_of(GPT2LMHeadModel(config), tmp_path / "dense")
    base = toy_load(toy_write(source, tmp_path / "toy", transposed=True), tmp_path)
    right = source.load(dtype=torch.float64)
    for name, module in base.model.named_modules():
        if (ops := base.ops_for(module)) is not None:
            right.get_submodule(name).weight.data = ops.read_weight().T
    torch.testing.assert_close(logits(base.model), logits(right), rtol=1e-12, atol=1e-12)
    assert base.ops_for(base.model.transformer.h[0].attn.c_attn).shape == (192, 64)  # type: ignore[union-attr]


def split(source: ModelSource, sizes: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, Tensor]]:
    """Toy tensors of a model whose fused layers are stored as parts; each part of the second block has a bias."""
    for name, tensor in open_checkpoint(source).items():
        parent, _, own = name.removesuffix(".weight").rpartition(".")
        if own in sizes:
            for part, rows in zip(sizes[own], tensor.split(list(sizes[own].values())), strict=True):
                codes, scale = rounded(rows)
                yield f"{parent}.{part}.codes", codes
                yield f"{parent}.{part}.scale", scale
                if ".1." in name and part == "k_proj":
                    yield f"{parent}.{part}.bias", torch.linspace(-1, 1, len(rows))
        elif name.endswith("_proj.weight"):
            codes, scale = rounded(tensor)
            yield name.replace("weight", "codes"), codes
            yield name.replace("weight", "scale"), scale
        else:
            yield name, tensor


def test_a_fused_layer_is_joined_from_its_parts(tmp_path: Path) -> None:
    """Phi-3, with parts of different sizes in one layer; the reference has the joined weight and bias."""
    source = source_of(Phi3ForCausalLM(Phi3Config(**SMALL, tie_word_embeddings=True)), tmp_path / "dense")
    sizes = {"gate_up_proj": {"gate_proj": 96, "up_proj": 96}, "qkv_proj": {"q_proj": 64, "k_proj": 32, "v_proj": 32}}
    out = tmp_path / "toy"
    write_checkpoint(source, out, split(source, sizes), ctx=context(tmp_path / "c"), quantization=QUANTIZATION)
    base = toy_load(directory_source(out, ref="t"), tmp_path, shape_of=lambda tensors: tensors.shape("codes"))
    right = source.load(dtype=torch.float64)
    stored = load_file(out / "model.safetensors")
    for number in (0, 1):
        for owner, fused in (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj")):
            parent = f"model.layers.{number}.{owner}"
            weights = [stored[f"{parent}.{p}.codes"] * stored[f"{parent}.{p}.scale"].double() for p in sizes[fused]]
            right.get_submodule(f"{parent}.{fused}").weight.data = torch.cat(weights)
        for plain in ("self_attn.o_proj", "mlp.down_proj"):
            name = f"model.layers.{number}.{plain}"
            right.get_submodule(name).weight.data = stored[f"{name}.codes"] * stored[f"{name}.scale"].double()
    bias = torch.cat([torch.zeros(64), torch.linspace(-1, 1, 32), torch.zeros(32)]).double()
    right.model.layers[1].self_attn.qkv_proj.bias = nn.Parameter(bias)
    torch.testing.assert_close(logits(base.model), logits(right), rtol=1e-12, atol=1e-12)
    fused = base.model.model.layers[1].self_attn.qkv_proj
    ops = base.ops_for(fused)
    assert ops is not None
    assert ops.shape == (128, 64)
    assert torch.equal(ops.read_weight(), right.model.layers[1].self_attn.qkv_proj.weight)
    assert torch.equal(fused.bias.detach(), bias)
    assert sum(base.ops_for(m) is not None for m in base.model.modules()) == 8  # the parts are not layers of the model
    fused.bias = None  # the architecture has none
    dense = dense_copy(base, torch.float64)
    torch.testing.assert_close(logits(dense), logits(base.model), rtol=1e-12, atol=1e-12)


def test_experts_that_are_stored_one_by_one_become_a_stack(tmp_path: Path) -> None:
    source = source_of(MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)), tmp_path / "dense")
    assert any("experts.3.w1.weight" in n for n in open_checkpoint(source))  # the names on disk are older ones
    out = tmp_path / "toy"
    tensors = {}
    for name, tensor in open_checkpoint(source).items():
        if "experts." in name:
            tensors[name.replace("weight", "codes")], tensors[name.replace("weight", "scale")] = rounded(tensor)
        else:
            tensors[name] = tensor
    write_checkpoint(source, out, tensors, ctx=context(tmp_path / "c"), quantization=QUANTIZATION)
    base = toy_load(directory_source(out, ref="toy"), tmp_path)
    back = {}
    for name, tensor in load_file(out / "model.safetensors").items():
        if name.endswith(".codes"):
            back[name.replace("codes", "weight")] = tensor * tensors[name.replace("codes", "scale")].double()
        elif not name.endswith(".scale"):
            back[name] = tensor
    shutil.copytree(tmp_path / "dense", tmp_path / "back")
    save_file(back, tmp_path / "back" / "model.safetensors", metadata={"format": "pt"})
    right = directory_source(tmp_path / "back", ref="back").load(dtype=torch.float64, experts_implementation="eager")
    torch.testing.assert_close(logits(base.model), logits(right), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------- a layout of another project, in NumPy


def pack_int32(codes: np.ndarray) -> np.ndarray:
    """Codes (out, in) from 0 to 15 in words (out, in / 8), low bits first, as compressed-tensors packs them."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place in range(8):
        words |= codes[:, place::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def test_a_packed_w4a16_checkpoint_is_read(tmp_path: Path) -> None:
    """pack-quantized: `weight_packed` (int32), `weight_scale` (groups of 32) and `weight_shape`; symmetric."""
    rng = np.random.default_rng(0)
    out = Path(shutil.copytree(small_source().path, tmp_path / "w4a16"))
    dense: dict[str, np.ndarray] = {}

    def quantize(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            features, inputs = tensors.pop(name).shape
            codes = rng.integers(0, 16, (features, inputs))
            scales = (rng.uniform(0.5, 1.5, (features, inputs // 32)) / 100).astype(np.float32)
            layer = name.removesuffix(".weight")
            tensors[f"{layer}.weight_packed"] = torch.from_numpy(pack_int32(codes))
            tensors[f"{layer}.weight_scale"] = torch.from_numpy(scales)
            tensors[f"{layer}.weight_shape"] = torch.tensor([features, inputs])
            dense[layer] = (codes - 8.0) * np.repeat(scales.astype(np.float64), 32, axis=1)

    edit(out, quantize)
    about = json.loads((out / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    (out / "config.json").write_text(json.dumps(about))
    ctx = context(tmp_path / "cache", dtype="float64")

    def make(name: str, linear: nn.Linear, tensors: Mapping[str, Tensor]) -> nn.Module:
        shape = tensors["weight_shape"].tolist()
        words, scale = tensors["weight_packed"], tensors["weight_scale"].double()
        codes = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], dim=2).view(shape) - 8
        return ToyLinear(codes, scale.repeat_interleave(32, dim=1), linear.bias)

    ops = ops_for_layers(ToyLinear, ToyLinear.dense, ctx.torch_dtype)
    base = load_into(directory_source(out, ref="w4a16"), ctx, make, name="w4", ops=ops)
    right = small_source().load(dtype=torch.float64)
    for name, weight in dense.items():
        right.get_submodule(name).weight.data = torch.from_numpy(weight)
    torch.testing.assert_close(logits(base.model), logits(right), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- write_checkpoint


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(directory.iterdir())}


def test_the_same_tensors_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    toy_write(small_source(), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written)
    pairs = dict(toy_tensors(small_source()))
    backwards = dict(reversed(pairs.items()))
    for number, tensors in enumerate((pairs, backwards)):  # a mapping in any order
        ctx = context(tmp_path / "c")
        out = tmp_path / str(number)
        write_checkpoint(small_source(), out, tensors, ctx=ctx, quantization=QUANTIZATION, shard_bytes=100_000)
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    assert len(list((tmp_path / "0").glob("*.safetensors"))) > 1


def test_tensors_keep_their_dtype_and_tied_ones_are_written_once(tmp_path: Path) -> None:
    embeddings = torch.randn(2048, 64).to(torch.float16)
    pairs = [
        ("lm_head.weight", embeddings.clone()),
        ("model.norm.weight", torch.ones(64, dtype=torch.bfloat16).expand(64)),
        ("model.layers.0.mlp.up_proj.codes", torch.ones(4, 8, dtype=torch.int8).T),
        ("model.embed_tokens.weight", embeddings),
        ("view", embeddings[3]),
    ]
    ctx = context(tmp_path / "c")
    write_checkpoint(small_source(), tmp_path / "out", iter(pairs), ctx=ctx, quantization=QUANTIZATION, dtype="float16")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == {"model.embed_tokens.weight"} | {n for n, _ in pairs[1:3]} | {"view"}
    assert torch.equal(found["view"], embeddings[3])
    assert {n: str(t.dtype) for n, t in found.items()} == {
        "model.embed_tokens.weight": "torch.float16", "model.norm.weight": "torch.bfloat16",
        "model.layers.0.mlp.up_proj.codes": "torch.int8", "view": "torch.float16",
    }  # fmt: skip
    with safetensors.safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about == {**small_source().config, "dtype": "float16", "quantization_config": QUANTIZATION}
    pairs[0] = ("lm_head.weight", embeddings + 1)
    with pytest.raises(ModelError, match=r"differ, but config\.json ties them"):
        write_checkpoint(small_source(), tmp_path / "no", iter(pairs), ctx=ctx, quantization=QUANTIZATION)
    assert contents(tmp_path / "no") == {}


def test_several_files_are_loaded_as_one(written: Path, tmp_path: Path) -> None:
    source = toy_write(small_source(), tmp_path / "parts", shard_bytes=200_000)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted(f.name for f in (tmp_path / "parts").glob("*.safetensors"))
    assert files == [f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))]
    assert sorted(set(index["weight_map"].values())) == files
    whole = load_file(written / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    parts = {f: load_file(tmp_path / "parts" / f) for f in files}
    assert {n: f for f, tensors in parts.items() for n in tensors} == index["weight_map"]
    sizes = [sum(t.numel() * t.element_size() for t in tensors.values()) for tensors in parts.values()]
    assert all(size <= 200_000 or len(tensors) == 1 for size, tensors in zip(sizes, parts.values(), strict=True))
    single = toy_load(directory_source(written, ref="toy"), tmp_path)
    assert torch.equal(logits(toy_load(source, tmp_path).model), logits(single.model))


def test_tensors_are_computed_when_their_file_is_written(tmp_path: Path) -> None:
    """At most the tensors of one file are alive: 100 kB, and the one that is being given."""
    import weakref

    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for number in range(40):
            tensor = torch.zeros(2500)  # 10 kB
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"t{number}", tensor
            del tensor

    write_checkpoint(
        small_source(), tmp_path / "out", tensors(), ctx=context(tmp_path / "c"), quantization={}, shard_bytes=100_000
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 4
    assert most <= 12


def test_other_files_of_the_source_are_copied_with_the_permissions_of_the_umask(tmp_path: Path) -> None:
    source = Path(shutil.copytree(small_source().path, tmp_path / "dense"))
    (source / "LICENSE").write_text("mine")
    (source / "generation_config.json").write_text('{"eos_token_id": 4}')
    (source / "rows.jsonl").write_text("secret")
    before = os.umask(0o027)
    try:
        toy_write(directory_source(source, ref="dense"), tmp_path / "toy")
    finally:
        os.umask(before)
    copied = {"LICENSE", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {f.name for f in (tmp_path / "toy").iterdir()} == copied | {"config.json", "model.safetensors"}
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "toy").iterdir()}
    assert set(modes.values()) == {0o640}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def tensors(error: Exception) -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(1000)
        yield "b", torch.zeros(1000)
        raise error

    ctx = context(tmp_path / "c")
    out = tmp_path / "out"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error, kind in ((full, WriteError), (RuntimeError("no"), RuntimeError)):
        with pytest.raises(kind):
            write_checkpoint(small_source(), out, tensors(error), ctx=ctx, quantization={}, shard_bytes=2000)
        assert contents(out) == {}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_checkpoint(small_source(), out, {}, ctx=ctx, quantization={"dtype": torch.int8})


def test_a_killed_write_does_not_look_complete_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process deletes nothing; the moves of finished files end before that of `config.json`."""
    out = tmp_path / "out"
    move = Path.replace

    class Killed(BaseException):
        pass

    def until_config(self: Path, target: Path) -> Path:
        if self.name == "config.json":
            raise Killed
        return move(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        patched.setattr(Path, "replace", until_config)
        with pytest.raises(Killed):
            toy_write(small_source(), out)
    assert not (out / "config.json").exists()
    assert (out / ".partial-checkpoint").is_dir()
    toy_write(small_source(), out)
    assert (out / "config.json").exists()
    assert not (out / ".partial-checkpoint").exists()


# ----------------------------------------------------------------------------------- headers, group sizes


def headers(directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> ModelSource:
    """A source whose weight file has a header only, and whose config states a hidden size of 64."""
    about, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        about[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(about).encode()
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    (directory / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    return directory_source(directory, ref="large")


def test_shapes_of_layers_are_those_of_the_model(tmp_path: Path) -> None:
    """Against the modules that transformers builds: linear layers, and Conv1D layers, whose weights are (in, out)."""
    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    for source in (small_source(), source_of(GPT2LMHeadModel(config), tmp_path / "gpt2")):
        model = architecture_of(source)
        assert model is not None
        right = {n: shape for n, shape in linear_shapes(model).items() if n != "lm_head"}
        found = layer_shapes(source)
        assert found is not None
        prefix = "" if "model.embed_tokens.weight" in open_checkpoint(source) else "transformer."
        sizes = {n: (s.out_features, s.in_features) for n, s in found.items()}
        assert {n if n.startswith(prefix) else prefix + n: size for n, size in sizes.items()} == right
        assert {s.dtype for s in found.values()} == {"F32"}
        assert open_checkpoint(source).layers == found


def test_a_group_size_is_refused_without_torch_in_a_moment(tmp_path: Path) -> None:
    shapes = {"model.embed_tokens.weight": (100, 64)}
    for n in range(60):
        shapes |= {f"model.layers.{n}.mlp.up_proj.weight": (96, 64), f"model.layers.{n}.mlp.down_proj.weight": (64, 96)}
        shapes |= {f"model.layers.{n}.mlp.gate.weight": (5, 64), f"model.layers.{n}.norm.weight": (64,)}
    source = headers(tmp_path / "large", shapes)
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from smollm3_finetune.api import ConfigError, check_layerwise, directory_source\n"
        "from types import SimpleNamespace\n"
        "check = check_layerwise('int4')\nbegan = time.perf_counter()\n"
        "try: check(SimpleNamespace(group_size=64), directory_source(Path(sys.argv[1]), ref='large'))\n"
        "except ConfigError as e: print(e.message, '|', e.hint)\n"
        "print(time.perf_counter() - began, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source.path)], capture_output=True, text=True, check=True)
    message, figures = done.stdout.splitlines()
    assert message == (
        "int4: groups of 64 do not divide the 96 in_features of model.layers.0.mlp.down_proj | "
        "--quant-opt group_size=32"
    )
    seconds, torch_imported = figures.split()
    assert float(seconds) < 1
    assert torch_imported == "False"


def test_group_sizes_that_fit_or_cannot_be_judged_pass(tmp_path: Path) -> None:
    source = headers(
        tmp_path / "large",
        {"model.layers.0.mlp.down_proj.weight": (64, 96), "model.layers.0.mixer.dt_proj.weight": (64, 3)},
    )
    check_group_size("int4", source, 32)
    check_group_size("int4", source, None)
    check_group_size("int4", source, 64, skip_modules=("down_proj",))
    check_group_size("int4", source, 64, along="out_features")
    with pytest.raises(ConfigError, match="96 in_features"):
        check_group_size("int4", source, 64)

    class Remote:
        ref, config = "org/model", {"hidden_size": 64}

    remote: Any = Remote()
    assert layer_shapes(remote) is None
    check_group_size("int4", remote, 64)
    with pytest.raises(ConfigError, match="the 64 features of 'org/model'"):
        check_group_size("int4", remote, 48)


@pytest.mark.parametrize("text", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 20, b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_damaged_header_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    source = headers(tmp_path / "large", {"model.layers.0.mlp.down_proj.weight": (64, 96)})
    (tmp_path / "large" / "model.safetensors").write_bytes(text)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged") as caught:
        open_checkpoint(source)
    assert caught.value.hint == "copy or download it again"
    check_group_size("int4", source, 64)  # loading reports it


# ------------------------------------------------------------------------------------ a source that converts


def test_a_converted_source_converts_once_when_its_files_are_needed(tmp_path: Path) -> None:
    made: list[Path] = []
    asked: list[str] = []

    def convert(out: Path) -> None:
        made.append(out)
        shutil.copytree(small_source().path, out, dirs_exist_ok=True)

    def key() -> dict[str, Any]:
        asked.append("key")
        return {"file": "digest"}

    def opened(cache: Path) -> ModelSource:
        return converted_source(
            ref="a.npz", ctx=context(cache), kind="npz", config={"model_type": "smollm3", "early": True}, key=key,
            convert=convert, fingerprint=lambda: "npz-digest", pins=lambda: {"revision": "abc"},
        )  # fmt: skip

    source: Any = opened(tmp_path / "cache")
    assert source.config == {"model_type": "smollm3", "early": True}
    assert (source.ref, source.fingerprint, source.pins) == ("a.npz", "npz-digest", {"revision": "abc"})
    assert not source.has_file("config.json")
    assert layer_shapes(source) is None
    assert (made, asked) == ([], [])
    model = source.load(dtype=torch.float32)
    assert model.name_or_path == "a.npz"
    assert torch.equal(logits(model), logits(small_source().load(dtype=torch.float32)))
    assert source.tokenizer().chat_template
    assert "early" not in source.config
    assert layer_shapes(source)
    again: Any = opened(tmp_path / "cache")
    assert again.path == source.path
    assert len(made) == 1
    moved = source.at(small_source().path)
    assert moved.ref == "a.npz"
    assert moved.path == small_source().path
    assert moved.fingerprint == directory_source(small_source().path, ref="x").fingerprint != source.fingerprint
