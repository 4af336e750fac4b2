"""Against the library compressed-tensors: what it writes trains here, and what is written here it loads alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_compressed_tensors.options import CompressedTensorsOptions
from smollm3_compressed_tensors.quantizer import CompressedTensorsQuantizer
from smollm3_compressed_tensors.rounding import Rounding
from torch import nn

from smollm3_finetune.api import Purpose, directory_source
from smollm3_finetune.testing import check_composition, context, plan, small_source

pytest.importorskip("compressed_tensors", reason="pip install ./plugins/smollm3-compressed-tensors[test]")

pytestmark = [pytest.mark.plugins, pytest.mark.filterwarnings("ignore")]  # the library's own warnings
SCHEMES = {"W4A16": 32, "W4A16_ASYM": 32, "W8A16": 64, "FP8A16": None, "FP8_DYNAMIC": None}
IDS = torch.randint(5, 2048, (2, 12), generator=torch.Generator().manual_seed(0))


def library_scheme(name: str, group: int | None) -> Any:
    """The library's own scheme, with other groups."""
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme

    scheme = preset_name_to_scheme("FP8_DYNAMIC" if name == "FP8A16" else name, ["Linear"]).model_dump()
    if name == "FP8A16":
        scheme["input_activations"] = None
    if group is not None:
        scheme["weights"]["group_size"] = group
    return QuantizationScheme(**scheme)


def by_library(weight: torch.Tensor, name: str, group: int | None) -> dict[str, torch.Tensor]:
    """The tensors of a layer, computed and packed by the library."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = library_scheme(name, group)
    groups = weight.view(len(weight), -1, group or weight.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    form = infer_module_format(nn.Linear, scheme)
    found: dict[str, torch.Tensor] = BaseCompressor.get_value_from_registry(form.value).compress(state, scheme)
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_scales_codes_and_packing_are_the_librarys(name: str) -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(1)) * 0.05
    weight[3, :64] = 0.0  # a group without values has a scale that is not 0
    right = by_library(weight, name, SCHEMES[name])
    found = Rounding(name, SCHEMES[name], torch.float32).tensors(weight)
    assert found.keys() == right.keys()
    for part, tensor in found.items():
        assert tensor.dtype == right[part].dtype
        same = tensor.view(torch.uint8) == right[part].contiguous().view(torch.uint8)
        if name == "W4A16_ASYM":  # the library's zero point of a group without values is not a number
            continue
        assert bool(same.all()), part
    if name == "W4A16_ASYM":
        again = Rounding(name, 32, torch.float32).tensors(weight[4:])
        for part, tensor in by_library(weight[4:].clone(), name, 32).items():
            assert torch.equal(again[part], tensor), part


def written(tmp_path: Path, scheme: str) -> Path:
    out = tmp_path / "written"
    out.mkdir()
    options = CompressedTensorsOptions(scheme=scheme, group_size=SCHEMES[scheme])
    ctx = context(tmp_path / "cache", dtype="float32", purpose=Purpose.QUANTIZE)
    CompressedTensorsQuantizer(options).write(small_source(), out, ctx)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_plain_transformers_loads_what_is_written_with_the_same_logits(tmp_path: Path, scheme: str) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    path = written(tmp_path, scheme)
    base = CompressedTensorsQuantizer(CompressedTensorsOptions()).load(
        directory_source(path, ref="written"), context(tmp_path / "cache", dtype="float32")
    )
    more = {}
    if scheme == "W4A16_ASYM":  # 0.20.1 cannot keep packed zero points in a model on the meta device
        more = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    plain = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32, **more)
    right = logits(plain)
    for name, layer in base.model.named_modules():
        if base.ops_for(layer) is not None:
            assert torch.equal(layer.dense(), plain.get_submodule(name).weight), name
    off = (logits(base.model) - right).norm() / right.norm()
    assert off == 0 if scheme != "FP8_DYNAMIC" else 0 < off < 0.1  # transformers rounds the activations as well


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "FP8A16", "NVFP4A16"])
def test_a_checkpoint_that_the_library_wrote_trains(tmp_path: Path, scheme: str) -> None:
    path = saved_by_library(tmp_path / "theirs", scheme)
    result = check_composition(plan(str(path), quant="compressed-tensors", adapter="lora", dtype="float64"))
    assert max(result.gradients.values()) <= 1e-9
    assert set(result.weights.values()) == {0.0}


def saved_by_library(out: Path, name: str) -> Path:
    """The small model, quantized and saved by compressed-tensors and transformers."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    model = small_source(biases=False).load(dtype=torch.float32)
    scheme = library_scheme(name, 32 if name.startswith("W") else None)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="initialized"
    )
    apply_quantization_config(model, config)
    for layer in [m for m in model.modules() if hasattr(m, "quantization_scheme")]:
        weight, size, extra = layer.weight.detach(), scheme.weights.group_size, None
        groups = weight.view(len(weight), -1, size or weight.shape[1])
        if hasattr(layer, "weight_global_scale"):
            extra = generate_gparam(weight.min(), weight.max())
            layer.weight_global_scale.data.copy_(extra)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights, global_scale=extra)
        layer.weight_scale.data.copy_(scale)
        layer.weight_zero_point.data.copy_(zero)
        layer.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(str(out))
    for file in small_source().path.glob("*token*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out
