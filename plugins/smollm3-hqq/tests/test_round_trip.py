"""The round trip on a fixed grid, and written checkpoints: both have the values of hqq's own layers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_hqq import check, claims
from smollm3_hqq.linear import Linear
from smollm3_hqq.options import HQQOptions
from smollm3_hqq.quantizer import HQQQuantizer
from smollm3_hqq.round_trip import searched

from smollm3_finetune.api import (
    CheckpointQuantizer,
    ConfigError,
    IncompatibleError,
    ModelError,
    RoundTripMaker,
    directory_source,
    options_with,
)
from smollm3_finetune.testing import context, mixture_source, small_model, small_source

CASES = [
    HQQOptions(),
    HQQOptions(bits=8, group_size=32),
    HQQOptions(bits=3, group_size=32),
    HQQOptions(bits=3, group_size=32, axis=0, skip_modules=("k_proj",)),
    HQQOptions(bits=2, group_size=16),
    HQQOptions(bits=2, group_size=32, axis=0),
    HQQOptions(bits=4, group_size=None),
    HQQOptions(bits=8, group_size=None, axis=0),
]


@pytest.fixture
def ctx(tmp_path):
    """Factory of contexts with a new cache."""
    return lambda **more: replace(context(tmp_path / "cache", dtype="float32"), **more)


def same(a, b):
    """Whether two float32 tensors are equal bit for bit, with the signs of zeros."""
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def loaded(base):
    return {n: base.ops_for(m).read_weight() for n, m in base.model.named_modules() if base.ops_for(m)}


@pytest.fixture
def tuned(tmp_path):
    """A model whose weights differ from those of the small model, as after a merge."""
    model, generator = small_model(), torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.save_pretrained(tmp_path / "tuned")
    return model, directory_source(tmp_path / "tuned", ref="tuned")


@pytest.mark.parametrize("options", CASES)
def test_a_checkpoint_on_the_grids_of_a_run_has_the_weights_of_training(options, tuned, tmp_path, ctx):
    quantizer, model = HQQQuantizer(options), small_model()
    merged, source = tuned
    assert isinstance(quantizer, RoundTripMaker)
    assert isinstance(quantizer, CheckpointQuantizer)
    trip = quantizer.round_trip(small_source(), ctx())
    names = set(trip.layers(model))
    grids = {n: dict(trip.grid(n, model.get_submodule(n).weight)) for n in names}
    trained = {n: trip.apply(n, merged.get_submodule(n).weight, grids[n]) for n in names}
    quantizer.write(source, tmp_path / "out", ctx(grids=grids))
    again = directory_source(tmp_path / "out", ref="out")
    base = HQQQuantizer(HQQOptions()).load(again, ctx())
    found = loaded(base)
    assert set(found) == names
    assert all(same(found[n], trained[n]) for n in names)
    embeddings = base.model.model.embed_tokens.weight
    assert torch.equal(embeddings, merged.model.embed_tokens.weight)
    name = "model.layers.0.mlp.down_proj"
    assert torch.equal(base.model.get_submodule(name).bias, merged.get_submodule(name).bias)


@pytest.mark.parametrize("options", CASES)
def test_the_base_on_its_own_grid_is_what_hqq_makes_of_it(options, ctx):
    """hqq rounds with the inverse of the scale that it stores, so a weight between two codes may take the other."""
    weight = small_model().model.layers[0].mlp.down_proj.weight
    trip = HQQQuantizer(options).round_trip(small_source(), ctx())
    before, grid = weight.clone(), trip.grid("x", weight)
    found, own = trip.apply("x", weight, grid), searched(weight, options, "cpu").dequantize()
    assert (found == own).double().mean() > 0.999
    assert (found - weight).norm() <= (own - weight).norm() * 1.0001
    assert torch.equal(weight, before)
    assert same(trip.apply("x", weight, grid), found)
    codes = (found / grid["scale"].mean()).unique()
    assert len(codes) > 2


@pytest.mark.parametrize("options", [CASES[0], CASES[3]])
def test_a_checkpoint_without_grids_has_the_weights_of_loading(options, tmp_path, ctx):
    quantizer = HQQQuantizer(options)
    quantizer.write(small_source(), tmp_path / "out", ctx())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert claims(config)
    assert config["quantization_config"]["bits"] == options.bits
    source = directory_source(tmp_path / "out", ref="out")
    found, right = loaded(HQQQuantizer(HQQOptions()).load(source, ctx())), loaded(quantizer.load(small_source(), ctx()))
    assert found.keys() == right.keys()
    assert all(same(found[n], right[n]) for n in right)


def test_a_loaded_layer_moves_and_computes(tmp_path, ctx):
    HQQQuantizer(HQQOptions()).write(small_source(), tmp_path / "out", ctx())
    base = HQQQuantizer(HQQOptions()).load(directory_source(tmp_path / "out", ref="out"), ctx())
    layer = base.model.model.layers[0].mlp.down_proj
    assert isinstance(layer, Linear)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    right = x @ layer.dequantize().T + layer.bias
    torch.testing.assert_close(layer.to("cpu")(x), right, rtol=1e-5, atol=1e-5)


@pytest.fixture
def written(tmp_path, ctx):
    HQQQuantizer(HQQOptions(skip_modules=("v_proj",))).write(small_source(), tmp_path / "out", ctx())
    return directory_source(tmp_path / "out", ref="out")


def test_options_that_contradict_a_checkpoint_are_refused(written):
    check(HQQOptions(), written)
    check(options_with(HQQOptions, bits=4, group_size=64), written)
    for options, message in (
        ({"bits": 3}, "bits is 3, but the checkpoint has 4"),
        ({"group_size": 32}, "group_size is 32, but the checkpoint has 64"),
        ({"skip_modules": ("k_proj",)}, 'skip_modules has "k_proj", which the checkpoint does not skip'),
    ):
        with pytest.raises(ConfigError, match=message):
            check(options_with(HQQOptions, **options), written)


def test_checkpoints_of_other_tools_are_not_claimed(written, ctx):
    config = {"quantization_config": {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}}
    assert not claims(config)
    assert not claims({})

    class Other:
        ref = "org/model"

    Other.config = config
    with pytest.raises(IncompatibleError, match="already quantized by hqq"):
        check(HQQOptions(), Other())
    with pytest.raises(IncompatibleError, match="already quantized by hqq"):
        HQQQuantizer(HQQOptions()).write(written, written.path, ctx())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("W_q", lambda t: t[:-1].clone(), "has a tensor W_q of another shape"),
        ("W_q", lambda t: t.to(torch.int32), "has a tensor W_q of another shape or type"),
        ("scale", lambda t: t.half(), "not in float32"),
        ("zero", lambda t: t * torch.nan, "not finite"),
    ],
)
def test_a_damaged_checkpoint_is_refused(written, part, change, message, ctx):
    file = written.path / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.1.mlp.up_proj.{part}"
    save_file({**tensors, name: change(tensors[name])}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        HQQQuantizer(HQQOptions()).load(written, ctx())


@pytest.mark.parametrize(("key", "value"), [("bits", 5), ("group_size", "64"), ("axis", None), ("skip_modules", "x")])
def test_a_damaged_description_is_refused(written, key, value):
    file = written.path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantization config"):
        check(HQQOptions(), directory_source(written.path, ref="out"))


def test_a_layer_without_a_grid_is_an_error(tmp_path, ctx):
    with pytest.raises(ModelError, match=r"no grid for the layer model\.layers\.0"):
        HQQQuantizer(HQQOptions()).write(small_source(), tmp_path / "out", ctx(grids={}))
    assert not (tmp_path / "out/config.json").exists()


def test_experts_are_refused(tmp_path, ctx):
    quantizer, source = HQQQuantizer(HQQOptions()), mixture_source()
    with pytest.raises(IncompatibleError, match="a model with experts cannot be trained as hqq writes it"):
        quantizer.round_trip(source, ctx()).layers(source.load(dtype=torch.float32))
    with pytest.raises(IncompatibleError, match="experts"):
        quantizer.write(source, tmp_path / "out", ctx())
