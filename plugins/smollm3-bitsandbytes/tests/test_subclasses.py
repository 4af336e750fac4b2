"""Linear layers that transformers leaves dense are quantized; layers whose weights are read stay dense."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
import transformers
from smollm3_bitsandbytes.checkpoint import replace_others
from smollm3_bitsandbytes.eight_bit import Bnb8bitQuantizer
from smollm3_bitsandbytes.four_bit import Bnb4bitQuantizer
from smollm3_bitsandbytes.options import Bnb4bitOptions, Bnb8bitOptions

from smollm3_finetune.api import directory_source
from smollm3_finetune.testing import context

QUANTIZERS = {
    bnb.nn.Linear4bit: lambda: Bnb4bitQuantizer(Bnb4bitOptions()),
    bnb.nn.Linear8bitLt: lambda: Bnb8bitQuantizer(Bnb8bitOptions()),
}
MODELS = {
    "falcon": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=96, bias=True)
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=96, state_size=4)
    ),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_layers_that_transformers_treats_otherwise(tmp_path, kind, name):
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(tmp_path / "model")
    source = directory_source(tmp_path / "model", ref=name)
    ctx = context(tmp_path / "cache", dtype="float32")
    base = QUANTIZERS[kind]().load(source, ctx)
    quantized = {n.rpartition(".")[2] for n, m in base.model.named_modules() if isinstance(m, kind)}
    assert (
        quantized
        == {
            "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
            "mamba": {"in_proj"},
        }[name]
    )
    dense = source.load(dtype=torch.float32)
    for key, module in base.model.named_modules():
        if isinstance(module, kind):
            layer = dense.get_submodule(key)
            layer.weight.data = base.ops_for(module).read_weight()
            assert (module.bias is None) == (layer.bias is None)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        found, right = (m.eval()(input_ids=ids, use_cache=False).logits for m in (base.model, dense))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_a_plain_layer_that_transformers_leaves_dense_stays_so(tmp_path):
    """transformers keeps some layers in full precision on purpose, such as those of `_keep_in_fp32_modules`."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                 vocab_size=96)
    )  # fmt: skip
    replaced = []
    assert not replace_others("bnb-4bit", model, context(tmp_path), (), replaced.append)
    assert replaced == []
