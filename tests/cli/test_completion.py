"""Completion: what is offered at each place of a line, by the same answers that the shells read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli import COMMANDS, cli
from smollm3_finetune.cli.completion import LINE, SHELLS, VARIABLE, WORD
from smollm3_finetune.cli.completion.answers import answer
from smollm3_finetune.cli.completion.install import BASH_COMPLETION, place_for, script
from smollm3_finetune.cli.completion.keys import COMPONENTS, NAMING
from smollm3_finetune.cli.completion.offered import offered
from smollm3_finetune.components.kinds import COMMAND, KINDS
from smollm3_finetune.config.preset_names import preset_names
from smollm3_finetune.config.schema import COMPONENT_SECTIONS

HOOKS = """
from dataclasses import dataclass
from typing import Literal
from smollm3_finetune.api import CommandSpec, Op, QuantizerSpec, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    grid: Literal["fine", "coarse"] = option("fine", "The grid.")
    bits: int = option(4, "Bits.")
    even: bool = option(True, "Even.")

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="tens", aliases=("ten",), summary="in tens", factory="acme.q:Q", provides={Op.FORWARD},
                          options="acme.hooks:Options", api=2)]

@hookimpl
def smollm3_commands():
    return [CommandSpec(name="hello", aliases=("hi",), summary="say hello", factory="acme.hello:hello", api=2),
            CommandSpec(name="broken", summary="has no code", factory="acme.hello:none", api=2)]
"""
HELLO = """
import click

@click.command()
@click.argument("run", metavar="RUN")
@click.option("--tone", type=click.Choice(["warm", "dry"]), help="The tone.")
@click.option("--quant", help="A quantizer.")
@click.option("--list", type=click.Path(), help="A file of names.")
def hello(**values):
    pass
