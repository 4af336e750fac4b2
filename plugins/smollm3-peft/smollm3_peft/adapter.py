"""Attach, restore and merge any PEFT method on any base; the adapted model that the trainer receives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from smollm3_finetune.api import (
    AdapterSpec,
    Base,
    BuildContext,
    MergedLayer,
    ModelError,
    Purpose,
    Role,
    UnsupportedOp,
    given,
    open_tensors,
    read_json,
    stack_ops_for,
)
from smollm3_peft import merged, peft_config, peft_patches, ties
from smollm3_peft.linear_view import LinearView, views_in
from smollm3_peft.methods import component, peft_type, refined
from smollm3_peft.options import MethodOptions
from smollm3_peft.roles import role_of
from smollm3_peft.saved_config import CONFIG_FILE, WEIGHTS_FILE, check_saved_config
from smollm3_peft.stack_view import stack_views_in
from smollm3_peft.unsuited import observe

PEFT_MOVES_TARGETS = (
    "adapter {!r}: PEFT without smollm3 cannot load this adapter: in this architecture, it would put parts of linear "
    "layers named gate_proj, up_proj or down_proj on the stacked experts"
)
Biases = list[tuple[nn.Parameter, torch.Tensor]]
"""Trained biases, each with its values in the base."""


class PeftAdapted:
    """A model with a PEFT adapter."""

    def __init__(self, model: PeftModel, base: Base, spec: AdapterSpec, biases: Biases) -> None:
        self.model = model
        self.base = base
        self.saver = _Saver(model)
        self.loads_alone = not peft_patches.moves_targets(model.peft_config[model.active_adapter], base.model)
        self._spec = spec
        self._biases = biases
        model.save_pretrained = self.saver

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable the adapter inside the context; `requires_grad` of every parameter is restored afterwards."""
        if not self._spec.disables:
            raise UnsupportedOp(
                f"adapter {self._spec.name!r} cannot be disabled: it moved part of the base weights into the adapter",
                hint="--adapter-opt init=default",
            )
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            with peft_patches.quiet(), self._base_biases(), self.model.disable_adapter():
                yield
        finally:
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)

    @contextmanager
    def _base_biases(self) -> Iterator[None]:
        """Restore the base's biases inside the context: PEFT keeps trained biases when it disables an adapter."""
        trained = [parameter.detach().clone() for parameter, _ in self._biases]
        try:
            _copy_all((parameter, value) for parameter, value in self._biases)
            yield
        finally:
            _copy_all((parameter, value) for (parameter, _), value in zip(self._biases, trained, strict=True))

    def merged_layers(self) -> Mapping[str, MergedLayer]:
        """The adapted layers, each with the weight that `merge` gives it.

        Raises:
            IncompatibleError: if the adapter changes something other than the weights of linear layers.
        """
        return merged.layers(self.model, self._spec.name)

    def parameter_roles(self) -> Mapping[str, Role]:
        """The roles of the trained parameters, by name, as far as the table of the method has them."""
        stacked = [f"{name}.lora_" for name, m in self.model.named_modules() if isinstance(m, ParamWrapper)]
        found = {}
        for name, parameter in self.model.named_parameters():
            role = role_of(self._spec.name, name, stacked=name.startswith(tuple(stacked)))
            if parameter.requires_grad and role is not None:
                found[name] = role
        return found

    def on_step(self, step: int) -> None:
        """Do nothing: most methods have no schedule."""

    def save(self, path: Path) -> None:
        """Save in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""
        self.model.save_pretrained(str(path))


class PeftAdapter:
    """Any PEFT method that replaces modules; the options class selects the method."""

    adapted_class: type[PeftAdapted] = PeftAdapted

    def __init__(self, options: MethodOptions) -> None:
        self.options = options
        self.method = options.method
        self.spec = refined(options.method, options)

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> PeftAdapted:
        """Attach a new adapter to `base`.

        Raises:
            ConfigError: if options do not fit the model.
            UnsupportedOp: if the method needs an operation that a quantized layer does not provide.
            IncompatibleError: if the method should initially leave the output unchanged, but does not.
        """
        self.check_operations(base)
        observed = observe(base.model)
        config = peft_config.build(
            self.options,
            base,
            observed,
            lambda line: ctx.progress.say(line),
            ctx.new_tokens if self.spec.trains_new_tokens else (),
            **self.schedule(total_steps),
        )
        config.base_model_name_or_path = base.model.name_or_path
        if peft_patches.moves_targets(config, base.model):
            ctx.progress.say(PEFT_MOVES_TARGETS.format(self.method))
        biases = _bias_copies(base.model, config)
        with (
            peft_patches.seeded(ctx),
            self._injecting(base, ctx),
            peft_patches.explained(f"adapter {self.method!r} cannot be attached"),
            peft_patches.named_targets(),
        ):
            model = get_peft_model(base.model, config)
        config.base_model_name_or_path = base.model.name_or_path
        if self.spec.identity_at_start:
            after = peft_patches.probe(model, _vocabulary(base.model))
            peft_patches.check_identity(observed.logits, after, _tolerance(model, ctx), self.method)
        peft_patches.widen_trained(model, ctx.trained_dtype)
        return self.adapted(model, base, biases)

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> PeftAdapted:
        """Attach a saved adapter to `base`.

        Raises:
            ConfigError: if the method has a schedule that `total_steps` is too short for.
            ModelError: if `path` contains no adapter of this method, or an adapter for another model.
        """
        self.check_operations(base)
        config = self.read_config(path, base.model)
        if total_steps is not None:
            for name, value in self.schedule(total_steps).items():
                setattr(config, name, value)
        if ctx.purpose is Purpose.TRAIN:
            for name in given(self.options) & frozenset(self.spec.training_options):
                setattr(config, self.options.peft_names.get(name, name), getattr(self.options, name))
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
        elif peft_patches.widen_trained(model, ctx.trained_dtype):  # loading rounded them: load again
            set_peft_model_state_dict(model, load_file(str(path / WEIGHTS_FILE)))
        return self.adapted(model, base, biases)

    def merge(self, dense: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Merge a saved adapter into `dense` and return the plain model; tied embeddings stay tied.

        If the config of `dense` says that they are not tied, although they share a weight, they may become two.

        Raises:
            UnsupportedOp: if the method does not change weights.
            IncompatibleError: if the adapter unties them.
        """
        if not self.spec.merges:
            raise UnsupportedOp(
                f"adapter {self.method!r} does not change the model's weights, so it cannot be merged",
                hint="use the adapter without merging: smollm3 generate RUN",
            )
        config = self.read_config(path, dense)
        base = Base(model=dense, fingerprint="")
        may_untie = ties.shared(dense) and not ties.declared(dense)
        if may_untie:
            ties.declare(dense, True)  # PEFT reads it, and must build the adapter as in training
        tied = ties.declared(dense)
        with (
            peft_patches.quiet(),
            peft_patches.explained(f"the adapter in {path} cannot be merged into this model", ModelError),
        ):
            with peft_patches.only_plain_backends(), peft_patches.new_tensors_in(dense, dense.dtype):
                model = self.load(base.model, path, config, trainable=False)
            inner = model.get_base_model()
            if tied and ties.breaks(inner, config):
                if not may_untie:
                    raise ties.refusal()
                ties.separate(inner)
            ties.check_other_layers(inner)
            ties.merge_once(inner)
            merged: PreTrainedModel = model.merge_and_unload()
        merged.requires_grad_(False)
        if tied and not may_untie and not ties.shared(merged):
            raise ties.refusal()
        ties.declare(merged, tied and not may_untie)
        return merged

    def check_operations(self, base: Base) -> None:
        """Raises UnsupportedOp if a quantized layer lacks an operation that the method needs."""
        for name, layer in base.model.named_modules():
            ops = base.ops_for(layer)
            missing = () if ops is None else sorted(set(self.spec.needs) - ops.ops)
            if missing:
                raise UnsupportedOp(
                    f"adapter {self.method!r} needs {', '.join(missing)}, which the quantized layer {name!r} does not "
                    "provide",
                    hint="--adapter lora" if self.method != "lora" else "--adapter-opt init=default",
                )
            stack = stack_ops_for(layer) if getattr(self.options, "target_parameters", ()) else None
            if stack is not None and (missing := sorted(set(self.spec.needs) - stack.ops)):
                raise UnsupportedOp(
                    f"target_parameters needs {', '.join(missing)}, which the quantized {name!r} does not provide",
                    hint="leave target_parameters out",
                )

    def schedule(self, total_steps: int | None) -> dict[str, Any]:
        """Additional arguments of PEFT's config that depend on the length of the run."""
        return {}

    def adapted(self, model: PeftModel, base: Base, biases: Biases) -> PeftAdapted:
        """The adapted model."""
        return self.adapted_class(model, base, self.spec, biases)

    def load(self, model: nn.Module, path: Path, config: PeftConfig, trainable: bool) -> PeftModel:
        """Load with PEFT, and check that every expected tensor was found."""
        with open_tensors(path / WEIGHTS_FILE) as tensors:
            saved = list(tensors.keys())
        with peft_patches.quiet(), peft_patches.named_targets(saved):
            loaded = PeftModel.from_pretrained(
                model, str(path), config=config, is_trainable=trainable, torch_device=str(_device(model))
            )
            _check_names(loaded, path)
        return loaded

    def read_config(self, path: Path, model: nn.Module) -> PeftConfig:
        """The config of a saved adapter of this method, for `model`.

        Raises:
            ModelError: if a file is missing or cannot be read, or if the adapter is of another method.
        """
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (path / name).is_file():
                raise ModelError(f"{path} contains no adapter: {name} is missing", hint=f"ls {path}")
        try:
            about = read_json(path / CONFIG_FILE)
        except ModelError as e:
            raise ModelError(f"{path / CONFIG_FILE} is not an adapter config: {e.message}", hint=e.hint) from e
        if "peft_type" not in about:
            raise ModelError(f"{path / CONFIG_FILE} is not an adapter config: it has no peft_type")
        found = about["peft_type"]
        if found != peft_type(self.method):
            raise ModelError(
                f"the adapter in {path} has PEFT type {found}, but {self.method!r} was requested",
                hint=f"--adapter {component(str(found))}",
            )
        check_saved_config(about, path, model)
        with peft_patches.quiet(), peft_patches.explained(f"{path / CONFIG_FILE} cannot be read", ModelError):
            config = PeftConfig.from_pretrained(str(path))
        return peft_config.serve_plain_layers(config)

    @contextmanager
    def _injecting(self, base: Base, ctx: BuildContext) -> Iterator[None]:
        """The patches under which PEFT changes the model: views of quantized layers, plain backends, dtypes."""
        with (
            peft_patches.quiet(),
            peft_patches.only_plain_backends(),
            peft_patches.new_tensors_in(base.model, ctx.torch_dtype),
            views_in(base.model, base.ops_for, ctx.torch_dtype),
            stack_views_in(base.model),
        ):
            yield


