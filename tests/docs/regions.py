"""What the documentation can take from the code: each kind of region, as Markdown.

A region of a page is between `<!-- KIND: ARGUMENT -->` and `<!-- end -->`:

    file: PATH          a file of this repository, verbatim
    excerpt: PATH A B.C the functions, classes and methods of these names from a Python file
    help: COMMAND …     the output of `smollm3 COMMAND … --help`, 100 columns wide
    run: COMMAND        the output of `smollm3 COMMAND` without plugins
    run-plugins: …      the same with the plugins under plugins/ installed
    hook: NAME          the signature and the docstring of a hook
    fields: CLASS       the fields of a class of `smollm3_finetune.api`, without inherited ones
    members: CLASS      the declaration of a protocol of `smollm3_finetune.api`
    ops: -              the operations
    options: SECTION    the keys of a section of the configuration, with defaults
    exit-codes: -       the errors and their exit codes
    names: MODULE       the public names of the plugin API from a module, with fields and members
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import itertools
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import api, errors
from smollm3_finetune.api import hookspecs
from smollm3_finetune.components.lifetimes import API_VERSIONS, HOOKS, Lifetime
from smollm3_finetune.config import schema
from smollm3_finetune.config.options import describe, key_of

ROOT = Path(__file__).parents[2]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def printed(arguments: list[str]) -> str:
    """The output of a command on both streams, run in this process."""
    from smollm3_finetune.main import main

    stream = io.StringIO()
    with redirect_stdout(stream), redirect_stderr(stream), pytest.raises(SystemExit):
        main(arguments)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def file_region(path: str) -> str:
    language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}[Path(path).suffix]
    return fenced(language, text_of(ROOT / path))


def excerpt_region(argument: str) -> str:
    """Top-level definitions by name; methods as CLASS.METHOD, after the line of their class."""
    path, *names = argument.split()
    source = text_of(ROOT / path)
    parts = []
    for name in names:
        outer, _, inner = name.partition(".")
        node: Any = _named(ast.parse(source), outer)
        if inner:
            parts.append(f"{source.splitlines()[node.lineno - 1]}\n{_lines(source, _named(node, inner))}")
        else:
            parts.append(_lines(source, node))
    return fenced("python", "\n\n\n".join(parts))


def _named(node: Any, name: str) -> Any:
    (found,) = (child for child in node.body if getattr(child, "name", None) == name)
    return found


def _lines(source: str, node: Any) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno])


def help_region(command: str) -> str:
    words = [] if command == "smollm3" else command.split()
    apart = ["--no-plugins"] if words == ["train"] else []  # its end depends on the installed plugins
    shown = " ".join(["smollm3", *words, *apart, "--help"])
    return fenced("console", f"$ {shown}\n{printed([*words, *apart, '--help'])}")


def run_region(command: str) -> str:
    assert command.startswith("smollm3 ")
    return fenced("console", f"$ {command}\n{printed(shlex.split(command)[1:])}")


def hook_region(name: str) -> str:
    """The signature of a hook, then its docstring with the example as code."""
    hook = getattr(hookspecs, name)
    signature = f"def {name}{inspect.signature(hook)}".replace("'", "")  # annotations are strings
    prose, _, example = inspect.cleandoc(hook.__doc__).partition("Example:\n")
    return "\n".join((fenced("python", signature), prose.rstrip() + "\n", fenced("python", inspect.cleandoc(example))))


def _class_source(name: str) -> ast.ClassDef:
    (found,) = ast.parse(inspect.getsource(getattr(api, name))).body
    assert isinstance(found, ast.ClassDef)
    return found


def cell(text: str) -> str:
    """Text for one cell of a table; double backticks become single ones."""
    return " ".join(text.split()).replace("|", "\\|")


def table(*rows: tuple[str, ...]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def own_fields(name: str) -> list[tuple[ast.AnnAssign, str]]:
    """The fields that a class of the api declares, each with the docstring after it."""
    body = _class_source(name).body
    found = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            says = following.value if isinstance(following, ast.Expr) else None
            found.append((node, str(says.value) if isinstance(says, ast.Constant) else ""))
    return found


def fields_region(name: str) -> str:
    """The fields of the class, without inherited ones; a field without docstring gets that of its type."""
    rows = []
    for node, text in own_fields(name):
        assert isinstance(node.target, ast.Name)
        annotation = ast.unparse(node.annotation)
        if not text and annotation in api.__all__:
            text = inspect.cleandoc(getattr(api, annotation).__doc__).partition("\n")[0]
        default = "must be given" if node.value is None else f"`{_default(node.value)}`"
        rows.append((f"`{node.target.id}`", f"`{cell(annotation)}`", default, cell(text)))
    return table(("field", "type", "default", "meaning"), *rows)


def _default(node: ast.expr) -> str:
    """A default as a reader would write it: the contents of `frozenset(…)`, an empty mapping for its factory."""
    text = ast.unparse(node)
    if text.startswith("frozenset({"):
        return text.removeprefix("frozenset(").removesuffix(")")
    text = text.removeprefix("dataclasses.field(default=").removesuffix(", compare=False)")
    return "{}" if text == "dataclasses.field(default_factory=dict)" else text


def members_region(name: str) -> str:
    return fenced("python", inspect.getsource(getattr(api, name)))


def ops_region(_: str) -> str:
    body = _class_source("Op").body[1:]
    rows = []
    for node, says in zip(body[::2], body[1::2], strict=True):
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        assert isinstance(says, ast.Expr) and isinstance(says.value, ast.Constant)
        value = ast.literal_eval(node.value)
        rows.append((f"`Op.{node.targets[0].id}`", f"`{value}`", cell(str(says.value.value))))
    return table(("operation", "in messages", "meaning"), *rows)


def options_region(section: str) -> str:
    """`top`: the keys with a single value; otherwise a section."""
    if section == "top":
        plain = [key_of(f) for f in dataclasses.fields(schema.RunConfig)]
        plain = [n for n in plain if n not in (*schema.COMPONENT_SECTIONS, *schema.PLAIN_SECTIONS)]
        infos, prefix = [i for i in describe(schema.RunConfig) if i.name in plain], ""
    else:
        infos, prefix = describe(schema.PLAIN_SECTIONS[section]), f"{section}."
    rows = []
    for info in infos:
        words = {None: "none", True: "true", False: "false", (): "[]"}
        default = info.default if type(info.default) in (int, float) else words.get(info.default, info.default)
        limits = f" ({info.range})" if info.range else ""
        rows.append((f"`{prefix}{info.name}`", cell(info.type), f"`{default}`", cell(info.help) + limits))
    return table(("key", "value", "default", "meaning"), *rows)


def exit_codes_region(_: str) -> str:
    def below(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            if child.__module__ == errors.__name__ and child is not errors.Problems:
                yield child
                yield from below(child)

    every: list[Any] = [errors.SmolLM3Error, *below(errors.SmolLM3Error)]
    rows = [(str(c.exit_code), f"`{c.__name__}`", cell(c.__doc__)) for c in every]
    return table(("exit code", "error", "meaning"), *sorted(rows, key=lambda r: r[0]))


def lifetimes_region(what: str) -> str:
    """The dates of the hooks, or of the versions of the contract."""
    lifetimes: Mapping[object, Lifetime] = {"hooks": HOOKS, "versions": API_VERSIONS}[what]
    head = ("hook" if what == "hooks" else "`api`", "since", "deprecated", "removed not before", "instead")
    dates = (
        (name, life.since, life.deprecated or "", life.until or "", life.instead) for name, life in lifetimes.items()
    )
    return table(head, *((f"`{name}`", *(str(cell) or "–" for cell in cells)) for name, *cells in dates))


def _modules_with_names() -> dict[str, list[str]]:
    """The modules that `smollm3_finetune.api` imports public names from, with these names in the order of `__all__`."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(inspect.getsource(api)).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            public = sorted({a.name for a in node.names} & {*api.__all__}, key=api.__all__.index)
            found[str(node.module)] = public
    return found


