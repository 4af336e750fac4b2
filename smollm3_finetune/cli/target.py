"""What `RUN|MODEL` on a command line stands for: a run with its own composition, or a model with what is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Purpose

if TYPE_CHECKING:
    from smollm3_finetune.model.plan import ModelRequest


def given(values: Mapping[str, Any]) -> set[str]:
    """The names of the options that were given on a command line."""
    return {name for name, value in values.items() if value}


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
