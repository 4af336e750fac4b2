"""The quantizer passes the conformance kit on checkpoints that the tests create in NumPy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smollm3_finetune.api import ModelSource, directory_source
from smollm3_finetune.testing import QuantizerConformance, small_source

GROUP = 32


def rounded_checkpoint(out: Path, dense: Path, numpy_gptq: SimpleNamespace, bits: int) -> Path:
    """The model in `dense` with its linear layers rounded to the nearest code, in AutoGPTQ's layout."""
    shutil.copytree(dense, out)
    tensors = load_file(out / "model.safetensors")
    middle = 2 ** (bits - 1)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight = tensors.pop(name)  # (out, in)
        groups = weight.reshape(len(weight), -1, GROUP)
        scales = (np.abs(groups).max(2) / (middle - 1)).astype(np.float16)  # (out, groups)
        codes = np.rint(groups / scales[..., None].astype(np.float32)).reshape(weight.shape) + middle
        zeros = np.full(scales.T.shape, middle - 1)  # v1 stores each zero point minus one
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = numpy_gptq.pack(codes.clip(0, 2**bits - 1).astype(np.int64).T, bits)
        tensors[f"{layer}.qzeros"] = numpy_gptq.pack(zeros.T, bits).T.copy()
        tensors[f"{layer}.scales"] = scales.T.copy()
        tensors[f"{layer}.g_idx"] = (np.arange(weight.shape[1]) // GROUP).astype(np.int32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((out / "config.json").read_text())
    about["quantization_config"] = {
        "quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": True,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(about))
    return out


class Prequantized(QuantizerConformance):
    component = "gptq"
    group_size = GROUP
    writes = False  # gptqmodel takes minutes; test_quantizing.py runs it

    @pytest.fixture(autouse=True)
    def codes(self, numpy_gptq: SimpleNamespace) -> None:
        self.numpy_gptq = numpy_gptq

    def source(self, tmp_path: Path, seed: int = 0) -> ModelSource:
        out = tmp_path / f"codes-{seed}"
        if not out.exists():
            rounded_checkpoint(out, small_source(seed=seed).path, self.numpy_gptq, self.bits)
        return directory_source(out, ref="codes")

    def other_source(self, tmp_path: Path) -> ModelSource:
        return self.source(tmp_path, seed=1)


class FourBits(Prequantized):
    bits = 4


class TestFourBits(FourBits):
    """Without the tests that start gptqmodel in processes of their own, half a minute each: see TestRoundTrips.

    test_round_trip.py writes and reads checkpoints on the grid of a run without gptqmodel.
    """

    test_a_round_trip_names_layers_with_a_weight = None
    test_a_round_trip_is_pure_and_deterministic = None
    test_a_round_trip_is_what_the_written_model_computes_with = None


@pytest.mark.long
class TestRoundTrips(FourBits):
    """The tests that TestFourBits leaves out, beside the others."""


@pytest.mark.long
class TestEightBits(Prequantized):
    bits = 8
