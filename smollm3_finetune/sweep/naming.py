"""Names of trials, from their values; errors that name the trials that have them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.config.load import Setting
from smollm3_finetune.errors import SmolLM3Error

LONGEST = 80
"""Characters of a trial's name."""
NAMED = 2
"""Trials that an error names."""
DEFAULT_TRIAL = "defaults"
"""The name of a trial without values."""


class NamedTrial(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Sequence[Setting]: ...


def trial_names(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each trial from its values, such as `rank-8_learning_rate-0.0003`; equal values have equal names."""
    keys = dict.fromkeys(key for values in trials for key in values)
    short = [_short(key) for key in keys]
    words = {key: name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)}
    found = [_name({words[key]: value for key, value in values.items()}) for values in trials]
    owners: dict[str, set[str]] = {}
    for name, values in zip(found, trials, strict=True):
        owners.setdefault(name, set()).add(_hash(values))
    return [
        name if len(owners[name]) == 1 else f"{name}-{_hash(values)}"
        for name, values in zip(found, trials, strict=True)
    ]


def _hash(values: Mapping[str, Any]) -> str:
    return fingerprint(json.dumps(values, sort_keys=True))[:6]


def _short(key: str) -> str:
    """`rank` for `adapter.rank`, `adapter` for `adapter.name`."""
    section, _, rest = key.rpartition(".")
    return section if section and rest == "name" else rest


def _name(values: Mapping[str, Any]) -> str:
    name = "_".join(f"{key}-{_text(value)}" for key, value in values.items()) or DEFAULT_TRIAL
    name = re.sub("[^A-Za-z0-9._-]+", "-", name).strip("-.") or DEFAULT_TRIAL
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 7].rstrip('-.')}-{_hash(values)}"


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value).replace("null", "none")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2]
    if isinstance(value, Mapping):
        return "-".join(_text(v) if k == "name" else f"{k}-{_text(v)}" for k, v in value.items())
    return "-".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def shown_value(value: Any) -> str:
    """A value in a table."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace("null", "none")


def named_problems(problems: Sequence[tuple[NamedTrial, SmolLM3Error]], file: Path, trials: int) -> list[SmolLM3Error]:
    """Each problem once, with the trials that have it and a line of the file; a problem of all trials names none."""
    having: dict[tuple[str, str | None], list[NamedTrial]] = {}
    first: dict[tuple[str, str | None], SmolLM3Error] = {}
    for trial, problem in problems:
        key = (problem.message, problem.hint)
        first.setdefault(key, problem)
        if all(trial.name != other.name for other in having.setdefault(key, [])):
            having[key].append(trial)
    for (message, _), problem in first.items():
        found = having[(message, problem.hint)]
        names = _trials([trial.name for trial in found])
        if len(found) == trials > 1:
            continue
        if message.startswith(f"{file}:"):  # the line says which value it is
            problem.message = f"{message} ({names})"
        else:
            problem.message = f"{_line(found[0].settings, message) or file}: {names}: {message}"
    return list(first.values())


def _line(settings: Sequence[Setting], message: str) -> str | None:
    """The line of the value that a message is about: the first one that it quotes."""
    quoted = (s for s in settings if isinstance(s.value, str) and f"'{s.value.rpartition(':')[2]}'" in message)
    return next((s.origin for s in quoted), None)


def _trials(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"trial {shown}" if len(names) == 1 else f"trials {shown}"