PUBLIC_MODULES = _modules_with_names()


def public_names(module: str) -> list[str]:
    """The public names of the plugin API that come from a module."""
    return PUBLIC_MODULES[module]


def names_region(module: str) -> str:
    """A section for each public name from `module`."""
    return "\n".join(f"### {name}\n\n{_name(name, module).rstrip()}\n" for name in public_names(module))


def _name(name: str, module: str) -> str:
    value = getattr(api, name)
    if isinstance(value, type):
        return _class(name, value)
    if inspect.isfunction(value):
        signature = str(inspect.signature(value)).replace("'", "")  # annotations are strings
        return fenced("python", f"{name}{signature}") + "\n" + _prose(name, value.__doc__)
    return _constant(name, module)


def _class(name: str, cls: type) -> str:
    if issubclass(cls, Exception):
        return f"{_prose(name, cls.__doc__)}\n\nExit code {cls.exit_code}." if hasattr(cls, "exit_code") else ""
    if getattr(cls, "_is_protocol", False):
        return members_region(name)
    parts = [_prose(name, cls.__doc__)]
    if base := next((b.__name__ for b in cls.__bases__ if b.__name__ in api.__all__), None):
        parts.append(f"Has the fields of [{base}](#{base.lower()}) too.")
    if name == "Op":
        parts.append(ops_region("-"))
    elif issubclass(cls, Enum):
        parts.append("Values: " + ", ".join(f"`{m.name}`" for m in cls) + ".")
    elif own_fields(name):
        for node, text in own_fields(name):  # each field has a docstring, or its type has one
            assert text or ast.unparse(node.annotation) in api.__all__, f"{name}.{ast.unparse(node.target)}: docstring"
        parts.append(fields_region(name))
    parts.append("\n".join(_members(name, cls)))
    return "\n\n".join(part.rstrip() for part in parts if part)


def _members(name: str, cls: type) -> Iterator[str]:
    """The methods and properties that a class defines itself, each with its prose."""
    for node in _class_source(name).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            member = vars(cls)[node.name]
            paragraphs = _prose(f"{name}.{node.name}", ast.get_docstring(node)).split("\n\n")
            says = " ".join(" ".join(p for p in paragraphs if not p.startswith(("    ", "def "))).split())
            called = "" if isinstance(member, property) else f"({ast.unparse(node.args).removeprefix('self, ')})"
            yield f"* `{node.name}{called}`: {says}"


def _prose(name: str, doc: str | None) -> str:
    assert doc, f"{name} has no docstring"
    return inspect.cleandoc(doc).replace("``", "`")


def _constant(name: str, module: str) -> str:
    """The docstring after the assignment of a constant."""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for node, following in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), f"{name}: docstring"
            return _prose(name, str(following.value.value))
    raise LookupError(f"{module} does not assign {name}")


KINDS_OF_REGION: dict[str, Callable[[str], str]] = {
    "file": file_region,
    "excerpt": excerpt_region,
    "help": help_region,
    "run": run_region,
    "run-plugins": run_region,
    "hook": hook_region,
    "fields": fields_region,
    "members": members_region,
    "ops": ops_region,
    "options": options_region,
    "exit-codes": exit_codes_region,
    "lifetimes": lifetimes_region,
    "names": names_region,
}
