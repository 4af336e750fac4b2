"""The functions of `smollm3_finetune.api` for quantizers that replace linear layers while a model is loaded."""

from __future__ import annotations

import errno
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smollm3_finetune.api import (
    ALL_OPS,
    DEQUANTIZABLE,
    Base,
    ConfigError,
    IncompatibleError,
    StoredLayers,
    check_layerwise,
    fingerprint,
    frozen_linear,
    load_layerwise,
    ops_for_layers,
    packed_reasons,
)
from smollm3_finetune.progress import Silent
from smollm3_finetune.testing import context, small_source


class Codes(nn.Module):  # type: ignore[misc]
    """A linear layer that holds its weight as codes, and its bias as it is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127  # (out, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def dense(self) -> Tensor:
        weight: Tensor = self.codes * self.scale
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.dense, self.bias)


def layer(dtype: torch.dtype = torch.float64, bias: bool = True, out: int = 5, features: int = 7) -> Codes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Codes(nn.Linear(features, out, bias=bias, dtype=dtype)).requires_grad_(False)


# ---------------------------------------------------------------------------------------------- frozen_linear


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradients_are_exact_in_float64(shape: tuple[int, ...], bias: bool) -> None:
    """Against the sum over input features, written out; a sum of 7 products rounds at 1e-16 each."""
    codes = layer(bias=bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = codes(x)
    weight = codes.dense()
    right = sum(x.detach()[..., i, None] * weight[:, i] for i in range(7)) + (codes.bias if bias else 0)
    torch.testing.assert_close(y, right, rtol=0, atol=1e-14)
    cotangent = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, cotangent)
    right = sum(cotangent[..., o, None] * weight[o] for o in range(5))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-14)


def test_a_bias_that_is_trained_gets_its_gradient() -> None:
    codes = layer()
    codes.bias.requires_grad_(True)
    codes(torch.randn(2, 3, 7, dtype=torch.float64)).sum().backward()
    assert torch.equal(codes.bias.grad, torch.full((5,), 6.0, dtype=torch.float64))


def test_first_and_second_derivatives_are_right() -> None:
    codes = layer()
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(codes, (x,))
    assert torch.autograd.gradgradcheck(lambda one: codes(one).square(), (x,))


def test_the_dequantized_weight_is_never_kept() -> None:
    codes, kept = layer(), []
    alive: list[weakref.ref[Tensor]] = []

    def dequantize() -> Tensor:
        assert not torch.is_grad_enabled()
        weight = codes.dense()
        alive.append(weakref.ref(weight))
        return weight

    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = frozen_linear(x, dequantize)
    assert kept == []
    assert [ref() for ref in alive] == [None]
    y.sum().backward()
    assert [ref() for ref in alive] == [None, None], "dequantized once in each direction"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_computes_as_an_ordinary_layer(dtype: torch.dtype) -> None:
    codes = layer(dtype)
    ordinary = nn.Linear(7, 5, dtype=dtype).requires_grad_(False)
    ordinary.weight.data, ordinary.bias.data = codes.dense(), codes.bias.data
    results = []
    for one in (codes, ordinary):
        x = torch.linspace(-1, 1, 21, dtype=dtype).view(3, 7).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
        (gradient,) = torch.autograd.grad(y.float().sum(), x)
        results.append((y, gradient))
    (y, gradient), (right_y, right_gradient) = results
    assert y.dtype == right_y.dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)
    assert gradient.dtype == dtype
    torch.testing.assert_close(y, right_y, rtol=1e-2, atol=1e-2)  # the bias is added in bfloat16, not in float32
    torch.testing.assert_close(gradient, right_gradient)


def test_the_weight_is_cast_to_the_dtype_of_the_input() -> None:
    codes = layer(torch.float32, bias=False)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    y = frozen_linear(x, codes.dense)
    assert torch.equal(y, F.linear(x, codes.dense().double()))
    assert frozen_linear(x.bfloat16(), codes.dense).dtype == torch.bfloat16


def test_adapters_may_add_to_the_output_in_place() -> None:
    for bias in (True, False):
        x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
        y = layer(bias=bias)(x)
        y += 1
        y.sum().backward()
        assert x.grad is not None


# --------------------------------------------------------------------------------------------- load_layerwise


class Source:
    """The small model's source, which counts how often its weights are read."""

    ref = "org/small"

    def __init__(self, **config: Any) -> None:
        self.source, self.reads = small_source(), 0
        self.fingerprint = "weights"
        self.config = {**self.source.config, **config}

    def load(self, **kwargs: Any) -> Any:
        self.reads += 1
        return self.source.load(**kwargs)


def load(tmp_path: Path, source: Any = None, **more: Any) -> Base:
    ctx = context(tmp_path, dtype="float64")
    arguments: dict[str, Any] = {"name": "mine", "replace": Codes, "identity": ("v1",)}
    arguments["ops"] = ops_for_layers(Codes, Codes.dense, ctx.torch_dtype)
    return load_layerwise(source or Source(), ctx, **{**arguments, **more})


