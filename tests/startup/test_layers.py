"""Each package imports only from lower layers; the import graph is read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "smollm3_finetune"
NAME = "smollm3_finetune"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("version", "errors"),
    ("paths", "files", "stopping"),
    ("model_files",),
    ("cache",),
    ("api",),
    ("progress",),
    ("config",),
    ("builtin",),
    ("components",),
    ("shipping",),
    ("model",),
    ("runs",),
    ("hub",),
    ("data",),
    ("batching",),
    ("inference",),
    ("reference",),
    ("evaluation",),
    ("quantize",),
    ("merge",),
    ("export",),
    ("report",),
    ("train",),
    ("memory",),
    ("launching",),
    ("pipeline",),
    ("sweep",),
    ("compatibility",),
    ("trial",),
    ("checks",),
    ("installing",),
    ("scaffold",),
    ("cli",),
    ("main",),
    ("testing",),
)
"""Packages and modules of core, bottom to top; those of the same layer do not import each other."""

BUILTIN_MAY_IMPORT = {"api", "model_files", "files", "errors", "paths"}
"""The packages that the built-in plugin may import: the public API, and a few modules below it."""


def modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(CORE.rglob("*.py")):
        parts = file.relative_to(CORE).with_suffix("").parts
        yield ".".join((NAME, *(parts[:-1] if parts[-1] == "__init__" else parts))), file


def imports_of(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules of core that a module imports: at the top, in functions, or only for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == NAME)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def graph() -> dict[str, set[str]]:
    found = dict(modules())
    return {m: set(imports_of(ast.parse(f.read_text(encoding="utf-8")), set(found))) - {m} for m, f in found.items()}


def package_of(module: str) -> str:
    """`model` for `smollm3_finetune.model.load`; an empty string for the package itself."""
    return module.split(".")[1] if "." in module else ""


GRAPH = graph()
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def test_every_package_has_a_layer_and_every_layer_exists() -> None:
    assert {package_of(m) for m in GRAPH} - {""} == set(LEVEL)


def upward_imports(layers: dict[str, int], imports: dict[str, set[str]]) -> list[str]:
    """Imports of modules that are not in a lower layer."""
    return [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if package_of(module)
        and package_of(target)
        and package_of(module) != package_of(target)
        and layers[package_of(target)] >= layers[package_of(module)]
    ]


def test_modules_import_only_from_lower_layers() -> None:
    assert upward_imports(LEVEL, GRAPH) == []


def test_no_module_imports_the_package_itself() -> None:
    """Modules of core import public names from the modules that define them."""
    assert [m for m, targets in GRAPH.items() if NAME in targets] == []


def cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, SIAM J. Comput. 1(2), 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(imports.get(module, ())):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(imports):
        if module not in index:
            visit(module)
    return found


def test_the_import_graph_has_no_cycles() -> None:
    """Imports between a package and its own modules, as by a lazy `__getattr__`, do not count."""
    own = {
        m: {t for t in targets if not (t.startswith(f"{m}.") or m.startswith(f"{t}."))} for m, targets in GRAPH.items()
    }
    assert cycles(own) == []


def test_the_built_in_plugin_imports_only_the_allowed_packages() -> None:
    found = {package_of(t) for m, targets in GRAPH.items() if package_of(m) == "builtin" for t in targets}
    assert found - {"builtin"} <= BUILTIN_MAY_IMPORT


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("from smollm3_finetune.api import Op", {"smollm3_finetune.api"}),
        ("def f():\n    from smollm3_finetune.model import load", {"smollm3_finetune.model.load"}),
        ("import smollm3_finetune.errors as e", {"smollm3_finetune.errors"}),
        ("if TYPE_CHECKING:\n    from smollm3_finetune import paths", {"smollm3_finetune.paths"}),
    ],
)
def test_imports_are_found_in_every_place(source: str, imports: set[str]) -> None:
    assert set(imports_of(ast.parse(source), set(GRAPH))) == imports


def test_an_upward_import_and_a_cycle_are_found() -> None:
    graph = {"smollm3_finetune.low.a": {"smollm3_finetune.high.b"}, "smollm3_finetune.high.b": set()}
    assert upward_imports({"low": 0, "high": 1}, graph) == ["smollm3_finetune.low.a imports smollm3_finetune.high.b"]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
