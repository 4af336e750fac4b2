"""The built-in plugin: the components that need no other package. It uses the same hooks as every plugin."""

from __future__ import annotations

import dataclasses
from typing import Any

from smollm3_finetune.api import (
    ALL_OPS,
    AdapterCard,
    AdapterSpec,
    ConfigError,
    Env,
    ExporterSpec,
    FormatterSpec,
    LauncherSpec,
    LayerBytes,
    LoaderSpec,
    ObjectiveSpec,
    Op,
    QuantizerSpec,
    Role,
    hookimpl,
)
from smollm3_finetune.builtin.formatters import claims
from smollm3_finetune.builtin.launchers import checks
from smollm3_finetune.paths import is_hub_id, user_path

TINY = "tiny"
SAMPLE = "What is the capital of France?"


def _hf_claims(ref: str) -> bool:
    if not ref or "\0" in ref:
        return False
    try:
        path = user_path(ref)
    except ConfigError:  # a path that cannot be accessed: opening it reports the reason
        return True
    return path.is_dir() or (is_hub_id(ref) and not path.is_file())


@hookimpl
def smollm3_loaders() -> list[LoaderSpec]:
    return [
        LoaderSpec(
            name="hf",
            same_since="0.1",
            summary="a Hub ID or a local directory in Hugging Face's layout",
            factory="smollm3_finetune.builtin.hf:HFLoader",
            options="smollm3_finetune.builtin.options:HFOptions",
            claims=_hf_claims,
            rank=-10,  # every `a/b` looks like a Hub id, so a more specific claim must win
            api=2,
        ),
        LoaderSpec(
            name=TINY,
            same_since="0.1",
            summary="the built-in two-million-parameter SmolLM3, for trying things out",
            factory="smollm3_finetune.builtin.tiny_loader:TinyLoader",
            claims=lambda ref: ref == TINY,
            rank=10,  # the default model, even if another loader claims the name
            suggests={"train.learning_rate": 2e-3, "train.max_steps": 60, "train.sample_prompt": SAMPLE},
            api=2,
        ),
    ]


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="none",
            same_since="0.1",
            summary="unquantized weights",
            factory="smollm3_finetune.builtin.no_quantizer:NoQuantizer",
            provides=ALL_OPS | {Op.SHARDS},
            bytes_for=_dense_bytes,
            api=2,
        )
    ]


def _dense_bytes(options: Any, shape: tuple[int, int], env: Env) -> LayerBytes:
    """A weight in the dtype of the run, which is multiplied as it is."""
    size = shape[0] * shape[1] * {"float64": 8, "float32": 4}.get(env.dtype, 2)
    return LayerBytes(kept=size, sharded=size)


def _refine_full(spec: AdapterSpec, options: Any, env: Env) -> AdapterSpec:
    """Parameters that are chosen by name may leave out the rows of new tokens, or all of a role."""
    if not options.parameters:
        return spec
    return dataclasses.replace(spec, trains_new_tokens=False, roles=())


@hookimpl
def smollm3_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(
            name="full",
            same_since="0.1",
            summary="full fine-tuning, without an adapter",
            factory="smollm3_finetune.builtin.full:FullAdapter",
            options="smollm3_finetune.builtin.options:FullOptions",
            needs={Op.FORWARD, Op.GRAD_INPUT, Op.GRAD_WEIGHT, Op.DENSE},
            packs=True,
            disables=False,
            training_options=("parameters", "master_weights"),
            trains_new_tokens=True,
            roles={Role.WEIGHT, Role.NORM, Role.EMBEDDING},
            refine=_refine_full,
            suggests={"train.learning_rate": 2e-5},
            card=AdapterCard(
                title="full fine-tuning",
                library="transformers",
                usage='model = AutoModelForCausalLM.from_pretrained(".")',
                complete=True,
            ),
            api=2,
        )
    ]


