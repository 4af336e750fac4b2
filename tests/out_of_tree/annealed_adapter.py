"""A factor for each output, whose effect falls to zero over the run: an adapter with a schedule and with state."""

from smollm3_finetune.api import AdaptedLayers, AdapterSpec, Op, hookimpl, layers_to_adapt


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name="annealed",
            summary="a factor whose effect falls to zero",
            factory="annealed_adapter:AnnealedAdapter",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            merges=False,
            api=2,
        )
    ]


class AnnealedAdapter:
    def __init__(self, options):
        pass

    def attach(self, base, ctx, total_steps):
        import torch

        adapted = Annealed(base, total_steps)
        for name, layer in layers_to_adapt(base, ["o_proj"]).items():
            ones = torch.ones(layer.out_features, dtype=ctx.trained_dtype, device=ctx.device)
            adapted.add(name, "output_scale", torch.nn.Parameter(ones), adapted.scaled)
        return adapted

    def restore(self, base, path, ctx, total_steps):
        return self.attach(base, ctx, total_steps).restored(path, ctx)


class Annealed(AdaptedLayers):
    def __init__(self, base, total_steps):
        import torch

        super().__init__(base)
        self.total_steps = total_steps
        self.strengths = torch.ones(9, dtype=torch.float64)  # after each step; the last one is in use
        self.steps = torch.zeros((), dtype=torch.int64)

    def scaled(self, scale, x, y):
        return y * (1 + (scale - 1) * float(self.strengths[self.steps])).to(y)

    def on_step(self, step):
        self.steps.fill_(step)
        self.strengths[step] = 1 - step / self.total_steps

    def tensors(self):
        return {**super().tensors(), "strengths": self.strengths, "steps": self.steps}
