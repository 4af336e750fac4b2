"""The plugins in examples/plugins: small, light, on the public API alone; and the results in docs/gallery.md.

Their own tests need their requirements and run in `nox -s gallery`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gallery import cells, page, records
from gallery.environment import Outcome
from gallery.plugins import BUNDLED, EXAMPLES, ROOT, Plugin, plugins

from smollm3_finetune.components.kinds import KINDS

PLUGINS = plugins()
MOST_LINES = 200
LIGHT = {"smollm3_finetune", *sys.stdlib_module_names}
"""What a module with hooks or options may import, beside its own package."""

each = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)


def trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted(folder.rglob("*.py")):
        yield file, ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
            if node.module == "smollm3_finetune":
                found |= {f"smollm3_finetune.{alias.name}" for alias in node.names}
    return found


def test_there_are_at_least_eight_in_folders_of_their_own_name() -> None:
    assert len(PLUGINS) >= 8
    assert [p.folder.name for p in PLUGINS] == [p.name for p in PLUGINS]
    folders = {f.name for f in EXAMPLES.iterdir() if f.is_dir() and not f.name.startswith(".")}
    assert folders == {p.name for p in PLUGINS}


@each
def test_a_plugin_is_a_small_complete_distribution(plugin: Plugin) -> None:
    assert 0 < plugin.lines < MOST_LINES
    assert (plugin.package / "py.typed").is_file()
    readme = (plugin.folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {plugin.name}\n")
    assert f"\n$ pip install ./{plugin.place}\n" in readme  # on a package index, its name may be anybody's
    assert f"pip install {plugin.name}" not in readme
    assert plugin.project["license"] == "Apache-2.0"
    assert "works as it is" not in readme  # what `plugins new` wrote is replaced
    assert any("Conformance" in f.read_text(encoding="utf-8") for f in (plugin.folder / "tests").glob("test_*.py"))
    named = {re.split(r"[<>=~!\[ ]", str(d))[0] for d in plugin.project["dependencies"]}
    assert "smollm3-finetune" in named


def test_links_of_the_pages_lead_to_files() -> None:
    for file in (EXAMPLES / "README.md", *(p.folder / "README.md" for p in PLUGINS)):
        links = re.findall(r"\]\((?!https?://)([^)#]+)", file.read_text(encoding="utf-8"))
        assert not [link for link in links if not (file.parent / link).exists()], file


@each
def test_a_plugin_imports_only_the_public_api_of_core_and_no_other_plugin(plugin: Plugin) -> None:
    others = {module.partition(".")[0] for p in (*PLUGINS, *plugins(BUNDLED)) for module in p.modules}
    for file, tree in trees(plugin.folder):
        names = imported(tree)
        host = {name for name in names if name.split(".")[0] == "smollm3_finetune"}
        if "tests" in file.relative_to(plugin.folder).parts:
            host = {name for name in host if not name.startswith("smollm3_finetune.testing")} - {"smollm3_finetune"}
        assert host <= {"smollm3_finetune.api"}, file
        assert not {name.split(".")[0] for name in names} & (others - {plugin.package.name}), file


@each
def test_hooks_and_options_are_light_and_describe_components(plugin: Plugin) -> None:
    for name in ("__init__.py", "options.py"):
        if (plugin.package / name).is_file():
            tree = ast.parse((plugin.package / name).read_text(encoding="utf-8"))
            heads = {module.split(".")[0] for module in imported(tree)}
            assert heads <= LIGHT | {plugin.package.name}, name
    assert plugin.components
    assert not [record.error for record in plugin.registry.plugins if record.error]
    bundled = {(c["kind"], c["name"]) for p in plugins(BUNDLED) for c in p.components}
    assert not {(c["kind"], c["name"]) for c in plugin.components} & bundled


def test_the_page_has_the_results_that_are_kept() -> None:
    kept = records.read_records()
    assert page.PAGE.read_text(encoding="utf-8") == page.page(kept), "python -m gallery --page, or nox -s gallery"
    assert {name for name, record in kept.items() if page.is_example(record)} == {p.name for p in PLUGINS}


@each
def test_a_record_is_of_this_version_and_has_no_failure(plugin: Plugin) -> None:
    record = records.read_records()[plugin.name]
    assert record["components"] == plugin.components
    assert (record["version"], record["requires"]) == (plugin.version, plugin.requires)
    assert record["tests"]["failed"] == 0 < record["tests"]["passed"]
    assert not [cell for cell in record["cells"] if cell["result"] not in ("works", "refused")]
    assert len(record["cells"]) >= 3


def test_every_kind_has_cells_or_is_left_to_the_plugin() -> None:
    names = {kind.name for kind in KINDS}
    assert {*cells.COMMANDS, *cells.PARTNERS} <= names
    assert names - {*cells.COMMANDS, *cells.PARTNERS} == {"loader", "formatter", "evaluator", "launcher"}


class Answers:
    """Stands for an environment: gives prepared outcomes, and keeps the commands."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.commands: list[list[str]] = []

    def run(self, command: list[str], cwd: Path) -> Outcome:
        self.commands.append(command)
        return self.outcomes.pop(0)

    def script(self, text: str, cwd: Path) -> Outcome:
        return self.run([text], cwd)


