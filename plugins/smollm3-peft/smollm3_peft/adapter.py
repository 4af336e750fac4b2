"""PEFT's methods on any base: attach, restore, merge, and the adapted model that the trainer gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from smollm3_finetune.api import (
    AdapterSpec,
    Base,
    BuildContext,
    IncompatibleError,
    ModelError,
    Purpose,
    UnsupportedOp,
)
from smollm3_peft import peft_config, peft_patches
from smollm3_peft.linear_view import LinearView, views_in
from smollm3_peft.methods import component, peft_type, refined
from smollm3_peft.model_card import write_card
from smollm3_peft.options import MethodOptions

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

Biases = list[tuple[nn.Parameter, torch.Tensor]]
"""Biases that are trained, each with the values that it has in the base."""


class PeftAdapted:
    """A model with one of PEFT's adapters on it."""

    def __init__(self, model: PeftModel, base: Base, spec: AdapterSpec, biases: Biases) -> None:
        self.model = model
        self.base = base
        self.saver = _Saver(model)
        self._spec = spec
        self._biases = biases
        model.save_pretrained = self.saver

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone, while the context is open; what is trained is the same afterwards."""
        if not self._spec.disables:
            raise UnsupportedOp(
                f"adapter {self._spec.name!r} moved part of the base into itself, so the base alone is not there",
                hint="--adapter-opt init=default",
            )
        trained = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            with peft_patches.quiet(), self._base_biases(), self.model.disable_adapter():
                yield
        finally:
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    @contextmanager
    def _base_biases(self) -> Iterator[None]:
        """The base's own biases meanwhile: PEFT leaves trained ones in when it disables an adapter."""
        own = [parameter.detach().clone() for parameter, _ in self._biases]
        try:
            _copy_all((parameter, value) for parameter, value in self._biases)
            yield
        finally:
            _copy_all((parameter, value) for (parameter, _), value in zip(self._biases, own, strict=True))

    def on_step(self, step: int) -> None:
        """Nothing: most methods have no schedule of their own."""

    def save(self, path: Path) -> None:
        """Write PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`."""
        self.model.save_pretrained(str(path))


class PeftAdapter:
    """Any method of PEFT that replaces modules; which one, the options class says."""

    adapted_class: type[PeftAdapted] = PeftAdapted

    def __init__(self, options: MethodOptions) -> None:
        self.options = options
        self.method = options.method
        self.spec = refined(options.method, options)

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> PeftAdapted:
        """Put a fresh adapter on `base`.

        Raises:
            ConfigError: for options that do not fit the model.
            UnsupportedOp: when the method needs more than the quantized layers offer.
            IncompatibleError: when the adapted model does not start as the base although the method should.
        """
        self.check_operations(base)
        config = peft_config.build(self.options, base, **self.schedule(total_steps))
        config.base_model_name_or_path = base.model.name_or_path
        biases = _bias_copies(base.model, config)
        before = peft_patches.probe(base.model, _vocabulary(base.model)) if self.spec.identity_at_start else None
        with (
            peft_patches.seeded(ctx),
            self._injecting(base, ctx),
            peft_patches.explained(f"adapter {self.method!r} cannot be attached"),
        ):
            model = get_peft_model(base.model, config)
        config.base_model_name_or_path = base.model.name_or_path
        if before is not None:
            after = peft_patches.probe(model, _vocabulary(base.model))
            peft_patches.check_identity(before, after, _tolerance(model, ctx), self.method)
        peft_patches.widen_trained(model, ctx.trained_dtype)
        return self.adapted(model, base, biases)

    def restore(self, base: Base, path: Path, ctx: BuildContext) -> PeftAdapted:
        """Put a saved adapter on `base`.

        Raises:
            ModelError: when `path` holds no adapter of this method, or one for another model.
        """
        self.check_operations(base)
        config = self.read_config(path)
        biases = _bias_copies(base.model, config)
        trainable = ctx.purpose is Purpose.TRAIN
        with (
            peft_patches.seeded(ctx),
            self._injecting(base, ctx),
            peft_patches.explained(f"the adapter in {path} does not fit this model", ModelError),
        ):
            model = self.load(base.model, path, config, trainable)
        config.base_model_name_or_path = base.model.name_or_path
        if not trainable:
            model.requires_grad_(False)
        elif peft_patches.widen_trained(model, ctx.trained_dtype):  # which were rounded when they were loaded
            set_peft_model_state_dict(model, load_file(str(path / WEIGHTS_FILE)))
        return self.adapted(model, base, biases)

    def merge(self, dense: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Fold a saved adapter into `dense` and return the plain model, embeddings tied as before.

        Raises:
            UnsupportedOp: for methods that are no change of weights.
        """
        if not self.spec.merges:
            raise UnsupportedOp(
                f"adapter {self.method!r} is no change of weights, so it cannot be merged",
                hint="keep the adapter beside its base: smollm3 generate RUN",
            )
        config = self.read_config(path)
        base = Base(model=dense, fingerprint="")
        tied = bool(getattr(dense.config, "tie_word_embeddings", False))
        with (
            peft_patches.quiet(),
            peft_patches.explained(f"the adapter in {path} cannot be merged into this model", ModelError),
        ):
            with peft_patches.only_plain_backends(), peft_patches.new_tensors_in(dense, dense.dtype):
                model = self.load(base.model, path, config, trainable=False)
            _merge_tied_once(model.get_base_model())
            merged: PreTrainedModel = model.merge_and_unload()
        merged.requires_grad_(False)
        if tied and not _tied(merged):
            raise IncompatibleError(
                "the merged model would no longer tie its embeddings to its head",
                hint="train the adapter without embed_tokens and lm_head",
            )
        merged.config.tie_word_embeddings = tied
        return merged

    def check_operations(self, base: Base) -> None:
        """Raises UnsupportedOp when a quantized layer has not all operations that the method needs."""
        for name, layer in base.model.named_modules():
            ops = base.ops_for(layer)
            missing = () if ops is None else sorted(set(self.spec.needs) - ops.ops)
            if missing:
                raise UnsupportedOp(
                    f"adapter {self.method!r} needs {', '.join(missing)}, and the quantized {name!r} does not offer it",
                    hint="--adapter lora" if self.method != "lora" else "--adapter-opt init=default",
                )

    def schedule(self, total_steps: int | None) -> dict[str, Any]:
        """More arguments for PEFT's config, from the length of the run."""
        return {}

    def adapted(self, model: PeftModel, base: Base, biases: Biases) -> PeftAdapted:
        """The adapted model."""
        return self.adapted_class(model, base, self.spec, biases)

    def load(self, model: nn.Module, path: Path, config: PeftConfig, trainable: bool) -> PeftModel:
        """PEFT's own loading, which must find every tensor it wants."""
        with peft_patches.quiet():
            loaded = PeftModel.from_pretrained(
                model, str(path), config=config, is_trainable=trainable, torch_device=str(_device(model))
            )
            _check_names(loaded, path)
        return loaded

    def read_config(self, path: Path) -> PeftConfig:
        """The config of a saved adapter, checked to be one of this method.

        Raises:
            ModelError: when a file is missing, unreadable, or another method's.
        """
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (path / name).is_file():
                raise ModelError(f"{path} holds no adapter: {name} is missing", hint=f"ls {path}")
        try:
            found = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))["peft_type"]
        except (ValueError, KeyError, TypeError) as e:
            raise ModelError(f"{path / CONFIG_FILE} is not the config of an adapter: {e}") from e
        if found != peft_type(self.method):
            raise ModelError(
                f"the adapter in {path} is of PEFT's type {found}, and {self.method!r} was asked for",
                hint=f"--adapter {component(str(found))}",
            )
        with peft_patches.quiet(), peft_patches.explained(f"{path / CONFIG_FILE} cannot be read", ModelError):
            config = PeftConfig.from_pretrained(str(path))
        return peft_config.serve_plain_layers(config)

    @contextmanager
    def _injecting(self, base: Base, ctx: BuildContext) -> Iterator[None]:
        """Everything that PEFT must not see otherwise, while it changes the model."""
        with (
            peft_patches.quiet(),
            peft_patches.only_plain_backends(),
            peft_patches.new_tensors_in(base.model, ctx.torch_dtype),
            views_in(base.model, base.ops_for, ctx.torch_dtype),
        ):
            yield


