"""The file of a sweep: a run, and the values of its keys that each trial has.

    run: {model: tiny, data: {path: rows.jsonl}}
    grid:
      adapter.rank: [8, 16, 32]
      train.learning_rate: [1e-4, 1e-3]

`grid` has all combinations, `random` draws `trials` of them, and without both `trials` lists the values. Reading it
checks keys and values, and says each problem with file and line. No component is looked up.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.config.load import Setting, file_settings, mapping_settings
from smollm3_finetune.config.options import key_of
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS, RunConfig
from smollm3_finetune.config.yaml12 import read_yaml
from smollm3_finetune.errors import Collector, ConfigError, did_you_mean
from smollm3_finetune.paths import user_path
from smollm3_finetune.sweep.naming import trial_names
from smollm3_finetune.sweep.ranges import EXAMPLE, read_range

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
KEYS = ("name", "output", "run", "grid", "random", "trials", "seed", "objective")
NOT_SWEPT = ("output", "given", "plugins", "launcher", "tracker")
"""Keys of a run that trials cannot differ in."""
NOT_IN_RUN = ("output",)
OBJECTIVE = "held_out_loss"
MOST = 1000
"""Trials of a sweep: all of them are planned before the first one runs."""
GRID_EXAMPLE = "grid: {adapter.rank: [8, 16]}"
Lines = Mapping[tuple[str, ...], str]


@dataclass(frozen=True, kw_only=True)
class TrialValues:
    """The values of one trial."""

    name: str
    """Made from the values; equal trials have equal names."""
    values: Mapping[str, Any]
    """By configuration key."""
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    path: Path
    name: str
    output: str | None
    run: tuple[Setting, ...]
    """The configuration that all trials have in common."""
    trials: tuple[TrialValues, ...]
    """In the order of the file; equal ones are there as often as the file has them."""

    @property
    def keys(self) -> list[str]:
        """The keys that trials set, in the order of the file."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.values))


Values = Sequence[tuple[str, Any, str]]
"""Key, value and origin of each value of a trial."""


def read_sweep(text: str | Path) -> SweepFile:
    """Read the file of a sweep. Raises ConfigError or Problems with file and line."""
    path = user_path(text, "FILE")
    mapping, lines = read_yaml(path)
    _check_kind(path, mapping)
    collect = Collector()
    for key in [k for k in mapping if k not in KEYS]:
        collect.problems.append(_unknown(lines[(key,)], key))
    run = collect.run(lambda: _run(mapping.get("run"), lines, path)) or []
    listed = collect.run(lambda: _trials(mapping, lines)) or []
    name = mapping.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        where = lines.get(("name",), str(path))
        collect.problems.append(ConfigError(f"{where}: the name of a sweep has letters, digits, - and _, got {name!r}"))
    output = mapping.get("output")
    if output is not None and (not isinstance(output, str) or not output.strip()):
        collect.problems.append(ConfigError(f"{lines[('output',)]}: output must be a directory, got {output!r}"))
    if mapping.get("objective", OBJECTIVE) != OBJECTIVE:
        collect.problems.append(
            ConfigError(
                f"{lines[('objective',)]}: objective must be {OBJECTIVE}, got {mapping['objective']!r}",
                hint="to select the loss of the runs: run: {objective: NAME}",
            )
        )
    names = trial_names([{key: value for key, value, _ in values} for values in listed])
    trials = [_trial(n, values) for n, values in zip(names, listed, strict=True)]
    collect.problems += {p.message: p for trial in trials for p in _set_twice(trial)}.values()
    collect.finish()
    return SweepFile(path=path, name=name, output=output, run=tuple(run), trials=tuple(trials))


def _check_kind(path: Path, mapping: Mapping[str, Any]) -> None:
    """Raises ConfigError if the file has no trials."""
    if "stages" in mapping:
        raise ConfigError(f"{path} is a pipeline, not a sweep", hint=f"smollm3 pipeline run {shlex.quote(str(path))}")
    if not {"grid", "random", "trials"} & set(mapping):
        others = [k for k in mapping if k not in KEYS]
        hint = GRID_EXAMPLE if not others else f"a sweep needs {GRID_EXAMPLE}; one run: smollm3 train --config {path}"
        raise ConfigError(f"{path} is not a sweep: it has neither grid, nor random, nor trials", hint=hint)


