"""The model card of an export: its origin, the table of its checks, and what rounding has cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.merge.card import retained_sentence
from smollm3_finetune.model.adapter_card import StatedTraining
from smollm3_finetune.model_files.card_mark import marked
from smollm3_finetune.model_files.model_card import Metadata, beginning, facts, linked, usage, with_options

VERDICTS = {True: "passed", False: "failed", None: "not carried out"}


def card(about: Mapping[str, Any], training: StatedTraining) -> str:
    """The text of `README.md`, from the content of `export.json` and the training that another card states."""
    base, exporter, merge = about["model"], about["exporter"], about["merge"]
    rows = [("base", linked(base))]
    state = "unquantized" if about["quantizer"] == "none" else f"quantized by `{about['quantizer']}`"
    if about["adapter"] is not None:
        adapter = with_options(about["adapter"], about["adapter_options"])
        how = f"merged in {merge['dtype']}" if merge is not None else "not merged"
        rows.append(("adapter", f"{adapter}, on the base ({state}), {how}"))
    elif about["quantizer"] != "none":
        rows.append(("state", f"{state}, dequantized"))
    rows.append(("exporter", with_options(exporter, about["options"])))
    rows.append(("files", ", ".join(f"`{name}`" for name in list(about["files"])[:8])))
    if (stage := about.get("pipeline")) is not None:
        rows.append(("pipeline", f"stage `{stage['stage']}` of `{stage['pipeline']}`"))
    loads = is_model(about)
    lines = [
        *beginning(
            Metadata(
                base=base,
                tag=exporter,
                relation=_relation(about),
                library="transformers" if loads else exporter,
                license=about["license"],
                datasets=training.datasets,
            ),
            about["title"],
            "Written and verified by `smollm3 export`.",
        ),
        *facts(rows), "",
        *(usage() if loads else []),
        "## Checks", "",
        "| check | result | found |", "|---|---|---|",
        *(f"| {_cell(c['name'])} | {VERDICTS[c['passed']]} | {_cell(c['says'])} |" for c in about["checks"]),
    ]  # fmt: skip
    if merge is not None:
        excess, limit = merge["figures"]["excess"], merge["limits"]["excess"]
        lines += [
            "",
            f"Before the export, the adapter was merged into the base. The relative error that the merge adds to the "
            f"logits is {excess:.2g} (limit {limit:.2g}).",
        ]
    lines += retained_sentence(about["retained"])
    lines += [f"\nNote: {warning}." for warning in about["warnings"]]
    if training.section:
        lines += ["", training.section]
    return marked("\n".join(lines) + "\n")


def is_model(about: Mapping[str, Any]) -> bool:
    """Whether transformers loads the directory of an export.

    Other software reads files of the same names, for example with codes that transformers does not know.
    """
    files = about["files"]
    return bool(about["loads"]) and "config.json" in files and any(name.endswith(".safetensors") for name in files)


def _relation(about: Mapping[str, Any]) -> str | None:
    """The Hub's `base_model_relation`."""
    if about["merge"] is not None:
        return "finetune"
    return "adapter" if about["adapter"] is not None else None


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
