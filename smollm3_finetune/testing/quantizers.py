"""Conformance tests for quantizers: declared operations work in every sequence of calls, undeclared ones are absent.

from smollm3_finetune.testing import QuantizerConformance

class TestMine(QuantizerConformance):
    component = "mine"
    bits = 4
    group_size = 32
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from smollm3_finetune.api import BuildContext, CheckpointQuantizer, ModelSource, Op, Purpose, directory_source
from smollm3_finetune.model.compare import apart, logits, rounded
from smollm3_finetune.shipping.gate import of_base
from smollm3_finetune.testing.caching import check_generation, check_one_by_one
from smollm3_finetune.testing.conformance import demand, skip
from smollm3_finetune.testing.files import check_saved_files
from smollm3_finetune.testing.layer_memory import LayerMemoryTests
from smollm3_finetune.testing.operations import OperationTests
from smollm3_finetune.testing.parts import context
from smollm3_finetune.testing.quantizer_case import UNSTATED_BITS
from smollm3_finetune.testing.quantizer_training import TrainingTests
from smollm3_finetune.testing.refusals import RefusalTests
from smollm3_finetune.testing.round_trips import RoundTripTests, Written
from smollm3_finetune.testing.shards import ShardTests

NONSENSE: tuple[Mapping[str, Any], ...] = (
    {},
    {"quantization_config": None},
    {"quantization_config": {}},
    {"quantization_config": {"quant_method": "nobody's"}},
)
"""Contents of `config.json` that no quantizer may claim."""


class QuantizerConformance(OperationTests, RefusalTests, TrainingTests, ShardTests, RoundTripTests, LayerMemoryTests):
    """Subclass it, name the quantizer and its bits; the tests that apply to its declared operations are inherited."""

    def has_round_trip(self) -> bool:
        return Op.ROUND_TRIP in self.provided()

    def trained_source(self, tmp_path: Path) -> ModelSource:
        return self.dense_source(tmp_path)

    def written_weights(self, source: ModelSource, tmp_path: Path, context: BuildContext) -> Written:
        made, written = self.choose().create(), source
        if isinstance(made, CheckpointQuantizer):
            out = tmp_path / "written"
            out.mkdir()
            made.write(source, out, replace(context, purpose=Purpose.QUANTIZE))
            written = source.at(out)
        return of_base(made.load(written, replace(context, purpose=Purpose.INFER, grids=None)))

    def test_all_parameters_are_frozen_and_on_the_device(self, tmp_path: Path) -> None:
        base = self.load(tmp_path)
        trained = [n for n, p in base.model.named_parameters() if p.requires_grad]
        demand(
            not trained,
            f"{len(trained)} parameters of the loaded base require a gradient, such as {trained[:1]}: "
            "call model.requires_grad_(False)",
        )
        away = [n for n, p in base.model.named_parameters() if p.device.type != torch.device(self.device).type]
        demand(not away, f"{len(away)} parameters are not on {self.device}, such as {away[:1]}")
        text = isinstance(base.fingerprint, str) and bool(base.fingerprint)
        demand(text, f"the fingerprint of the base must be text, but is {base.fingerprint!r}")

    def test_the_head_stays_tied_to_the_embeddings(self, tmp_path: Path) -> None:
        dense = self.dense(tmp_path)
        if dense.get_output_embeddings().weight is not dense.get_input_embeddings().weight:
            skip("the head of this model is not tied")
        model = self.load(tmp_path).model
        head = next(n for n, m in dense.named_modules() if m is dense.get_output_embeddings())
        demand(
            getattr(model.get_submodule(head), "weight", None) is model.get_input_embeddings().weight,
            f"the output head {head} shares its weight with the embeddings in the dense model, but not in the model "
            "that load() returns: do not quantize the head",
        )

    def test_forward_is_near_the_dense_model(self, tmp_path: Path) -> None:
        base, dense = self.load(tmp_path), self.dense(tmp_path)
        bits = UNSTATED_BITS if self.bits is None else self.bits
        named = f"{bits} bits" + (", because `bits` is not set" if self.bits is None else "")
        for layer in self.layers(base, dense):
            linear = dense.get_submodule(layer.name)
            x = self.inputs(layer)
            with torch.no_grad():
                own = x @ linear.weight.T  # (N, in) @ (in, out)
                found, right = layer.module(x), linear(x)
                cost = apart(x @ rounded(linear.weight, bits, self.group_size).T, own)
            error = float((found.double() - right.double()).norm() / own.double().norm())
            bound = self.rounding_factor * cost + self.bound(layer)
            demand(
                error <= bound,
                f"the output of {layer.name} differs from that of the dense layer by {error:.2g} (limit {bound:.2g}: "
                f"{named}, {self.rounding_factor:g} times the error {cost:.2g} of rounding to nearest)",
            )
        found = logits(base.model, self.tokens())
        demand(bool(found.isfinite().all()), "some logits of the loaded model are not finite")

    def test_tokens_one_by_one_are_as_all_at_once(self, tmp_path: Path) -> None:
        base = self.load(tmp_path)
        bound = max(self.bound(layer) for layer in self.layers(base, self.dense(tmp_path)))
        check_one_by_one(base.model, self.tokens(), bound)
        check_generation(base.model, self.tokens(), bound)

    def test_loading_twice_gives_the_same(self, tmp_path: Path) -> None:
        results = []
        for seed in (1, 2):  # torch's own random numbers must not matter
            torch.manual_seed(seed)
            base = self.load(tmp_path)
            torch.manual_seed(0)
            results.append((base.fingerprint, logits(base.model, self.tokens())))
        demand(
            results[0][0] == results[1][0],
            f"the same source was loaded twice, but the fingerprints differ: {results[0][0]}, {results[1][0]}",
        )
        error = apart(results[1][1], results[0][1])
        demand(
            error == 0,
            f"the same source was loaded twice, but the logits differ by {error:.2g}: draw random numbers from a "
            "generator seeded with ctx.seed",
        )

    def test_fingerprint_follows_the_weights(self, tmp_path: Path) -> None:
        base = self.load(tmp_path)
        other = self.other_source(tmp_path)
        if other is not None:
            demand(
                self.load(tmp_path, other).fingerprint != base.fingerprint,
                "two sources with different weights have bases with the same fingerprint: it must depend on "
                "source.fingerprint",
            )
        before = logits(base.model, self.tokens())
        for options in self.altering:
            changed = self.load(tmp_path, **options)
            moved = apart(logits(changed.model, self.tokens()), before)
            demand(moved > 0, f"`altering` lists the options {dict(options)}, but they do not change the weights")
            demand(
                changed.fingerprint != base.fingerprint,
                f"the options {dict(options)} move the logits by {moved:.2g}, but the fingerprint does not change: "
                "it must depend on these options",
            )

    def test_fingerprint_follows_a_dtype_that_rounds_the_weights(self, tmp_path: Path) -> None:
        if Op.READ_WEIGHT not in self.declared():
            skip("read-weight is not declared")
        weights, fingerprints = [], []
        for dtype in ("float32", "bfloat16"):
            ctx = context(tmp_path / "cache", device=self.device, dtype=dtype)
            base = self.choose().create().load(self.source(tmp_path), ctx)
            views = [view for m in base.model.modules() if (view := base.ops_for(m)) is not None]
            weights.append([view.read_weight().to(torch.bfloat16) for view in views])
            fingerprints.append(base.fingerprint)
        same = all(torch.equal(wide, rounded) for wide, rounded in zip(*weights, strict=True))
        demand(
            same or fingerprints[0] != fingerprints[1],
            "a run in bfloat16 rounds a float32 checkpoint before it is quantized, which gives other weights, and the "
            "fingerprint stays the same: it must depend on ctx.dtype, or on rounding_dtype(source, ctx)",
        )

    # ------------------------------------------------------------------------------------------ checkpoints

    def test_claims_no_dense_config(self, tmp_path: Path) -> None:
        claims = self.spec().claims
        if claims is None:
            skip("the descriptor has no claims()")
        for config in (self.dense_source(tmp_path).config, *NONSENSE):
            demand(
                not claims(config),
                f"claims() is true for a config.json whose quantization_config is "
                f"{config.get('quantization_config')!r}, which this quantizer did not write",
            )

    def test_what_is_written_is_claimed_and_loads_the_same(self, tmp_path: Path) -> None:
        quantizer = self.choose().create()
        if not isinstance(quantizer, CheckpointQuantizer):
            skip("the quantizer writes no checkpoints")
        if not self.writes:
            skip("`writes` is False: write() is not tested")
        dense = self.dense_source(tmp_path)
        bases = []
        for seed in (1, 2):
            out = tmp_path / f"written-{seed}"
            out.mkdir()
            torch.manual_seed(seed)
            quantizer.write(dense, out, self.context(tmp_path, Purpose.QUANTIZE))
            check_saved_files(out)
            written = directory_source(out, ref="written")
            claims = self.spec().claims
            demand(
                claims is not None and claims(written.config),
                "claims() must be true for a checkpoint that the quantizer wrote",
            )
            bases.append(self.load(tmp_path, written))
        found = [logits(base.model, self.tokens()) for base in bases]
        error = apart(found[1], found[0])
        demand(error == 0, f"the same checkpoint was written twice, but the logits differ by {error:.2g}")
        demand(
            bases[0].fingerprint == bases[1].fingerprint,
            "the same checkpoint was written twice, but the fingerprints differ",
        )
        error = apart(logits(self.load(tmp_path).model, self.tokens()), found[0])
        demand(
            error <= self.rounding,
            f"the logits of a checkpoint from write() differ from those of load() by {error:.2g} (limit "
            f"{self.rounding:.2g} in {self.dtype})",
        )