"""
Complete = Callable[..., list[tuple[str, str, str]]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Iterator[Complete]:
    """The answers for a line: kind, value and text of each. A new process starts with nothing remembered."""

    def run(line: str, shell: str = "zsh", word: str = "") -> list[tuple[str, str, str]]:
        offered.cache_clear()
        for name, value in ((LINE, line), (WORD, word), ("COMP_WORDBREAKS", " \t\n\"'><=;|&(:")):
            monkeypatch.setenv(name, value)
        lines = answer(f"{shell}_complete").splitlines()
        return [(kind, value, text) for kind, value, text in (one.split("\t") for one in lines)]

    monkeypatch.setenv("SMOLLM3_MAX_PLUGIN_SECONDS", "60")
    yield run
    offered.cache_clear()


@pytest.fixture
def acme(fake_distribution: Callable[..., Path]) -> Path:
    return fake_distribution("acme", "1.0", {"acme.hooks": HOOKS, "acme.hello": HELLO}, {"acme": "acme.hooks"})


def values(found: list[tuple[str, str, str]]) -> list[str]:
    return [value for _, value, _ in found]


def test_the_kinds_of_flags_are_those_of_the_components() -> None:
    assert set(COMPONENTS) == set(COMPONENT_SECTIONS)
    assert {kind.section: kind.name for kind in KINDS if kind.section in COMPONENTS} == COMPONENTS
    assert {kind.flag for kind in KINDS if kind is not COMMAND} <= set(NAMING)


def test_commands_and_their_summaries(complete: Complete) -> None:
    assert [(v, t) for _, v, t in complete("smollm3 ")] == [(n, text) for n, (_, text) in COMMANDS.items()]
    assert values(complete("smollm3 tr")) == ["train"]
    assert values(complete("smollm3 runs ")) == ["list", "show", "compare", "report", "prune"]
    assert complete("smollm3 nonsense ") == []
    assert values(complete("smollm3 --he")) == ["--help"]


def test_options_of_a_command(complete: Complete) -> None:
    assert values(complete("smollm3 train --quant")) == ["--quant", "--quant-opt"]
    assert "--help" in values(complete("smollm3 train "))
    assert "--launched" not in values(complete("smollm3 train --"))  # hidden
    assert "--model" not in values(complete("smollm3 train --model tiny --"))  # given already
    assert "--data" in values(complete("smollm3 train --data a --"))  # may be repeated
    assert {v: t for _, v, t in complete("smollm3 train --dry")}["--dry-run"].startswith("Check everything")


@pytest.mark.parametrize("place", ["train --quant ", "train --quant=", "plan --quant ", "quantize m --quant ",
                                   "merge r --requantize ", "train --ship-as "])  # fmt: skip
def test_names_of_components(place: str, complete: Complete, acme: Path) -> None:
    prefix = "--quant=" if place.endswith("=") else ""
    found = {v: t for _, v, t in complete(f"smollm3 {place}")}
    assert found[f"{prefix}tens"] == "in tens"
    assert found[f"{prefix}ten"] == "the same as tens"
    assert found[f"{prefix}none"] == "unquantized weights"


@pytest.mark.parametrize(("place", "name"), [
    ("train --adapter ", "full"), ("train --loader ", "tiny"), ("train --objective ", "sft"),
    ("train --formatter ", "messages"), ("train --launcher ", "torchrun"), ("export r --to ", "safetensors"),
    ("plan --with-adapter ", "all"), ("train --set adapter.name=", "adapter.name=full"), ("train --dtype ", "bfloat16"),
    ("plugins info ", "full"), ("plugins new ", "quantizer"), ("train --model ", "tiny"), ("train --device ", "cpu"),
    ("runs list --state ", "finished"), ("eval r --fail-if ", "worse"), ("train --preset ", "qlora"),
    ("config presets ", "small-gpu"), ("completion ", "zsh"),
])  # fmt: skip
def test_values_of_options_and_arguments(place: str, name: str, complete: Complete) -> None:
    assert name in values(complete(f"smollm3 {place}"))


def test_options_of_the_component_on_the_line(complete: Complete, acme: Path) -> None:
    line = "smollm3 train --quant tens --quant-opt "
    assert complete(line) == [("key", "grid=", "The grid."), ("key", "bits=", "Bits."), ("key", "even=", "Even.")]
    assert complete(f"{line}grid=") == [("plain", "grid=fine", "the default"), ("plain", "grid=coarse", "")]
    assert values(complete(f"{line}even=f")) == ["even=false"]
    assert complete(f"{line}bits=") == []
    assert values(complete("smollm3 train --quant acme:ten --quant-opt gr")) == ["grid="]  # an alias, in full
    assert complete("smollm3 train --quant-opt ") == []  # no quantizer is on the line
    assert complete("smollm3 train --quant unknown --quant-opt ") == []
    assert values(complete("smollm3 train --quant tens --set quant.g")) == ["quant.grid="]
    assert values(complete("smollm3 train --quant tens --set quant.grid=c")) == ["quant.grid=coarse"]


def test_keys_of_the_configuration(complete: Complete) -> None:
    assert complete("smollm3 train --set train.sched") == [("key", "train.schedule=", "Learning rate schedule.")]
    assert "train.schedule=cosine" in values(complete("smollm3 train --set train.schedule="))
    assert values(complete("smollm3 train --set train.pack")) == ["train.packing="]
    assert values(complete("smollm3 train --set train.packing=")) == ["train.packing=true", "train.packing=false"]
    assert "model=" in values(complete("smollm3 train --set "))
    assert complete("smollm3 train --set data.path=ro") == [("file", "ro", "data.path=")]


@pytest.mark.parametrize(("place", "kind"), [
    ("train --data ", "file"), ("train --config ", "file"), ("train -p ", "file"), ("train --output ", "dir"),
    ("pipeline run ", "file"), ("runs list --runs ", "dir"), ("generate ", "file"), ("plugins check x", "file"),
])  # fmt: skip
def test_paths_are_left_to_the_shell(place: str, kind: str, complete: Complete) -> None:
    assert [k for k, *_ in complete(f"smollm3 {place}")] == [kind]


def test_runs_are_the_newest_first(complete: Complete) -> None:
    for number, name in enumerate(("b-first", "a-second", "deep/c-third", "no-run")):
        run = Path("runs", name)
        run.mkdir(parents=True)
        if name != "no-run":
            (run / "versions.json").touch()
        (run / "run.yaml").touch()
        os.utime(run / "run.yaml", (number, time.time() - 100 + number))
    for place in ("runs show ", "generate ", "merge ", "push "):
        assert values(complete(f"smollm3 {place}")) == ["runs/deep/c-third", "runs/a-second", "runs/b-first"]
    assert values(complete("smollm3 train --resume ")) == ["auto", "runs/deep/c-third", "runs/a-second", "runs/b-first"]
    assert values(complete("smollm3 runs show runs/a")) == ["runs/a-second"]
    assert values(complete("smollm3 runs compare runs/a-second runs/b")) == ["runs/b-first"]
    assert values(complete("smollm3 runs show --runs runs/deep ")) == ["runs/deep/c-third"]


def test_names_of_plugins(complete: Complete, acme: Path) -> None:
    assert ("plain", "acme", "acme 1.0") in complete("smollm3 plugins check ")
    assert ("plain", "no:acme", "acme 1.0") in complete("smollm3 train -p no:")
    assert "builtin" not in values(complete("smollm3 plugins check "))


def test_commands_of_plugins_are_offered_with_the_others(complete: Complete, acme: Path) -> None:
    assert ("plain", "hello", "say hello") in complete("smollm3 ")


@pytest.mark.parametrize("name", ["hello", "hi"])
def test_the_command_of_a_plugin_is_completed_as_those_of_core(name: str, complete: Complete, acme: Path) -> None:
    assert values(complete(f"smollm3 {name} --")) == ["--tone", "--quant", "--list", "--debug", "--help"]
    assert values(complete(f"smollm3 {name} --tone ")) == ["warm", "dry"]
    assert "tens" in values(complete(f"smollm3 {name} --quant "))
    assert complete(f"smollm3 {name} --list x") == [("file", "x", "")]
    Path("runs/mine").mkdir(parents=True)
    for file in ("run.yaml", "versions.json"):
        Path("runs/mine", file).touch()
    assert values(complete(f"smollm3 {name} ")) == ["runs/mine"]


def test_a_command_that_cannot_be_imported_has_nothing_to_complete(complete: Complete, acme: Path) -> None:
    assert complete("smollm3 broken ") == complete("smollm3 broken --") == []


def test_two_commands_with_one_name_are_told_apart(
    complete: Complete, acme: Path, fake_distribution: Callable[..., Path]
) -> None:
    modules = {"other.hooks": HOOKS.replace("acme.", "other."), "other.hello": HELLO.replace("--tone", "--voice")}
    fake_distribution("other", "1.0", modules, {"other": "other.hooks"})
    assert {"acme:hello", "other:hello"} < {*values(complete("smollm3 "))}
    assert "--voice" in values(complete("smollm3 other:hello --"))


def test_options_before_the_command(complete: Complete, acme: Path) -> None:
    found = values(complete("smollm3 -"))
    assert found == [flag for p in cli.params for flag in p.opts] + ["-h", "--help"]
    assert complete("smollm3 -p my") == [("file", "my", "")]
    assert values(complete("smollm3 -p my.py ")) == ["broken", "hello"], "built-in commands take -p after their name"
    assert values(complete("smollm3 --plugin my.py hello --to")) == ["--tone"]


def test_all_presets_are_offered_with_their_first_lines(complete: Complete) -> None:
    found = complete("smollm3 train --preset ")
    assert values(found) == preset_names()
    assert all(text for *_, text in found)


@pytest.mark.parametrize(("line", "word", "shown"), [
    ("smollm3 train --set train.schedule=li", "li", ["linear"]),
    ("smollm3 train --set train.schedule=", "=", ["cosine_with_min_lr", "cosine", "linear", "constant",
                                                  "constant_with_warmup"]),
    ("smollm3 train --adapter=fu", "fu", ["full"]),
    ("smollm3 train --set 'train.schedule=li", "'train.schedule=li", ["train.schedule=linear"]),
    ("smollm3 train --adapter smollm3-finetune:fu", "fu", []),
])  # fmt: skip
def test_bash_gets_what_follows_its_word_breaks(line: str, word: str, shown: list[str], complete: Complete) -> None:
    assert values(complete(line, "bash", word)) == shown


def test_characters_that_bash_would_divide_are_escaped(complete: Complete) -> None:
    run = Path("runs", "my run & 'two'")
    run.mkdir(parents=True)
    for name in ("run.yaml", "versions.json"):
        (run / name).touch()
    assert values(complete("smollm3 runs show ", "bash")) == ["runs/my\\ run\\ \\&\\ \\'two\\'"]
    assert values(complete("smollm3 runs show 'ru", "bash", "'ru")) == ["runs/my run & 'two'"]
    assert values(complete("smollm3 runs show ", "fish")) == ["runs/my run & 'two'"]


LINES = ("", "smollm3", "FOO=1 smollm3 tr", 'smollm3 train --data "', "smollm3 train --data \\", "smollm3 \u2028",
         "smollm3 train --quant", "smollm3 train -p no:")  # fmt: skip


def test_names_that_could_end_an_answer_are_left_out(complete: Complete) -> None:
    for name in ("good", "bad\nplain\tevil", "bad\tname", "\x1b[31mred"):
        run = Path("runs", name)
        run.mkdir(parents=True)
        for file in ("run.yaml", "versions.json"):
            (run / file).touch()
    assert values(complete("smollm3 runs show ")) == ["runs/good"]


def test_names_that_a_shell_would_expand_are_escaped_for_bash(complete: Complete) -> None:
    run = Path("runs", "$(touch x)`*~{a,b}")
    run.mkdir(parents=True)
    for file in ("run.yaml", "versions.json"):
        (run / file).touch()
    (value,) = values(complete("smollm3 runs show ", "bash"))
    done = subprocess.run(["bash", "-c", f"echo {value}"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{run}\n"


def test_commands_that_are_built_in_need_no_plugin(complete: Complete, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cache is read-only, so that the plugins would be imported for each Tab."""
    monkeypatch.setattr("smollm3_finetune.cli.session.discovered", None)
    assert values(complete("smollm3 train --see")) == ["--seed"]
    assert values(complete("smollm3 runs sh")) == ["show"]