class _Saver:
    """Takes the place of `save_pretrained`, also for the trainer's checkpoints: PEFT's own asks the Hub two things."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[Path], None] = lambda path: None
        model.create_or_update_model_card = lambda directory: write_card(Path(directory), model)

    def __call__(self, save_directory: str, **kwargs: Any) -> None:
        kwargs["save_embedding_layers"] = False
        path = Path(save_directory)
        self.before()
        try:
            with peft_patches.quiet():
                type(self.model).save_pretrained(self.model, str(path), **kwargs)
        finally:
            self.after(path)


def _copy_all(pairs: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(value)


def _bias_copies(model: nn.Module, config: PeftConfig) -> Biases:
    """The biases of a bare base, each with a copy of its values, where the adapter trains biases."""
    if getattr(config, "bias", "none") == "none":
        return []
    named = model.named_parameters()
    return [(parameter, parameter.detach().clone()) for name, parameter in named if name.endswith("bias")]


def _check_names(model: PeftModel, path: Path) -> None:
    """Raises ModelError unless the tensors of a saved adapter are those that the model takes: PEFT only warns."""
    with safe_open(str(path / WEIGHTS_FILE), framework="pt") as tensors:
        found = set(tensors.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    missing = sorted(expected - found)
    unknown = sorted(found - expected - set(model.state_dict()))
    for names, fault in ((missing, "lacks tensors that this model needs"), (unknown, "has tensors for other modules")):
        if names:
            raise ModelError(
                f"the adapter in {path} {fault}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""),
                hint="give the base that it was trained on",
            )


def _merge_tied_once(model: PreTrainedModel) -> None:
    """Let the head of a tied model follow the embeddings' merge: PEFT would add the same update to the weight twice."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, BaseTunerLayer) and isinstance(embeddings, BaseTunerLayer):
        weights = [layer.get_base_layer().weight.data_ptr() for layer in (head, embeddings)]
        if weights[0] == weights[1]:
            head.merge = _merge_nothing


def _merge_nothing(*args: Any, **kwargs: Any) -> None:
    """The shared weight is merged through the embeddings."""


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _tolerance(model: nn.Module, ctx: BuildContext) -> float:
    """How far the logits may be from the base's: rounding, and ten times what the quantized forward rounds itself."""
    rounding = 1e-3 if ctx.dtype in ("float32", "float64") else 5e-2
    views = [module for module in model.modules() if isinstance(module, LinearView)]
    return rounding + 10 * max((view.ops.forward_rtol for view in views), default=0.0)


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