def test_a_loaded_base_is_frozen_and_quantized_but_for_head_and_embeddings(tmp_path: Path) -> None:
    base = load(tmp_path)
    kinds = {type(m) for n, m in base.model.named_modules() if n.endswith("_proj")}
    assert kinds == {Codes}
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    assert base.model.lm_head.weight.dtype == torch.float64
    assert base.fingerprint == fingerprint("mine", "weights", "v1")
    view = base.ops_for(base.model.get_submodule("model.layers.0.mlp.up_proj"))
    assert view is not None and view.ops == DEQUANTIZABLE and view.shape == (128, 64)
    assert base.ops_for(base.model.lm_head) is None
    assert base.model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_the_fingerprint_follows_everything_that_identifies_the_weights(tmp_path: Path) -> None:
    plain = load(tmp_path).fingerprint
    other = Source()
    other.fingerprint = "other weights"
    found = [load(tmp_path, other), load(tmp_path, identity=("v2",)), load(tmp_path, name="yours")]
    assert plain not in {base.fingerprint for base in found}
    assert load(tmp_path, skip_modules=("k_proj",)).fingerprint == plain, "options are the caller's to name"


def test_each_dense_weight_is_freed_before_the_next_layer_is_replaced(tmp_path: Path) -> None:
    weights: list[weakref.ref[Tensor]] = []

    def replace(linear: nn.Linear) -> Codes:
        assert all(ref() is None for ref in weights)
        weights.append(weakref.ref(linear.weight))
        return Codes(linear)

    load(tmp_path, replace=replace)
    assert len(weights) == 14


def test_progress_counts_the_layers(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Bar:
        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def advance(self, *_: Any) -> None:
            seen.append(1)

    class Shown:
        def task(self, title: str, total: int) -> Bar:
            seen.append((title, total))
            return Bar()

    ctx: Any = SimpleNamespace(device="cpu", torch_dtype=torch.float32, progress=Shown())
    ops = ops_for_layers(Codes, Codes.dense, torch.float32)
    load_layerwise(Source(), ctx, name="mine", replace=Codes, ops=ops, identity=())  # type: ignore[arg-type]
    assert seen == [("quantizing small with mine", 14), *[1] * 14]


def refuse_up(name: str, linear: nn.Linear) -> None:
    if name.endswith("layers.1.mlp.up_proj"):
        raise IncompatibleError(f"{name} cannot be packed")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str, str]] = {
    "unknown name": ({"skip_modules": ("k_porj",)}, ConfigError, "mine: skip_modules names 'k_porj'", "k_proj"),
    "no layer": ({"skip_modules": ("layers",)}, IncompatibleError, "mine finds no linear layer", "--quant none"),
    "groups of inputs": (
        {"group_size": 48, "skip_modules": ("self_attn", "gate_proj", "up_proj")}, ConfigError,
        "mine: groups of 48 do not divide the 128 in_features of model.layers.0.mlp.down_proj", "group_size=128",
    ),
    "groups of outputs": (
        {"group_size": 64, "along": "out_features"}, ConfigError,
        "the 32 out_features of model.layers.0.self_attn.k_proj", "group_size=32",
    ),
    "a layer": ({"check_layer": refuse_up}, IncompatibleError, "layers.1.mlp.up_proj cannot be packed", ""),
}  # fmt: skip


@pytest.mark.parametrize("architecture", ["of transformers", "of custom code"])
@pytest.mark.parametrize("case", REFUSED)
def test_all_layers_are_checked_before_weights_are_read_or_else_before_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, architecture: str
) -> None:
    options, error, message, hint = REFUSED[case]
    custom = architecture == "of custom code"
    if custom:
        monkeypatch.setattr("smollm3_finetune.api.quantizers.architecture_of", lambda source: None)
    source, replaced = Source(), []
    with pytest.raises(error) as caught:
        load(tmp_path, source, replace=lambda linear: replaced.append(linear) or linear, **options)
    assert message in str(caught.value)
    assert hint in (getattr(caught.value, "hint", "") or "")
    assert source.reads == (1 if custom else 0)
    assert replaced == []


def test_a_quantized_source_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    source = Source(quantization_config={"quant_method": "awq"})
    with pytest.raises(IncompatibleError, match=r"mine cannot load 'org/small': .* already quantized by awq") as caught:
        load(tmp_path, source)
    assert caught.value.hint == "use the full-precision checkpoint"
    assert source.reads == 0


# ------------------------------------------------------------------------------- for the descriptor: all light


@dataclass(frozen=True)
class Options:
    group_size: int | None = 64
    skip_modules: tuple[str, ...] = ()


def about(**config: Any) -> Any:
    return SimpleNamespace(ref="org/model", config=config)