@pytest.mark.parametrize(("line", "key"), [
    ("export r --to safetensors --to-opt ", "dtype="), ("train --ship-as tens --ship-as-opt ", "grid="),
    ("merge r --requantize tens --requantize-opt ", "grid="), ("train --adapter-opt ", None),
    ("train --adapter full --adapter-opt ", "parameters="),
])  # fmt: skip
def test_options_of_other_kinds(line: str, key: str | None, complete: Complete, acme: Path) -> None:
    found = values(complete(f"smollm3 {line}"))
    assert key is None or key in found


@pytest.mark.parametrize("line", LINES)
def test_no_line_is_an_error(line: str, complete: Complete) -> None:
    complete(line)
    assert values(complete("FOO=1 smollm3 tr")) == ["train"]


def test_a_damaged_or_read_only_cache_does_not_matter(complete: Complete, monkeypatch: pytest.MonkeyPatch) -> None:
    complete("smollm3 train --adapter ")
    cache = Path(os.environ["SMOLLM3_CACHE"])
    stored = [*cache.glob("plugins/*.json"), *cache.glob("completion/*.json")]
    assert len(stored) == 2
    for text in ("", "{}", '{"about": 1}', "[1"):
        for file in stored:
            file.write_text(text)
        assert "full" in values(complete("smollm3 train --adapter "))
    monkeypatch.setenv("SMOLLM3_CACHE", "/dev/null")
    assert "full" in values(complete("smollm3 train --adapter "))


