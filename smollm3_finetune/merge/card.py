"""The model card of a merged model: what it was made of, and what was measured. Nothing that was not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(ref: str) -> bool:
    """Whether a model reference can be linked to: a Hub id that is no path here."""
    return HUB_ID.fullmatch(ref) is not None and not Path(ref).exists()


def shown_ref(ref: str) -> str:
    """A reference as a card may show it: a local path is cut down to its last part."""
    return ref if is_hub_id(ref) else Path(ref).name


def card(about: Mapping[str, Any]) -> str:
    """The text of `README.md`, from what `merge.json` holds."""
    base, figures, again = about["model"], about["figures"], about["requantized"]
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if is_hub_id(base):
        head += [f"base_model: {base}"]
    head += ["tags:", "- smollm3-finetune", "- merged", "---"]
    link = f"[{base}](https://huggingface.co/{base})" if is_hub_id(base) else f"`{base}`"
    how = "as it is" if about["quantizer"] == "none" else f"quantised by `{about['quantizer']}`"
    verb = "trained on" if about["own_base"] else "put on"
    rows = [
        ("base", link),
        ("adapter", f"`{about['adapter']}`{_options(about['adapter_options'])}, {verb} the base {how}"),
        ("weights", f"{about['parameters']:,} parameters in {about['dtype']}"),
    ]
    if again is not None:
        rows.append(("quantised by", f"`{again['quantizer']}`{_options(again['options'])}, after the merge"))
    lines = [
        *head, "", f"# {about['title']}", "",
        "An adapter merged into the weights of its base by `smollm3 merge`.", "",
        "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), "",
        "## What was measured", "",
        f"Relative differences of the logits, over {figures['positions']} fixed positions:", "",
        "| compared | difference |", "|---|---|",
        f"| the adapter on its base, with the base alone | {_number(figures['moved'])} |",
        f"| the merged model before saving, with the adapter on its base | {_number(figures['merged'])} |",
        f"| the merged model in {about['dtype']} from disk, with the adapter on its base "
        f"| {_number(figures['drift'])} |",
        f"| the base's dense copy in {about['dtype']}, with the base | {_number(figures['base'])} |",
    ]  # fmt: skip
    if again is not None:
        lines.append(f"| the quantised checkpoint, with the merged model | {_number(again['drift'])} |")
    if about["forced"]:
        lines += ["", f"**Kept by `--force` although the check refused it:** {about['fault']}."]
    lines += [f"\nNote: {warning}." for warning in about["warnings"]]
    return "\n".join(lines) + "\n"


def _options(options: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in options.items())
    return f" ({shown})" if shown else ""


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.2g}"
