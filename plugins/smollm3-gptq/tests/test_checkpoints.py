"""Quantized checkpoints: which are recognized, which are refused before weights are read, and how they load."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_gptq import check, claims
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer

from smollm3_finetune.api import (
    ConfigError,
    IncompatibleError,
    ModelError,
    SmolLM3Error,
    directory_source,
    options_with,
)
from smollm3_finetune.model import load_model
from smollm3_finetune.testing import relative_error

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`
DESCRIPTION = "quantize_config.json"
V1 = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


def hashes(directory):
    files = [f for f in sorted(directory.rglob("*")) if f.is_file()]
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def altered(directory, **changes):
    """Change `quantization_config`; None removes a key."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            config["quantization_config"].pop(key, None)
        else:
            config["quantization_config"][key] = value
    file.write_text(json.dumps(config))
    return directory


def only_described_beside(directory):
    """Move the description from config.json to quantize_config.json, as in AutoGPTQ before 0.5."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    (directory / DESCRIPTION).write_text(json.dumps(config.pop("quantization_config")))
    file.write_text(json.dumps(config))
    return directory


def split(directory, prefix):
    """Split the weights into two files with an index, named as by AutoGPTQ."""
    (file,) = directory.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    where = {}
    for i, half in enumerate(halves, 1):
        name = f"{prefix}-{i:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in half}, directory / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(half, name))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (directory / f"{prefix}.safetensors.index.json").write_text(json.dumps(index))
    return directory


def assert_right(directory, numpy_gptq, dtype="float32", **more):
    """Loaded without --quant, the logits equal those of the NumPy weights, and the files are not changed."""
    before = hashes(directory)
    loaded = load_model(directory, device="cpu", dtype=dtype, **more)
    assert loaded.plan.quantizer.component.spec.name == "gptq"
    ids = torch.randint(3, 120, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = loaded.model.eval()(input_ids=ids, use_cache=False).logits
    right = numpy_gptq.dense_logits(directory, ids)
    assert relative_error({"": logits}, {"": right}) < {"float32": 3e-6, "float64": 1e-13}[dtype]
    assert hashes(directory) == before
    return loaded


# ------------------------------------------------------------------------------------------ recognized


def test_claims_configs_of_method_gptq():
    assert claims({"quantization_config": V1})
    for config in ({}, {"quantization_config": None}, {"quantization_config": {"quant_method": "awq", "bits": 4}}):
        assert not claims(config)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_is_recognized_and_its_logits_are_correct(numpy_gptq, tmp_path, layout, dtype):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", layout=layout, sym=layout == "gptq", layers=2)
    assert_right(made, numpy_gptq, dtype)


@pytest.mark.parametrize("key", ["checkpoint_format", "format"])
def test_the_format_is_read_from_either_key(numpy_gptq, tmp_path, key):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", layout="gptq_v2", sym=False)
    right = numpy_gptq.weights_in(made)
    altered(made, **{"checkpoint_format": None, key: "gptq_v2"})
    loaded = load_model(made, device="cpu", dtype="float32")
    for name, weight in right.items():
        layer = loaded.model.get_submodule(name)
        np.testing.assert_array_equal(loaded.base.ops_for(layer).read_weight().numpy(), weight)


def test_a_checkpoint_described_only_in_quantize_config_is_recognized(numpy_gptq, tmp_path):
    made = only_described_beside(numpy_gptq.make_checkpoint(tmp_path / "made", layers=2))
    assert_right(made, numpy_gptq)


# ------------------------------------------------------------------------------------- AutoGPTQ's own


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_of_auto_gptq_has_correct_logits(autogptq, numpy_gptq, dtype):
    loaded = assert_right(autogptq, numpy_gptq, dtype)
    quantized = [m for m in loaded.model.modules() if loaded.base.ops_for(m)]
    assert len(quantized) == 3 * 7
    assert all(layer.bias is None for layer in quantized)  # AutoGPTQ writes zeros if the model has no biases


def test_a_checkpoint_of_auto_gptq_described_only_in_quantize_config(autogptq, numpy_gptq, copied):
    assert_right(only_described_beside(copied(autogptq)), numpy_gptq)


@pytest.mark.parametrize("prefix", ["gptq_model-4bit-32g", "model"])
def test_a_checkpoint_of_auto_gptq_in_two_files(autogptq, numpy_gptq, copied, prefix):
    assert_right(split(copied(autogptq), prefix), numpy_gptq)


def test_a_longer_context_does_not_change_the_weights(autogptq, numpy_gptq):
    loaded = load_model(autogptq, loader_options={"context": 1024}, device="cpu", dtype="float32")
    assert loaded.model.config.rope_parameters["rope_type"] == "yarn"
    assert loaded.model.config.max_position_embeddings == 1024
    for name, weight in numpy_gptq.weights_in(autogptq).items():
        found = loaded.base.ops_for(loaded.model.get_submodule(name)).read_weight()
        np.testing.assert_array_equal(found.numpy(), weight)


def test_the_alias_loads_the_same_quantizer_and_is_reported(autogptq, numpy_gptq):
    lines = []

    class Heard:
        def say(self, message):
            lines.append(message)

        def task(self, description, total=None):
            return contextlib.nullcontext(SimpleNamespace(advance=lambda: None))

    loaded = load_model(autogptq, quant="auto-gptq", device="cpu", dtype="float32", progress=Heard())
    assert lines == ["--quant auto-gptq is an alias of 'gptq'"]
    assert loaded.plan.quantizer.component.spec.name == "gptq"
    name, weight = next(iter(numpy_gptq.weights_in(autogptq).items()))
    found = loaded.base.ops_for(loaded.model.get_submodule(name)).read_weight()
    np.testing.assert_array_equal(found.numpy(), weight)


def test_the_fingerprint_depends_on_the_weights_but_not_the_dtype(autogptq, context, copied):
    def mark(directory, dtype="float32"):
        return GPTQQuantizer(GPTQOptions()).load(directory_source(directory, ref="m"), context(dtype)).fingerprint

    other = copied(autogptq)
    assert mark(autogptq) == mark(other) == mark(autogptq, "bfloat16")
    file = other / "gptq_model-4bit-32g.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    assert mark(other) != mark(autogptq)


# ------------------------------------------------------------------------------ refused before weights are read


@pytest.fixture
def described_only(tmp_path):
    """Factory of directories with a config.json and no weights."""

    def make(**quantization):
        directory = tmp_path / "described"
        directory.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "quantization_config": quantization}
        (directory / "config.json").write_text(json.dumps(config))
        return directory_source(directory, ref="org/model")

    return make


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"bits": 8}, "bits is 8, but the checkpoint has 4"),
        ({"group_size": 64}, "group_size is 64, but the checkpoint has 32"),
        ({"group_size": -1}, "group_size is -1, but the checkpoint has 32"),
        ({"desc_act": True}, "desc_act is true, but the checkpoint has false"),
        ({"sym": False}, "sym is false, but the checkpoint has true"),
        ({"bits": 3, "sym": False}, "bits is 3, but the checkpoint has 4; sym is false, but the checkpoint has true"),
    ],
)
def test_contradicting_options_are_refused_by_reading_only_the_config(described_only, option, text):
    with pytest.raises(ConfigError) as caught:
        check(options_with(GPTQOptions, **option), described_only(**V1))
    assert text in caught.value.message
    assert "leave the option out" in caught.value.hint


def test_only_options_that_were_set_contradict_a_checkpoint(described_only):
    source = described_only(**{**V1, "bits": 8, "desc_act": True, "sym": False})
    check(GPTQOptions(), source)
    with pytest.raises(ConfigError, match="bits is 4, but the checkpoint has 8; sym is true, but the checkpoint has"):
        check(options_with(GPTQOptions, bits=4, sym=True), source)


@pytest.mark.plugins
def test_contradicting_options_are_refused_by_a_dry_run(autogptq, cli):
    done = cli("train", "--model", autogptq, "--quant", "gptq", "--quant-opt", "bits=3", "--device", "cpu", "--dry-run")
    assert done.code == 2
    assert "bits is 3, but the checkpoint has 4" in done.stderr


def test_the_options_of_a_checkpoint_may_be_repeated(autogptq, context):
    options = GPTQOptions(bits=4, group_size=32, desc_act=False, sym=True)
    GPTQQuantizer(options).load(directory_source(autogptq, ref="m"), context())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"is_marlin_format": True},
            IncompatibleError,
            "its weights are packed as marlin, which only one kernel can read",
        ),
        (
            {"checkpoint_format": "marlin"},
            IncompatibleError,
            "its weights are packed as marlin, which only one kernel can read",
        ),
        ({"format": "bitblas"}, IncompatibleError, "its weights are packed as bitblas, which only one kernel can read"),
        ({"pack_dtype": "int64"}, IncompatibleError, "packed in int64, not in int32"),
        ({"quant_method": "awq"}, IncompatibleError, "already quantized by awq"),
        ({"checkpoint_format": ["gptq"]}, IncompatibleError, "packed as ['gptq'], which only one kernel can read"),
        ({"format": 2}, IncompatibleError, "packed as 2, which only one kernel can read"),
        ({"bits": 5}, ModelError, "in its quantization config, bits is 5, not 2, 3, 4 or 8"),
        ({"bits": "4"}, ModelError, 'in its quantization config, bits is "4", not an integer'),
        ({"bits": True}, ModelError, "bits is true, not an integer"),
        ({"group_size": None}, ModelError, "group_size is missing"),
        ({"group_size": "128"}, ModelError, 'group_size is "128", not an integer'),
        ({"group_size": 0}, ModelError, "group_size is 0, neither -1 nor a number of features"),
    ],
)
def test_unsupported_checkpoints_are_refused_by_reading_only_the_config(described_only, change, error, text):
    about = {k: v for k, v in {**V1, **change}.items() if v is not None}
    with pytest.raises(error) as caught:
        check(GPTQOptions(), described_only(**about))
    assert text in caught.value.message


def test_a_description_without_method_is_loaded_only_with_quant(numpy_gptq, tmp_path):
    made = altered(numpy_gptq.make_checkpoint(tmp_path / "made", layers=2), quant_method=None)
    with pytest.raises(IncompatibleError, match="does not name the method") as caught:
        load_model(made, device="cpu")
    assert "--quant NAME" in caught.value.hint
    assert_right(made, numpy_gptq, quant="gptq")


def test_a_quantized_checkpoint_is_not_quantized_again(autogptq, context, tmp_path):
    with pytest.raises(ConfigError, match="is already quantized") as caught:
        GPTQQuantizer(GPTQOptions()).write(directory_source(autogptq, ref="m"), tmp_path, context())
    assert "full-precision checkpoint it was made from" in caught.value.hint


@pytest.mark.parametrize("move", [lambda d: d, only_described_beside], ids=["config", "quantize_config"])
def test_quant_none_on_a_gptq_checkpoint_is_refused_with_a_hint(numpy_gptq, tmp_path, move):
    made = move(numpy_gptq.make_checkpoint(tmp_path / "made"))
    with pytest.raises(IncompatibleError, match="already quantized by 'gptq'") as caught:
        load_model(made, quant="none", device="cpu")
    assert "omit --quant, or: --quant gptq" in caught.value.hint


# ------------------------------------------------------------------------------------ damaged or inconsistent


def refused(directory):
    """The message of load_model: one sentence that does not blame the plugin."""
    with pytest.raises(SmolLM3Error) as caught:
        load_model(directory, device="cpu", dtype="float32")
    assert isinstance(caught.value, ModelError), str(caught.value)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_layers_that_the_architecture_lacks_are_refused(numpy_gptq, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made", layers=2)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "a quantized layer 'model.layers.1." in refused(made)


def test_layers_of_another_shape_than_the_architectures_are_refused(numpy_gptq, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    assert "(96, 64)" in (message := refused(made)) or "(64, 96)" in message


@pytest.mark.parametrize("kept", [0.5, 0.999, 0.001])
def test_truncated_weights_are_refused(autogptq, copied, kept):
    file = copied(autogptq) / "gptq_model-4bit-32g.safetensors"
    os.truncate(file, int(file.stat().st_size * kept))
    assert str(file) in refused(file.parent)


def test_two_sets_of_weights_are_refused(numpy_gptq, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    shutil.copy(made / "model.safetensors", made / "gptq_model-4bit-32g.safetensors")
    assert "more than one set of weights: gptq_model-4bit-32g.safetensors, model.safetensors" in refused(made)


def test_a_file_that_is_not_in_the_index_is_not_read(numpy_gptq, tmp_path):
    made = split(numpy_gptq.make_checkpoint(tmp_path / "made", layers=2), "gptq_model-4bit-32g")
    save_file({"model.layers.0.mlp.up_proj.scales": torch.zeros(1, 1)}, made / "optimizer.safetensors")
    assert_right(made, numpy_gptq)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": "../b"}}', "{"])
def test_an_invalid_index_is_refused(numpy_gptq, tmp_path, index):
    made = split(numpy_gptq.make_checkpoint(tmp_path / "made"), "model")
    (made / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refused(made)


def test_a_missing_weight_file_is_named(numpy_gptq, tmp_path):
    made = split(numpy_gptq.make_checkpoint(tmp_path / "made"), "model")
    (made / "model-00002-of-00002.safetensors").unlink()
    assert "names model-00002-of-00002.safetensors, which does not exist" in refused(made)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(numpy_gptq, tmp_path, value):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    tensors = load_file(made / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = value
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.up_proj contains scales that are not finite" in refused(made)


def test_a_layer_without_scales_is_refused(numpy_gptq, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    tensors = load_file(made / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.up_proj has no scales" in refused(made)


def test_a_checkpoint_without_quantized_layers_is_refused(numpy_gptq, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    tensors = {n: t for n, t in load_file(made / "model.safetensors").items() if n.endswith(".weight")}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    assert "contains no quantized layer" in refused(made)


def test_groups_that_do_not_match_the_scales_are_refused(numpy_gptq, tmp_path):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    tensors = load_file(made / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.g_idx"] += 7  # groups without scales
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.up_proj" in refused(made)


def test_other_bits_than_in_the_config_are_refused(numpy_gptq, tmp_path):
    """Without g_idx, 8-bit weights with a 4-bit config would otherwise load as layers of twice the width."""
    made = altered(numpy_gptq.make_checkpoint(tmp_path / "made", bits=8, g_idx=False), bits=4)
    refused(made)


def test_a_description_that_is_not_json_is_refused(numpy_gptq, tmp_path):
    made = only_described_beside(numpy_gptq.make_checkpoint(tmp_path / "made"))
    (made / DESCRIPTION).write_text("{")
    assert f"{DESCRIPTION} cannot be read" in refused(made)


def test_pickled_weights_are_refused_with_a_hint(described_only, context):
    with pytest.raises(ModelError, match="contains no weights") as caught:
        GPTQQuantizer(GPTQOptions()).load(described_only(**V1), context())
    assert ".bin or .pt" in caught.value.hint
