"""Commands of plugins: found by their name, run with the tools of core, and their errors shown as core's own are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli import COMMANDS
from smollm3_finetune.cli.tools import Tools
from smollm3_finetune.components import registry
from smollm3_finetune.components.kinds import BUILT_IN_COMMANDS, COMMAND
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.inference.opened import checked_sampling

Cli = Callable[..., Any]
HOOKS = """
from smollm3_finetune.api import CommandSpec, Requires, hookimpl

@hookimpl
def smollm3_commands():
    return [CommandSpec(name="shout", aliases=("yell",), summary="Shout a word.", factory="{module}:shout", api=2),
            CommandSpec(name="needy", summary="Needs more.", factory="{module}:shout", api=2,
                        requires=Requires(distributions=("no-such-dist>=2",))),
            CommandSpec(name="plain", summary="No click.", factory="{module}:plain", api=2)]
"""
BODY = '''
import click
from smollm3_finetune.api import ConfigError

def plain(tools):
    pass

@click.command()
@click.argument("word")
@click.pass_obj
def shout(tools, word):
    """Shout WORD."""
    if word == "refused":
        raise ConfigError("not that word", hint="smollm3 shout other")
    if word == "bug":
        raise ValueError("the first line\\nthe second")
    if word == "usage":
        raise click.UsageError("not so")
    if word == "exit":
        raise SystemExit(4)
    tools.say("shouting")
    tools.print(word.upper())
    return 5
'''


@pytest.fixture
def shout(plugin_file: Callable[[str, str], Path]) -> Path:
    return plugin_file("shouting", HOOKS.format(module="shouting") + BODY)


def test_a_command_is_called_by_its_name_and_its_alias(cli: Cli, shout: Path) -> None:
    for name in ("shout", "yell", "shouting:shout"):
        done = cli("-p", shout, name, "hi")
        assert (done.code, done.stdout, done.stderr) == (0, "HI\n", "shouting\n"), name
    text = cli("-p", shout, "shout", "-h").stdout
    assert text.startswith("Usage: smollm3 shout [OPTIONS] WORD\n") and "--debug" in text


@pytest.mark.parametrize(
    ("word", "code", "stderr"),
    [
        ("refused", 2, "error: not that word\n  hint: smollm3 shout other\n"),
        ("exit", 4, ""),
        ("bug", 7, "error: command 'shout' (shouting VERSION) failed: ValueError: the first line\n"
                   "  hint: to see the traceback: --debug\n"),
    ],
)  # fmt: skip
def test_errors_are_shown_as_those_of_core(cli: Cli, shout: Path, word: str, code: int, stderr: str) -> None:
    from smollm3_finetune.components.discovery import _file_version

    done = cli("-p", shout, "shout", word)
    assert (done.code, done.stdout) == (code, "")
    assert done.stderr == stderr.replace("VERSION", _file_version(shout))


def test_debug_shows_the_traceback(cli: Cli, shout: Path) -> None:
    done = cli("-p", shout, "shout", "bug", "--debug")
    assert done.code == 7 and "Traceback" in done.stderr and 'raise ValueError("the first line' in done.stderr


def test_usage_errors_name_the_command(cli: Cli, shout: Path) -> None:
    for words in (["shout"], ["shout", "usage"], ["shout", "a", "--no-such"]):
        done = cli("-p", shout, *words)
        assert done.code == 2 and done.stderr.startswith("Usage: smollm3 "), done.stderr
        assert "Traceback" not in done.stderr


def test_a_factory_that_is_no_click_command_is_a_plugin_error(cli: Cli, shout: Path) -> None:
    done = cli("-p", shout, "plain")
    assert done.code == 7 and "hint: decorate the function with @click.command()" in done.stderr
    assert "factory shouting:plain is a click command" in cli("plugins", "check", shout, "--no-plugins").stdout


def test_requirements_are_checked_but_not_for_help(cli: Cli, shout: Path) -> None:
    done = cli("-p", shout, "needy", "hi")
    assert done.code == 4 and "pip install 'no-such-dist>=2'" in done.stderr
    assert cli("-p", shout, "needy", "--help").code == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("shot", "did you mean 'shout'?"), ("trian", "did you mean 'train'?"), ("qqq", "commands: train, ")],
)
def test_an_unknown_command_is_compared_with_all(cli: Cli, shout: Path, name: str, hint: str) -> None:
    done = cli("-p", shout, name)
    assert done.code == 2 and f"No such command {name!r}\n  hint: {hint}" in done.stderr


def test_a_known_command_that_is_not_installed_has_an_install_hint(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**registry.known_components(), "command": {"host": "smollm3-host"}}
    monkeypatch.setattr(registry, "known_components", lambda: known)
    assert cli("host").stderr == "error: the command 'host' is not installed\n  hint: smollm3 plugins install host\n"
    assert "did you mean 'host'?" in cli("hots").stderr


def test_plugins_belong_after_a_built_in_command(cli: Cli, shout: Path) -> None:
    done = cli("-p", shout, "plugins", "list")
    assert done.code == 2 and f"hint: smollm3 plugins list -p {shout}" in done.stderr


# --------------------------------------------------------------------------------------- names


def test_the_reserved_names_hold_every_built_in_command() -> None:
    assert set(COMMANDS) <= set(BUILT_IN_COMMANDS), "add the new command to BUILT_IN_COMMANDS in components/kinds.py"


@pytest.mark.parametrize(("name", "alias"), [("train", "x"), ("x", "doctor")])
def test_a_built_in_name_cannot_be_shadowed(
    cli: Cli, fake_distribution: Callable[..., Path], name: str, alias: str
) -> None:
    hooks = f"""
