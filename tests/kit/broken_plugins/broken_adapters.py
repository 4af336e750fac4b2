"""Adapters with one fault each, and `delta` and `delta-kept`, which are correct.

Each adds a trained matrix (out, in) to the query and output projections, which are square, in a forward hook.
`on_step` applies momentum, and the strength of the adapter grows with the steps: both are state that must be saved. The
overridden method of a class is its fault.
"""

import contextlib
import json

from smollm3_finetune.api import AdapterSpec, Op, UnsupportedOp, hookimpl

FILE, STATE = "delta.safetensors", "delta.json"
CORRECT = {"packs": True}
VARIANTS = {
    "delta": ("Delta", CORRECT),
    "delta-kept": ("Kept", {"merges": False, "disables": False, "identity_at_start": False}),
    "no-identity": ("NoIdentity", CORRECT),
    "base-trains": ("BaseTrains", CORRECT),
    "base-drifts": ("BaseDrifts", CORRECT),
    "gradient-factor": ("GradientFactor", CORRECT),
    "merged-transposed": ("MergedTransposed", CORRECT),
    "merged-twice": ("MergedTwice", CORRECT),
    "merged-without-bias": ("MergedWithoutBias", CORRECT),
    "merges-undeclared": ("Delta", {**CORRECT, "merges": False}),
    "forgets-strength": ("ForgetsStrength", CORRECT),
    "forgets-momentum": ("ForgetsMomentum", CORRECT),
    "leaks": ("Leaks", {**CORRECT, "merges": False}),
    "never-disabled": ("NeverDisabled", CORRECT),
    "not-enabled-after-error": ("NotEnabledAfterError", CORRECT),
    "disables-undeclared": ("Delta", {**CORRECT, "disables": False}),
    "states-other-roles": ("Delta", {**CORRECT, "roles": {"up"}}),
    "reads-undeclared": ("ReadsUndeclared", CORRECT),
    "unseeded": ("Unseeded", CORRECT),
    "pickled": ("Pickled", CORRECT),
    "frozen-after-restore": ("FrozenAfterRestore", CORRECT),
    "breaks-at-the-end": ("BreaksAtTheEnd", CORRECT),
    "rounds-steps": ("RoundsSteps", CORRECT),
    "casts-nothing": ("CastsNothing", CORRECT),
    "counts-from-zero": ("CountsFromZero", {**CORRECT, "merges": False}),
    "annealed": ("Annealed", CORRECT),
    "anneals-by-the-old-total": ("AnnealsByTheOldTotal", CORRECT),
    "anneals-in-training-only": ("AnnealsInTrainingOnly", CORRECT),
    "looks-back": ("LooksBack", {"merges": False}),
}


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name=name,
            summary=name,
            factory=f"broken_adapters:{cls}",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            **traits,
            api=2,
        )
        for name, (cls, traits) in VARIANTS.items()
    ]


