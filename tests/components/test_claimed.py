"""A component that was chosen because it claims something is named with the reason; its faults have exit code 7."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
DRY = ("train", "--dry-run", "--device", "cpu", "--adapter", "full", "--data", "rows.jsonl", "--no-plugins")
HEAD = "from smollm3_finetune.api import *\n"
CLASSES = """
class Mine:
    def __init__(self, options): ...
    def load(self, source, ctx): ...
    def open(self, ref, ctx): {body}
    def __call__(self, row): {body}
"""
FIELDS = {
    "loader": "LoaderSpec(rank=99, ",
    "quantizer": "QuantizerSpec(provides=ALL_OPS, check=check, ",
    "formatter": "FormatterSpec(rank=99, ",
}
ACCEPTED = {
    "loader": ("the reference 'tiny'", "choose another with --loader tiny"),
    "quantizer": ("the config.json of 'tiny'", "omit -p {file}"),
    "formatter": ("the row rows.jsonl:1", "choose another with --formatter messages"),
}


@pytest.fixture
def claiming(plugin_file: Callable[[str, str], Path]) -> Callable[..., str]:
    """The plugin file of a component that claims everything and does `body` when it is used."""
    turns = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}] for n in range(3)]
    Path("rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))

    def make(kind: str, body: str) -> str:
        spec = f"{FIELDS[kind]}name='mine', summary='s', factory='mine:Mine', claims=lambda it: True, api=1)"
        source = HEAD + f"def check(options, source): {body}\n" + CLASSES.format(body=body)
        source += f"\n@hookimpl\ndef smollm3_{kind}s():\n    return [{spec}]\n"
        return str(plugin_file("mine", source).resolve())

    return make


@pytest.mark.parametrize("kind", FIELDS)
def test_a_failure_says_why_the_component_was_chosen_and_how_to_choose_another(
    kind: str, claiming: Callable[..., str], cli: Cli
) -> None:
    file = claiming(kind, "raise RuntimeError('boom')")
    accepted, other = ACCEPTED[kind]
    done = cli(*DRY, "-p", file)
    assert done.code == 7
    assert "failed" in done.stderr
    assert "RuntimeError: boom\n" in done.stderr
    why = f"{kind} 'mine' was chosen because its claims accepted {accepted}; {other.format(file=file)}"
    assert done.stderr.splitlines()[-1] == f"  hint: to see the traceback: --debug; {why}"


@pytest.mark.parametrize("kind", ["loader", "quantizer"])
def test_so_does_an_error_that_it_raises_on_purpose(kind: str, claiming: Callable[..., str], cli: Cli) -> None:
    done = cli(*DRY, "-p", claiming(kind, "raise ModelError('not a vault', hint='open a vault')"))
    assert done.code == 6
    assert "error: not a vault\n" in done.stderr
    assert f"  hint: open a vault; {kind} 'mine' was chosen because its claims accepted" in done.stderr


def test_rows_that_a_claiming_formatter_refuses_name_it(claiming: Callable[..., str], cli: Cli) -> None:
    done = cli(*DRY, "-p", claiming("formatter", "raise ValueError('no ticket')"))
    assert done.code == 5
    assert "formatter 'mine' was chosen because its claims accepted the row rows.jsonl:1" in done.stderr


def test_a_formatter_that_returns_something_else_is_the_faulty_one(claiming: Callable[..., str], cli: Cli) -> None:
    done = cli(*DRY, "-p", claiming("formatter", "return {'a': 1}"), "--formatter", "mine")
    assert done.code == 7
    assert ") returned an object of type dict, not a Conversation" in done.stderr
    assert "chosen because" not in done.stderr


def test_a_component_that_the_user_named_has_no_reason(claiming: Callable[..., str], cli: Cli) -> None:
    done = cli(*DRY, "-p", claiming("loader", "raise RuntimeError('boom')"), "--loader", "mine")
    assert done.code == 7
    assert done.stderr.endswith("RuntimeError: boom\n  hint: to see the traceback: --debug\n")


def test_the_plan_names_the_reason_of_each_choice(cli: Cli, claiming: Callable[..., str]) -> None:
    file = claiming("quantizer", "return None")
    shown = cli(*DRY, "-p", file)
    assert shown.code == 0, shown.stderr
    lines = {" ".join(line.split()) for line in shown.stdout.splitlines()}
    assert "name: smollm3-finetune:tiny # its claims accepted the reference 'tiny'" in lines
    assert "name: mine:mine # its claims accepted the config.json of 'tiny'" in lines
    assert "name: smollm3-finetune:messages # its claims accepted the row rows.jsonl:1" in lines
    chosen = cli(*DRY, "-p", file, "--loader", "tiny", "--json").report()["chosen"]
    assert chosen == {
        "quant": "its claims accepted the config.json of 'tiny'",
        "formatter": "its claims accepted the row rows.jsonl:1",
    }


def test_another_quantizer_than_the_claiming_one_is_refused_with_a_way_out(
    claiming: Callable[..., str], cli: Cli
) -> None:
    file = claiming("quantizer", "return None")
    done = cli(*DRY, "-p", file, "--quant", "none")
    assert done.code == 3
    assert done.stderr.endswith(f"hint: omit --quant, or: --quant mine; if its claims are wrong, omit -p {file}\n")


EXITS = ("claims=lambda c: exit(3)", "refine=lambda s, o, e: exit(3)", "check=lambda o, s: exit(3)")


@pytest.mark.parametrize("field", EXITS)
def test_a_function_that_exits_does_not_end_the_command(
    field: str, plugin_file: Callable[[str, str], Path], cli: Cli
) -> None:
    spec = f"QuantizerSpec(name='mine', summary='s', factory='mine:Q', provides=ALL_OPS, api=1, {field})"
    file = plugin_file("mine", f"{HEAD}@hookimpl\ndef smollm3_quantizers():\n    return [{spec}]\n")
    named = () if field.startswith("claims") else ("--quant", "mine")
    done = cli("train", "--dry-run", "--device", "cpu", "--adapter", "full", "--no-plugins", "-p", str(file), *named)
    assert done.code == (7 if named else 0), done.stderr
    assert ("failed in" in done.stderr) == bool(named)


BROKEN = f"""{HEAD}
@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="rows", aliases=("by-rows",), summary="s", factory="acme_hooks:Q", api=1)]
@hookimpl
def smollm3_adapters():
    raise RuntimeError("no license")
