"""Forward, gradient and `read_weight` equal a dense copy's at every step: evaluate, train, save, train, restore."""

from __future__ import annotations

import copy

import pytest
import torch
from smollm3_gptq.linear import GPTQLinear
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer

from smollm3_finetune.api import directory_source
from smollm3_finetune.model import load_model
from smollm3_finetune.testing import check_composition, dense_copy, plan

CASES = {
    "4-bit": {},
    "4-bit-act-order": {"act_order": True},
    "3-bit-v2-asymmetric": {"bits": 3, "layout": "gptq_v2", "sym": False},
    "8-bit-act-order-last-group-not-full": {"bits": 8, "act_order": True, "group_size": 40},
    "2-bit-row-bias": {"bits": 2, "group_size": -1, "bias": True},
}
BOUNDS = {"float32": 1e-5, "float64": 1e-10}
"""float32 allows another order of summation; the float64 bound detects any difference of a weight."""
IDS = torch.randint(3, 120, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(numpy_gptq, tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return {case: numpy_gptq.make_checkpoint(root / case, layers=2, **how) for case, how in CASES.items()}


def base_of(directory, context):
    return GPTQQuantizer(GPTQOptions()).load(directory_source(directory, ref=directory.name), context)


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def through(model, embeddings):
    """Logits, and the gradient at the embeddings of a fixed linear combination of the logits."""
    x = embeddings.clone().requires_grad_()
    logits = model(inputs_embeds=x, use_cache=False).logits
    factors = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * factors).sum().backward()
    return logits.detach(), x.grad


@pytest.mark.plugins
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_trains_as_on_the_dense_copy_through_a_whole_run(made, case, adapter, dtype):
    result = check_composition(plan(str(made[case]), adapter=adapter, dtype=dtype))
    bound = BOUNDS[dtype]
    assert result.identity <= bound
    assert result.moved > 1e-2
    assert len(result.gradients) == 3
    assert max(result.gradients.values()) <= bound
    assert max(result.logits.values()) <= bound
    assert max(result.weights.values()) == 0
    assert result.restored <= bound
    assert not result.base_trained


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_the_base_alone_equals_its_dense_copy_at_every_step(made, context, tmp_path, case, dtype):
    base = base_of(made[case], context(dtype))
    twin = dense_copy(base, base.model.dtype)
    embeddings = base.model.get_input_embeddings()(IDS).detach()
    logits, gradient = through(twin, embeddings)
    layers = [ops for m in base.model.modules() if (ops := base.ops_for(m)) is not None]
    before = [ops.read_weight() for ops in layers]
    for training in (False, True, False, True):
        base.model.train(training)
        with torch.no_grad():
            base.model(IDS)
        got_logits, got_gradient = through(base.model, embeddings)
        assert relative(got_logits, logits) <= BOUNDS[dtype]
        assert relative(got_gradient, gradient) <= BOUNDS[dtype]
        assert all(torch.equal(o.read_weight(), w) for o, w in zip(layers, before, strict=True))
    base.model.to("cpu")
    clone = copy.deepcopy(base.model)
    assert relative(through(clone, embeddings)[1], gradient) <= BOUNDS[dtype]


@pytest.mark.parametrize("case", ["4-bit", "4-bit-act-order"])
def test_bfloat16_is_as_accurate_as_the_dense_copy_in_bfloat16(made, context, case):
    base = base_of(made[case], context("bfloat16"))
    twin = dense_copy(base, torch.bfloat16)
    embeddings = base.model.get_input_embeddings()(IDS).detach()
    assert embeddings.dtype == torch.bfloat16
    logits, gradient = through(twin, embeddings)
    found_logits, found_gradient = through(base.model.train(), embeddings)
    exact_logits, exact_gradient = through(dense_copy(base, torch.float64), embeddings.double())
    # Act-order changes the order of summation, so both may have an error of the same size, but not a larger one.
    assert relative(found_logits, exact_logits) <= 1.25 * relative(logits, exact_logits)
    assert relative(found_gradient, exact_gradient) <= 1.25 * relative(gradient, exact_gradient)


def test_autocast_multiplies_in_the_autocast_dtype(made, context):
    base = base_of(made["4-bit-act-order"], context())
    layer = base.model.model.layers[0].mlp.down_proj
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = base.ops_for(layer).read_weight().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, x.to(torch.bfloat16) @ weight.T, rtol=2**-7, atol=2**-8)
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, weight.float().sum(0).expand_as(x), rtol=2**-6, atol=2**-7)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", ["4-bit", "4-bit-act-order"])
def test_gradient_checkpointing_gives_the_same_gradient(made, context, case, reentrant):
    base = base_of(made[case], context())
    base.model.train()
    embeddings = base.model.get_input_embeddings()(IDS).detach()
    logits, gradient = through(base.model, embeddings)
    enable = getattr(base.model, "activation_checkpointing_enable", None)  # named so by later releases of 5.x
    (enable or base.model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    again_logits, again_gradient = through(base.model, embeddings)
    assert torch.equal(again_logits, logits)
    assert torch.equal(again_gradient, gradient)


def saved_shapes(run):
    """Shapes of the tensors that autograd keeps for the backward pass of `run()`."""
    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return shapes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backward_pass_keeps_no_dequantized_weight(made, context, dtype):
    base = base_of(made["4-bit-act-order"], context(dtype))
    twin = dense_copy(base, base.model.dtype)
    embeddings = base.model.get_input_embeddings()(IDS).detach().requires_grad_()
    sizes = {ops.shape for m in base.model.modules() if (ops := base.ops_for(m)) is not None}
    sizes |= {shape[::-1] for shape in sizes}
    kept = saved_shapes(lambda: base.model.train().model(inputs_embeds=embeddings, use_cache=False))
    assert not [s for s in kept if s in sizes]
    dense = saved_shapes(lambda: twin.train().model(inputs_embeds=embeddings, use_cache=False))
    assert len([s for s in dense if s in sizes]) >= 2 * 7  # shows that the test can fail: nn.Linear keeps its weight


def test_codes_are_packed_in_bytes(made, context):
    for case, bits in {"4-bit": 4, "3-bit-v2-asymmetric": 4, "2-bit-row-bias": 2}.items():
        base = base_of(made[case], context())
        layer = base.model.model.layers[0].mlp.down_proj
        assert layer.codes.dtype == torch.uint8
        assert layer.codes.numel() == layer.in_features * layer.out_features * bits // 8
        assert not [n for n, p in layer.named_parameters() if n != "bias" and (p.requires_grad or p.ndim != 1)]


def test_after_training_the_model_still_generates_the_same(made):
    loaded = load_model(made["4-bit-act-order"], device="cpu", dtype="float32")
    model = loaded.model.eval()
    model.generation_config.eos_token_id = None

    def answer():
        with torch.no_grad():
            return model.generate(IDS[:1], max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()

    first = answer()
    embeddings = model.get_input_embeddings()(IDS).detach()
    through(model.train(), embeddings)
    model.eval()
    assert answer() == first
    assert any(isinstance(m, GPTQLinear) for m in model.modules())
