"""The round trip on the grid of a GPTQ checkpoint, and checkpoints that are written on it without calibration."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_gptq import refine, smollm3_quantizers
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.packing import pack_words, unpack_words
from smollm3_gptq.quantizer import GPTQQuantizer

from smollm3_finetune.api import (
    CheckpointQuantizer,
    Env,
    IncompatibleError,
    ModelError,
    Op,
    RoundTripMaker,
    architecture_of,
    directory_source,
)

CASES = {
    "4 bits": {},
    "4 bits, act-order": {"act_order": True},
    "4 bits, v2, asymmetric, act-order": {"layout": "gptq_v2", "sym": False, "act_order": True},
    "3 bits, asymmetric, v1": {"bits": 3, "sym": False},
    "2 bits, groups of 16": {"bits": 2, "group_size": 16},
    "8 bits, whole rows, biases": {"bits": 8, "group_size": -1, "bias": True},
    "4 bits, the last group is not full": {"group_size": 64},
    "4 bits, v2, without g_idx": {"layout": "gptq_v2", "g_idx": False},
}
IDS = torch.arange(3, 19)[None]


def opened(directory):
    return directory_source(directory, ref=directory.name)


def loaded(source, context):
    base = GPTQQuantizer(GPTQOptions()).load(source, context)
    return {n: base.ops_for(m).read_weight() for n, m in base.model.named_modules() if base.ops_for(m)}


def same(a, b):
    """Whether two float32 tensors are equal bit for bit, with the signs of zeros."""
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def dense_model(checkpoint, weights, out, *, change=0.0):
    """Write a dense model with the unquantized tensors of a checkpoint and `weights`, changed as by an adapter."""
    generator = torch.Generator().manual_seed(5)
    kept = {n: t for n, t in load_file(checkpoint / "model.safetensors").items() if n.endswith((".weight", ".bias"))}
    changed = {n: w + change * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    out.mkdir()
    tensors = {**kept, **{f"{n}.weight": w for n, w in changed.items()}}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return changed


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_on_the_grids_of_a_run_has_the_weights_of_training(numpy_gptq, context, case):
    made = numpy_gptq.make_checkpoint(Path("made").absolute(), **CASES[case])
    quantizer, base = GPTQQuantizer(GPTQOptions()), opened(made)
    assert isinstance(quantizer, RoundTripMaker)
    assert isinstance(quantizer, CheckpointQuantizer)
    weights = loaded(base, context())
    trip = quantizer.round_trip(base, context())
    assert set(trip.layers(architecture_of(base))) == set(weights)
    grids = {n: dict(trip.grid(n, w)) for n, w in weights.items()}
    merged = dense_model(made, weights, Path("merged").absolute(), change=0.05)
    trained = {}
    for name, weight in weights.items():
        before = weight.clone()
        assert same(trip.apply(name, weight, grids[name]), weight), "the base is on its own grid"
        assert same(weight, before)
        trained[name] = trip.apply(name, merged[name], grids[name])
        assert not torch.equal(trained[name], weight)
    ctx = replace(context(), grids=grids)
    again = quantizer.round_trip(opened(Path("merged")), ctx)
    assert set(again.layers(architecture_of(base))) == set(weights)
    out = Path("out").absolute()
    quantizer.write(opened(Path("merged").absolute()), out, ctx)
    found = loaded(opened(out), context())
    assert found.keys() == trained.keys()
    assert all(same(found[n], trained[n]) for n in trained)
    numpy = numpy_gptq.weights_in(out)
    for name in trained:
        np.testing.assert_array_equal(numpy[name], trained[name].numpy())
    about = json.loads((out / "config.json").read_text())["quantization_config"]
    original = json.loads((made / "config.json").read_text())["quantization_config"]
    for key in ("bits", "group_size", "desc_act"):
        assert about[key] == original[key], key
    assert json.loads((out / "quantize_config.json").read_text())["group_size"] == about["group_size"]


@pytest.mark.parametrize("case", ["4 bits, act-order", "3 bits, asymmetric, v1", "8 bits, whole rows, biases"])
def test_every_weight_takes_the_nearest_code(numpy_gptq, context, case):
    base = opened(numpy_gptq.make_checkpoint(Path("made").absolute(), **CASES[case]))
    trip = GPTQQuantizer(GPTQOptions()).round_trip(base, context())
    name = "model.layers.0.mlp.down_proj"
    grid = {n: t.double() for n, t in trip.grid(name, torch.zeros(1)).items()}
    groups = grid["g_idx"].long()
    scale, zero = grid["scales"].T[:, groups], grid["zeros"].T[:, groups]
    levels = scale[..., None] * (torch.arange(2 ** int(grid["bits"])) - zero[..., None])
    weight = torch.randn(scale.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    found = trip.apply(name, weight, trip.grid(name, weight))
    least = (levels - weight[..., None]).abs().amin(-1)
    assert ((found - weight).abs() <= least + 1e-6).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [32, 96, 40])
def test_codes_are_packed_as_numpy_packs_them(numpy_gptq, bits, count):
    codes = torch.randint(0, 2**bits, (count, 5), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert torch.equal(unpack_words(words, bits)[:count], codes)
    if count * bits % 32 == 0:
        np.testing.assert_array_equal(words.numpy(), numpy_gptq.pack(codes.numpy().astype(np.int64), bits))


def test_a_dense_base_has_the_grid_of_its_calibrated_checkpoint(dense, rows, context, fake):
    quantizer, source = GPTQQuantizer(GPTQOptions(group_size=32)), opened(dense)
    ctx = context(rows=rows)
    trip = quantizer.round_trip(source, ctx)
    names = set(trip.layers(architecture_of(source)))
    base = quantizer.load(source, ctx)
    weights = {n: base.ops_for(m).read_weight() for n, m in base.model.named_modules() if base.ops_for(m)}
    assert len(fake.events("rows")) == 1, "the base of the run is the same cache entry"
    assert set(weights) == names
    for name, weight in weights.items():
        assert same(trip.apply(name, weight, trip.grid(name, weight)), weight)


def test_with_grids_nothing_is_calibrated(numpy_gptq, context, monkeypatch):
    base = opened(numpy_gptq.make_checkpoint(Path("made").absolute()))
    weights = loaded(base, context())
    trip = GPTQQuantizer(GPTQOptions()).round_trip(base, context())
    grids = {n: trip.grid(n, w) for n, w in weights.items()}
    dense_model(base.path, weights, Path("dense").absolute())
    monkeypatch.setattr("smollm3_gptq.quantizer._check_gptqmodel", lambda: pytest.fail("gptqmodel was asked for"))
    source, ctx = opened(Path("dense").absolute()), replace(context(), grids=grids)  # has no calibration
    assert set(GPTQQuantizer(GPTQOptions()).round_trip(source, ctx).layers(architecture_of(source))) == set(grids)
    GPTQQuantizer(GPTQOptions()).write(source, Path("out").absolute(), ctx)
    assert loaded(opened(Path("out").absolute()), context()).keys() == weights.keys()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: {"model.layers.7.mlp.up_proj": next(iter(g.values()))}, IncompatibleError, "no linear layer model"),
        (lambda g: dict.fromkeys(g, g["model.layers.0.mlp.down_proj"]), ModelError, "is for the shape"),
        (lambda g: {}, ModelError, "the run has no grids"),
    ],
)
def test_grids_of_another_model_are_refused(numpy_gptq, context, change, error, message):
    base = opened(numpy_gptq.make_checkpoint(Path("made").absolute()))
    weights = loaded(base, context())
    trip = GPTQQuantizer(GPTQOptions()).round_trip(base, context())
    grids = {n: trip.grid(n, w) for n, w in weights.items()}
    dense_model(base.path, weights, Path("dense").absolute())
    with pytest.raises(error, match=message):
        GPTQQuantizer(GPTQOptions()).write(
            opened(Path("dense").absolute()), Path("out").absolute(), replace(context(), grids=change(grids))
        )
    assert not Path("out/config.json").exists()


def test_gptqmodels_kernels_have_no_round_trip():
    (spec,) = smollm3_quantizers()
    assert Op.ROUND_TRIP in spec.provides
    assert Op.ROUND_TRIP in refine(spec, GPTQOptions(kernel="gptqmodel"), Env(device="cpu")).absent


PLAIN = """
import sys
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, device_map={"": "cpu"})
assert "Linear" in type(model.model.layers[0].mlp.up_proj).__name__
with torch.no_grad():
    torch.save(model.eval()(input_ids=torch.arange(3, 19)[None], use_cache=False).logits.double(), sys.argv[2])
"""


@pytest.mark.long
@pytest.mark.parametrize("case", ["4 bits", "4 bits, act-order"])
def test_plain_transformers_loads_what_is_written(numpy_gptq, context, case, monkeypatch):
    """In a process of its own: gptqmodel changes the libraries of the process that imports it."""
    pytest.importorskip("optimum")
    base = opened(numpy_gptq.make_checkpoint(Path("made").absolute(), **CASES[case]))
    weights = loaded(base, context())
    trip = GPTQQuantizer(GPTQOptions()).round_trip(base, context())
    grids = {n: trip.grid(n, w) for n, w in weights.items()}
    dense_model(base.path, weights, Path("dense").absolute(), change=0.05)
    out = Path("out").absolute()
    GPTQQuantizer(GPTQOptions()).write(opened(Path("dense").absolute()), out, replace(context(), grids=grids))
    right = numpy_gptq.dense_logits(out, IDS)
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    done = subprocess.run([sys.executable, "-c", PLAIN, str(out), "logits.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load("logits.pt")
    assert (found - right).norm() <= 2e-2 * right.norm()
