"""Imports: help imports few modules, core names no method, and plugins import only the public API."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from published import write_run

from smollm3_finetune.cli import COMMANDS

ROOT = Path(__file__).parents[2]
CORE = ROOT / "smollm3_finetune"
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "numpy", "datasets", "accelerate", "tokenizers", "gguf"}

MODULES_OF = """
import contextlib, io, json, sys
from smollm3_finetune.main import main
code = 0
try:
    with contextlib.redirect_stdout(io.StringIO()):
        main(sys.argv[1:])
except SystemExit as e:
    code = e.code
print(json.dumps([code, sorted(sys.modules)]))
"""


def modules_after(*args: str) -> set[str]:
    """All modules that `smollm3 ARGS` has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", MODULES_OF, *args], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout)
    assert not code, done.stderr
    return set(modules)


@lru_cache
def modules_of_click() -> frozenset[str]:
    code = "import click, json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


HELPS = [[command, "--help"] for command in COMMANDS]
PLUGINS = ("list", "info", "new", "check", "search", "install", "upgrade", "uninstall", "index")
HELPS += [["plugins", v, "--help"] for v in PLUGINS]
HELPS += [["cache", v, "--help"] for v in ("list", "verify", "clean")]
HELPS += [["runs", v, "--help"] for v in ("list", "show", "compare", "report", "prune")]
HELPS += [["pipeline", v, "--help"] for v in ("run", "resume", "status")]
HELPS += [["sweep", v, "--help"] for v in ("run", "resume", "status")]
HELPS += [["config", v, "--help"] for v in ("show", "validate", "presets", "schema")]
HELPS += [["data", v, "--help"] for v in ("preview", "stats")]


@pytest.mark.parametrize("args", HELPS, ids=" ".join)
def test_no_help_imports_anything_heavy(args: list[str]) -> None:
    assert not modules_after(*args) & HEAVY


def test_every_subcommand_is_in_the_list_above() -> None:
    import importlib

    import click

    found = set()
    for command, (where, _) in COMMANDS.items():
        module, _, name = where.partition(":")
        group = getattr(importlib.import_module(module), name)
        if isinstance(group, click.Group):
            found |= {(command, inner, "--help") for inner in group.list_commands(click.Context(group))}
    assert found == {tuple(args) for args in HELPS if len(args) == 3}


def test_root_help_runs_no_discovery_and_stays_in_its_module_budget() -> None:
    modules = modules_after("--help")
    libraries = HEAVY | {"pluggy", "pydantic", "rich", "ruamel", "importlib.metadata", "huggingface_hub", "asyncio"}
    assert not modules & libraries
    mine = {m for m in modules if m.startswith("smollm3_finetune")}
    assert mine == {
        f"smollm3_finetune{end}"
        for end in (
            "",
            ".version",
            ".main",
            ".errors",
            ".stopping",
            ".cli",
            ".cli.parsing",
            ".cli.streams",
            ".components",
            ".components.snapshot",
            ".cache",
            ".cache.place",
            ".cache.small",
        )
    }
    assert len(modules - modules_of_click()) <= 30  # 28 when this was written, of which json has 5


def test_train_help_stays_in_its_module_budget() -> None:
    modules = modules_after("train", "--help", "--no-plugins")
    assert not modules & {"pydantic", "rich", "ruamel", "huggingface_hub", "asyncio"}
    bundled = {p.name.replace("-", "_") for p in (ROOT / "plugins").iterdir() if p.is_dir()}
    of_plugins = [m for m in modules if m.partition(".")[0] in bundled]
    states_memory = [m for m in of_plugins if m.endswith(".memory")]  # bytes_for() of quantizers, without torch
    # the hooks of each, the methods and roles of one, the options of two, the schemes of one
    assert len(of_plugins) - len(states_memory) <= len(bundled) + 5
    assert len(states_memory) <= 6
    # 109 when this was written, with 7 of plugins; signals, streams, checkpoints, versions, evaluators, objectives,
    # exporters, shipping, launchers, optimizers, trackers, commands, the snapshot of what plugins offer,
    # names of dtypes
    assert len(modules - modules_of_click() - {*of_plugins}) <= 157


@pytest.mark.parametrize(
    "args",
    [
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "list", "--requirements"],
        ["plugins", "new", "adapter", "acme"],
        ["cache", "list"],
        ["cache", "clean", "--dry-run"],
        ["runs", "list"],
        ["runs", "prune", "--yes"],
        ["plugins", "info", "full"],
        ["plugins", "info", "none", "--device", "cuda"],
        ["config", "show"],
        ["config", "schema"],
        ["config", "presets"],
        ["config", "show", "--preset", "qlora"],
        ["completion", "bash"],
        ["train", "--adapter", "full", "--quant", "none", "--help"],
    ],
    ids=" ".join,
)
def test_commands_that_only_show_import_nothing_heavy(args: list[str]) -> None:
    assert not modules_after(*args) & HEAVY


def test_a_dry_run_of_push_imports_nothing_heavy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert not modules_after("push", str(run), "me/x", "--dry-run") & HEAVY


def test_config_validate_imports_nothing_heavy(model_directory: Path, rows_file: Path) -> None:
    modules = modules_after(
        "config", "validate", "--model", str(model_directory), "--adapter", "full", "--data", str(rows_file)
    )
    assert not modules & HEAVY


