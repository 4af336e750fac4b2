"""Filters and sorts summaries of runs: `--filter`, `--state` and `--sort` of `smollm3 runs`."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS
from smollm3_finetune.errors import ConfigError, did_you_mean
from smollm3_finetune.runs.configuration import configuration_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary

Value = Callable[[RunSummary], Any]

TEXTS: Mapping[str, Value] = {
    "name": lambda run: run.path.name,
    "state": lambda run: run.state,
    "model": lambda run: run.facts.model,
    "loader": lambda run: run.facts.loader,
    "quantizer": lambda run: run.facts.quantizer,
    "adapter": lambda run: run.facts.adapter,
    "objective": lambda run: run.facts.objective,
    "optimizer": lambda run: run.facts.optimizer,
    "data": lambda run: run.facts.data,
    "verdict": lambda run: run.verdict,
    "sweep": lambda run: run.part_of.get("sweep"),
    "pipeline": lambda run: run.part_of.get("pipeline"),
}
"""Keys of `--filter`; configuration keys such as `train.learning_rate` are also possible."""
NUMBERS: Mapping[str, Value] = {
    "before": lambda run: run.before,
    "after": lambda run: run.after,
    "change": lambda run: None if run.before is None or run.after is None else run.after - run.before,
}
"""Keys of `--sort` whose smallest value comes first, as text does."""
LARGEST_FIRST: Mapping[str, Value] = {
    "started": lambda run: run.started and run.started.timestamp(),
    "finished": lambda run: run.finished and run.finished.timestamp(),
    "steps": lambda run: run.steps,
    "size": lambda run: run.bytes,
    "seconds": lambda run: run.seconds,
}
"""Keys of `--sort` whose largest value comes first."""


def matching(runs: Iterable[RunSummary], filters: Sequence[str], states: Sequence[str] = ()) -> list[RunSummary]:
    """The runs that have one of the states, if any are given, and match every filter `KEY=VALUE`.

    Text is compared without regard to case, with `*` and `?` as wildcards; a component also matches without its
    distribution, a path also by its last part. Raises ConfigError for a filter without `=` or with an unknown key.
    """
    tests = [_test(text) for text in filters]
    tests.sort(key=lambda test: test[0])  # those that read run.yaml come last
    return [run for run in runs if (not states or run.state in states) and all(holds(run) for _, holds in tests)]


def ordered(runs: Iterable[RunSummary], key: str, *, reverse: bool = False) -> list[RunSummary]:
    """The runs in the order of a key; runs without a value come last. Raises ConfigError for an unknown key."""
    value = {**TEXTS, **NUMBERS, **LARGEST_FIRST}.get(key) or _configured(key, "--sort")
    runs = sorted(runs, key=lambda run: run.path)  # the order of equal values
    found = [(_comparable(value(run)), run) for run in runs]
    known = [(compared, run) for compared, run in found if compared is not None]
    known.sort(key=lambda item: item[0], reverse=(key in LARGEST_FIRST) != reverse)
    return [run for _, run in known] + [run for compared, run in found if compared is None]


def _comparable(value: Any) -> tuple[bool, float, str] | None:
    """Numbers before text."""
    if value is None or value == ():
        return None
    if isinstance(value, int | float):
        return (False, float(value), "")
    return (True, 0.0, (", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)).lower())


def _test(text: str) -> tuple[bool, Callable[[RunSummary], bool]]:
    """Whether a filter reads run.yaml, and the filter as a function."""
    key, equals, wanted = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--filter takes KEY=VALUE, got {text!r}", hint="--filter adapter=NAME")
    if key in TEXTS:
        value = TEXTS[key]
        return False, lambda run: _equal(value(run), wanted.strip())
    configured = _configured(key, "--filter")
    return True, lambda run: _equal(configured(run), wanted.strip())


def _equal(value: Any, wanted: str) -> bool:
    """Whether a value, or one item of a list, is the one that a filter names."""
    if isinstance(value, list | tuple):
        return any(_equal(item, wanted) for item in value) or (not value and wanted in ("", "none", "null", "[]"))
    if isinstance(value, Mapping):
        return _equal(value.get("path") or value.get("name"), wanted)
    if isinstance(value, str):
        shapes = {value, value.rpartition(":")[2], value.rstrip("/").rpartition("/")[2]}
        return any(fnmatch.fnmatchcase(shape.lower(), wanted.lower()) for shape in shapes)
    from smollm3_finetune.config.yaml12 import parse_value

    parsed = parse_value(wanted)
    if value is None:
        return parsed is None or wanted == "none"
    return bool(parsed == value) and isinstance(parsed, bool) == isinstance(value, bool)


def _configured(key: str, option: str) -> Value:
    """The value of a configuration key in run.yaml. Raises ConfigError if the configuration has no such key."""
    from smollm3_finetune.config.options import describe
    from smollm3_finetune.config.schema import RunConfig

    section, _, inner = key.partition(".")
    plain = {info.name for info in describe(RunConfig)} - {*COMPONENT_SECTIONS, *PLAIN_SECTIONS, "given", "output"}
    inside = {f"{name}.{info.name}" for name, cls in PLAIN_SECTIONS.items() for info in describe(cls)}
    if not (key in plain or key in inside or (section in COMPONENT_SECTIONS and inner)):
        own = [*TEXTS, *(() if option == "--filter" else (*NUMBERS, *LARGEST_FIRST))]
        similar = did_you_mean(key, [*own, *plain, *inside])
        last = next((name for name in sorted(inside) if name.partition(".")[2] == key), None)
        known = f"keys: {', '.join(own)}, or a configuration key such as train.learning_rate"
        best = last or similar
        raise ConfigError(f"{option}: unknown key {key[:80]!r}", hint=f"did you mean {best!r}?" if best else known)

    def value(run: RunSummary) -> Any:
        try:
            return configuration_of(RunDir(run.path)).get(key)
        except ConfigError:  # a damaged run
            return None

    return value
