"""`finetune`: `smollm3 train` as a function."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune import stopping
from smollm3_finetune.api import Submitted
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import Setting
from smollm3_finetune.config.schema import COMPONENT_SECTIONS
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.files.failures import resource_error
from smollm3_finetune.launching.start import carry_out
from smollm3_finetune.model.arguments import plain, plugin_names, text_or_path, torch_name
from smollm3_finetune.progress import Silent, for_stream
from smollm3_finetune.train import display
from smollm3_finetune.train.start import plan_training

Component = str | Mapping[str, Any] | None
ORIGIN = "finetune()"
"""The origin of the values, in messages and in the saved configuration."""


def finetune(
    model: str | Path | None = None,
    *,
    data: str | Path | Sequence[str | Path | Mapping[str, Any]] | Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    quant: Component = None,
    adapter: Component = None,
    loader: Component = None,
    objective: Component = None,
    formatter: Component = None,
    launcher: Component = None,
    optimizer: Component = None,
    tracker: Component = None,
    train: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    start_from: str | Path | None = None,
    fresh_adapter: bool | None = None,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tune a model as `smollm3 train` does, and return the report that it prints with `--json`.

    The arguments are the keys of `run.yaml`, with the same defaults. A component is a name or a mapping with its
    options: `quant={"name": "gptq", "bits": 4}`. A section is a mapping: `train={"max_steps": 100}`. `data` is one or
    more sources of rows, or the section: `data={"path": "rows.jsonl", "max_length": 512}`.

    `start_from` is the key `from`: a run or a saved adapter, which is trained further; with `fresh_adapter`, it is
    merged into its base, and a new adapter is trained. `config` is a YAML file that the other arguments override.
    `resume` is a run to continue, or `auto`; only the settings that a resumed run may change can be given with it.
    `plugins` are files or modules, as `-p` takes them.
    With `dry_run`, everything is checked and the plan is returned: its directory, configuration and numbers of rows.
    Progress is printed on standard error, unless `quiet`; warnings are logged by `smollm3_finetune`. With a `launcher`
    that submits a job, the result has the keys `run`, `submitted` and `hint` instead of a report.

    Raises a SmolLM3Error for everything that is wrong, in most cases before weights are read or files are written. A
    signal to stop or `train.max_time` saves a checkpoint and raises KeyboardInterrupt. Only one run at a time.

        report = finetune("HuggingFaceTB/SmolLM3-3B", quant="bnb-4bit", data="rows.jsonl", train={"epochs": 2})
        report["run"], report["after"]["held_out_loss"]
    """
    began = time.monotonic()
    given = {
        "model": text_or_path("model", model) if model is not None else None,
        "from": text_or_path("start_from", start_from) if start_from is not None else None,
        "fresh_adapter": fresh_adapter,
        "loader": loader, "quant": quant, "adapter": adapter, "objective": objective, "formatter": formatter,
        "launcher": launcher, "optimizer": optimizer, "tracker": tracker,
        "data": data if isinstance(data, Mapping | None) else {"path": data},
        "calibration": calibration, "train": train,
        "output": text_or_path("output", output) if output is not None else None,
        "device": torch_name("device", device) if device is not None else None,
        "dtype": torch_name("dtype", dtype) if dtype is not None else None,
        "seed": seed,
    }  # fmt: skip
    log = logging.getLogger("smollm3_finetune")
    names = plugin_names(plugins)

    def find_plugins(requested: Sequence[str]) -> Registry:
        registry = discover(PluginSelection.of(tuple(requested)))
        for warning in registry.warnings():
            log.warning(warning)
        return registry

    with stopping.handled(), _resources_named():
        planned = plan_training(
            list(_settings(given)),
            config_file=text_or_path("config", config) if config is not None else None,
            resume=text_or_path("resume", resume) if resume is not None else None,
            plugins=names,
            find_plugins=find_plugins,
            progress=Silent() if quiet else for_stream(),
            warn=log.warning,
        )
        if dry_run:
            return planned.summary()
        shown = display.NoDisplay() if quiet else display.for_stream()
        done = carry_out(planned, shown, Silent() if quiet else for_stream(), began, quiet=quiet)
        if isinstance(done, Submitted):
            return {"run": str(planned.run.path), "submitted": done.says, "hint": done.hint}
        return done


@contextlib.contextmanager
def _resources_named() -> Iterator[None]:
    """Convert an exception for a failed write or too little memory into the error that the command line prints."""
    try:
        yield
    except SmolLM3Error:
        raise
    except Exception as e:
        if (known := resource_error(e)) is None:
            raise
        raise known from e


def _settings(given: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings of the arguments that are not None."""
    for section, value in given.items():
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield Setting(key=(section, str(key)), value=plain(inner), origin=ORIGIN)
        elif value is not None:
            key = (section, "name") if section in COMPONENT_SECTIONS else (section,)
            yield Setting(key=key, value=plain(value), origin=ORIGIN)
