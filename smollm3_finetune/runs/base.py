"""The base in a run's own directory: the merged model of `--fresh-adapter`, or the copy of one.

Without it, the base of a run is the `model` of its configuration.
"""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.runs.rundir import RunDir


def base_of(run: RunDir) -> Path | None:
    """The base in the directory of a run; None if it has none. It appears whole."""
    path = run.base.absolute()
    return path if (path / "config.json").is_file() else None


def without_pins(loader: ComponentConfig) -> ComponentConfig:
    """The loader of a base in a run's directory, which is an ordinary model: the one that recognizes it."""
    code = {name: value for name, value in loader.options.items() if name == "trust_remote_code" and value}
    return ComponentConfig(options=code)


def own_source(run: RunDir, model: str, loader: ComponentConfig) -> tuple[str, ComponentConfig]:
    """The reference and the loader of a run's base: its own, else those of its configuration."""
    base = base_of(run)
    return (model, loader) if base is None else (str(base), without_pins(loader))
