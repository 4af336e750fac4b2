"""Hints of errors in a pipeline name keys of its file: the options of other commands cannot be typed here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from smollm3_finetune.cli.options import FLAGS, flag_of
from smollm3_finetune.errors import Problems, SmolLM3Error

KEYS = {flag_of(name): ".".join(key[:1] if key[-1] == "name" else key) for name, key in FLAGS.items()}
MERGING = {"--force": "merge.force: true", "--untie": "merge.untie: true", "--max-drift": "merge.max_drift"}
OPTION = re.compile(r"(?<![\w-])--(?:set|(?P<section>[a-z]+)-opt) (?P<key>[\w.]+)=(?P<value>\S+)")
FLAG = re.compile(r"(?<![\w-])(?P<flag>--[a-z-]+)(?: (?P<value>[^\s,;]+))?")


@contextlib.contextmanager
def keys_in_hints() -> Iterator[None]:
    """Replace the options in the hints of an error by keys; commands to type stay as they are."""
    try:
        yield
    except Problems as several:
        for problem in several.problems:
            problem.hint = with_keys(problem.hint)
        raise
    except SmolLM3Error as one:
        one.hint = with_keys(one.hint)
        raise


def with_keys(hint: str | None) -> str | None:
    """`data.max_length: 64` for `--max-length 64`, `output` for `--output`."""
    if hint is None or "smollm3 " in hint:
        return hint
    merging = any(flag in hint for flag in MERGING)
    keys = {**KEYS, **MERGING, "--dtype": "merge.dtype"} if merging else KEYS
    hint = OPTION.sub(lambda m: f"{m['section'] + '.' if m['section'] else ''}{m['key']}: {m['value']}", hint)

    def key(found: re.Match[str]) -> str:
        name = keys.get(found["flag"])
        if name is None:
            return found[0]
        return name if found["value"] is None else f"{name}: {found['value']}"

    return FLAG.sub(key, hint)