def _unknown(where: str, key: str) -> ConfigError:
    known = [key_of(f) for f in dataclasses.fields(RunConfig)]
    if key.partition(".")[0] in known:
        return ConfigError(f"{where}: {key} is a key of a run", hint=f"run: {{{key}: …}}, or {GRID_EXAMPLE}")
    similar = did_you_mean(key, KEYS)
    hint = f"did you mean {similar!r}?" if similar else f"known keys: {', '.join(KEYS)}"
    return ConfigError(f"{where}: unknown key {key!r}", hint=hint)


def _run(value: Any, lines: Lines, path: Path) -> list[Setting]:
    """The settings of `run`: a configuration, the path of one, or a run whose configuration is taken."""
    where = lines.get(("run",), str(path))
    if value is None:
        return []
    if isinstance(value, str):
        file = user_path(value, "run")
        file = file / "run.yaml" if file.is_dir() else file
        if not file.is_file():
            raise ConfigError(f"{where}: run: {value!r} is not a configuration file or a run", hint="run: run.yaml")
        settings = file_settings(file)
        return [s for s in settings if s.key[0] not in NOT_IN_RUN]
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: run must be a configuration or the path of one, got {value!r:.80}",
                          hint="run: {model: tiny}")  # fmt: skip
    for key in NOT_IN_RUN:
        if value.get(key) is not None:
            raise ConfigError(f"{lines[('run', key)]}: the sweep decides the {key} of a trial",
                              hint=f"{key}: DIRECTORY at the top level of the file")  # fmt: skip
    return mapping_settings(value, lines, ("run",))


def _trials(mapping: Mapping[str, Any], lines: Lines) -> list[Values]:
    """The values of each trial."""
    if "grid" in mapping and "random" in mapping:
        raise ConfigError(
            f"{lines[('random',)]}: a sweep has grid or random, not both",
            hint="in random, a list of values draws one of them: random: {adapter.rank: [8, 16]}",
        )
    if "random" in mapping:
        return _random(mapping, lines)
    if "seed" in mapping:
        raise ConfigError(
            f"{lines[('seed',)]}: seed is for random",
            hint="for the seed of the runs: run: {seed: 1}; for several seeds: grid: {seed: [1, 2]}",
        )
    if "grid" in mapping:
        if "trials" in mapping:
            raise ConfigError(f"{lines[('trials',)]}: a grid has all combinations, so trials cannot be given",
                              hint="omit trials, or use random instead of grid")  # fmt: skip
        return _grid(mapping["grid"], lines)
    return _listed(mapping["trials"], lines)


def _section(value: Any, name: str, lines: Lines) -> Mapping[str, Any]:
    """The keys of `grid` or `random`. Raises ConfigError or Problems for keys that trials cannot set."""
    if not isinstance(value, dict) or not value:
        example = GRID_EXAMPLE if name == "grid" else f"random: {{{EXAMPLE}}}"
        raise ConfigError(f"{lines[(name,)]}: {name} must have keys of a run and their values, got {value!r:.80}",
                          hint=example)  # fmt: skip
    _check_keys(value, lines, (name,))
    return value


def _check_keys(keys: Mapping[str, Any], lines: Lines, at: tuple[str, ...]) -> None:
    collect = Collector()
    for key in keys:
        where = lines[(*at, key)]
        if not all(key.split(".")):
            collect.problems.append(ConfigError(f"{where}: {key!r} is not a key of a run", hint=GRID_EXAMPLE))
        elif key.partition(".")[0] in NOT_SWEPT:
            section = key.partition(".")[0]
            hint = "output: DIRECTORY at the top level" if section == "output" else f"run: {{{section}: …}}"
            collect.problems.append(ConfigError(f"{where}: trials cannot differ in {section}", hint=hint))
    collect.finish()


def _grid(value: Any, lines: Lines) -> list[Values]:
    collect, lists = Collector(), []
    for key, values in _section(value, "grid", lines).items():
        where = lines[("grid", key)]
        if not isinstance(values, list) or not values:
            collect.problems.append(_not_a_list(where, key, values))
            continue
        origins = [lines.get(("grid", key, str(i)), where) for i in range(len(values))]
        lists.append([(key, one, origin) for one, origin in zip(values, origins, strict=True)])
    collect.finish()
    if (count := math.prod(map(len, lists))) > MOST:
        raise ConfigError(f"{lines[('grid',)]}: the grid has {count:,} combinations, and at most {MOST:,} are possible",
                          hint="random: {…} and trials: 20 draw some of them")  # fmt: skip
    return list(itertools.product(*lists))