class Delta:
    def __init__(self, options):
        pass

    def attach(self, base, ctx, total_steps):
        import torch

        deltas = {}
        for name, layer in base.model.named_modules():
            if name.endswith(("q_proj", "o_proj")):
                start = self.start((layer.out_features, layer.in_features)).to(self.dtype(ctx))
                deltas[name] = torch.nn.Parameter(start.to(ctx.device))
                layer.register_parameter("delta", deltas[name])
        self.prepare(base)
        return Adapted(self, base, deltas, total_steps)

    def start(self, shape):
        import torch

        return torch.zeros(shape)

    def dtype(self, ctx):
        return ctx.trained_dtype

    def fit(self, tensor, like):
        return tensor.to(like.dtype)

    def prepare(self, base):
        pass

    def added(self, x, delta):
        return x @ delta.T  # (B, T, in) @ (in, out)

    def state(self, adapted):
        return {"steps": adapted.steps, "momentum": True}

    def total(self, state, total_steps):
        return total_steps

    def strength(self, steps, total_steps):
        return 1 + 0.05 * steps

    @contextlib.contextmanager
    def disabled(self, adapted):
        adapted.active = False
        try:
            yield
        finally:
            adapted.active = True

    def step(self, adapted):
        pass

    def store(self, tensors, path):
        from safetensors.torch import save_file

        save_file(tensors, str(path / FILE))

    def stored(self, path):
        from safetensors.torch import load_file

        return load_file(str(path / FILE))

    def restore(self, base, path, ctx, total_steps):
        tensors, state = self.stored(path), json.loads((path / STATE).read_text())
        adapted = self.attach(base, ctx, self.total(state, total_steps))
        for name, delta in adapted.deltas.items():
            delta.data.copy_(tensors[name])
            adapted.before[name] = tensors.get(f"{name}.before", tensors[name]).clone()
        adapted.steps = state.get("steps", 0)
        return adapted

    def merge(self, dense, path):
        tensors, state = self.stored(path), json.loads((path / STATE).read_text())
        strength = self.strength(state.get("steps", 0), state.get("total"))
        for name, delta in tensors.items():
            if not name.endswith(".before"):
                self.fold(dense, name, strength * delta)
        return dense

    def fold(self, dense, name, delta):
        dense.get_submodule(name).weight.data += delta


class Adapted:
    def __init__(self, adapter, base, deltas, total_steps):
        self.adapter, self.base, self.model, self.deltas = adapter, base, base.model, deltas
        self.total_steps = total_steps
        self.active, self.steps = True, 0
        self.before = {n: d.detach().clone() for n, d in deltas.items()}
        for name, delta in deltas.items():
            base.model.get_submodule(name).register_forward_hook(
                lambda layer, args, out, delta=delta: self.output(args[0], out, delta)
            )

    def output(self, x, out, delta):
        if not self.active:
            return out
        added = self.adapter.added(self.adapter.fit(x, delta), delta)
        return out + self.adapter.strength(self.steps, self.total_steps) * self.adapter.fit(added, out)

    def disabled(self):
        return self.adapter.disabled(self)

    def on_step(self, step):
        self.steps += 1
        for name, delta in self.deltas.items():
            now = delta.detach().clone()
            delta.data += 0.5 * (now - self.before[name])
            self.before[name] = now
        self.adapter.step(self)

    def save(self, path):
        path.mkdir(parents=True, exist_ok=True)
        state = self.adapter.state(self)
        tensors = {n: d.detach().clone() for n, d in self.deltas.items()}
        if state.pop("momentum"):
            tensors |= {f"{n}.before": t.clone() for n, t in self.before.items()}
        self.adapter.store(tensors, path)
        (path / STATE).write_text(json.dumps(state))


class Kept(Delta):
    """Initially changes the output, and declares that it can be neither merged nor disabled."""

    def start(self, shape):
        import torch

        return 0.02 * torch.randn(shape)

    def merge(self, dense, path):
        raise UnsupportedOp("this adapter cannot be merged")

    def disabled(self, adapted):
        raise UnsupportedOp("this adapter cannot be disabled")


class NoIdentity(Delta):
    def start(self, shape):
        import torch

        return 0.02 * torch.randn(shape)


class BaseTrains(Delta):
    def prepare(self, base):
        base.model.get_submodule("model.norm").requires_grad_(True)


class BaseDrifts(Delta):
    """Changes a weight of the base in each step, without a gradient."""

    def step(self, adapted):
        adapted.model.get_submodule("model.norm").weight.data *= 1.0001


class GradientFactor(Delta):
    def added(self, x, delta):
        return super().added(x, delta + 0.1 * (delta - delta.detach()))


class MergedTransposed(Delta):
    def fold(self, dense, name, delta):
        super().fold(dense, name, delta.T)


class MergedTwice(Delta):
    def fold(self, dense, name, delta):
        super().fold(dense, name, 2 * delta)


