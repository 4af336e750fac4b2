"""The values in run.yaml by their key, such as `train.epochs`: those that are not defaults, and those that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.config.load import as_dict, file_settings
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, RunConfig
from smollm3_finetune.runs.reopen import before_their_keys
from smollm3_finetune.runs.rundir import RunDir

NOT_COMPARED = ("given", "output")
"""Keys that say nothing about the result: which options were set, and the directory."""


def configuration_of(run: RunDir) -> dict[str, Any]:
    """The values of a run by their key; keys that its version did not have are set to what that version did.

    Raises ConfigError if run.yaml is damaged. No plugin is needed, and values are not validated.
    """
    settings = file_settings(run.config)
    values = flat(as_dict(RunConfig()))
    for setting in (*before_their_keys(settings), *settings):
        values[".".join(setting.key)] = setting.value
    return values


def changed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that are not the defaults.

    Names of components are left out, because a run always records them, and so are options of components that were not
    set, as far as the run knows that.
    """
    defaults, given = flat(as_dict(RunConfig())), values.get("given")
    found = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if key in NOT_COMPARED or (section in COMPONENT_SECTIONS and name == "name"):
            continue
        if section in COMPONENT_SECTIONS and name:
            if not isinstance(given, list | tuple) or ".".join(key.split(".")[:2]) in given:
                found[key] = value
        elif key not in defaults or value != defaults[key]:
            found[key] = value
    return found


def differences(configurations: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values differ, and the value of each configuration; None also stands for a missing key.

    If the components of a section differ, their options are left out unless a run set them or all have them.
    """
    keys = dict.fromkeys(key for values in configurations for key in values if key not in NOT_COMPARED)
    rows = {key: [values.get(key) for values in configurations] for key in keys}
    different = {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
    given = {name for values in configurations for name in values.get("given") or ()}
    return {
        key: row
        for key, row in different.items()
        if all(key in values for values in configurations)
        or key in given
        or f"{key.partition('.')[0]}.name" not in different
    }


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration's sections by their key."""
    found: dict[str, Any] = {}
    for section, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{section}.{key}": inner for key, inner in value.items()}
        else:
            found[section] = value
    return found
