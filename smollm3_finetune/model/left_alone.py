"""Parts of a model that methods for linear layers leave alone: stacked experts, and what only images or sound use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import expert_stacks
from smollm3_finetune.model.plan import NO_QUANTIZER, ModelPlan
from smollm3_finetune.model_files.skeleton import skeleton

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.model.load import LoadedModel

EXPERTS = "the experts"
TEXT_PARTS = ("text_config", "quantization_config", "generation_config")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model, and its share of the weights."""

    title: str
    parameters: int
    share: float
    """Of all parameters of the model."""
    modules: tuple[str, ...]
    """The modules that contain it."""

    @property
    def subject(self) -> str:
        share = f"{self.share:.1%}" if self.share < 0.995 else "over 99%"
        return f"{self.title} ({share} of the weights)"


@dataclass(frozen=True, kw_only=True)
class LeftAlone:
    """A part that a loaded model leaves unquantized or untrained."""

    part: Part
    quantized: bool | None
    """None: the run has no quantizer, or the part has linear layers, which quantizers reach."""
    trained: bool

    @property
    def line(self) -> str:
        if self.part.title == EXPERTS:
            reason = "are not linear layers"
            state = "neither quantized nor trained" if self.quantized is False else "not trained"
            if self.trained:
                state = "trained, but not quantized"
            return f"{self.part.subject} {reason}: {state}"
        return f"{self.part.subject}: not trained, because text does not reach it"

    def about(self) -> dict[str, Any]:
        """The entry of `report.json`."""
        return {**asdict(self.part), "quantized": self.quantized, "trained": self.trained, "line": self.line}


def parts(config: Mapping[str, Any]) -> list[Part]:
    """The parts of the architecture that a `config.json` describes; empty if transformers does not know it.

    Builds the architecture only if the config mentions experts or an encoder: other models have no such part.
    """
    if not _mentions_parts(config) or (model := skeleton(config)) is None:
        return []
    total = sum(p.numel() for p in model.parameters())
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    stacks = [name for name in expert_stacks(model) if name in sizes]
    outside = _outside_text(model)
    stacks = [name for name in stacks if not name.startswith(tuple(f"{o}." for o in outside) or ("\0",))]
    found = []
    if stacks:
        size = sum(sizes[name] for name in stacks)
        owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in stacks))
        found.append(Part(title=EXPERTS, parameters=size, share=size / total, modules=owners))
    for module in outside:
        size = sum(n for name, n in sizes.items() if name.startswith(f"{module}."))
        if size:
            found.append(Part(title=module, parameters=size, share=size / total, modules=(module,)))
    return found


def planned_lines(plan: ModelPlan) -> list[str]:
    """What a plan can say about the parts before weights are read."""
    lines = []
    for part in parts(plan.source.config):
        if part.title == EXPERTS:
            lines.append(
                f"{part.subject} are not linear layers, and not every method reaches them: "
                "the report states whether they are quantized and trained"
            )
        else:
            lines.append(f"{part.subject}: text does not reach it")
    return lines


def left_alone(loaded: LoadedModel) -> list[LeftAlone]:
    """The parts of a loaded model that are not quantized or not trained."""
    found = []
    named = list(loaded.model.named_parameters())
    trained = [name for name, p in named if p.requires_grad]
    for part in parts(loaded.plan.source.config):
        is_trained = any(f"{module}." in f"{name}." for module in part.modules for name in trained)
        quantized: bool | None = None
        if part.title == EXPERTS and loaded.plan.quantizer.component.spec.name != NO_QUANTIZER:
            quantized = not any(p.ndim == 3 and p.is_floating_point() and _is_in(name, part) for name, p in named)
        if not is_trained or quantized is False:
            found.append(LeftAlone(part=part, quantized=quantized, trained=is_trained))
    return found


def _is_in(name: str, part: Part) -> bool:
    return any(f"{module}." in name for module in part.modules)


def _mentions_parts(config: Mapping[str, Any]) -> bool:
    """Whether a config, or one inside it, states a number of experts, or has a config of an encoder."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            inside = key.endswith("_config") and key not in TEXT_PARTS
            if inside or (key == "text_config" and _mentions_parts(value)):
                return True
        elif "expert" in key and isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return True
    return False


def _outside_text(model: nn.Module) -> list[str]:
    """The outermost modules of a composite model that are outside of its text model and its head."""
    any_model: Any = model
    if any_model.config.get_text_config() is any_model.config:
        return []
    inner = [any_model.get_decoder(), any_model.get_output_embeddings(), any_model.get_input_embeddings()]
    kept = [name for name, module in model.named_modules() if any(module is i for i in inner)]
    if not kept:
        return []
    return [
        name
        for name, module in model.named_modules()
        if name
        and not any(name == k or k.startswith(f"{name}.") or name.startswith(f"{k}.") for k in kept)
        and any(k == p or k.startswith(f"{p}.") or not p for k in kept for p in (name.rpartition(".")[0],))
        and any(True for _ in module.parameters())
    ]
