"""What the model cards of written models have in common: the head that the Hub reads, and a table of facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.paths import is_hub_id

FILE = "README.md"


def is_on_hub(ref: str) -> bool:
    """Whether a model reference can be linked to: a Hub id that is no path here."""
    return is_hub_id(ref) and not Path(ref).exists()


def shown_ref(ref: str) -> str:
    """A reference as a card may show it: a local path is cut down to its last part."""
    return ref if is_on_hub(ref) else Path(ref).resolve().name


def beginning(base: str, tag: str, title: str, how: str, relation: str | None = None) -> list[str]:
    """The lines down to the first sentence. `relation` is the Hub's word for what was done to the base."""
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if is_on_hub(base):
        head += [f"base_model: {base}"] + ([f"base_model_relation: {relation}"] if relation else [])
    return [*head, "tags:", "- smollm3-finetune", f"- {tag}", "---", "", f"# {title}", "", how, ""]


def facts(rows: Iterable[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]


def linked(base: str) -> str:
    return f"[{base}](https://huggingface.co/{base})" if is_on_hub(base) else f"`{base}`"


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """A component as a card names it, its options in brackets."""
    shown = ", ".join(f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in options.items())
    return f"`{name}`{f' ({shown})' if shown else ''}"