@pytest.mark.parametrize("stored", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "mine"}, {}])
def test_check_refuses_a_source_that_is_already_quantized(stored: dict[str, Any]) -> None:
    for options in (Options(), object()):
        with pytest.raises(IncompatibleError, match="already quantized by") as caught:
            check_layerwise("mine", "give the original")(options, about(quantization_config=stored))
        assert caught.value.hint == "give the original"


def test_check_leaves_sizes_that_a_config_does_not_state_to_the_model() -> None:
    check = check_layerwise("mine")
    for options in (Options(), Options(group_size=None), object()):
        check(options, about())
        check(options, about(hidden_size=128))
    check(Options(group_size=None), about(hidden_size=100))
    check(Options(skip_modules=("mlp",)), about(hidden_size=100))
    check(object(), about(hidden_size=100))
    with pytest.raises(ConfigError, match="of 64 do not divide the 100 features of 'org/model'") as caught:
        check(Options(), about(hidden_size=100))
    assert caught.value.hint == "--quant-opt group_size=none takes whole rows"


def test_reasons_are_given_for_exactly_the_operations_that_are_not_provided() -> None:
    reasons = packed_reasons("weights are stored as codes")
    assert {*reasons} | DEQUANTIZABLE == ALL_OPS
    assert not set(reasons) & DEQUANTIZABLE
    assert all(reason.startswith("weights are stored as codes, ") for reason in reasons.values())


LIGHT = """
import sys
for name in ("torch", "transformers", "numpy", "accelerate"):
    sys.modules[name] = None  # any import of it raises
from types import SimpleNamespace
from smollm3_finetune.api import DEQUANTIZABLE, QuantizerSpec, check_layerwise, packed_reasons
spec = QuantizerSpec(name="mine", summary="s", factory="a:B", provides=DEQUANTIZABLE,
                     absent=packed_reasons("codes"), check=check_layerwise("mine"), api=2)
spec.check(SimpleNamespace(group_size=32, skip_modules=()), SimpleNamespace(ref="m", config={"hidden_size": 64}))
"""


def test_a_descriptor_and_its_check_import_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------- stored layers


class Lines(Silent):
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def stored(count: list[str]) -> dict[str, Any]:
    """The arguments of `load_layerwise` for layers in the cache; `count` gets a mark for each quantized layer."""

    def restore(linear: nn.Linear, tensors: Mapping[str, Tensor]) -> Codes:
        codes = Codes(linear)
        codes.load_state_dict(dict(tensors))
        return codes

    def replace(linear: nn.Linear) -> Codes:
        count.append("quantized")
        return Codes(linear)

    return {
        "name": "codes", "replace": replace, "ops": lambda layer: None, "identity": (1,),
        "stored": StoredLayers(Codes.state_dict, restore),
    }  # fmt: skip


def logits(base: Base) -> Tensor:
    return base.model(torch.arange(9)[None]).logits


def test_layers_are_quantized_once_and_read_afterwards(tmp_path: Path) -> None:
    count: list[str] = []
    source = small_source()
    first = load_layerwise(source, context(tmp_path), **stored(count))
    quantized = len(count)
    again = load_layerwise(source, context(tmp_path), **stored(count))
    assert len(count) == quantized > 0
    assert torch.equal(logits(again), logits(first))
    load_layerwise(source, context(tmp_path), **{**stored(count), "identity": (2,)})
    assert len(count) == 2 * quantized


def test_a_damaged_entry_is_quantized_again(tmp_path: Path) -> None:
    count: list[str] = []
    source = small_source()
    first = load_layerwise(source, context(tmp_path), **stored(count))
    quantized = len(count)
    file = next(tmp_path.rglob("0.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again = load_layerwise(source, context(tmp_path), **stored(count))
    assert len(count) == 2 * quantized
    assert torch.equal(logits(again), logits(first))


@pytest.mark.parametrize("when", ["before", "while the layers are written"])
def test_a_cache_that_cannot_be_written_prevents_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    count: list[str] = []
    lines = Lines()
    ctx = replace(context(tmp_path / "cache"), progress=lines)
    if when == "before":
        (tmp_path / "cache").write_text("a file, not a directory")
    else:

        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
    base = load_layerwise(small_source(), ctx, **stored(count))
    assert len(count) == len([m for m in base.model.modules() if isinstance(m, Codes)]) > 0
    (line,) = lines.lines
    assert line.startswith("the quantized layers are not stored: ")


def test_an_error_of_the_quantizer_is_not_hidden(tmp_path: Path) -> None:
    def refuses(linear: nn.Linear) -> nn.Module:
        raise IncompatibleError("codes cannot store this layer")

    with pytest.raises(IncompatibleError, match="cannot store this layer"):
        load_layerwise(small_source(), context(tmp_path), **{**stored([]), "replace": refuses})
