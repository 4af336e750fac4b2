"""Which options of a component its user set."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_GIVEN = "_smollm3_given"
"""The attribute of an options instance that holds the names; not a field, so it is in no comparison and no file."""


def given(options: Any) -> frozenset[str]:
    """The names of the options that were set, instead of left at their defaults.

    An option counts as set if it is in a configuration file, on the command line, in a mapping of a Python caller, or
    if it was set in the run or the saved adapter that is used, also to a value that equals its default. For an
    instance that the class or `dataclasses.replace` made, the fields that differ from their defaults count as set;
    the same holds for classes with `slots=True`, and for runs of releases that did not record it.

    Use it to report a contradiction, or to choose between two sources of a value. For caches and fingerprints use the
    value that results, because two runs with equal values share their entries.
    Raises TypeError if `options` is not an instance of a dataclass.

        def bits(options, stored):
            return options.bits if "bits" in given(options) else stored.get("bits", options.bits)
    """
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        raise TypeError(f"given() takes an instance of an options dataclass, got {options!r}")
    known: frozenset[str] | None = getattr(options, _GIVEN, None)
    return different(options) if known is None else known


def options_with(cls: type[T], **values: Any) -> T:
    """An instance of the options dataclass `cls` with these options set, as `given` reports them; for tests.

    The values are not validated. Raises TypeError for a name that is not an option.

        assert given(options_with(Int4Options, bits=4)) == {"bits"}
    """
    return remember(cls(**values), values)


def remember(options: T, names: Iterable[str]) -> T:
    """The instance, whose set options are `names` and those that differ from their defaults."""
    with contextlib.suppress(AttributeError, TypeError):  # a class with slots
        object.__setattr__(options, _GIVEN, frozenset(names) | different(options))
    return options


def different(options: Any) -> frozenset[str]:
    """The names of the fields whose values differ from their defaults; a field without a default differs."""
    names = set()
    for f in dataclasses.fields(options):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if default is dataclasses.MISSING or getattr(options, f.name) != default:
            names.add(f.name)
    return frozenset(names)
