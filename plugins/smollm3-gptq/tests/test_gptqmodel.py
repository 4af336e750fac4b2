"""Comparison with gptqmodel: the checkpoints that it writes, its dequantization, its kernels.

These tests are in one file, so that gptqmodel makes the checkpoints only once if tests run on several cores.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer

from smollm3_finetune.api import directory_source
from smollm3_finetune.testing import check_composition, plan, relative_error

IDS = torch.arange(3, 19)[None]


def base_of(directory, context):
    return GPTQQuantizer(GPTQOptions()).load(directory_source(directory, ref=directory.name), context)


def weights_of(base):
    return {n: ops.read_weight() for n, m in base.model.named_modules() if (ops := base.ops_for(m)) is not None}


def relative(found, right):
    return relative_error({"": found}, {"": right})


BOUNDS = {
    "4-bit": 0.2,
    "4-bit-act-order": 0.2,
    "4-bit-asymmetric-act-order": 0.2,
    "3-bit-asymmetric": 0.4,
    "8-bit-row": 0.02,
}
"""Largest relative change of a weight by quantization."""


def check_unpacked(real, numpy_gptq, context, dense):
    """The weights of checkpoints are those that numpy unpacks, and close to the original ones."""
    original = load_file(dense / "model.safetensors")
    for case, directory in real.items():
        right = numpy_gptq.weights_in(directory)
        assert len(right) == 2 * 7
        base = base_of(directory, context())
        weights = weights_of(base)
        assert weights.keys() == right.keys()
        for name, weight in weights.items():
            np.testing.assert_array_equal(weight.numpy(), right[name], err_msg=f"{case}: {name}")
        about = json.loads((directory / "config.json").read_text())["quantization_config"]
        assert about["checkpoint_format"] == ("gptq_v2" if "asymmetric" in case else "gptq")
        ordered = base.model.model.layers[1].mlp.down_proj.order is not None
        assert ordered is ("act-order" in case)
        for name, weight in right.items():
            was = original[f"{name}.weight"].numpy()
            assert np.linalg.norm(weight - was) / np.linalg.norm(was) < BOUNDS[case], (case, name)


def check_dequantized(real, own, context):
    """gptqmodel rounds the products to half precision like the scales (relative 2^-11); this plugin does not."""
    for case, directory in real.items():
        weights = weights_of(base_of(directory, context()))
        assert len(weights) == 2 * 7
        for name, weight in weights.items():
            theirs = own[f"{case}/{name}"]
            assert theirs.dtype == torch.float16
            assert torch.equal(theirs, weight.to(torch.float16)), (case, name)


def test_checkpoints_of_gptqmodel_read_as_numpy_unpacks_them(real, numpy_gptq, context, dense):
    check_unpacked(real, numpy_gptq, context, dense)


def test_checkpoints_of_gptqmodel_read_as_gptqmodel_dequantizes_them(real, own, context):
    check_dequantized(real, own, context)


@pytest.mark.long
def test_more_checkpoints_of_gptqmodel_read_correctly(other_real, other_own, numpy_gptq, context, dense):
    check_unpacked(other_real, numpy_gptq, context, dense)
    check_dequantized(other_real, other_own, context)
    result = check_composition(plan(str(other_real["4-bit"]), adapter="lora"))
    assert max(*result.gradients.values(), *result.logits.values()) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 3e-6), ("float64", 1e-12)])
def test_checkpoints_of_gptqmodel_have_correct_logits(real, numpy_gptq, context, dtype, bound):
    for case, directory in real.items():
        with torch.no_grad():
            logits = base_of(directory, context(dtype)).model.eval()(IDS, use_cache=False).logits
        assert relative(logits, numpy_gptq.dense_logits(directory, IDS)) < bound, case


@pytest.mark.plugins
def test_an_adapter_trains_correctly_on_checkpoints_of_gptqmodel(real):
    result = check_composition(plan(str(real["4-bit-asymmetric-act-order"]), adapter="lora"))
    assert max(result.gradients.values()) <= 1e-5
    assert max(result.logits.values()) <= 1e-5


def test_gptqmodels_kernel_has_wrong_gradients_after_an_evaluation(own):
    """The reason why `kernel=gptqmodel` cannot train; also shows that the gradient tests can fail."""
    right, wrong = own["gradient/right"], own["gradient/after an evaluation"]
    assert relative(wrong, right) > 0.5


def test_gptqmodels_kernel_has_correct_gradients_before_an_evaluation(own, real, context):
    base = base_of(real["4-bit-asymmetric-act-order"], context())
    x = base.model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = base.model.train()(inputs_embeds=x, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    assert relative(x.grad, own["gradient/right"]) < 1e-3


def test_logits_with_gptqmodels_kernel_are_close(own, real, autogptq, context):
    """On a CPU, its 4-bit kernel multiplies in bfloat16, its other kernels in float16."""
    for case, directory in {**real, "autogptq": autogptq}.items():
        with torch.no_grad():
            logits = base_of(directory, context()).model.eval()(IDS, use_cache=False).logits
        assert relative(own[f"kernel/{case}"], logits) < 2e-2, case