"""


@pytest.mark.parametrize("name", ["rows", "by-rows", "acme", "acme-quant", "acme-quant:rows"])
def test_a_broken_plugin_has_its_exit_code_by_every_name(name: str, cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("acme-quant", "1.2", {"acme.hooks": BROKEN, "acme": ""}, {"acme": "acme.hooks"})
    done = cli("train", "--dry-run", "--device", "cpu", "--adapter", "full", "--quant", name)
    assert done.code == 7, done.stderr
    assert "plugin 'acme' (acme-quant 1.2, entry point) is broken: RuntimeError: no license\n" in done.stderr
    done = cli("train", "--dry-run", "--device", "cpu", "--adapter", "full", "--quant", "zeilen")
    assert done.code == 2


def test_a_checkpoint_of_a_broken_plugin_has_its_exit_code(cli: Cli, fake_distribution: Any, tmp_path: Path) -> None:
    from smollm3_finetune.builtin.tiny_loader import DIRECTORY

    fake_distribution("acme-quant", "1.2", {"acme_hooks": BROKEN}, {"acme": "acme_hooks"})
    model = tmp_path / "model"
    shutil.copytree(DIRECTORY, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "rows"}}))
    done = cli("train", "--dry-run", "--device", "cpu", "--adapter", "full", "--model", str(model))
    assert (done.code, "is broken: RuntimeError: no license" in done.stderr) == (7, True), done.stderr


GOOD = (
    f"{HEAD}@hookimpl\ndef smollm3_adapters():\n    return [AdapterSpec(name='s', summary='s', factory='a:B', api=1)]\n"
)


def test_a_file_with_the_name_of_an_installed_module_or_distribution_is_refused(
    cli: Cli, fake_distribution: Any, plugin_file: Callable[[str, str], Path]
) -> None:
    site = fake_distribution("my_plugin", "1.0", {"my_hooks": GOOD}, {"mine": "my_hooks"})
    file = plugin_file("my_plugin", GOOD)
    done = cli("plugins", "list", "-p", str(file))
    assert done.code == 7
    assert "is broken: its name is that of the installed distribution my_plugin 1.0\n" in done.stderr
    assert "hint: rename it, or disable the installed one: -p no:mine" in done.stderr
    assert cli("plugins", "list", "-p", str(file), "-p", "no:mine").code == 0
    done = cli("plugins", "list", "-p", str(plugin_file("my_hooks", GOOD)))
    assert done.code == 7
    assert f"is broken: the name 'my_hooks' is taken by another module, {site / 'my_hooks.py'}\n" in done.stderr


def test_a_file_that_hides_an_installed_module_is_not_taken_for_it(
    cli: Cli, fake_distribution: Any, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python finds the working directory first, for example with `python -m`."""
    site = fake_distribution("acme", "1.0", {"my_hooks": GOOD}, {"acme": "my_hooks"})
    (site / "acme-1.0.dist-info" / "RECORD").write_text("my_hooks.py,,\nacme-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(isolated))
    Path("my_hooks.py").write_text(GOOD)
    done = cli("plugins", "list", "-p", "my_hooks.py")
    assert done.code == 7
    assert f"{isolated / 'my_hooks.py'} hides the module 'my_hooks' of acme 1.0\n" in done.stderr
