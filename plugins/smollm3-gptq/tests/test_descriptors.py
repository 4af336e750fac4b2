"""The plugin's descriptor, which works without its dependencies."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import smollm3_gptq
from smollm3_gptq import NOT_DIVIDED, ONE_WAY, refine, smollm3_quantizers
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer

from smollm3_finetune.api import CheckpointQuantizer, ConfigError, Env, IncompatibleError, Op, Purpose, given
from smollm3_finetune.model import load_model
from smollm3_finetune.testing import plan

(SPEC,) = smollm3_quantizers()
LIGHT = """
import sys
for name in ("torch", "transformers", "gptqmodel", "optimum", "numpy", "safetensors", "accelerate"):
    sys.modules[name] = None  # any import of it raises
import smollm3_gptq, smollm3_gptq.options
from smollm3_finetune.api import Env
(spec,) = smollm3_gptq.smollm3_quantizers()
assert spec.claims({}) is False
spec.refine(spec, smollm3_gptq.options.GPTQOptions(), Env(device="cpu"))
print(spec.name)
"""


def test_descriptors_and_options_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "gptq"


def test_only_the_public_api_of_core_is_imported():
    package = Path(smollm3_gptq.__file__).parent
    for file in package.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            core = {n for n in names if n.split(".")[0] == "smollm3_finetune"}
            assert core <= {"smollm3_finetune.api"}, file


def test_every_operation_is_provided_or_has_a_reason():
    assert SPEC.provides | set(SPEC.absent) == set(Op)
    assert not SPEC.provides & set(SPEC.absent)
    assert SPEC.needs_calibration
    assert isinstance(GPTQQuantizer(GPTQOptions()), CheckpointQuantizer)


@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_kernel_dequantize_has_every_operation_on_every_device(device, purpose):
    for bits in (None, 2, 3, 4, 8):
        assert refine(SPEC, GPTQOptions(bits=bits), Env(device=device, purpose=purpose)) == SPEC


def test_gptqmodels_kernels_support_only_the_forward():
    options = GPTQOptions(kernel="gptqmodel")
    for device in ("cuda", "cpu"):
        absent = refine(SPEC, options, Env(device=device)).absent
        one_way = dict.fromkeys((Op.GRAD_INPUT, Op.READ_WEIGHT, Op.ROUND_TRIP), ONE_WAY)
        assert absent == {**SPEC.absent, **one_way, Op.SHARDS: NOT_DIVIDED}


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gptqmodels_kernels_for_other_than_4_bits_need_a_compiler_on_a_cpu(bits):
    options = GPTQOptions(kernel="gptqmodel", bits=bits)
    absent = refine(SPEC, options, Env(device="cpu", tools=frozenset())).absent
    assert f"for {bits} bits needs a C++ compiler" in absent[Op.FORWARD]
    assert Op.FORWARD not in refine(SPEC, options, Env(device="cpu", tools=frozenset({"c++"}))).absent
    assert Op.FORWARD not in refine(SPEC, options, Env(device="cuda", tools=frozenset())).absent


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 5}, "quant.bits"),
        ({"group_size": -2}, "quant.group_size"),
        ({"damp_percent": 0.0}, "quant.damp_percent"),
        ({"damp_percent": 1.0}, "quant.damp_percent"),
        ({"kernel": "marlin"}, "quant.kernel"),
        ({"desc_act": "perhaps"}, "quant.desc_act"),
        ({"group": 64}, "group"),
    ],
)
def test_invalid_options_are_refused_by_name(options, text):
    with pytest.raises(ConfigError) as caught:
        plan("tiny", quant="gptq", quant_options=options)
    assert text in str(caught.value)


def test_omitted_options_have_their_defaults_and_are_not_given():
    options = plan("tiny", quant="gptq").quantizer.options
    assert (options.bits, options.group_size, options.desc_act, options.sym) == (4, None, False, True)
    assert given(options) == set()
    former = {"bits": None, "group_size": None, "desc_act": None, "sym": None}  # as runs of earlier versions saved them
    assert plan("tiny", quant="gptq", quant_options=former).quantizer.options == options
    asked = {"bits": 3, "group_size": -1, "desc_act": True, "sym": False}
    options = plan("tiny", quant="gptq", quant_options=asked).quantizer.options
    assert (options.bits, options.group_size, options.desc_act, options.sym) == (3, -1, True, False)
    assert given(options) == set(asked)


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_training_on_gptqmodels_kernel_is_refused_before_weights_are_read(numpy_gptq, tmp_path, adapter):
    made = numpy_gptq.make_checkpoint(tmp_path / "made")
    (made / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(IncompatibleError) as caught:
        load_model(
            made, adapter=adapter, quant="gptq", quant_options={"kernel": "gptqmodel"}, purpose="train", device="cpu"
        )
    assert ONE_WAY in str(caught.value)