from smollm3_finetune.api import CommandSpec, hookimpl

@hookimpl
def smollm3_commands():
    return [CommandSpec(name="{name}", aliases=("{alias}",), summary="s", factory="shadow:x", api=2)]
"""
    fake_distribution("shadow", "1.0", {"shadow": hooks}, {"shadow": "shadow"})
    found = {r["name"]: r for r in json.loads(cli("plugins", "list", "--json").stdout)}["shadow"]
    taken = name if name in COMMANDS else alias
    assert found["status"] == "broken"
    assert found["error"] == f"its command {taken!r} has the name of the built-in smollm3 {taken}"
    assert cli(taken, "--help").stdout.startswith(f"Usage: smollm3 {taken} ")


def test_two_plugins_with_one_name_are_told_apart(cli: Cli, fake_distribution: Callable[..., Path]) -> None:
    for name in ("one", "two"):
        modules = {f"acme_{name}.hooks": HOOKS.format(module=f"acme_{name}.words"), f"acme_{name}.words": BODY}
        fake_distribution(f"acme-{name}", "1.0", modules, {f"acme-{name}": f"acme_{name}.hooks"})
    assert cli("acme-two:shout", "hi").stdout == "HI\n"
    assert "acme_two.words" in sys.modules and "acme_one.words" not in sys.modules, "only the command in use"
    done = cli("shout", "hi")
    assert done.code == 7 and "the command 'shout' is offered by acme-one 1.0 and acme-two 1.0" in done.stderr
    assert "hint: smollm3 acme-one:shout or smollm3 acme-two:shout" in done.stderr
    text = cli("--help").stdout  # from the snapshot of the calls above
    _, _, own = text.partition("Commands of plugins:\n")
    assert [line.split()[0] for line in own.splitlines()[:2]] == ["acme-one:needy", "acme-two:needy"]
    assert "acme-one:shout  Shout a word." in own


# --------------------------------------------------------------------------------------- tools


def test_a_run_is_trained_opened_and_asked_by_tools() -> None:
    tools = Tools("mine")
    small = {"max_steps": 1, "sample_tokens": 2}
    run = tools.train({"adapter": "full", "device": "cpu", "data": {"limit": 20}, "train": small, "output": "runs/a"})
    assert (run.state, run.directory.name) == ("finished", "a")
    assert run.configuration["adapter"]["name"] == "smollm3-finetune:full"
    assert run.report is not None and run.report["steps"] == 1
    assert [row["step"] for row in run.metrics()] == [1]
    assert tools.run("a").directory.samefile(run.directory), "its name in runs/ is enough"
    model = tools.model("runs/a", device="cpu")
    pieces: list[str] = []
    reply = model.reply([{"role": "user", "content": "What is the capital of France?"}], 20, stream=pieces.append)
    assert reply.finish == "stop" and "".join(pieces) == reply.text and reply.prompt_tokens > 10
    short = model.reply([{"role": "user", "content": "What is the capital of France?"}], 2, temperature=0.5, seed=1)
    assert (short.finish, short.tokens) == ("length", 2)
    with pytest.raises(ConfigError, match="--quant cannot be used with the run"):
        tools.model("runs/a", quant="none")
    with pytest.raises(ConfigError, match="unknown key 'adaptr'"):
        tools.train({"adaptr": "full"})


def test_a_run_does_not_record_a_file_that_offers_only_commands(
    shout: Path, plugin_file: Callable[[str, str], Path]
) -> None:
    source = (Path(__file__).parents[2] / "examples" / "scale_adapter.py").read_text()
    scale = plugin_file("scaling", source.replace("scale_adapter:", "scaling:"))
    tools = Tools("mine", plugins=(str(shout), str(scale), "no:gptq"))
    assert tools._of_runs() == (str(scale), "no:gptq")


def test_what_does_not_exist_is_refused() -> None:
    tools = Tools("mine")
    with pytest.raises(ModelError, match="no-such-run"):
        tools.run("no-such-run")
    Path("runs/broken").mkdir(parents=True)
    Path("runs/broken/metrics.jsonl").write_text("")
    Path("runs/broken/versions.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        tools.run("runs/broken")
    with pytest.raises(ConfigError, match="unknown setting 'devise'") as caught:
        tools.model("tiny", devise="cpu")
    assert caught.value.hint == "did you mean 'device'?"
    with pytest.raises((ConfigError, IncompatibleError, ModelError), match="no-such"):
        tools.model("tiny", quant={"name": "no-such", "bits": 4})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"temprature": 1}, "no sampling parameter"),
        ({"temperature": -0.1}, "temperature: expected a number"),
        ({"top_p": 0}, "top_p: expected a number"),
        ({"top_p": "all"}, "top_p: expected a number"),
        ({"top_k": True}, "top_k: expected a number"),
        ({"top_k": 2.5}, "top_k: expected an integer"),
        ({"temperature": float("nan")}, "temperature: expected a number"),
    ],
)
def test_wrong_sampling_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        checked_sampling(values)


def test_no_configuration_names_a_command() -> None:
    assert COMMAND.section == ""