def _not_a_list(where: str, key: str, value: Any) -> ConfigError:
    if isinstance(value, dict) and value and key in (*COMPONENT_SECTIONS, *PLAIN_SECTIONS):
        inner, values = next(iter(value.items()))
        shown = values if isinstance(values, list) else [values]
        return ConfigError(f"{where}: a key inside {key} is written with a dot", hint=f"{key}.{inner}: {shown!r:.80}")
    if isinstance(value, dict):
        return ConfigError(f"{where}: {key} must be a list of values, got {value!r:.80}",
                           hint="ranges belong to random: random: {" + EXAMPLE + "}")  # fmt: skip
    example = f"{key}: [{value}, …]; a value of all trials belongs to run" if value else f"{key}: [1, 2]"
    return ConfigError(f"{where}: {key} must be a list of values, got {value!r:.80}", hint=example)


def _random(mapping: Mapping[str, Any], lines: Lines) -> list[Values]:
    collect, keys = Collector(), _section(mapping["random"], "random", lines)
    ranges = {}
    for key, value in keys.items():
        found = collect.run(lambda k=key, v=value: read_range(k, v, lines[("random", k)]))  # type: ignore[misc]
        if found is not None:
            ranges[key] = found
    trials, seed = mapping.get("trials"), mapping.get("seed", 0)
    if isinstance(trials, bool) or not isinstance(trials, int) or not 1 <= trials <= MOST:
        where = lines.get(("trials",), lines[("random",)])
        collect.problems.append(ConfigError(
            f"{where}: random needs trials, a number from 1 to {MOST:,}, got {trials!r:.80}", hint="trials: 20"
        ))  # fmt: skip
    if isinstance(seed, bool) or not isinstance(seed, int):
        collect.problems.append(ConfigError(f"{lines[('seed',)]}: seed must be a whole number, got {seed!r}"))
    collect.finish()
    return [
        [(key, found.draw(key, seed, number), lines[("random", key)]) for key, found in ranges.items()]
        for number in range(trials or 0)
    ]


def _listed(value: Any, lines: Lines) -> list[Values]:
    where = lines[("trials",)]
    if isinstance(value, int) and not isinstance(value, bool):
        raise ConfigError(f"{where}: a number of trials needs random values", hint=f"random: {{{EXAMPLE}}}")
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise ConfigError(
            f"{where}: trials must be a list of keys and values, got {value!r:.80}",
            hint="trials: [{adapter.rank: 8}, {adapter.rank: 16, train.learning_rate: 1e-4}]",
        )
    if len(value) > MOST:
        raise ConfigError(f"{where}: {len(value):,} trials are listed, and at most {MOST:,} are possible")
    collect, found = Collector(), []
    for number, entry in enumerate(value):
        at = ("trials", str(number))
        collect.run(lambda e=entry, a=at: _check_keys(e, lines, a))  # type: ignore[misc]
        found.append([(key, one, lines[(*at, key)]) for key, one in entry.items()])
    collect.finish()
    return list(found)


def _trial(name: str, values: Values) -> TrialValues:
    settings = tuple(s for key, value, origin in values for s in _settings(key, value, origin))
    return TrialValues(name=name, values={key: value for key, value, _ in values}, settings=settings)


def _set_twice(trial: TrialValues) -> list[ConfigError]:
    """An error for each key that a trial sets twice, by itself and in a mapping of its section."""
    first: dict[tuple[str, ...], Setting] = {}
    problems = []
    for setting in trial.settings:
        if (other := first.setdefault(setting.key, setting)) is not setting:
            key = ".".join(setting.key)
            problems.append(ConfigError(f"{setting.origin} sets {key}, and so does {other.origin}", hint="omit one"))
    return problems


def _settings(key: str, value: Any, origin: str) -> list[Setting]:
    """The settings of a key with dots, of the name of a component, or of a section."""
    path = tuple(key.split("."))
    if len(path) > 1:
        return [Setting(key=path, value=value, origin=origin)]
    if isinstance(value, dict) and key in (*COMPONENT_SECTIONS, *PLAIN_SECTIONS):
        return [Setting(key=(key, str(inner)), value=one, origin=origin) for inner, one in value.items()]
    return [Setting(key=(key, "name") if key in COMPONENT_SECTIONS else path, value=value, origin=origin)]
