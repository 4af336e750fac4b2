"""A faulty distribution costs one warning line: the tool stays usable and refuses only runs that need the plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

HEAD = "from dataclasses import dataclass\nfrom smollm3_finetune.api import *\n"
SPEC = "@hookimpl\ndef smollm3_quantizers():\n    return [QuantizerSpec(name={name!r}, summary='q', {rest})]\n"
GOOD = "class Made:\n    def __init__(self, options): ...\n    def load(self, source, ctx): ...\n"
DRY = ("train", "--dry-run", "--device", "cpu", "--json")


def quantizer(name: str, rest: str, before: str = "") -> str:
    return HEAD + before + SPEC.format(name=name, rest=rest if "api=" in rest else f"{rest}, api=2")


BROKEN = {
    "import-error": "import no_such_module_at_all\n",
    "system-exit": "raise SystemExit(3)\n",
    "wrong-signature": HEAD + "@hookimpl\ndef smollm3_quantizers(model):\n    return []\n",
    "misspelled-hook": HEAD + "@hookimpl\ndef smollm3_quantizer():\n    return []\n",
    "hook-raises": HEAD + "@hookimpl\ndef smollm3_quantizers():\n    raise RuntimeError('no license')\n",
    "late-generator": HEAD
    + "@hookimpl\ndef smollm3_quantizers():\n"
    + "    yield QuantizerSpec(name='acme', summary='q', factory='acme_hooks:Made', api=2)\n"
    + "    raise RuntimeError('late')\n",
    "bad-descriptor": quantizer("acme", "factory='no colon'"),
    "no-api": HEAD + SPEC.format(name="acme", rest="factory='acme_hooks:Made'"),
    "newer-api": quantizer("acme", "factory='acme_hooks:Made', api=99"),
}
"""Faults that discovery finds."""

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
        "the default of quant.bits is invalid: expected integer (at most 8), got 9",
    ),
}
"""Faults that appear when the component is used, each with a part of its message."""


def plan_of_a_default_run(cli: Cli) -> dict[str, Any]:
    done = cli(*DRY, "--adapter", "full")
    assert done.code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    del found["run"]  # its name contains the time
    return found


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_distribution_costs_one_warning_and_the_runs_that_need_it(
    case: str, cli: Cli, fake_distribution: Any
) -> None:
    fake_distribution("acme-quant", "1.2", {"acme_hooks": BROKEN[case]}, {"acme": "acme_hooks"})
    listed = {p["name"]: p for p in json.loads(cli("plugins", "list", "--json").stdout)}
    assert listed["acme"]["status"] == "broken"
    assert listed["acme"]["error"]
    done = cli(*DRY, "--adapter", "full")
    assert done.code == 0
    (line,) = [x for x in done.stderr.splitlines() if "acme" in x]
    assert line.startswith("warning: the plugin 'acme' (acme-quant 1.2) is broken and was skipped: ")
    refused = cli(*DRY, "--adapter", "full", "--quant", "acme-quant:acme")
    assert refused.code == 7
    assert "Traceback" not in refused.stderr
    assert "plugin 'acme' (acme-quant 1.2, entry point) is broken" in refused.stderr
    silent = cli(*DRY, "--adapter", "full", "-p", "no:acme")
    assert (silent.code, "acme" in silent.stderr) == (0, False)


@pytest.mark.parametrize("case", LATER)
def test_an_unusable_component_breaks_only_the_runs_that_select_it(case: str, cli: Cli, fake_distribution: Any) -> None:
    source, said = LATER[case]
    fake_distribution("acme-quant", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    plan_of_a_default_run(cli)
    assert cli("compat", "--quant", "none", "--adapter", "full").code == 0
    refused = cli(
        "train", "--adapter", "full", "--quant", "acme", "--device", "cpu", "--max-steps", "1", "--output", "run"
    )
    assert refused.code in (2, 7), refused.stderr
    assert "Traceback" not in refused.stderr
    assert said in refused.stderr
    assert cli("plugins", "check", "acme").code == 7


def test_a_plugin_whose_import_hangs_can_be_disabled_by_name(run_cli: Cli, fake_distribution: Any) -> None:
    hangs = "import sys, time\nprint('begun', file=sys.stderr, flush=True)\ntime.sleep(600)\n"
    fake_distribution("acme-quant", "1.2", {"acme_hooks": hangs}, {"acme": "acme_hooks"})
    command = [sys.executable, "-m", "smollm3_finetune.main", "plugins", "list"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as hanging:
        try:
            assert hanging.stderr is not None
            assert "begun" in hanging.stderr.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                hanging.wait(1)
        finally:
            hanging.kill()
    assert run_cli("--help", timeout=60).code == 0
    listed = run_cli("plugins", "list", "--json", "-p", "no:acme", timeout=60)
    assert {p["name"]: p["status"] for p in json.loads(listed.stdout)}["acme"] == "disabled"
    assert run_cli("plugins", "list", timeout=60, SMOLLM3_DISABLE_PLUGINS="acme").code == 0


def test_a_name_of_two_distributions_is_an_error_only_if_used(cli: Cli, fake_distribution: Any) -> None:
    for who in ("one", "two"):
        source = quantizer("acme", f"factory='{who}_hooks:Made'", GOOD)
        fake_distribution(f"quant-{who}", "1.0", {f"{who}_hooks": source}, {who: f"{who}_hooks"})
    plan_of_a_default_run(cli)
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
        "    return [ObjectiveSpec(name='sft', summary='o', factory='acme_hooks:Made', api=2)]\n",
    ),
    "loader": (
        "tiny",
        HEAD + GOOD + "@hookimpl\ndef smollm3_loaders():\n"
        "    return [LoaderSpec(name='tiny', summary='l', factory='acme_hooks:Made', claims=bool, api=2)]\n",
    ),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_plugin_with_a_built_in_name_is_not_used_by_default(kind: str, cli: Cli, fake_distribution: Any) -> None:
    default = plan_of_a_default_run(cli)
    name, source = TAKEN[kind]
    fake_distribution("acme-plugin", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    assert plan_of_a_default_run(cli) == default
    flag = {"quantizer": "quant"}.get(kind, kind)
    asked = cli(*DRY, "--adapter", "full", f"--{flag}", name)
    assert asked.code == 7
    assert f"the {kind} {name!r} is offered by acme-plugin 1.2 and smollm3-finetune" in asked.stderr
    chosen = cli(*DRY, "--adapter", "full", f"--{flag}", f"smollm3-finetune:{name}")
    assert chosen.code == 0, chosen.stderr


AT_A_ROW = """
from smollm3_finetune.api import Conversation, FormatterSpec, ObjectiveSpec, hookimpl

