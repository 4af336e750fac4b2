"""Sizes of memory that users type."""

from __future__ import annotations

import re

from smollm3_finetune.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parsed_size(text: str, flag: str) -> int:
    """The bytes of `24GB`, `24 GiB` or `500M`; 1 GB = 10⁹ bytes, as everywhere in the output.

    Raises ConfigError, which names the `flag`.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(found[2].upper()) if found is not None else None
    if found is None or unit is None:
        raise ConfigError(f"{flag} {text!r} is not a size of memory", hint=f"{flag} 24GB")
    if unit == 1 and float(found[1]) < 10**6:
        raise ConfigError(f"{flag} {text!r} is less than a megabyte: the unit is missing", hint=f"{flag} {found[1]}GB")
    size = int(float(found[1]) * unit)
    if size < 10**6:
        raise ConfigError(f"{flag} {text!r} is less than a megabyte", hint=f"{flag} 24GB")
    return size
