"""The package as discovery sees it: few imports, complete descriptors, and a README that agrees with them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import smollm3_peft
from smollm3_peft.methods import METHODS, peft_type

from smollm3_finetune.api import Op, options_dict

ROOT = Path(__file__).parent.parent
EDGE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def load(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def test_discovery_and_options_import_neither_torch_nor_peft() -> None:
    code = (
        "import sys, smollm3_peft, smollm3_peft.weight_options, smollm3_peft.prompt_options\n"
        "list(smollm3_peft.smollm3_adapters())\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent.parent
    )
    assert result.stdout.strip() == "[]"


def test_the_entry_point_is_the_hook_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["smollm3_finetune"] == {"peft": "smollm3_peft"}
    assert list(smollm3_peft.smollm3_adapters()) == list(METHODS)
    assert all(set(spec.requires.distributions) <= set(project["dependencies"]) for spec in METHODS)


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.name)
def test_every_method_has_options_with_help_and_a_peft_type(spec: Any) -> None:
    from peft import PeftType

    assert EDGE.fullmatch(spec.name)
    options = load(spec.options)
    assert options.method == spec.name
    assert all(field.metadata.get("help") for field in dataclasses.fields(options))
    assert options_dict(options()) is not None
    assert PeftType(peft_type(spec.name))
    assert load(spec.factory)(options()).spec.name == spec.name


def test_every_option_maps_to_an_argument_of_peft(lab: Any) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for spec in METHODS:
        options = load(spec.options)
        known = {f.name for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type(spec.name)])}
        ours = {options.peft_names.get(f.name, f.name) for f in dataclasses.fields(options)} - {"layers"}
        assert ours | set(options.fixed) <= known, spec.name


def test_the_readme_table_agrees_with_the_descriptors() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    cells = {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}
    table = {name: row for name, row in cells.items() if len(row) == 5}
    assert list(table) == [spec.name for spec in METHODS]

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    for spec in METHODS:
        extra = ", ".join(sorted(spec.needs - {Op.FORWARD, Op.GRAD_INPUT})) or "–"
        assert table[spec.name] == [
            spec.summary,
            extra,
            yes(spec.identity_at_start),
            yes(spec.merges),
            yes(spec.packs),
        ], spec.name


def test_only_the_public_api_of_core_is_imported() -> None:
    for path in (ROOT / "smollm3_peft").glob("*.py"):
        for module in re.findall(r"(?:from|import) (smollm3_finetune[.\w]*)", path.read_text()):
            assert module == "smollm3_finetune.api", f"{path.name} imports {module}"
