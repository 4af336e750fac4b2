"""Conformance tests for adapters, on a stub quantizer that provides exactly the operations the adapter declares.

from smollm3_finetune.testing import AdapterConformance

class TestMine(AdapterConformance):
    component = "mine"
    options = {"rank": 4}
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from smollm3_finetune.api import Adapted, AdapterSpec, Base, Op, Purpose, UnsupportedOp, directory_source
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.negotiation import environment, refined
from smollm3_finetune.model.compare import apart, cross_entropy, descend, gradients, logits, push, relative_error
from smollm3_finetune.model.roles import trained_parameters
from smollm3_finetune.testing.caching import check_generation, check_one_by_one
from smollm3_finetune.testing.conformance import demand, fail, outcome, skip
from smollm3_finetune.testing.files import check_saved_files
from smollm3_finetune.testing.merged_layers import MergedLayerTests
from smollm3_finetune.testing.new_token_rows import check_new_tokens
from smollm3_finetune.testing.small import token_ids
from smollm3_finetune.testing.stub import stub_base, stub_dense

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOTAL_STEPS = 20
"""Passed to `attach` and `restore` as `total_steps`, for adapters with a schedule."""
LONGER = 30
"""`total_steps` of a run that is resumed with more steps."""
DIFFERENCE = 2e-4
"""How much a step along the gradients should change the loss. The loss is accurate to 1e-7 (normalization is computed
in float32 in every dtype), so this change is accurate to 1e-3; the error of a central difference is of third order."""
MOVED = 1e-4
"""How far noise in the trained parameters must move the logits, so that the comparisons can fail."""


@contextlib.contextmanager
def _half_frozen(adapted: Adapted) -> Iterator[None]:
    """Every second trained parameter is frozen inside the context, as an optimizer of a plugin may do."""
    frozen = [p for p in adapted.model.parameters() if p.requires_grad][::2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


class AdapterConformance(MergedLayerTests):
    """Subclass it and name the adapter; the tests that apply to its declared traits are inherited."""

    kind = ADAPTER
    merge_bound: ClassVar[float] = 1e-6
    """Allowed relative error of the logits of the merged model; raise it if the merge computes in another way."""
    gradient_bound: ClassVar[float] = 1e-2
    """Allowed relative error of the gradients against a difference quotient of the loss; raise it for methods that
    treat part of the forward as constant."""

    # ------------------------------------------------------------------------------------------ helpers

    def declared(self) -> AdapterSpec:
        """The descriptor that applies with these options."""
        spec: AdapterSpec = refined(self.choose(), environment(self.device, Purpose.TRAIN))
        return spec

    def create(self) -> Any:
        return self.choose().create()

    def base(self, dtype: str | None = None) -> Base:
        """A fresh base whose layers provide exactly the operations that the adapter needs."""
        base = stub_base(self.declared().needs, dtype or self.dtype)
        base.model.to(self.device)
        return base

    def dense_base(self) -> Base:
        """A base with the same weights in ordinary layers."""
        return Base(model=self.dense(), fingerprint=self.base().fingerprint)

    def dense(self) -> PreTrainedModel:
        return stub_dense(self.dtype).to(self.device)

    def tokens(self, seed: int = 0, rows: int = 2) -> Tensor:
        return token_ids(rows, seed=seed).to(self.device)

    def attach(
        self, tmp_path: Path, base: Base | None = None, *, pushed: bool = False, total_steps: int = TOTAL_STEPS
    ) -> Adapted:
        """Attach a fresh adapter, with the seed of the context; `pushed` adds noise to its trained parameters."""
        context = self.context(tmp_path)
        torch.manual_seed(context.seed)
        adapted: Adapted = self.create().attach(base or self.base(), context, total_steps)
        adapted.model.eval()
        if pushed:
            push(adapted.model)
        return adapted

    def first_values(self, tmp_path: Path) -> dict[str, Tensor]:
        """The trained parameters of a fresh adapter, by name."""
        model = self.attach(tmp_path).model
        return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def attaches_alike(self, tmp_path: Path) -> bool:
        """Whether two fresh adapters have the same trained parameters."""
        one, other = self.first_values(tmp_path), self.first_values(tmp_path)
        return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())

    def restore(
        self, tmp_path: Path, base: Base, path: Path, purpose: Purpose = Purpose.TRAIN, total_steps: int = TOTAL_STEPS
    ) -> Adapted:
        """The saved adapter on `base`; `total_steps` is passed if it is restored for training."""
        steps = total_steps if purpose is Purpose.TRAIN else None
        adapted: Adapted = self.create().restore(base, path, self.context(tmp_path, purpose), steps)
        return adapted

    def logits(self, adapted: Adapted, ids: Tensor | None = None, **more: Tensor) -> Tensor:
        """Logits (B, T, V), without those of prompt tokens that the adapter adds."""
        own = self.tokens() if ids is None else ids
        return logits(adapted.model, own, **more)[:, -own.shape[1] :]

    def saved(self, adapted: Adapted, tmp_path: Path, name: str = "saved") -> Path:
        path = tmp_path / name
        adapted.save(path)
        return path

    def gradients(self, adapted: Adapted, ids: Tensor) -> dict[str, Tensor]:
        """The gradient of each trained parameter; fails the test if a parameter receives none."""
        found, error = outcome(gradients, adapted.model, ids)
        if isinstance(error, AssertionError):
            fail(f"{error} in training mode")
        if error is not None:
            raise error
        return found or {}

    def check_names(self, attached: Adapted, restored: Adapted) -> None:
        names = [{n for n, p in one.model.named_parameters() if p.requires_grad} for one in (attached, restored)]
        demand(
            names[0] == names[1],
            "restore() for training must make the same parameters trainable as attach(): "
            f"{len(names[0] - names[1])} are missing and {len(names[1] - names[0])} are new, "
            f"such as {sorted(names[0] ^ names[1])[:1]}",
        )

    def train(self, adapted: Adapted, steps: int, first: int = 1) -> None:
        """Steps of plain gradient descent, each on different rows."""
        for step in range(first, first + steps):
            self.gradients(adapted, self.tokens(step))
            descend(adapted, step)

    # -------------------------------------------------------------------------------------------- start

    def test_starts_as_the_base_where_declared(self, tmp_path: Path) -> None:
        if not self.declared().identity_at_start:
            skip("identity_at_start is not declared")
        before = logits(self.base().model, self.tokens())
        error = apart(self.logits(self.attach(tmp_path)), before)
        demand(
            error <= self.rounding,
            f"identity_at_start is declared, but the fresh adapter moves the logits by {error:.2g} (limit "
            f"{self.rounding:.2g} in {self.dtype}): initialize it so that it changes nothing, or declare "
            "identity_at_start=False",
        )

    def test_attaching_is_deterministic(self, tmp_path: Path) -> None:
        found = self.first_values(tmp_path), self.first_values(tmp_path)
        demand(
            set(found[0]) == set(found[1]),
            "attach() was called twice with the same seed, but the adapter trains different parameters",
        )
        for name, value in found[0].items():
            demand(
                torch.equal(value, found[1][name]),
                f"attach() was called twice with the same seed, but {name} starts with different values: draw random "
                "numbers from torch or from a generator seeded with ctx.seed",
            )

    # ----------------------------------------------------------------------------------------- training

    def test_only_the_adapter_trains(self, tmp_path: Path) -> None:
        needs = self.declared().needs
        if Op.GRAD_WEIGHT in needs:
            skip("the adapter needs grad-weight: it trains the base itself")
        base = self.base()
        own = dict((*base.model.named_parameters(), *base.model.named_buffers()))
        before = {n: t.detach().clone() for n, t in own.items()}
        adapted = self.attach(tmp_path, base)
        if Op.DENSE in needs:  # attach() may replace weights; training may not
            own = {n: t for n, t in own.items() if not t.requires_grad}
            before = {n: t.detach().clone() for n, t in own.items()}
        trained = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
        demand(bool(trained), "no parameter requires a gradient after attach()")
        mine = {id(t): n for n, t in own.items()}
        shared = [mine[id(p)] for p in trained.values() if id(p) in mine]
        demand(
            not shared,
            f"{len(shared)} parameters of the base require a gradient after attach(), such as {shared[:1]}: "
            "freeze them, or add grad-weight to the needs",
        )
        self.train(adapted, 3)
        for name, tensor in own.items():
            demand(
                torch.equal(tensor.detach(), before[name]),
                f"{name} of the base changed by {apart(tensor.detach(), before[name]):.2g} in three training steps: "
                "training must not change the base",
            )

    def test_gradients_are_right_through_a_run(self, tmp_path: Path) -> None:
        if Op.GRAD_INPUT not in self.declared().needs:
            skip("the adapter does not need grad-input")
        adapted = self.attach(tmp_path, pushed=True)
        path = self.saved(adapted, tmp_path)
        right = self.restore(tmp_path, self.dense_base(), path)
        ids = self.tokens()
        self.check_names(adapted, right)
        for step, point in enumerate(("at the first step", "after an evaluation", "after saving"), start=1):
            error = relative_error(self.gradients(adapted, ids), self.gradients(right, ids))
            demand(
                error <= self.rounding,
                f"the adapter's gradients on quantized layers differ from those on the dense copy by {error:.2g} "
                f"({point}; limit {self.rounding:.2g} in {self.dtype})",
            )
            for one in (adapted, right):
                descend(one, step)
            error = apart(self.logits(adapted), self.logits(right))
            demand(
                error <= self.rounding,
                f"the adapter's logits on quantized layers differ from those on the dense copy by {error:.2g} "
                f"({point}; limit {self.rounding:.2g} in {self.dtype})",
            )
            if point == "after an evaluation":
                self.saved(adapted, tmp_path, "between")

    def test_gradients_are_what_the_loss_does(self, tmp_path: Path) -> None:
        if self.dtype not in ("float64", "float32"):
            skip(f"{self.dtype} is too coarse for a difference quotient of the loss")
        adapted, ids = self.attach(tmp_path, pushed=True), self.tokens()
        model, found = adapted.model, self.gradients(adapted, ids)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        size = sum(float(g.square().sum()) for g in found.values()) ** 0.5
        demand(size > 0, "all gradients are zero, although noise was added to the trained parameters")
        length = DIFFERENCE / size  # along the unit gradient, so that the loss changes by DIFFERENCE
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                kept = {n: p.detach().clone() for n, p in trained.items()}
                for n, p in trained.items():
                    p.add_(sign * length / size * found[n])
                losses.append(_loss(model, ids))
                for n, p in trained.items():
                    p.copy_(kept[n])
        measured = (losses[0] - losses[1]) / 2
        error = abs(measured - DIFFERENCE) / DIFFERENCE
        demand(
            error <= self.gradient_bound,
            f"a small step along the gradients should change the loss by {DIFFERENCE:.4g}, but changes it by "
            f"{measured:.4g} (relative error {error:.2g}, limit {self.gradient_bound:.2g})",
        )

    def test_on_step_keeps_the_run_going(self, tmp_path: Path) -> None:
        adapted = self.attach(tmp_path)
        for step in range(1, TOTAL_STEPS + 1):
            if step > 4 and step < TOTAL_STEPS - 1:  # schedules fail at their start or end
                adapted.on_step(step)
                continue
            self.train(adapted, 1, first=step)
        finite = bool(self.logits(adapted).isfinite().all())
        demand(finite, f"some logits are not finite after {TOTAL_STEPS} steps, each followed by on_step()")

    def test_trains_in_half_precision(self, tmp_path: Path) -> None:
        """Uses bfloat16, whatever the dtype of the class: training under autocast, as in a run; inference without."""
        context = replace(self.context(tmp_path), dtype="bfloat16")
        adapted = self.create().attach(self.base("bfloat16"), context, TOTAL_STEPS)
        trained = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
        rounded = [n for n, p in trained.items() if p.dtype in (torch.bfloat16, torch.float16)]
        demand(
            not rounded,
            f"in a bfloat16 run, {len(rounded)} of {len(trained)} trained parameters are in half precision, "
            f"such as {rounded[:1]}, so small steps are rounded away: create them in ctx.trained_dtype",
        )
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            found = self.gradients(adapted, self.tokens())
        wrong = [n for n, g in found.items() if not bool(g.isfinite().all())]
        demand(not wrong, f"in a bfloat16 run, the gradients of {wrong[:1]} are not finite")
        context = replace(context, purpose=Purpose.INFER)
        restored = self.create().restore(self.base("bfloat16"), self.saved(adapted, tmp_path), context, None)
        computed, error = outcome(self.logits, restored)
        demand(
            computed is not None and bool(computed.isfinite().all()),
            f"the forward of an adapter restored in bfloat16 fails without autocast ({error}): cast the adapter's "
            "input to its dtype, and its output to the dtype of the layer",
        )

    # ----------------------------------------------------------------------------------- saving, merging

    def test_restoring_gives_the_same_logits_and_the_same_next_step(self, tmp_path: Path) -> None:
        adapted = self.attach(tmp_path, pushed=True)
        self.train(adapted, 2)
        before = self.logits(adapted)
        with _half_frozen(adapted):
            path = self.saved(adapted, tmp_path)
        error = apart(self.logits(self.restore(tmp_path, self.base(), path, Purpose.INFER)), before)
        demand(
            error <= self.rounding,
            f"the adapter was saved after two steps and restored for inference, where total_steps is None, but its "
            f"logits differ by {error:.2g} (limit {self.rounding:.2g} in {self.dtype}): something that the forward "
            "uses is not saved, or is computed from total_steps; parameters that an optimizer has frozen are saved too",
        )
        restored = self.restore(tmp_path, self.base(), path)
        error = apart(self.logits(restored), before)
        demand(
            error <= self.rounding,
            f"the adapter was saved after two steps and restored, but its logits differ by {error:.2g} (limit "
            f"{self.rounding:.2g} in {self.dtype}): something that the forward uses is not saved",
        )
        self.check_names(adapted, restored)
        for one in (adapted, restored):
            self.train(one, 2, first=3)
        error = apart(self.logits(restored), self.logits(adapted))
        demand(
            error <= self.rounding,
            f"two more steps after restoring, the logits differ from those of the uninterrupted run by {error:.2g} "
            f"(limit {self.rounding:.2g} in {self.dtype}): some of the method's state is not saved",
        )

    def test_a_schedule_follows_the_length_of_the_resumed_run(self, tmp_path: Path) -> None:
        """Saved before its first step and restored with more steps, it equals an adapter attached for that many."""
        if self.declared().api < 2:
            skip("its descriptor states api=2, so restore() is called without total_steps")
        path = self.saved(self.attach(tmp_path, pushed=True), tmp_path)
        resumed = self.restore(tmp_path, self.base(), path, total_steps=LONGER)
        right = self.attach(tmp_path, pushed=True, total_steps=LONGER)
        for step in range(1, LONGER + 1):
            for one in (resumed, right):
                if step <= 2:
                    self.train(one, 1, first=step)
                else:
                    one.on_step(step)
            if step > 2 and step % 7:
                continue
            error = apart(self.logits(resumed), self.logits(right))
            if error > self.rounding and not self.attaches_alike(tmp_path):
                skip("two adapters of one seed differ: test_attaching_is_deterministic reports it")
            demand(
                error <= self.rounding,
                f"the adapter was attached with total_steps={TOTAL_STEPS}, saved, and restored with "
                f"total_steps={LONGER}: after step {step}, its logits differ by {error:.2g} (limit "
                f"{self.rounding:.2g} in {self.dtype}) from those of an adapter attached with total_steps={LONGER}: "
                "restore() must compute the schedule from its own total_steps, not from a saved value",
            )

    def test_saved_files_are_safetensors_and_text(self, tmp_path: Path) -> None:
        check_saved_files(self.saved(self.attach(tmp_path), tmp_path))

    def test_merging_gives_what_the_adapter_computes(self, tmp_path: Path) -> None:
        adapted = self.attach(tmp_path, pushed=True)
        path = self.saved(adapted, tmp_path)
        adapter = self.create()
        if not self.declared().merges:
            with contextlib.suppress(UnsupportedOp, AttributeError):
                adapter.merge(self.dense(), path)
                fail(
                    "merges=False is declared, but merge() returns a model: raise UnsupportedOp, or declare merges=True"
                )
            return
        dense = self.dense()
        names, before = set(dense.state_dict()), logits(dense, self.tokens())
        merged = adapter.merge(dense, path)
        demand(
            set(merged.state_dict()) == names,
            "the merged model must have the architecture of the base, but its state_dict differs in "
            f"{sorted(set(merged.state_dict()) ^ names)[:3]}",
        )
        out = tmp_path / "merged"
        merged.save_pretrained(str(out))
        again = directory_source(out, ref="merged").load(dtype=getattr(torch, self.dtype)).to(self.device)
        right = self.logits(adapted)
        moved = apart(right, before)
        demand(
            moved > MOVED,
            f"noise in the trained parameters moves the logits by only {moved:.2g}, too little for a comparison",
        )
        error = apart(logits(again, self.tokens()), right)
        bound = max(self.rounding, self.merge_bound)
        demand(
            error <= bound,
            f"the logits of the merged model, saved and reloaded, differ from the adapter on its base by {error:.2g} "
            f"(limit {bound:.2g}); the adapter itself moves the logits by {moved:.2g}",
        )

    # ------------------------------------------------------------------------------------ declared traits

    def test_packed_rows_do_not_influence_each_other(self, tmp_path: Path) -> None:
        if not self.declared().packs:
            skip("packs is not declared")
        model = self.attach(tmp_path, pushed=True).model
        first, second, other = (self.tokens(s, rows=1) for s in (1, 2, 3))
        length = first.shape[1]
        positions = torch.arange(length, device=self.device).repeat(2)[None]  # (1, 2T), from 0 in each row
        for mode in ("evaluation", "training"):
            model.train(mode == "training")
            found = []
            for row in (first, other):
                torch.manual_seed(7)  # for dropout
                with torch.no_grad():
                    packed = torch.cat([row, second], dim=1)
                    found.append(model(input_ids=packed, position_ids=positions, use_cache=False).logits[:, -length:])
            error = apart(found[1], found[0])
            demand(
                error == 0,
                f"packs is declared, but replacing the first of two packed rows moves the logits of the second by "
                f"{error:.2g} ({mode}), and they must stay bitwise equal: the adapter mixes tokens of different rows",
            )

    def test_the_stated_roles_are_those_of_its_parameters(self, tmp_path: Path) -> None:
        adapted = self.attach(tmp_path)
        found, error = outcome(lambda: {one.role for one in trained_parameters(adapted)})
        if error is not None or found is None:
            fail(str(error))
        missing = sorted(set(self.declared().roles) - found)
        demand(
            not missing,
            f"roles states {', '.join(missing)}, but the trained parameters have {', '.join(sorted(found))}: override "
            "parameter_roles()",
        )

    def test_new_tokens_are_trained_where_declared(self, tmp_path: Path) -> None:
        if not self.declared().trains_new_tokens:
            skip("trains_new_tokens is not declared")
        check_new_tokens(self, tmp_path, TOTAL_STEPS)

    def test_generates_with_a_cache_as_without(self, tmp_path: Path) -> None:
        check_generation(self.attach(tmp_path, pushed=True).model, self.tokens(), self.rounding)

    def test_tokens_one_by_one_are_as_all_at_once(self, tmp_path: Path) -> None:
        if not self.declared().packs:
            skip("packs is not declared")
        check_one_by_one(self.attach(tmp_path, pushed=True).model, self.tokens(), self.rounding)

    def test_disabled_gives_the_base(self, tmp_path: Path) -> None:
        adapted = self.attach(tmp_path, pushed=True)
        if not self.declared().disables:
            with contextlib.suppress(UnsupportedOp):
                with adapted.disabled():
                    pass
                fail(
                    "disables=False is declared, but disabled() can be entered: raise UnsupportedOp, or declare "
                    "disables=True"
                )
            return
        base = logits(self.base().model, self.tokens())
        before, flags = self.logits(adapted), [p.requires_grad for p in adapted.model.parameters()]
        with contextlib.suppress(_Stop), adapted.disabled():
            alone = self.logits(adapted)
            raise _Stop
        error = apart(alone, base)
        moved = apart(before, base)
        demand(
            moved > MOVED,
            f"noise in the trained parameters moves the logits by only {moved:.2g}, too little for a comparison",
        )
        demand(
            error == 0,
            f"inside disabled(), the logits differ from those of the base by {error:.2g}, and must be bitwise equal; "
            f"the adapter moves them by {moved:.2g}",
        )
        error = apart(self.logits(adapted), before)
        demand(error == 0, f"after disabled(), the adapter's logits differ from those before it by {error:.2g}")
        kept = flags == [p.requires_grad for p in adapted.model.parameters()]
        demand(kept, "disabled() changed which parameters require a gradient")


class _Stop(Exception):
    """Leaves a context by an exception, as training code might."""


def _loss(model: torch.nn.Module, ids: Tensor) -> float:
    """The mean cross-entropy in training mode, with the seed that `gradients` uses."""
    model.train()
    torch.manual_seed(7)
    return float(cross_entropy(model(input_ids=ids, use_cache=False).logits, ids))
