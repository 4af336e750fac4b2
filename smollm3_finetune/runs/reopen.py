"""Reopens a run on disk: its configuration and its model."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.config.load import DEFAULT, GIVEN, LoadedConfig, Setting, assemble, file_settings
from smollm3_finetune.config.options import key_of
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.runs.base import own_source
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.trained import check_decided

if TYPE_CHECKING:
    from smollm3_finetune.model.plan import ModelRequest


LATER = {"given", "from", "fresh_adapter", "launcher", "optimizer", "tracker", "preset"}
"""Keys that run.yaml of earlier versions does not have."""
CODE_EXECUTION_OPTIONS = ("trust_remote_code", "pickle")
"""Loader options that are never taken from a run's file, because another person may have written it."""


def saved_configuration(run: RunDir, loader_options: Mapping[str, Any]) -> LoadedConfig:
    """The configuration that a run resolved; options that execute foreign code must be given again.

    Raises ModelError if run.yaml is not complete, and ConfigError if such an option is not given again.
    """
    settings = file_settings(run.config)
    missing = {key_of(f) for f in dataclasses.fields(RunConfig)} - {s.key[0] for s in settings} - LATER
    if missing:
        raise ModelError(f"{run.config} is damaged: it has no {', '.join(sorted(missing))}")
    loaded = assemble([[*before_their_keys(settings), *settings]])
    for name in CODE_EXECUTION_OPTIONS:
        if loaded.config.loader.options.get(name) not in (None, False) and loader_options.get(name) is not True:
            raise ConfigError(
                f"the run {run.path} was made with loader.{name}, which executes code of the model",
                hint=f"if you trust it: --loader-opt {name}=true",
            )
    return loaded


def own_dtype(config: RunConfig, device: str) -> str:
    """The dtype of a run if it ran on the same kind of device, or in float64; else `auto`."""
    from smollm3_finetune.model.device import resolve_device

    here = resolve_device(device).partition(":")[0]
    return config.dtype if config.dtype == "float64" or here == config.device.partition(":")[0] else "auto"


def before_their_keys(settings: Iterable[Setting]) -> list[Setting]:
    """Settings for what runs did before these keys existed; the settings of the run's file override them.

    The run's seed also decided the held-out rows, and long text was cut. Which options were set was not written: those
    that differ from their defaults count as set.
    """
    seed = next((s for s in settings if s.key == ("seed",)), None)
    found = [
        Setting(key=("data", "long_text"), value="cut", origin=DEFAULT),
        Setting(key=GIVEN, value=(), origin=DEFAULT),
    ]
    return found if seed is None else [*found, replace(seed, key=("data", "seed"))]


def trained_mode(run: RunDir, default: bool | None, hint: str) -> bool | None:
    """The reasoning mode in which the sample prompt of a run was answered, as report.json states it; else `default`.

    Raises ModelError, with `hint`, if the report is damaged.
    """
    if not run.report.exists():
        return default
    try:
        trained = load_json(run.report).get("enable_thinking")
    except (OSError, ValueError, AttributeError) as e:
        raise ModelError(f"{run.report} is damaged: {e}", hint=hint) from e
    return trained if isinstance(trained, bool) else default


REQUIRED = {
    "eval": "--data FILE.jsonl",
    "export": "--to NAME --output DIR",
    "generate": "--prompt TEXT",
    "merge": "--output DIR",
}
"""The option that each command requires for a model that is not a run."""
FIXED_BY_RUN = ("loader", "quant", "adapter", "adapter_path", "quant_opt")
"""Command-line options that a run has already decided."""


def run_request(
    run: RunDir, given: Collection[str], loader_options: Mapping[str, Any], command: str, purpose: Purpose
) -> tuple[ModelRequest, str]:
    """The request for a run's model with its adapter, as the run resolved it, and the run's dtype.

    `given` are the names of the command-line options that were given. Raises ConfigError for an option that the run has
    decided, and ModelError if the run has not finished.
    """
    from smollm3_finetune.errors import ConfigError, ModelError
    from smollm3_finetune.model.plan import ModelRequest
    from smollm3_finetune.model.saved_adapter import FILE as DESCRIPTION

    def decided(flag: str) -> ConfigError:
        base = next((shlex.quote(str(s.value)) for s in file_settings(run.config) if s.key == ("model",)), "MODEL")
        needed = " ".join(filter(None, (f"--adapter-path {shlex.quote(str(run.adapter))}", REQUIRED.get(command))))
        new = "; for the checkpoint of --requantize: --requantize-opt" if flag.startswith("--quant-opt") else ""
        return ConfigError(
            f"{flag} cannot be used with the run {run.path}: the base model is loaded with the loader, quantizer and "
            "options of the run",
            hint=f"omit {flag}; to use other options: smollm3 {command} {base} {needed}"
            f"{new if command == 'merge' else ''}",
        )

    for name in FIXED_BY_RUN:
        if name in given:
            raise decided(f"--{name.replace('_', '-')}")
    check_decided(run)
    if not (run.adapter / DESCRIPTION).exists():  # written last
        again = f"smollm3 train --resume {shlex.quote(str(run.path))}" if run.saved.all() else run.start_again()
        raise ModelError(f"the run {run.path} has not finished: it contains no adapter", hint=again)
    config = saved_configuration(run, loader_options).config
    for key, value in loader_options.items():
        if key not in CODE_EXECUTION_OPTIONS and config.loader.options.get(key) != value:
            raise decided(f"--loader-opt {key}")
    ref, loader = own_source(run, config.model, config.loader)
    request = ModelRequest(
        ref=ref,
        loader=loader,
        quant=config.quant,
        adapter=config.adapter,
        adapter_path=run.adapter,
        purpose=purpose,
    )
    return request, config.dtype
