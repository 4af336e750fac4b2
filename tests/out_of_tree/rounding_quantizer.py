"""An out-of-tree quantizer that writes checkpoints: each row of a weight is rounded to the nearest int8.

The checkpoint holds integers and one scale per row. Loading turns the layers into ordinary ones again. A real method
would use the calibration to choose how to clip the rows; this one only writes the number of calibration tokens to the
config.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import Base, BuildContext, ModelSource, Op, QuantizerSpec, fingerprint, hookimpl, option

METHOD = "rounding"


@dataclass(frozen=True, kw_only=True)
class RoundingOptions:
    bits: int = option(8, "Bits of a weight.", ge=2, le=8)


def _claims(config):
    return (config.get("quantization_config") or {}).get("quant_method") == METHOD


@hookimpl
def smollm3_quantizers():
    about = {
        "factory": "rounding_quantizer:RoundingQuantizer",
        "options": "rounding_quantizer:RoundingOptions",
        "provides": {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT},
        "absent": dict.fromkeys((Op.DENSE, Op.GRAD_WEIGHT), "weights are rounded"),
    }
    return [
        QuantizerSpec(name=METHOD, summary="rows rounded to the nearest integer", claims=_claims, api=2, **about),
        QuantizerSpec(
            name="rounding-rows",
            summary="the same, with calibration rows",
            needs_calibration=True,
            **{**about, "factory": "rounding_quantizer:CalibratedQuantizer"},
            api=2,
        ),
    ]


class RoundingQuantizer:
    calibrated = False

    def __init__(self, options):
        self.options = options

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        import torch
        from safetensors.torch import save_file

        assert ctx.purpose == "quantize"
        assert not list(out.iterdir())
        tokens = sum(len(row) for row in ctx.calibration()) if self.calibrated else 0
        model = source.load(dtype=torch.float32)
        linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
        top, state = 2 ** (self.options.bits - 1) - 1, {}
        for name, tensor in model.named_parameters():
            if name.removesuffix(".weight") in linear:
                scale = tensor.detach().abs().amax(1, keepdim=True) / top  # (out, 1)
                state[f"{name}.int8"] = (tensor.detach() / scale).round().to(torch.int8)
                state[f"{name}.scale"] = scale
            else:
                state[name] = tensor.detach().to(ctx.torch_dtype).clone()
        save_file(state, str(out / "model.safetensors"))
        about = {"quant_method": METHOD, "bits": self.options.bits, "tokens": tokens}
        (out / "config.json").write_text(json.dumps({**source.config, "quantization_config": about}))

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM

        config = {k: v for k, v in source.config.items() if k != "quantization_config"}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=ctx.torch_dtype)
        state = load_file(str(source.path / "model.safetensors"))
        for name in [n for n in state if n.endswith(".int8")]:
            whole = name.removesuffix(".int8")
            state[whole] = state.pop(name).float() * state.pop(f"{whole}.scale")
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unexpected
        model.tie_weights()
        model.requires_grad_(False)
        model.to(ctx.device)
        return Base(model=model, fingerprint=fingerprint(METHOD, source.fingerprint))


class CalibratedQuantizer(RoundingQuantizer):
    calibrated = True
