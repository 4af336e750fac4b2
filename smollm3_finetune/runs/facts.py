"""The facts about a run that a list of runs shows, in versions.json: reading YAML takes 20 times as long.

They hold the hash of the run.yaml that they were taken from, so a run.yaml that was edited is read again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.json import read_json, write_json
from smollm3_finetune.files.limits import CONFIG_SIZE, read_bytes
from smollm3_finetune.runs.rundir import RunDir

FACTS = "run"
"""The key of versions.json that holds them."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is about. Components have the names that the run recorded, such as `smollm3-peft:lora`."""

    model: str | None = None
    loader: str | None = None
    quantizer: str | None = None
    adapter: str | None = None
    objective: str | None = None
    optimizer: str | None = None
    """That of a plugin, or its name in the transformers Trainer."""
    data: tuple[str, ...] = ()
    """The titles of the sources of the training rows."""
    steps: int | None = None
    """The steps that the run is to take; None for a run of an earlier version that ends after a number of epochs."""
    start_from: str | None = None
    """The run or the adapter that it started from; None if it began with a new adapter."""
    chain: str | None = None
    """The objectives of the runs before it and its own, such as `sft → dpo`; None as for `start_from`."""
    started: str | None = None
    """When the run started, in ISO 8601 with the offset of the time zone."""


SECTIONS = {"loader": "loader", "quantizer": "quant", "adapter": "adapter", "objective": "objective"}
"""The section of the configuration of each component."""


def record_facts(run: RunDir, config: RunConfig, titles: Iterable[str], steps: int, chain: str | None = None) -> None:
    """Write the facts of a run that starts or is resumed, once run.yaml is written. The caller holds the directory."""
    saved = read_json(run.versions)
    earlier = saved.get(FACTS)
    began = earlier.get("started") if isinstance(earlier, dict) else None
    if not isinstance(began, str):
        began = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.versions.stat().st_mtime))
    found = {
        "config": config_hash(run.config),
        "model": config.model,
        **{name: getattr(config, section).name for name, section in SECTIONS.items()},
        "optimizer": config.optimizer.name or config.train.optimizer,
        "data": list(titles),
        "steps": steps,
        "start_from": config.start_from,
        "chain": chain,
        "started": began,
    }
    if found != earlier:
        write_json(run.versions, {**saved, FACTS: found})


def config_hash(file: Path) -> str:
    """The SHA-256 of a run.yaml. Raises OSError or ValueError if it cannot be read."""
    return hashlib.sha256(read_bytes(file, CONFIG_SIZE)).hexdigest()


def facts_of(run: RunDir) -> RunFacts:
    """The facts of a run: from versions.json, or from run.yaml if that has changed or the run is of an earlier version.

    Raises ModelError or ConfigError if a file is damaged.
    """
    saved = read_json(run.versions).get(FACTS)
    if isinstance(saved, dict):
        try:
            if saved.get("config") == config_hash(run.config):
                return _typed(saved)
        except (OSError, ValueError, TypeError) as e:
            raise ModelError(f"{run.config} cannot be read: {e}") from e
    return _from_yaml(run, saved if isinstance(saved, dict) else {})


def _typed(saved: Mapping[str, Any]) -> RunFacts:
    """Facts from JSON. Raises TypeError for a value of another type."""
    values = {f.name: saved.get(f.name) for f in fields(RunFacts)}
    data, steps = values.pop("data") or [], values["steps"]
    if not isinstance(data, list) or not all(isinstance(d, str) for d in data):
        raise TypeError("data must be a list of text")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)):
        raise TypeError("steps must be a whole number")
    if wrong := [k for k, v in values.items() if k != "steps" and v is not None and not isinstance(v, str)]:
        raise TypeError(f"{wrong[0]} must be text")
    return RunFacts(data=tuple(data), **values)


def _from_yaml(run: RunDir, saved: Mapping[str, Any]) -> RunFacts:
    """The facts in run.yaml, which takes tens of milliseconds; those that it does not hold are the saved ones."""
    from smollm3_finetune.config.yaml12 import read_yaml

    config, _ = read_yaml(run.config)
    sections = {name: config.get(section) for name, section in SECTIONS.items()}
    names = {k: v.get("name") if isinstance(v, Mapping) else v for k, v in sections.items()}
    train, data = config.get("train"), config.get("data")
    own = config.get("optimizer")
    own = own.get("name") if isinstance(own, Mapping) else own
    planned = train.get("max_steps") if isinstance(train, Mapping) else None
    path = data.get("path") if isinstance(data, Mapping) else None
    try:
        return _typed(
            {
                "model": config.get("model"),
                **names,
                "optimizer": own or (train.get("optimizer") if isinstance(train, Mapping) else None),
                "data": saved.get("data") or [_title(p) for p in (path if isinstance(path, list) else [path]) if p],
                "steps": planned,
                "start_from": config.get("from"),
                "chain": saved.get("chain"),
                "started": saved.get("started"),
            }
        )
    except TypeError as e:
        raise ConfigError(f"{run.config} is damaged: {e}") from e


def _title(entry: Any) -> str:
    """The path of an entry of data.path."""
    return str(entry.get("path") if isinstance(entry, Mapping) else entry)
