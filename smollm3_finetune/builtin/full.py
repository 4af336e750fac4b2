"""Adapter `full`: full fine-tuning, which trains the weights of the model and adds no adapter."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ConfigError,
    ModelError,
    Role,
    UnsupportedOp,
    is_resource_error,
    open_tensors,
)
from smollm3_finetune.builtin.options import FullOptions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class FullAdapter:
    def __init__(self, options: FullOptions) -> None:
        self.options = options

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> FullyTrained:
        self._to_trained_dtype(base, ctx)
        patterns = self.options.parameters
        trained = 0
        for name, parameter in base.model.named_parameters():
            train = not patterns or any(fnmatch(name, glob) for glob in patterns)
            parameter.requires_grad_(train)
            trained += train
        if not trained:
            raise ConfigError(
                f"no parameter matches --adapter-opt parameters={','.join(patterns)}",
                hint=f"names look like {next(iter(base.model.named_parameters()))[0]!r}",
            )
        return FullyTrained(base)

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> FullyTrained:
        self._to_trained_dtype(base, ctx)  # before loading the saved weights, which would otherwise be rounded
        _load_weights(base.model, path)
        if ctx.purpose == "train":
            return self.attach(base, ctx, total_steps)
        return FullyTrained(base)

    def _to_trained_dtype(self, base: Base, ctx: BuildContext) -> None:
        if self.options.master_weights and ctx.trained_dtype != ctx.torch_dtype:
            base.model.to(ctx.trained_dtype)

    def merge(self, dense: PreTrainedModel, path: Path) -> PreTrainedModel:
        _load_weights(dense, path)
        return dense


class FullyTrained:
    def __init__(self, base: Base) -> None:
        self.base = base
        self.model = base.model

    def disabled(self) -> AbstractContextManager[None]:
        raise UnsupportedOp("adapter 'full' changes the base, so the original is not available for comparison")

    def parameter_roles(self) -> Mapping[str, Role]:
        """The role of each parameter, from its dimensions and the module that has it."""
        from torch import nn

        embeddings = {id(self.model.get_input_embeddings()), id(self.model.get_output_embeddings())}
        found = {}
        for path, module in self.model.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{attribute}" if path else attribute
                if attribute.endswith("bias"):
                    found[name] = Role.BIAS
                elif id(module) in embeddings or isinstance(module, nn.Embedding):
                    found[name] = Role.EMBEDDING
                elif parameter.ndim > 1:
                    found[name] = Role.WEIGHT
                else:
                    found[name] = Role.NORM if "norm" in type(module).__name__.lower() else Role.OTHER
        return found

    def on_step(self, step: int) -> None:
        pass

    def save(self, path: Path) -> None:
        from transformers import GenerationConfig

        own = self.model.generation_config
        self.model.generation_config = GenerationConfig()  # transformers refuses to save an inconsistent one
        try:
            self.model.save_pretrained(str(path))
        finally:
            self.model.generation_config = own


def _load_weights(model: PreTrainedModel, path: Path) -> None:
    """Replace the weights of `model` by those saved in `path`. Raises ModelError if they do not fit."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} holds no weights (*.safetensors)")
    state: dict[str, Tensor] = {}
    for file in files:
        with open_tensors(file) as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  (not a mapping)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as e:  # a different shape
        if is_resource_error(e):
            raise
        raise ModelError(f"the weights in {path} belong to another model: {str(e).splitlines()[-1].strip()}") from e
    tied = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
    lost = [n for n in missing if n not in tied and n in dict(model.named_parameters())]
    if lost or unexpected:
        name = (lost or unexpected)[0]
        raise ModelError(f"the weights in {path} belong to another model: {name!r} does not fit")
    model.tie_weights()