class _Saver:
    """Replaces `save_pretrained`, also for the trainer's checkpoints: PEFT's own sends two requests to the Hub."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[Path], None] = lambda path: None
        model.create_or_update_model_card = lambda directory: None  # core writes the card

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
    """The biases of a base without adapter, each with a copy of its values; empty if the adapter trains no bias."""
    if getattr(config, "bias", "none") == "none":
        return []
    named = model.named_parameters()
    return [(parameter, parameter.detach().clone()) for name, parameter in named if name.endswith("bias")]


def _check_names(model: PeftModel, path: Path) -> None:
    """Raises ModelError if a saved adapter has other tensors than the model expects; PEFT only warns."""
    with open_tensors(path / WEIGHTS_FILE) as tensors:
        found = set(tensors.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    missing = sorted(expected - found)
    unknown = sorted(found - expected - set(model.state_dict()))
    for names, fault in (
        (missing, "lacks tensors that this model needs"),
        (unknown, "has tensors for modules that this model lacks"),
    ):
        if names:
            raise ModelError(
                f"the adapter in {path} {fault}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""),
                hint="use the base that the adapter was trained on",
            )


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _tolerance(model: nn.Module, ctx: BuildContext) -> float:
    """Allowed distance of the logits from the base's: rounding, plus ten times the error of the quantized forward."""
    rounding = 1e-3 if ctx.dtype in ("float32", "float64") else 5e-2
    views = [module for module in model.modules() if isinstance(module, LinearView)]
    return rounding + 10 * max((view.ops.forward_rtol for view in views), default=0.0)