def states(**found: tuple[str, str]) -> Outcome:
    import json

    told = [{"purpose": purpose, "state": state, "reason": reason} for purpose, (state, reason) in found.items()]
    return Outcome(0, 0.5, json.dumps({"cells": told}))


def test_a_pair_is_measured_and_what_planning_refuses_is_a_cell_with_its_reason(tmp_path: Path) -> None:
    planned = states(train=("declared", ""), merge=("refused", "it cannot be merged"), prefer=("declared", ""))
    output = "1/2 a × b train: works (1.5 s)\n2/2 a × b prefer: gradients 0.1 (limit 1e-05) (2.0 s)\n"
    environment: Any = Answers(planned, Outcome(0, 4.0, output))
    found = list(cells.pairs(("a", "b"), environment, tmp_path, tmp_path / "compat.json"))
    assert [(c["cell"], c["result"], c["seconds"], c.get("note")) for c in found] == [
        ("a with b: train", "works", 1.5, None),
        ("a with b: prefer", "fails", 2.0, "gradients 0.1 (limit 1e-05)"),
        ("a with b: merge", "refused", 0.0, "it cannot be merged"),
    ]
    assert environment.commands[1][-2:] == ["--measure", str(tmp_path / "compat.json")]


def test_a_pair_that_is_refused_for_every_purpose_is_one_cell_and_is_not_run(tmp_path: Path) -> None:
    environment: Any = Answers(states(train=("refused", "no dense"), merge=("refused", "no dense")))
    (found,) = cells.pairs(("a", "full"), environment, tmp_path, tmp_path / "compat.json")
    assert (found["cell"], found["result"], found["note"]) == ("a with full", "refused", "no dense")
    assert len(environment.commands) == 1


def test_a_pair_or_a_command_that_fails_states_the_error(tmp_path: Path) -> None:
    broken = Outcome(2, 0.1, "hint first\nerror: there is no quantizer 'a'\n  hint: smollm3 plugins list\n")
    (found,) = cells.pairs(("a", "b"), Answers(broken), tmp_path, tmp_path / "compat.json")  # type: ignore[arg-type]
    assert (found["result"], found["note"]) == ("fails", "error: there is no quantizer 'a'")
    command = cells.command("one", "smollm3 x $SHORT", PLUGINS[0], Answers(broken), tmp_path)  # type: ignore[arg-type]
    assert (command["result"], command["note"]) == ("fails", "error: there is no quantizer 'a'")
    assert cells.SHORT in command["command"]


def test_plugins_of_the_gallery_do_not_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gallery.environment import Environment

    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLES / PLUGINS[0].name}:{ROOT}")
    environment = Environment(tmp_path / "environment")
    assert environment.variables["PYTHONPATH"] == str(ROOT)
    about = "import sys, torch, smollm3_finetune; print(sys.prefix); print(smollm3_finetune.__file__)"
    done = environment.script(f"python -c '{about.replace(', torch', '')}'", tmp_path)
    assert done.code == 0, done.output
    assert done.output.splitlines()[0] == str(tmp_path / "environment")
    failing = environment.script("false\necho reached", tmp_path)
    assert (failing.code, failing.output) == (1, "")
