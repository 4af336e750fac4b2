"""Whatever one distribution does wrong, the tool stays usable, says so in a line, and refuses only what needs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

Cli = Callable[..., Any]

HEAD = "from dataclasses import dataclass\nfrom smollm3_finetune.api import *\n"
SPEC = "@hookimpl\ndef smollm3_quantizers():\n    return [QuantizerSpec(name={name!r}, summary='q', {rest})]\n"
GOOD = "class Made:\n    def __init__(self, options): ...\n    def load(self, source, ctx): ...\n"
DRY = ("train", "--dry-run", "--device", "cpu", "--json")


def quantizer(name: str, rest: str, before: str = "") -> str:
    return HEAD + before + SPEC.format(name=name, rest=rest)


BROKEN = {
    "import-error": "import no_such_module_at_all\n",
    "system-exit": "raise SystemExit(3)\n",
    "wrong-signature": HEAD + "@hookimpl\ndef smollm3_quantizers(model):\n    return []\n",
    "misspelt-hook": HEAD + "@hookimpl\ndef smollm3_quantizer():\n    return []\n",
    "hook-raises": HEAD + "@hookimpl\ndef smollm3_quantizers():\n    raise RuntimeError('no licence')\n",
    "late-generator": HEAD
    + "@hookimpl\ndef smollm3_quantizers():\n"
    + "    yield QuantizerSpec(name='acme', summary='q', factory='acme_hooks:Made')\n    raise RuntimeError('late')\n",
    "bad-descriptor": quantizer("acme", "factory='no colon'"),
    "newer-api": quantizer("acme", "factory='acme_hooks:Made', api=99"),
}
"""What discovery itself finds."""

LATER = {
    "factory-missing": (quantizer("acme", "factory='acme_hooks:Gone', provides=ALL_OPS"), "acme_hooks:Gone"),
    "factory-raises": (
        quantizer(
            "acme",
            "factory='acme_hooks:Made', provides=ALL_OPS",
            "class Made:\n    def __init__(self, options): options.gone\n",
        ),
        "gone",
    ),
    "default-out-of-range": (
        quantizer(
            "acme",
            "factory='acme_hooks:Made', options='acme_hooks:Options', provides=ALL_OPS",
            GOOD + "@dataclass(frozen=True, kw_only=True)\nclass Options:\n    bits: int = option(9, 'Bits.', le=8)\n",
        ),
        "the default of quant.bits does not pass its own check: expected integer (at most 8), got 9",
    ),
}
"""What shows when the component is used, with a part of what is said then."""


def plan_of_the_usual_run(cli: Cli) -> dict[str, Any]:
    done = cli(*DRY, "--adapter", "full")
    assert done.code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    del found["run"]  # named by the clock
    return found


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_distribution_costs_one_line_and_the_runs_that_need_it(
    case: str, cli: Cli, fake_distribution: Any
) -> None:
    fake_distribution("acme-quant", "1.2", {"acme_hooks": BROKEN[case]}, {"acme": "acme_hooks"})
    listed = {p["name"]: p for p in json.loads(cli("plugins", "list", "--json").stdout)}
    assert listed["acme"]["status"] == "broken"
    assert listed["acme"]["error"]
    done = cli(*DRY, "--adapter", "full")
    assert done.code == 0
    (line,) = [x for x in done.stderr.splitlines() if "acme" in x]
    assert line.startswith("warning: plugin 'acme' (acme-quant 1.2) is broken and left out: ")
    refused = cli(*DRY, "--adapter", "full", "--quant", "acme-quant:acme")
    assert refused.code == 7
    assert "Traceback" not in refused.stderr
    assert "plugin 'acme' (acme-quant 1.2, entry point) is broken" in refused.stderr
    silent = cli(*DRY, "--adapter", "full", "-p", "no:acme")
    assert (silent.code, "acme" in silent.stderr) == (0, False)


@pytest.mark.parametrize("case", LATER)
def test_a_component_that_cannot_be_used_harms_only_the_run_that_names_it(
    case: str, cli: Cli, fake_distribution: Any
) -> None:
    source, said = LATER[case]
    fake_distribution("acme-quant", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    plan_of_the_usual_run(cli)
    assert cli("compat", "--quant", "none", "--adapter", "full").code == 0
    refused = cli(
        "train", "--adapter", "full", "--quant", "acme", "--device", "cpu", "--max-steps", "1", "--output", "run"
    )
    assert refused.code in (2, 7), refused.stderr
    assert "Traceback" not in refused.stderr
    assert said in refused.stderr
    assert cli("plugins", "check", "acme").code == 7


def test_an_import_that_never_ends_is_escaped_by_name(run_cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("acme-quant", "1.2", {"acme_hooks": "import time\ntime.sleep(600)\n"}, {"acme": "acme_hooks"})
    with pytest.raises(subprocess.TimeoutExpired):
        run_cli("plugins", "list", timeout=8)
    assert run_cli("--help", timeout=60).code == 0
    listed = run_cli("plugins", "list", "--json", "-p", "no:acme", timeout=60)
    assert {p["name"]: p["status"] for p in json.loads(listed.stdout)}["acme"] == "disabled"
    assert run_cli("plugins", "list", timeout=60, SMOLLM3_DISABLE_PLUGINS="acme").code == 0


def test_one_name_in_two_distributions_must_be_decided_and_nothing_else(cli: Cli, fake_distribution: Any) -> None:
    for who in ("one", "two"):
        source = quantizer("acme", f"factory='{who}_hooks:Made'", GOOD)
        fake_distribution(f"quant-{who}", "1.0", {f"{who}_hooks": source}, {who: f"{who}_hooks"})
    plan_of_the_usual_run(cli)
    refused = cli(*DRY, "--adapter", "full", "--quant", "acme")
    assert refused.code == 7
    assert "offered by quant-one 1.0 and quant-two 1.0" in refused.stderr
    assert "--quant quant-one:acme or --quant quant-two:acme" in refused.stderr
    assert "offered by" not in cli(*DRY, "--adapter", "full", "--quant", "quant-two:acme").stderr


TAKEN = {
    "quantizer": ("none", quantizer("none", "factory='acme_hooks:Made', provides=ALL_OPS", GOOD)),
    "objective": (
        "sft",
        HEAD + GOOD + "@hookimpl\ndef smollm3_objectives():\n"
        "    return [ObjectiveSpec(name='sft', summary='o', factory='acme_hooks:Made')]\n",
    ),
    "loader": (
        "tiny",
        HEAD + GOOD + "@hookimpl\ndef smollm3_loaders():\n"
        "    return [LoaderSpec(name='tiny', summary='l', factory='acme_hooks:Made', claims=lambda ref: True)]\n",
    ),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_plugin_that_takes_a_built_in_name_does_not_get_the_runs_that_name_none(
    kind: str, cli: Cli, fake_distribution: Any
) -> None:
    usual = plan_of_the_usual_run(cli)
    name, source = TAKEN[kind]
    fake_distribution("acme-plugin", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    assert plan_of_the_usual_run(cli) == usual
    flag = {"quantizer": "quant"}.get(kind, kind)
    asked = cli(*DRY, "--adapter", "full", f"--{flag}", name)
    assert asked.code == 7
    assert f"the {kind} {name!r} is offered by acme-plugin 1.2 and smollm3-finetune" in asked.stderr
    chosen = cli(*DRY, "--adapter", "full", f"--{flag}", f"smollm3-finetune:{name}")
    assert chosen.code == 0, chosen.stderr
