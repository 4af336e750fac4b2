"""Adapters that train alike on every base, but cannot be trained with preferences: one drifts, one mixes branches."""

from smollm3_finetune.api import AdaptedLayers, AdapterSpec, Op, hookimpl, layers_to_adapt


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name=name,
            summary="a faulty factor for each output channel",
            factory=f"faulty_preferences:{name.capitalize()}",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            merges=False,
            api=2,
        )
        for name in ("drifting", "mixing")
    ]


class _Faulty:
    start = 1.0

    def __init__(self, options):
        pass

    def attach(self, base, ctx, total_steps):
        import torch

        adapted = Stepping(base)
        for name, layer in layers_to_adapt(base, ["o_proj"]).items():
            factors = torch.full((layer.out_features,), self.start, dtype=ctx.trained_dtype, device=ctx.device)
            adapted.add(name, "factors", torch.nn.Parameter(factors), self.changed(adapted))
        return adapted

    def restore(self, base, path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)


class Stepping(AdaptedLayers):
    """It counts its steps, in a tensor that is saved but not trained."""

    def __init__(self, base):
        import torch

        super().__init__(base)
        self.steps = torch.zeros((), dtype=torch.int64)

    def on_step(self, step):
        self.steps.fill_(step)

    def tensors(self):
        return {**super().tensors(), "steps": self.steps}


class Drifting(_Faulty):
    """Its effect grows with the steps, also if the trained factors are those of the start."""

    def changed(self, adapted):
        return lambda factors, x, y: y * (factors * (1 + 0.01 * float(adapted.steps))).to(y)


class Mixing(_Faulty):
    """It adds the output of the token before, which in a sequence of branches may belong to another branch."""

    start = 0.0

    def changed(self, adapted):
        def add_previous(factors, x, y):
            from torch.nn import functional as F

            return y + factors.to(y) * F.pad(y, (0, 0, 1, 0))[:, :-1]  # (B, T, D)

        return add_previous