def test_showing_and_comparing_runs_imports_nothing_heavy() -> None:
    with tarfile.open(ROOT / "tests" / "runs" / "saved_by_0.1.0.tar.xz") as archive:
        archive.extractall(".", filter="data")
    runs = ["runs/none-lora", "runs/gptq-lora"]
    for args in (["runs", "list"], ["runs", "show", runs[0]], ["runs", "compare", *runs], ["runs", "report", *runs]):
        assert not modules_after(*args) & HEAVY, args


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, smollm3_finetune as s; assert s.__version__; s.hookimpl; "
        f"assert not {HEAVY!r} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------- syntax trees

METHODS = (
    "peft", "bitsandbytes", "bnb", "gptq", "awq", "gguf", "hqq", "quanto", "torchao", "lora", "dora", "galore",
    "unsloth", "trl", "lm_eval",
)  # fmt: skip
ALLOWED = {
    ("train/trainer.py", "_hf_peft_config_loaded"),  # an attribute of transformers' models that its Trainer reads
    *(("files/run_separately.py", f"{word}trlimit") for word in ("ge", "se")),  # `trl` is in the names of Python's
    ("hub/contents.py", ".gguf"),  # a suffix of the files of exported models
    ("config/schema.py", "lora"),  # the default adapter of a run, as data in one line
}
SHOW_EXAMPLES = {"cli/options.py", "cli/commands/train.py", "model/load.py", "model/plan.py"}
"""Files whose help and hints contain examples for users."""


def trees(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(folder.rglob("*.py")):
        yield file.relative_to(folder).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of string nodes that are statements: docstrings of modules, classes, functions and attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def words_of(tree: ast.Module) -> Iterator[str]:
    """Every identifier, imported name and string of a module that is not documentation."""
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.alias):
            yield node.name
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def named_methods(tree: ast.Module) -> list[str]:
    plugins = [p.name for p in (ROOT / "plugins").iterdir() if p.is_dir()]
    taboo = {*METHODS, *plugins, *(p.replace("-", "_") for p in plugins)}
    words = [(w, w.replace("Ctrl-", "").lower()) for w in words_of(tree)]  # the key has the letters of `trl`
    return [w for w, plain in words if any(t in plain for t in taboo)]


def test_core_names_no_plugin_and_no_method() -> None:
    found = {(f, word) for f, tree in trees(CORE) for word in named_methods(tree)}
    texts = {(file, word) for file, word in found if file in SHOW_EXAMPLES and " " in word}
    assert found - texts == ALLOWED
    assert len(texts) <= 6


def test_the_scan_finds_names_in_every_kind_of_node() -> None:
    for source in (
        "import peft", "from peft.tuners import lora as x", "import smollm3_gguf.loader", "x = 'smollm3-peft'",
        "def load_gptq(): pass", "f(use_bnb=1)", "model.peft_config", "class LoraThing: pass", "x = f'{y} gguf'",
    ):  # fmt: skip
        assert named_methods(ast.parse(source)), source
    assert not named_methods(ast.parse('"""About gptq."""\nx = 1\n"""gguf, as an attribute\'s documentation."""'))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            if node.module == "smollm3_finetune":
                yield from (f"smollm3_finetune.{a.name}" for a in node.names)


def packages() -> list[Path]:
    return sorted(p.parent for p in (ROOT / "plugins").glob("*/pyproject.toml"))


def test_the_plugin_folders_are_found() -> None:
    assert {"smollm3-peft", "smollm3-bitsandbytes", "smollm3-gguf", "smollm3-gptq"} <= {p.name for p in packages()}


@pytest.mark.parametrize("project", packages(), ids=lambda p: p.name)
def test_a_plugin_imports_only_the_public_api_of_core(project: Path) -> None:
    (package,) = (p for p in project.iterdir() if (p / "__init__.py").exists() and p.name.startswith("smollm3_"))
    host = {m for _, tree in trees(package) for m in imported(tree) if m.split(".")[0] == "smollm3_finetune"}
    assert host == {"smollm3_finetune.api"}
    if (project / "tests").is_dir():
        in_tests = {m for _, t in trees(project / "tests") for m in imported(t) if m.startswith("smollm3_finetune")}
        assert in_tests <= {f"smollm3_finetune{end}" for end in ("", ".api", ".main", ".model", ".testing")}


@pytest.mark.parametrize("project", packages(), ids=lambda p: p.name)
def test_a_plugin_never_imports_another_one(project: Path) -> None:
    others = {p.name.replace("-", "_") for p in packages()} - {project.name.replace("-", "_")}
    assert not {m.split(".")[0] for _, tree in trees(project) for m in imported(tree)} & others


def module_level(tree: ast.Module) -> Iterator[str]:
    """The imports that run when a module is imported, without those under `if TYPE_CHECKING:`."""

    def visit(nodes: Any) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from imported(ast.Module(body=[node], type_ignores=[]))
            elif isinstance(node, ast.If):
                if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                    yield from visit(node.body)
                yield from visit(node.orelse)
            elif isinstance(node, ast.Try):
                yield from visit([*node.body, *node.orelse, *node.finalbody])

    yield from visit(tree.body)


@pytest.mark.parametrize("project", packages(), ids=lambda p: p.name)
def test_the_hooks_and_options_of_a_plugin_import_nothing_heavy(project: Path) -> None:
    package = next(p for p in project.iterdir() if (p / "__init__.py").exists() and p.name.startswith("smollm3_"))
    light = [f for f in package.glob("*.py") if f.name == "__init__.py" or f.name.endswith("options.py")]
    assert light
    for file in light:
        top = {m.split(".")[0] for m in module_level(ast.parse(file.read_text(encoding="utf-8")))}
        assert not top & HEAVY, file.name
