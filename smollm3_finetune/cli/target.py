"""What `RUN|MODEL` on a command line stands for: a run with its own composition, or a model with what is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Purpose

if TYPE_CHECKING:
    from smollm3_finetune.model.plan import ModelRequest
    from smollm3_finetune.train.rundir import RunDir

OF_A_RUN = ("loader", "quant", "adapter", "adapter_path", "quant_opt")
"""Options that a run has decided already."""


def options_of(values: Mapping[str, Any], name: str, section: str) -> dict[str, Any]:
    """The `KEY=VALUE`s that were given for `--NAME`, parsed."""
    from smollm3_finetune.config.load import assignment

    settings = [assignment(text, f"--{name.replace('_', '-')}", section) for text in values[name]]
    return {".".join(s.key[1:]): s.value for s in settings}


def model_request(ref: str, values: Mapping[str, Any], purpose: Purpose) -> ModelRequest:
    """A model with the components that the command line names."""
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.model.plan import ModelRequest
    from smollm3_finetune.paths import user_path

    adapter, path = values["adapter"], values["adapter_path"]
    return ModelRequest(
        ref=ref,
        loader=ComponentConfig(name=values["loader"], options=options_of(values, "loader_opt", "loader")),
        quant=ComponentConfig(name=values["quant"], options=options_of(values, "quant_opt", "quant")),
        adapter=ComponentConfig(name=adapter) if adapter else None,
        adapter_path=user_path(path, "--adapter-path") if path else None,
        purpose=purpose,
    )


def run_request(run: RunDir, values: Mapping[str, Any], verb: str, purpose: Purpose) -> tuple[ModelRequest, str]:
    """The model of a run with its adapter, everything as the run resolved it, and the run's number format.

    Raises ConfigError for an option that the run has decided, ModelError where it has not finished.
    """
    from smollm3_finetune.cli.resume import TRUSTING, saved_configuration
    from smollm3_finetune.errors import ConfigError, ModelError
    from smollm3_finetune.model.plan import ModelRequest
    from smollm3_finetune.model.saved_adapter import FILE as DESCRIPTION

    def decided(flag: str) -> ConfigError:
        return ConfigError(
            f"{flag}: {run.path} is a run, whose model is composed as it was trained",
            hint=f"smollm3 {verb} MODEL --adapter-path {run.adapter}",
        )

    for name in OF_A_RUN:
        if values[name]:
            raise decided(f"--{name.replace('_', '-')}")
    if not (run.adapter / DESCRIPTION).exists():  # written last
        resumable = any(run.checkpoints.glob("checkpoint-*"))
        again = f"smollm3 train --resume {run.path}" if resumable else f"smollm3 train --config {run.config}"
        raise ModelError(f"the run {run.path} has not finished: it holds no adapter", hint=again)
    given = options_of(values, "loader_opt", "loader")
    config = saved_configuration(run, given).config
    for key, value in given.items():
        if key not in TRUSTING and config.loader.options.get(key) != value:
            raise decided(f"--loader-opt {key}")
    request = ModelRequest(
        ref=config.model,
        loader=config.loader,
        quant=config.quant,
        adapter=config.adapter,
        adapter_path=run.adapter,
        purpose=purpose,
    )
    return request, config.dtype
