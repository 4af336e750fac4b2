"""`smollm3 plugins new`: a new plugin works unchanged, is discovered, passes the checks, and its tests pass."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from packaging.requirements import Requirement

from smollm3_finetune.api import API_VERSION
from smollm3_finetune.cli.commands.plugins_new import KINDS as OFFERED
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import KINDS
from smollm3_finetune.scaffold.write import SAMPLES, TEMPLATES, plan_scaffold

NAMES = tuple(k.name for k in KINDS)
TEMPLATE_NAMES = {"hooks", "options", "implementation", "single", "test"}
Cli = Callable[..., Any]


def install(directory: Path) -> None:
    """Add the metadata that `pip install -e` would add, with the entry points of pyproject.toml."""
    project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
    about = directory / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        + "".join(f"Requires-Dist: {d}\n" for d in project["dependencies"])
    )
    points = project["entry-points"]["smollm3_finetune"]
    (about / "entry_points.txt").write_text(
        "[smollm3_finetune]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
    )


def parse(line: str) -> None:
    """Let click parse a command without running it."""
    from smollm3_finetune.cli import cli

    words, command, context = shlex.split(line)[1:], cli, click.Context(cli, info_name="smollm3")
    while isinstance(command, click.Group):
        _, inner, words = command.resolve_command(context, words)
        assert inner is not None
        command, context = inner, click.Context(inner, info_name=inner.name, parent=context)
    _, rest, _ = command.make_parser(context).parse_args(words)
    assert not any(word.startswith("-") for word in rest)


def printed_commands(text: str) -> list[str]:
    return [line.strip() for line in text.partition("\nnext\n")[2].splitlines()]


@pytest.fixture
def packages(cli: Cli, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A package of each kind, called `acme-KIND`, installed for the processes that a test starts."""
    made = {}
    for kind in NAMES:
        result = cli("plugins", "new", kind, f"acme-{kind}")
        assert result.code == 0, result.stderr
        made[kind] = isolated / f"smollm3-acme-{kind}"
        install(made[kind])
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (*map(str, made.values()), before))))
    return made


def test_every_kind_is_offered_and_has_all_its_templates() -> None:
    assert OFFERED == NAMES
    assert set(SAMPLES) == set(KINDS)
    for kind in NAMES:
        wanted = TEMPLATE_NAMES - ({"options"} if kind == "command" else set())  # its options are click's
        assert {f.name.partition(".")[0] for f in (TEMPLATES / kind).glob("*.py.tmpl")} == wanted
    assert all(f.stat().st_size for f in TEMPLATES.rglob("*.tmpl"))


STARTED = "starts_each_process or failed_process or starts_again or request_to_stop"
"""Tests of the kit that start processes."""


