"""The model card of a merged model: what it was made of, and what was measured. Nothing that was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.model_files.model_card import beginning, facts, linked, with_options


def card(about: Mapping[str, Any]) -> str:
    """The text of `README.md`, from what `merge.json` holds."""
    base, figures, again = about["model"], about["figures"], about["requantized"]
    how = "as it is" if about["quantizer"] == "none" else f"quantized by `{about['quantizer']}`"
    command = "trained on" if about["own_base"] else "put on"
    rows = [
        ("base", linked(base)),
        ("adapter", f"{with_options(about['adapter'], about['adapter_options'])}, {command} the base {how}"),
        ("weights", f"{about['parameters']:,} parameters in {about['dtype']}"),
    ]
    if again is not None:
        rows.append(("quantized by", f"{with_options(again['quantizer'], again['options'])}, after the merge"))
    lines = [
        *beginning(
            base, "merged", about["title"], "An adapter merged into the weights of its base by `smollm3 merge`."
        ),
        *facts(rows), "",
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
        lines.append(f"| the quantized checkpoint, with the merged model | {_number(again['drift'])} |")
    if about["forced"]:
        lines += ["", f"**Kept by `--force` although the check refused it:** {about['fault']}."]
    lines += [f"\nNote: {warning}." for warning in about["warnings"]]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.2g}"