@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name='halves', summary='f', factory='acme_hooks:Halves', api=2)]

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name='picky', summary='o', factory='acme_hooks:Picky', api=2)]

class Halves:
    def __init__(self, options): ...
    def __call__(self, row):
        fail(row['text']) if WHO == 'halves' else None
        return Conversation(text=row['text'])

class Picky:
    def __init__(self, options): ...
    def prepare(self, conversation, renderer, max_length):
        fail(conversation.text) if WHO == 'picky' else None
        return None
    def collator(self, tokenizer): ...
    def trainer_class(self): ...
    def loss_sum(self, model, batch): ...

def fail(text):
    if text == 'row 3':
        raise RAISED
"""
RAISED = {
    "ZeroDivisionError('division by zero')": "ZeroDivisionError: division by zero",
    "RecursionError('too deep')": "RecursionError: too deep",
    "RuntimeError('no license\\nand more')": "RuntimeError: no license",
    "KeyError('gone')": "KeyError: 'gone'",
    "TypeError('of that kind')": "TypeError: of that kind",
}


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize(("who", "kind"), [("halves", "formatter"), ("picky", "objective")])
def test_a_component_that_fails_on_a_row_is_named_with_file_and_line(
    who: str, kind: str, raised: str, cli: Cli, fake_distribution: Any
) -> None:
    source = AT_A_ROW.replace("RAISED", raised) + f"WHO = {who!r}\n"
    fake_distribution("acme-rows", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(1, 6)))
    rows = ("--data", "rows.jsonl", "--formatter", "halves", "--objective", "picky")
    for command in (("data", "stats"), ("train", "--adapter", "full", "--device", "cpu", "--output", "run")):
        result = cli(*command, *rows)
        if kind == "formatter" and raised.startswith(("KeyError", "TypeError")):  # allowed for an invalid row
            assert result.code == 5
            assert "error: rows.jsonl:3: " in result.stderr
            continue
        assert result.code == 7, result.stderr
        assert result.stderr.endswith(
            f"error: rows.jsonl:3: {kind} {who!r} (acme-rows 1.2) failed: {RAISED[raised]}\n"
            "  hint: to see the traceback: --debug\n"
        )
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt", 130, "interrupted"),
        ("MemoryError", 1, "out of memory"),
        ("type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory')", 1, "out of memory: CUDA"),
    ],
)
@pytest.mark.parametrize("who", ["halves", "picky"])
def test_interrupts_and_memory_errors_are_not_attributed_to_a_component(
    who: str, raised: str, code: int, said: str, cli: Cli, fake_distribution: Any
) -> None:
    source = AT_A_ROW.replace("RAISED", raised) + f"WHO = {who!r}\n"
    fake_distribution("acme-rows", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(1, 6)))
    result = cli("data", "stats", "--data", "rows.jsonl", "--formatter", "halves", "--objective", "picky")
    assert result.code == code
    assert said in result.stderr
    assert "halves" not in result.stderr and "picky" not in result.stderr


LOADER = """
from smollm3_finetune.api import LoaderSpec, ModelError, directory_source, hookimpl
from smollm3_finetune.builtin.tiny_loader import DIRECTORY

