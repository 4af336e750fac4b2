"""A configuration as YAML that can be read again, with the origin of each value: `config show`, `train --dry-run`."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from smollm3_finetune.config.load import as_dict
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS, RunConfig
from smollm3_finetune.config.yaml12 import commented_yaml


def with_origins(config: RunConfig, origins: Mapping[str, str], encoding: str | None = None) -> str:
    """The configuration as YAML, with the origin of each value that is not a default in a comment.

    `encoding` is that of the output; None: that of standard output.
    """
    known = encoding or getattr(sys.__stdout__, "encoding", None) or "utf-8"
    out = []
    for name, value in as_dict(config).items():
        if name in COMPONENT_SECTIONS or name in PLAIN_SECTIONS:
            comments = {key: _origin(f"{name}.{key}", origins) for key in value}
            out += [f"{name}:", commented_yaml(value, comments, indent=2, encoding=known)]
        else:
            out.append(commented_yaml({name: value}, {name: _origin(name, origins)}, encoding=known))
    return "\n".join(out)


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The origins of a key and of the keys inside its value; an empty string for a default."""
    return ", ".join(dict.fromkeys(o for k, o in origins.items() if k == key or k.startswith(f"{key}.")))
