"""Whether mlx-lm is installed. Imports neither torch nor mlx."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from smollm3_finetune.api import IncompatibleError, MissingRequirementError, ModelSource
from smollm3_mlx.options import MlxOptions

INSTALL = "pip install mlx-lm 'mlx[cpu]'"


def installed() -> str | None:
    """The version of mlx-lm; None if it is not installed."""
    try:
        version("mlx")
        return version("mlx-lm")
    except PackageNotFoundError:
        return None


def check_source(options: MlxOptions, source: ModelSource) -> None:
    """Refuse what `config.json` and the installed packages show: no architecture, or bits without mlx-lm."""
    if not source.config.get("model_type"):
        raise IncompatibleError("config.json states no model_type, so mlx-lm cannot load the model")
    if options.bits is not None and installed() is None:
        raise MissingRequirementError("mlx-lm, which quantizes for the exporter 'mlx', is not installed", hint=INSTALL)