@hookimpl
def smollm3_formatters() -> list[FormatterSpec]:
    return [
        FormatterSpec(
            name="messages",
            same_since="0.1",
            summary="a list of messages with role and content",
            factory="smollm3_finetune.builtin.formatters.messages:MessagesFormatter",
            options="smollm3_finetune.builtin.options:TurnsOptions",
            claims=claims.messages,
            api=2,
        ),
        FormatterSpec(
            name="sharegpt",
            same_since="0.1",
            summary="conversations: a list of messages with from and value",
            factory="smollm3_finetune.builtin.formatters.sharegpt:SharegptFormatter",
            options="smollm3_finetune.builtin.options:TurnsOptions",
            claims=claims.sharegpt,
            api=2,
        ),
        FormatterSpec(
            name="alpaca",
            same_since="0.1",
            summary="instruction, output, optional input",
            factory="smollm3_finetune.builtin.formatters.alpaca:AlpacaFormatter",
            options="smollm3_finetune.builtin.options:AlpacaOptions",
            claims=claims.alpaca,
            api=2,
        ),
        FormatterSpec(
            name="prompt-completion",
            same_since="0.1",
            summary="a prompt and its completion or response; the options prompt and completion name other columns",
            factory="smollm3_finetune.builtin.formatters.prompt_completion:PromptCompletionFormatter",
            options="smollm3_finetune.builtin.options:PromptCompletionOptions",
            claims=claims.prompt_completion,
            rank=claims.PROMPT_COMPLETION_RANK,
            api=2,
        ),
        FormatterSpec(
            name="preference",
            same_since="0.1",
            summary="a chosen and a rejected answer, or a list of scored answers; optional prompt",
            factory="smollm3_finetune.builtin.formatters.preference:PreferenceFormatter",
            options="smollm3_finetune.builtin.options:PreferenceOptions",
            claims=claims.preference,
            rank=claims.PREFERENCE_RANK,
            api=2,
        ),
        FormatterSpec(
            name="text",
            same_since="0.1",
            summary="raw text, trained on as it is",
            factory="smollm3_finetune.builtin.formatters.text:TextFormatter",
            options="smollm3_finetune.builtin.options:TextOptions",
            claims=claims.text,
            rank=claims.TEXT_RANK,
            api=2,
        ),
    ]


@hookimpl
def smollm3_objectives() -> list[ObjectiveSpec]:
    return [
        ObjectiveSpec(
            name="sft",
            same_since="0.1",
            summary="supervised fine-tuning on the assistant's tokens",
            factory="smollm3_finetune.builtin.sft:SupervisedFineTuning",
            api=2,
        )
    ]


def refine_safetensors(spec: ExporterSpec, options: Any, env: Env) -> ExporterSpec:
    """The size of what is written follows from its dtype."""
    sizes = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
    return dataclasses.replace(spec, disk=sizes.get(options.dtype))


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="safetensors",
            same_since="0.1",
            summary="a dense model that transformers loads, in any dtype and in files of any size",
            factory="smollm3_finetune.builtin.exporters.safetensors:SafetensorsExporter",
            options="smollm3_finetune.builtin.options:SafetensorsOptions",
            loads=True,
            refine=refine_safetensors,
            api=2,
        )
    ]


@hookimpl
def smollm3_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="none",
            same_since="0.1",
            summary="one process: the command itself",
            factory="smollm3_finetune.builtin.launchers.none:OneProcess",
            api=2,
        ),
        LauncherSpec(
            name="torchrun",
            same_since="0.1",
            summary="several processes on one or more machines, each with the whole model",
            factory="smollm3_finetune.builtin.launchers.torchrun:Torchrun",
            options="smollm3_finetune.builtin.launchers.options:TorchrunOptions",
            processes=checks.all_processes,
            joins=checks.joins,
            check=checks.check_torchrun,
            api=2,
        ),
        LauncherSpec(
            name="accelerate",
            same_since="0.1",
            summary="several processes on one or more machines; with a profile, they share weights or optimizer states",
            factory="smollm3_finetune.builtin.launchers.accelerate:Accelerate",
            options="smollm3_finetune.builtin.launchers.options:AccelerateOptions",
            processes=checks.all_processes,
            sharding=checks.sharding,
            joins=checks.joins,
            check=checks.check_accelerate,
            api=2,
        ),
    ]