def test_a_command_that_was_edited_is_read_again(complete: Complete) -> None:
    complete("smollm3 train --see")
    (file,) = Path(os.environ["SMOLLM3_CACHE"]).glob("completion/*-train.json")
    data = json.loads(file.read_text())
    data["files"][0][1] -= 1
    data["command"]["params"] = []
    file.write_text(json.dumps(data))
    assert values(complete("smollm3 train --see")) == ["--seed"]


def test_a_plugin_that_prints_or_fails_does_not_damage_the_answers(
    complete: Complete, fake_distribution: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    loud = "print('LOUD')\n" + HOOKS.replace("acme.hooks:Options", "loud.no:No")
    fake_distribution("loud", "1.0", {"loud.hooks": loud}, {"loud": "loud.hooks"})
    fake_distribution("bad", "1.0", {"bad.hooks": "raise SystemExit(3)"}, {"bad": "bad.hooks"})
    assert "tens" in values(complete("smollm3 train --quant "))
    assert complete("smollm3 train --quant tens --quant-opt ") == []
    assert ("plain", "bad", "bad 1.0 (broken)") in complete("smollm3 plugins check ")
    assert "LOUD" not in capfd.readouterr().out


ASK = """
import json, sys
from smollm3_finetune.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_the_answering_process_imports_no_command_and_nothing_heavy(acme: Path) -> None:
    def ask(line: str) -> tuple[str, set[str]]:
        env = {**os.environ, VARIABLE: "zsh_complete", LINE: line}
        done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=env, check=True)
        return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))

    lines = {"smollm3 train --quant ": "tens", "smollm3 train --quant tens --quant-opt ": "grid="}
    for line in lines:
        ask(line)  # stores what it needs
    for line, expected in lines.items():
        out, modules = ask(line)
        assert expected in out
        mine = {m for m in modules if m.startswith("smollm3_finetune.")}
        assert not modules & {"torch", "pluggy", "pydantic", "rich", "ruamel", "importlib.metadata", "acme"}
        assert not {m for m in mine if m.startswith(("smollm3_finetune.api", "smollm3_finetune.cli.commands"))}
        assert len(mine) <= 22  # 19 when this was written


# ------------------------------------------------------------------------------------------ the scripts of the shells


@pytest.mark.parametrize("shell", SHELLS)
def test_the_first_lines_of_a_script_say_how_to_install_it(shell: str, cli: Callable[..., Any]) -> None:
    printed = cli("completion", shell).stdout
    assert printed == script(shell)
    head = "\n".join(printed.splitlines()[:6])
    assert f"smollm3 completion {shell} --install" in head
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=printed, text=True, check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_it_is_installed_where_the_shell_looks_for_it(
    shell: str, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    refused = cli("completion", shell, "--install")
    assert refused.code == 2
    assert "pass --yes" in refused.stderr
    assert list(home.iterdir()) == []
    monkeypatch.setattr("smollm3_finetune.cli.completion.install.COMMANDS", {})  # stored by the test above
    done = cli("completion", shell, "--install", "--yes")
    place = {"bash": ".local/share/bash-completion/completions/smollm3",
             "fish": ".config/fish/completions/smollm3.fish",
             "zsh": ".local/share/zsh/site-functions/_smollm3"}[shell]  # fmt: skip
    assert done.code == 0
    assert (home / place).read_text() == script(shell)
    assert f"wrote {home / place}" in done.stderr
    own = {"bash": not any(map(os.path.exists, BASH_COMPLETION)), "zsh": True, "fish": False}[shell]
    assert ("add to ~/" in done.stderr) == own


def test_zsh_takes_a_directory_of_fpath_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "zfunc"
    own.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("smollm3_finetune.cli.completion.install._fpath", lambda: ["/usr/share/zsh", str(own)])
    place = place_for("zsh")
    assert (place.file, place.to_do) == (own / "_smollm3", None)


def test_a_place_that_cannot_be_written_is_an_error_with_a_hint(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    result = cli("completion", "fish", "--install", "--yes")
    assert result.code
    assert "smollm3 completion fish > FILE" in result.stderr
    assert "hint: add --install" in cli("completion", "fish", "--yes").stderr


BASH = """
source "$1"
COMP_LINE="$2" COMP_POINT=${#2} COMP_CWORD=$3; shift 3
COMP_WORDS=("$@")
_smollm3_completion smollm3
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_function_of_bash_itself(tmp_path: Path) -> None:
    """Without a terminal; the long test presses Tab."""
    (tmp_path / "smollm3").write_text(f'#!/bin/sh\nexec {sys.executable} -m smollm3_finetune.main "$@"\n')
    (tmp_path / "smollm3").chmod(0o755)
    file = tmp_path / "script"
    file.write_text(script("bash"))
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    words = ["smollm3", "train", "--set", "train.schedule", "=", "co"]
    command = ["bash", "-c", BASH, "bash", str(file), "smollm3 train --set train.schedule=co", "5", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["cosine_with_min_lr", "cosine", "constant", "constant_with_warmup"]
