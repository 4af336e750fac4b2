"""An adapter whose numbers go bad at a chosen step, for the checks of a run; it extends scale_adapter.py."""

from dataclasses import dataclass

from scale_adapter import ScaleAdapter, ScaleOptions

from smollm3_finetune.api import AdapterSpec, Op, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class FailingOptions(ScaleOptions):
    how: str = option("weights", "weights: become nan; gradients: become inf; ruin: grow; frozen: get no gradient.")
    at: int = option(2, "The step.", ge=0)


@hookimpl
def smollm3_adapters():
    return [
        AdapterSpec(
            name="failing",
            summary="an adapter whose numbers go bad",
            factory="failing_adapter:FailingAdapter",
            options="failing_adapter:FailingOptions",
            needs={Op.FORWARD, Op.GRAD_INPUT},
            packs=True,
            api=2,
        )
    ]


class FailingAdapter(ScaleAdapter):
    def attach(self, base, ctx, total_steps):
        adapted = super().attach(base, ctx, total_steps)
        taken = [0]
        for scale in adapted.parts.values():
            scale.register_hook(lambda gradient: self.changed(gradient, taken[0] + 1))

        def on_step(step):
            taken[0] = step
            for scale in adapted.parts.values():
                if step >= self.options.at and self.options.how == "weights":
                    scale.data.fill_(float("nan"))
                elif step >= self.options.at and self.options.how == "ruin":
                    scale.data.mul_(-300)

        adapted.on_step = on_step
        return adapted

    def changed(self, gradient, step):
        if self.options.how == "frozen":
            return gradient * 0
        if self.options.how == "gradients" and step >= self.options.at:
            return gradient * float("inf")
        return gradient
