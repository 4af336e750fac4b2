"""The model card of a merged model: its base, its adapter and the figures of the merge check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.evaluation.line import retained_line
from smollm3_finetune.model.adapter_card import StatedTraining
from smollm3_finetune.model_files.card_mark import marked
from smollm3_finetune.model_files.model_card import Metadata, beginning, facts, linked, usage, with_options


def card(about: Mapping[str, Any], training: StatedTraining | None = None) -> str:
    """The text of `README.md`, from the content of `merge.json` and the training that the adapter's card states."""
    base, figures, again = about["model"], about["figures"], about["requantized"]
    state = "unquantized" if about["quantizer"] == "none" else f"quantized by `{about['quantizer']}`"
    relation = "trained on" if about["own_base"] else "applied to"
    separate = ", embeddings and head not tied" if about.get("untied") else ""
    rows = [
        ("base", linked(base)),
        ("adapter", f"{with_options(about['adapter'], about['adapter_options'])}, {relation} the base ({state})"),
        ("weights", f"{about['parameters']:,} parameters in {about['dtype']}{separate}"),
    ]
    if (stage := about.get("pipeline")) is not None:
        rows.append(("pipeline", f"stage `{stage['stage']}` of `{stage['pipeline']}`"))
    if again is not None:
        rows.append(("quantizer", f"{with_options(again['quantizer'], again['options'])}, after the merge"))
    lines = [
        *beginning(
            Metadata(
                base=base,
                tag="merged",
                relation="finetune",
                license=about["license"],
                datasets=training.datasets if training else (),
            ),
            about["title"],
            "An adapter merged into its base model with `smollm3 merge`.",
        ),
        *facts(rows), "",
        *usage(quantizer=again["quantizer"] if again is not None else None),
        "## Merge check", "",
        f"Relative difference of the logits over {figures['positions']} fixed positions:", "",
        "| compared | difference |", "|---|---|",
        f"| the adapter on its base vs. the base alone | {_number(figures['moved'])} |",
        f"| the merged model before saving vs. the adapter on its base | {_number(figures['merged'])} |",
        f"| the merged model in {about['dtype']}, reloaded from disk, vs. the adapter on its base "
        f"| {_number(figures['drift'])} |",
        f"| the dense copy of the base in {about['dtype']} vs. the base | {_number(figures['base'])} |",
    ]  # fmt: skip
    if again is not None:
        found = again["predictions"]
        before, after = (_perplexity(found[f"perplexity_{when}"]) for when in ("before", "after"))
        lines += [
            f"| the quantized checkpoint vs. the merged model | {_number(again['drift'])} |",
            "",
            f"Perplexity on {found['tokens']:,} tokens of {found['row_count']} rows ({found['rows']}): {before} for "
            f"the merged model, {after} for the quantized checkpoint; {found['meaning']}.",
            *retained_sentence(again.get("retained")),
        ]
    if (shipped := about.get("shipped")) is not None:
        lines += [
            "",
            f"The adapter was trained with `train.ship_as: {shipped['format']}`. The weights of "
            f"{shipped['layers']} layers ({shipped['compared']}) equal those that training computed with, bit for bit.",
        ]
    if about["forced"]:
        lines += ["", f"**Kept with `--force` although the merge check failed:** {about['fault']}."]
    lines += [f"\nNote: {warning}." for warning in about["warnings"]]
    if training is not None and training.section:
        lines += ["", training.section]
    return marked("\n".join(lines) + "\n")


def retained_sentence(found: Mapping[str, Any] | None) -> list[str]:
    """The paragraph of a card about the share of the gain of training that a model keeps; empty without figures."""
    return [] if found is None else ["", f"Retained share: {retained_line(found)}."]


def _perplexity(value: float | None) -> str:
    return "too large to state" if value is None else f"{value:.4g}"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.2g}"