@pytest.mark.parametrize("left_out", [STARTED, pytest.param("no_test", marks=pytest.mark.long)])
def test_the_tests_of_every_new_package_pass(packages: dict[str, Path], left_out: str) -> None:
    """All in one separate process, so that torch is imported only once. Those that start processes are long."""
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(
        [*command, "-k", f"not ({left_out})", *(str(p / "tests") for p in packages.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for kind in packages:
        assert len(re.findall(rf"^PASSED .*test_{kind}\.py::", done.stdout, re.MULTILINE)) >= 4, kind
    for kind in NAMES:
        assert re.search(rf"^PASSED .*test_{kind}\.py::TestAcme{kind.capitalize()}::", done.stdout, re.MULTILINE), kind


def test_every_new_package_is_installed_checked_and_shown(
    packages: dict[str, Path], run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = importlib.metadata.entry_points(group="smollm3_finetune").names
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", ",".join(others))
    result = run_cli("plugins", "check", "--json")
    assert result.code == 0, result.stdout
    by_plugin = {p["plugin"]: p for p in json.loads(result.stdout)}
    assert set(by_plugin) >= {f"acme-{kind}" for kind in NAMES}
    records = {r["name"]: r for r in json.loads(run_cli("plugins", "list", "--json").stdout)}
    for kind in packages:
        name = f"acme-{kind}"
        assert by_plugin[name]["distribution"] == f"smollm3-{name}"
        assert {c["check"] for c in by_plugin[name]["checks"]} >= {
            "its hooks and options do not import torch or another large library"
        }
        assert records[name]["components"] == [f"{kind} {name}"]


def test_a_new_package_describes_itself_and_its_requirements(packages: dict[str, Path]) -> None:
    for kind, directory in packages.items():
        project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
        package = f"smollm3_acme_{kind}"
        assert project["entry-points"] == {"smollm3_finetune": {f"acme-{kind}": package}}
        needed = {Requirement(d).name for d in project["dependencies"]}
        assert "smollm3-finetune" in needed
        sources = "".join(f.read_text() for f in (directory / package).glob("*.py"))
        imported = set(re.findall(r"^(?:from|import) (torch|transformers|safetensors)\b", sources, re.MULTILINE))
        assert imported <= needed
        assert f"api={API_VERSION}," in sources
        assert f"`acme-{kind}`" in (directory / "README.md").read_text()
        assert (directory / package / "py.typed").exists()
        assert not list(directory.rglob("*.tmpl"))


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_new_files_are_formatted_and_pass_the_lint_rules(packages: dict[str, Path], cli: Cli, isolated: Path) -> None:
    single = isolated / "single"
    single.mkdir()
    for kind in NAMES:
        assert cli("plugins", "new", kind, "zeta", "--file", "--output", f"single/zeta_{kind}.py").code == 0
    rules = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    select = ["check", "--select", ",".join(rules["select"]), "--ignore", ",".join(rules["ignore"])]
    for directory in (single, *packages.values()):
        for words in (select, ["format", "--check"]):
            done = subprocess.run([sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "120", "."],
                                  cwd=directory, capture_output=True, text=True, check=False)  # fmt: skip
            assert done.returncode == 0, done.stdout


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_imports_are_sorted_for_a_name_of_any_letters_and_length(isolated: Path) -> None:
    """The class names of a plugin may sort before or after every other name, and may make a line too long."""
    packages = []
    for kind in NAMES:
        for name in ("aa", "ro-zeta", "ternary", "z9-zulu", f"my-{'very-' * 8}long-name"):
            packages.append(f"{kind}-{name}")
            plan_scaffold(kind, name, packages[-1], single=False).write()
            plan_scaffold(kind, name, f"{packages[-1].replace('-', '_')}.py", single=True).write()
    command = [sys.executable, "-m", "ruff", "check", "--select", "I", "--isolated", "--line-length", "120"]
    done = subprocess.run([*command, "--config", f"src={json.dumps(packages)}", "."], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_of_every_kind_train_one_run_together(cli: Cli, isolated: Path) -> None:
    files = []
    for kind in NAMES:
        result = cli("plugins", "new", kind, "acme", "--file")
        assert result.code == 0, result.stderr
        files += ["-p", f"acme_{kind}.py"]
    rows = [{"question": f"What is {n}?", "answer": f"A number, {n}."} for n in range(6)]
    (isolated / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = cli(
        "train", *files, "--adapter", "acme", "--quant", "acme", "--quant-opt", "bits=4", "--objective", "acme",
        "--data", "rows.jsonl", "--max-steps", "2", "--batch-size", "2", "--device", "cpu", "--output", "run",
        "--set", "train.sample_tokens=2", "--json",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 2
    assert (isolated / "run" / "adapter" / "adapter.safetensors").exists()
    config = (isolated / "run" / "run.yaml").read_text()
    for section in ("quant", "adapter", "objective", "formatter"):  # the formatter was recognized
        kind = {"quant": "quantizer"}.get(section, section)
        assert f"{section}:\n  name: acme_{kind}:acme\n" in config


def test_a_file_of_each_kind_is_a_plugin_and_passes_the_checks(cli: Cli, isolated: Path) -> None:
    for kind in NAMES:
        assert cli("plugins", "new", kind, "my-own", "--file", "--output", f"mine_{kind}.py").code == 0
    registry = discover(PluginSelection.of([f"mine_{kind}.py" for kind in NAMES], no_plugins=True))
    offered = {(o.kind.name, o.full_name) for o in registry.components if o.spec.name == "my-own"}
    assert offered == {(kind, f"mine_{kind}:my-own") for kind in NAMES}
    result = cli("plugins", "check", "mine_adapter.py", "--no-plugins")
    assert (result.code, " checks, 0 failed" in result.stdout) == (0, True), result.stdout


def test_the_printed_commands_are_valid(cli: Cli, isolated: Path) -> None:
    for kind in NAMES:
        for more in ([], ["--file"]):
            printed = cli("plugins", "new", kind, f"acme-{kind}", *more).stdout
            commands = printed_commands(printed)
            assert len(commands) >= 2
            for command in commands:
                if command.startswith("smollm3 ") and not command.endswith(f" acme-{kind} RUN"):
                    parse(command)
            assert any(
                f"acme-{kind}" in c
                for c in commands
                if c.startswith(("smollm3 train ", "smollm3 eval ", "smollm3 export ", f"smollm3 acme-{kind} "))
                or c == f"smollm3 -p acme_{kind}_{kind}.py acme-{kind} RUN"
            )
            for line in printed.partition("\n\n")[0].splitlines():
                assert (isolated / line.removeprefix("wrote ")).is_file()
    assert shlex.split(commands[0])[:3] == ["smollm3", "plugins", "check"]
    spaced = printed_commands(cli("plugins", "new", "adapter", "acme", "--output", "my plugin").stdout)
    assert shlex.split(spaced[0]) == ["pip", "install", "-e", "my plugin[test]"]


@pytest.mark.parametrize(
    ("name", "hint"), [("My_Quant", "'my-quant'"), ("4bit", "'bit'"), ("a--b", "'a-b'"), ("../up", "'up'"), ("é", "")]
)
def test_an_invalid_name_is_refused_with_a_valid_suggestion(cli: Cli, isolated: Path, name: str, hint: str) -> None:
    result = cli("plugins", "new", "adapter", name)
    assert result.code == 2
    assert "must be lower-case words joined by single hyphens" in result.stderr
    assert hint in result.stderr
    assert list(isolated.iterdir()) == []


def test_existing_files_are_not_overwritten(cli: Cli, isolated: Path) -> None:
    (isolated / "smollm3-acme").mkdir()
    (isolated / "acme_adapter.py").write_text("mine")
    (isolated / "link").symlink_to("nowhere")
    for more in ([], ["--file"], ["--output", "link"]):
        result = cli("plugins", "new", "adapter", "acme", *more)
        assert (result.code, "already exists" in result.stderr) == (2, True)
    assert (isolated / "acme_adapter.py").read_text() == "mine"
    assert sorted(p.name for p in isolated.iterdir()) == ["acme_adapter.py", "link", "smollm3-acme"]


@pytest.mark.parametrize("output", ["json.py", "no-module.py", "folder", "smollm3_finetune.py"])
def test_a_file_that_could_not_be_imported_is_refused(cli: Cli, isolated: Path, output: str) -> None:
    result = cli("plugins", "new", "adapter", "acme", "--file", "--output", output)
    assert (result.code, "--output" in result.stderr) == (2, True)
    assert list(isolated.iterdir()) == []


def test_an_output_below_a_file_is_an_error_and_leaves_nothing(cli: Cli, isolated: Path) -> None:
    (isolated / "file").write_text("")
    result = cli("plugins", "new", "adapter", "acme", "--output", "file/acme")
    assert result.code == 2, result.stderr
    assert [p.name for p in isolated.iterdir()] == ["file"]


def test_an_unknown_kind_is_a_usage_error(cli: Cli) -> None:
    result = cli("plugins", "new", "quantizr", "acme")
    assert (result.code, "quantizer" in result.stderr) == (2, True)


def test_a_name_of_an_installed_component_is_refused_with_a_suggestion(cli: Cli, isolated: Path) -> None:
    done = cli("plugins", "new", "formatter", "alpaca")
    assert done.code == 2
    assert "the formatter 'alpaca' already exists in smollm3-finetune" in done.stderr
    assert "smollm3 plugins new formatter my-alpaca" in done.stderr
    assert list(isolated.iterdir()) == []
    assert cli("plugins", "new", "adapter", "alpaca").code == 0
