"""The weights agree with an unpacking in NumPy; what is not read is refused before weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_awq import check, claims
from smollm3_awq.options import AWQOptions
from smollm3_awq.quantizer import AWQQuantizer

from smollm3_finetune.api import IncompatibleError, ModelError, directory_source
from smollm3_finetune.testing import context, small_source

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`

pytestmark = pytest.mark.plugins


def load(path: Path, tmp_path: Path, dtype: str = "float32") -> Any:
    source = directory_source(path, ref="stored")
    return AWQQuantizer(AWQOptions()).load(source, context(tmp_path / "cache", dtype=dtype))


def test_the_packer_of_the_tests_has_the_published_order(numpy_awq: Any) -> None:
    words = numpy_awq.pack(np.arange(8)[None])
    assert [(int(words.view(np.uint32)[0, 0]) >> 4 * place) & 15 for place in range(8)] == numpy_awq.ORDER
    codes = np.random.default_rng(0).integers(0, 16, (5, 24))
    np.testing.assert_array_equal(numpy_awq.unpack(numpy_awq.pack(codes)), codes)


@pytest.mark.parametrize("group", [16, 64])
def test_weights_are_those_of_an_unpacking_in_numpy(tmp_path: Path, numpy_awq: Any, group: int) -> None:
    path = numpy_awq.rounded_checkpoint(tmp_path / "stored", small_source().path, group)
    base, found = load(path, tmp_path), numpy_awq.weights(path)
    assert len(found) == 14
    for name, right in found.items():
        weight = base.ops_for(base.model.get_submodule(name)).read_weight().numpy()
        np.testing.assert_array_equal(weight, right)
        dense = small_source().load(dtype=torch.float32).get_submodule(name).weight.detach().numpy()
        assert np.linalg.norm(weight - dense) < 0.12 * np.linalg.norm(dense)


def test_scales_are_not_rounded_to_the_dtype_of_the_run(tmp_path: Path, numpy_awq: Any) -> None:
    path = numpy_awq.rounded_checkpoint(tmp_path / "stored", small_source().path)
    one, other = load(path, tmp_path), load(path, tmp_path, "bfloat16")
    layer = "model.layers.0.mlp.up_proj"
    assert torch.equal(one.model.get_submodule(layer).dense(), other.model.get_submodule(layer).dense())


@pytest.mark.parametrize(
    "about", [{"version": "gemv"}, {"version": "GEMV_FAST"}, {"version": None, "format": "llm-awq"}, {"bits": 8}]
)
def test_other_versions_are_refused(tmp_path: Path, numpy_awq: Any, about: dict[str, Any]) -> None:
    path = numpy_awq.rounded_checkpoint(tmp_path / "stored", small_source().path, **about)
    with pytest.raises(IncompatibleError, match="but only the version gemm with 4 bits is supported") as caught:
        check(AWQOptions(), directory_source(path, ref="stored"))
    assert caught.value.hint


def test_a_dense_model_is_refused_with_the_quantizers_that_can(cli: Any, small_model: Any) -> None:
    done = cli("config", "validate", "--model", small_model, "--quant", "awq")
    assert done.code != 0
    assert "only loads checkpoints that are quantized already" in done.stderr
    assert "--quant compressed-tensors" in done.stderr
    assert not claims(small_source().config)


def test_a_layer_whose_tensors_do_not_match_is_named(tmp_path: Path, numpy_awq: Any) -> None:
    path = numpy_awq.rounded_checkpoint(tmp_path / "stored", small_source().path)
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.scales"
    tensors[name] = tensors[name][:1].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj: the shapes of qweight, qzeros and scales do not match"):
        load(path, tmp_path)