@hookimpl
def smollm3_loaders():
    return [LoaderSpec(name='vault', summary='l', factory='acme_hooks:Vault', claims=lambda ref: ref == 'vault',
                       api=2)]

def fail():
    raise RAISED

class Vault:
    def __init__(self, options): ...
    def open(self, ref, ctx):
        if WHERE == 'open':
            fail()
        return None if WHERE == 'nothing' else Source(ref)

class Source:
    def __init__(self, ref):
        self.ref, self.inner = ref, directory_source(DIRECTORY, ref=ref)
        self.path, self.fingerprint, self.has_file, self.load, self.at = (
            self.inner.path, self.inner.fingerprint, self.inner.has_file, self.inner.load, self.inner.at)

    @property
    def config(self):
        if WHERE == 'config':
            fail()
        return ['no', 'mapping'] if WHERE == 'list' else self.inner.config

    def tokenizer(self):
        fail()
"""
VAULT = "loader 'vault' (acme-vault 1.2) failed: "


@pytest.mark.parametrize("command", ["train", "data stats", "generate", "config validate"])
@pytest.mark.parametrize("where", ["open", "config", "tokenizer", "nothing", "list"])
def test_a_loader_that_fails_is_named(command: str, where: str, cli: Cli, fake_distribution: Any) -> None:
    source = LOADER.replace("RAISED", "PermissionError(13, 'closed')") + f"WHERE = {where!r}\n"
    fake_distribution("acme-vault", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    model = ("vault", "--prompt", "a") if command == "generate" else ("--model", "vault", "--adapter", "full")
    result = cli(*command.split(), *model, *(("--output", "run") if command == "train" else ()))
    if (command, where) == ("config validate", "tokenizer"):  # which reads no tokenizer
        assert result.code == 0, result.stderr
        return
    assert result.code == 7, result.stderr
    said = {
        "nothing": "TypeError: open() returned None, not a ModelSource",
        "list": "TypeError: open() returned a source whose config is list, not a mapping",
    }.get(where, "PermissionError: [Errno 13] closed")
    assert f"error: {VAULT}{said}\n  hint: to see the traceback: --debug" in result.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize("where", ["open", "config", "tokenizer"])
def test_an_error_that_a_loader_raises_on_purpose_is_unchanged(where: str, cli: Cli, fake_distribution: Any) -> None:
    source = LOADER.replace("RAISED", "ModelError('the vault is closed')") + f"WHERE = {where!r}\n"
    fake_distribution("acme-vault", "1.2", {"acme_hooks": source}, {"acme": "acme_hooks"})
    for command in (("data", "stats", "--model", "vault"), ("generate", "vault", "--prompt", "a")):
        result = cli(*command)
        assert (result.code, "error: the vault is closed" in result.stderr) == (6, True), result.stderr
