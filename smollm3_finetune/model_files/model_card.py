"""The common parts of model cards of written models: the metadata that the Hub reads, and a table of facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.paths import is_hub_id

FILE = "README.md"


def is_on_hub(ref: str) -> bool:
    """Whether a model reference can be linked to: a Hub id that is not a local path."""
    return is_hub_id(ref) and not Path(ref).exists()


def shown_ref(ref: str) -> str:
    """A reference as a card shows it: only the last part of a local path."""
    return ref if is_on_hub(ref) else Path(ref).resolve().name


def beginning(base: str, tag: str, title: str, how: str, relation: str | None = None) -> list[str]:
    """The lines up to the first sentence. `relation` is the Hub's `base_model_relation`."""
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if is_on_hub(base):
        head += [f"base_model: {base}"] + ([f"base_model_relation: {relation}"] if relation else [])
    return [*head, "tags:", "- smollm3-finetune", f"- {tag}", "---", "", f"# {title}", "", how, ""]


def facts(rows: Iterable[tuple[str, str]]) -> list[str]:
    """The lines of a table with two columns."""
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]


def linked(base: str) -> str:
    """A base model as Markdown, with a link if it is on the Hub."""
    return f"[{base}](https://huggingface.co/{base})" if is_on_hub(base) else f"`{base}`"


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """A component's name as a card shows it, with its options in parentheses."""
    shown = ", ".join(f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in options.items())
    return f"`{name}`{f' ({shown})' if shown else ''}"
