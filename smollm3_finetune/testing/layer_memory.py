"""Tests of `bytes_for`: it states the bytes that a loaded layer keeps, and how many of them FSDP 2 divides."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from smollm3_finetune.api import Op, Purpose
from smollm3_finetune.components.layer_bytes import layer_bytes
from smollm3_finetune.components.negotiation import environment
from smollm3_finetune.testing.conformance import demand, skip
from smollm3_finetune.testing.quantizer_case import QuantizerCase
from smollm3_finetune.train.distributed.held import held_weights


class LayerMemoryTests(QuantizerCase):
    """The tests of a quantizer that states the memory of its layers."""

    def test_bytes_for_states_what_a_layer_keeps(self, tmp_path: Path) -> None:
        env = environment(self.device, Purpose.TRAIN)
        stated = layer_bytes(self.choose(), self.source(tmp_path), env, self.dtype)
        if stated is None:
            skip("the descriptor has no bytes_for()")
        for layer in self.viewed(tmp_path)[1]:
            assert layer.view is not None
            about, kept, divided = stated(layer.view.shape), kept_bytes(layer.module), 0
            if Op.SHARDS in self.provided():
                divided = sum(p.nbytes for n, p in layer.module.named_parameters() if n != "bias")
            demand(
                (about.kept, about.sharded) == (kept, divided),
                f"{layer.name} {tuple(layer.view.shape)} keeps {kept} bytes, of which FSDP 2 divides {divided}, but "
                f"bytes_for() states {about.kept} and {about.sharded} for env.dtype={self.dtype!r}",
            )
            demand(about.transient >= 0, f"bytes_for() states {about.transient} transient bytes")


def kept_bytes(layer: nn.Module) -> int:
    """The bytes of all tensors that a layer holds, without its bias."""
    bias = getattr(layer, "bias", None)
    return held_weights(layer).bytes - (bias.untyped_storage().nbytes() if bias is not None else 0)