class MergedWithoutBias(Delta):
    def fold(self, dense, name, delta):
        super().fold(dense, name, delta)
        dense.get_submodule(name).bias.data.zero_()


class ForgetsStrength(Delta):
    def state(self, adapted):
        return {"momentum": True}


class ForgetsMomentum(Delta):
    def state(self, adapted):
        return {"steps": adapted.steps, "momentum": False}


class Leaks(Delta):
    """Adds a part of its output for the previous token, even if that belongs to another row."""

    def merge(self, dense, path):
        raise UnsupportedOp("this adapter cannot be merged")

    def added(self, x, delta):
        own = super().added(x, delta)
        return own + 0.1 * own.roll(1, dims=1)


class CountsFromZero(Delta):
    """Treats the first token of each forward as the first of the row."""

    def merge(self, dense, path):
        raise UnsupportedOp("this adapter cannot be merged")

    def added(self, x, delta):
        import torch

        own = super().added(x, delta)
        return torch.cat([2 * own[:, :1], own[:, 1:]], dim=1)


class LooksBack(Delta):
    """Adds a part of its output for the previous token, which a forward on one token does not have."""

    def merge(self, dense, path):
        raise UnsupportedOp("this adapter cannot be merged")

    def added(self, x, delta):
        from torch.nn import functional as F

        own = super().added(x, delta)
        return own + 0.1 * F.pad(own, (0, 0, 1, 0))[:, :-1]


class NeverDisabled(Delta):
    def disabled(self, adapted):
        return contextlib.nullcontext()


class NotEnabledAfterError(Delta):
    """Is enabled again only if the context ends without an exception."""

    @contextlib.contextmanager
    def disabled(self, adapted):
        adapted.active = False
        yield
        adapted.active = True


class ReadsUndeclared(Delta):
    def prepare(self, base):
        for layer in base.model.modules():
            if (ops := base.ops_for(layer)) is not None:
                ops.read_weight()


class Unseeded(Delta):
    """Starts with a tiny random offset that does not depend on the seed."""

    def start(self, shape):
        import random

        import torch

        return 1e-14 * torch.full(shape, random.SystemRandom().random(), dtype=torch.float64)


class Pickled(Delta):
    def store(self, tensors, path):
        import torch

        torch.save(tensors, path / "delta.bin")

    def stored(self, path):
        import torch

        return torch.load(path / "delta.bin")


class FrozenAfterRestore(Delta):
    def restore(self, base, path, ctx, total_steps):
        adapted = super().restore(base, path, ctx, total_steps)
        adapted.model.requires_grad_(False)
        return adapted


class BreaksAtTheEnd(Delta):
    """Divides by the number of remaining steps."""

    def step(self, adapted):
        if adapted.total_steps is not None:
            1 / (adapted.total_steps - adapted.steps)


class Annealed(Delta):
    """Its strength falls to a half over the run. For inference, it keeps the strength that it was saved with."""

    def strength(self, steps, total_steps):
        return 1.0 if total_steps is None else 1 - 0.5 * min(steps / total_steps, 1)

    def state(self, adapted):
        return {"steps": adapted.steps, "total": adapted.total_steps, "momentum": True}

    def total(self, state, total_steps):
        return state["total"] if total_steps is None else total_steps


class AnnealsByTheOldTotal(Annealed):
    def total(self, state, total_steps):
        return state["total"]


class AnnealsInTrainingOnly(Annealed):
    """Computes its strength from `total_steps`, which is None in inference."""

    def total(self, state, total_steps):
        return total_steps


class RoundsSteps(Delta):
    """Trains in the dtype of the run, even in half precision."""

    def dtype(self, ctx):
        return ctx.torch_dtype


class CastsNothing(Delta):
    """Keeps its matrices in float32 for inference too, and does not cast its input or output."""

    def dtype(self, ctx):
        import torch

        return torch.promote_types(ctx.torch_dtype, torch.float32)

    def fit(self, tensor, like):
        return tensor
