"""For quantizers: which layers of a model to quantize, what to refuse, and a view of a layer that dequantizes.

All of it can be had from `smollm3_finetune.api`. torch and transformers are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api.capabilities import Op
from smollm3_finetune.api.models import BuildContext, ModelSource
from smollm3_finetune.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

GROUP_SIZES = (256, 128, 64, 32, 16, 8)
"""To propose where one does not fit, largest first."""

EXACT_IN: Mapping[str, frozenset[str]] = {
    "bfloat16": frozenset({"bfloat16", "float32", "float64"}),
    "float16": frozenset({"float16", "float32", "float64"}),
    "float32": frozenset({"float32", "float64"}),
    "float64": frozenset({"float64"}),
}
"""In which run dtypes the values of a checkpoint of one dtype survive unrounded."""

READABLE = frozenset({Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT})


@dataclass(frozen=True)
class DequantizingOps:
    """The `LinearOps` of a frozen layer that multiplies by its dequantized weight, forward and backward."""

    layer: Any
    """With `out_features` and `in_features`."""
    read: Callable[[Any], Tensor]
    """The layer's dequantized weight (out, in), as a new tensor."""
    compute: torch.dtype
    """To which the forward rounds that weight: the dtype in which the model computes."""

    @property
    def ops(self) -> frozenset[Op]:
        return READABLE

    @property
    def forward_rtol(self) -> float:
        """0: the layer dequantizes and multiplies."""
        return 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    def read_weight(self) -> Tensor:
        """The weight (out, in) that the forward multiplies by, as a new tensor, float32 or wider."""
        import torch

        with torch.no_grad():
            weight = self.read(self.layer)
            wide = torch.promote_types(weight.dtype, torch.float32)
            return weight.to(self.compute).to(wide)


def architecture_of(source: ModelSource) -> PreTrainedModel | None:
    """The model of a source on the meta device, without weights; None where it is not one of transformers' own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in source.config.items() if k not in ("model_type", "quantization_config")}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(str(source.config.get("model_type")), **values)
            )
    except Exception:  # custom code, or a config of another version: the caller looks at the loaded model instead
        return None
    return model


def layers_to_quantize(
    model: PreTrainedModel, quantizer: str, source: ModelSource, skip_modules: Sequence[str] = ()
) -> dict[str, nn.Linear]:
    """Name to layer, of the linear layers of `model` but its output head and what `skip_modules` names.

    A name to skip is a run of whole parts of a layer's dotted name: `k_proj`, `layers.0`, the name itself. Raises
    ConfigError for one that no layer has, IncompatibleError where no layer is left; `quantizer` is the name to blame.
    """
    from torch import nn

    head = model.get_output_embeddings()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    for key in skip_modules:
        if not any(_within(key, name) for name in linears):
            raise ConfigError(
                f"{quantizer}: skip_modules names {key!r}, which is no linear layer of {source.ref!r} and holds none",
                hint=f"its linear layers are {', '.join(sorted({n.rsplit('.', 1)[-1] for n in linears})) or 'none'}",
            )
    found = {n: m for n, m in linears.items() if not any(_within(key, n) for key in skip_modules)}
    if not found:
        raise IncompatibleError(f"{quantizer} finds no linear layer to quantize in {source.ref!r}", hint="--quant none")
    return found


def _within(key: str, name: str) -> bool:
    return f".{key}." in f".{name}."


def refuse_quantized(quantizer: str, source: ModelSource, hint: str = "name the full-precision checkpoint") -> None:
    """Raises IncompatibleError for a source whose `config.json` says that it is quantized already. Light."""
    stored = source.config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, Mapping) else None
        raise IncompatibleError(
            f"{quantizer} cannot load {source.ref!r}: its weights are already quantized by "
            f"{method or 'another method'}",
            hint=hint,
        )


def group_size_error(
    quantizer: str, group_size: int, what: str, features: Sequence[int], *, option: str = "group_size"
) -> ConfigError:
    """The error for groups that do not divide all of `features`; `what` are those that they do not divide.

    It proposes a size that does, or `none`, which an `option` of the type `int | None` takes for whole rows.
    """
    fitting = [size for size in GROUP_SIZES if not any(n % size for n in features)]
    hint = f"--quant-opt {option}={fitting[0]}" if fitting else f"--quant-opt {option}=none takes whole rows"
    return ConfigError(f"{quantizer}: groups of {group_size} do not divide {what}", hint=hint)


def rounding_dtype(source: ModelSource, ctx: BuildContext, seen_in: str | None = None) -> str | None:
    """The run's dtype where it rounds the checkpoint's values before they are quantized, else None.

    `seen_in` is the dtype to which the method itself casts them first, where it does (`float32`): a run in that dtype
    or a wider one then decides nothing. A part of `Base.fingerprint`: an adapter trained in bfloat16 finds the same
    base in float32 when the checkpoint is in bfloat16.
    """
    own = str(source.config.get("dtype") or source.config.get("torch_dtype") or "float32").removeprefix("torch.")
    exact = EXACT_IN.get(own, frozenset()) | EXACT_IN.get(seen_in or "", frozenset())
    return None if ctx.dtype in exact else ctx.dtype
