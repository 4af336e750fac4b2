"""Regular expressions of a file that somebody else made: `re` cannot be stopped, so they are first tried elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from smollm3_finetune.files.limits import SECONDS, BeyondLimit
from smollm3_finetune.files.separate import Ended, TooLong, in_separate_process

SCRIPT = Path(__file__).with_name("try_patterns.py")
REPEATS = frozenset("*+{?")
"""An expression without one of these ends in a time that grows with its length only."""
SPECIAL = REPEATS | frozenset("()[]|\\")
MEMORY = 2 << 30


def check_patterns(texts: Iterable[Any], names: Collection[str]) -> None:
    """Raises ValueError if a text is not a regular expression, or does not end within the limit of `SECONDS`.

    `texts` are the strings of a configuration that a library may use as expressions, `names` the names that it matches
    with them. Values that are not text, and plain names, are skipped.
    """
    patterns = sorted({t for t in texts if isinstance(t, str) and SPECIAL & set(t)})
    if not patterns:
        return
    try:
        problem = in_separate_process(
            SCRIPT, {"patterns": patterns, "names": sorted(names)}, seconds=SECONDS.value(), memory=MEMORY
        )
    except TooLong:
        what = f"matching module names with {patterns[0][:80]!r}" + (" and others" if patterns[1:] else "")
        raise BeyondLimit(f"{what} takes more than {SECONDS.value()} seconds", SECONDS) from None
    except Ended as e:
        raise ValueError(f"matching module names with {patterns[0][:80]!r} {e}") from e
    if problem is not None:
        raise ValueError(problem)


def strings_of(value: Any) -> Iterator[str]:
    """Every string in JSON-like data: the values, and the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_of(inner)
