"""Names of trials, from their values; errors that name the trials that have them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.errors import SmolLM3Error

LONGEST = 80
"""Characters of a trial's name."""
NAMED = 3
"""Trials that an error names."""
DEFAULT_TRIAL = "defaults"
"""The name of a trial without values."""


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


def named_problems(problems: Sequence[tuple[str, SmolLM3Error]], trials: int) -> list[SmolLM3Error]:
    """Each problem once, with the names of the trials that have it; a problem of all trials names none."""
    having: dict[tuple[str, str | None], list[str]] = {}
    first: dict[tuple[str, str | None], SmolLM3Error] = {}
    for name, problem in problems:
        key = (problem.message, problem.hint)
        first.setdefault(key, problem)
        if name not in having.setdefault(key, []):
            having[key].append(name)
    for key, names in having.items():
        if len(names) < trials or trials == 1:
            first[key].message = f"{_trials(names)}: {first[key].message}"
    return list(first.values())


def _trials(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"trial {shown}" if len(names) == 1 else f"trials {shown}"
