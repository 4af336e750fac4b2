"""The API reference: pages from docstrings, read by griffe, which imports nothing.

`docs/api.md` gives the sections of `smollm3_finetune.api` and their introductions; each becomes a page. The hooks and
the test kit have a page each. A name is a heading, so that `api.md#quantizerspec` is a link on the site too, and an
object of Sphinx, so that other projects can link it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import griffe

PACKAGE = "smollm3_finetune"
API = f"{PACKAGE}.api"
NAMES = re.compile(r"^<!-- names: (\S+) -->$")


@dataclass
class Section:
    """A page of the reference."""

    title: str
    text: str = ""
    names: list[tuple[str, str]] = field(default_factory=list)
    """(module that documents the name, name)."""

    @property
    def place(self) -> str:
        return "api/" + "-".join(re.findall(r"[a-z0-9]+", self.title.lower()))


class Reference:
    """The names of the plugin API, of the hooks and of the test kit."""

    def __init__(self, root: Path, source_url: str) -> None:
        self.root = root
        self.source_url = source_url
        self.package: Any = griffe.load(PACKAGE, search_paths=[str(root)], allow_inspection=False, resolve_aliases=True)

    # ---------------------------------------------------------------------------------------------------- sections

    def sections(self, api_page: str) -> tuple[str, list[Section]]:
        """The introduction of docs/api.md, and its sections; names that it lacks get one section at the end."""
        introduction, *parts = re.split(r"^## ", api_page, flags=re.M)
        public = self.exported(API)
        sections, done = [], set()
        for part in parts:
            title, _, rest = part.partition("\n")
            section = Section(title.strip())
            inside = False
            for line in rest.splitlines(keepends=True):
                if names := NAMES.match(line.rstrip()):
                    inside = True
                    section.names += [(API, n) for n, module in public.items() if module == names[1]]
                elif line.startswith("<!-- end -->"):
                    inside = False
                elif not inside:
                    section.text += line
            done |= {name for _, name in section.names}
            sections.append(section)
        if left := [(API, name) for name in public if name not in done]:
            sections.append(Section("More names", "Names without a section of their own.\n", left))
        hooks = f"{API}.hookspecs"
        functions = [(hooks, n) for n in self.module(hooks).members if n.startswith("smollm3_")]
        sections.append(Section("Hook functions", paragraphs(docstring(self.module(hooks))), functions))
        kit = f"{PACKAGE}.testing"
        sections.append(
            Section("Test kit", paragraphs(docstring(self.module(kit))), [(kit, name) for name in self.exported(kit)])
        )
        return introduction, sections

    def module(self, path: str) -> Any:
        return self.package[path.removeprefix(f"{PACKAGE}.")]

    def exported(self, path: str) -> dict[str, str]:
        """The names in `__all__` of a module, each with the module that defines it."""
        return {str(n): str(self.defined(path, str(n)).module.path) for n in self.module(path).exports}

    def defined(self, path: str, name: str) -> Any:
        """The object that a name of a module means; a module may have a submodule of the same name."""
        module = self.module(path)
        if name not in module.imports and name not in module.members:
            raise ValueError(f"{path}.__all__ has {name!r}, which {path} neither defines nor imports")
        target = self.module(module.imports[name]) if name in module.imports else module.members[name]
        return target.final_target if target.is_alias else target

    # ------------------------------------------------------------------------------------------------------- pages

    def page(self, section: Section) -> str:
        """The Markdown of a section."""
        module = section.names[0][0] if section.names else API
        head = f"# {section.title}\n\n{section.text.strip()}\n\n```{{py:currentmodule}} {module}\n```\n\n"
        return head + "\n".join(self.entry(module, name) for module, name in section.names)

    def entry(self, module: str, name: str) -> str:
        """A heading, and the object with its docstring, members and place in the source."""
        target = self.defined(module, name)
        return f"## {name}\n\n{self.directive(target, name, depth=6)}\n"

    def directive(self, target: Any, name: str, depth: int) -> str:
        """A directive of Sphinx for a class, function or constant, with directives for its members in it."""
        lines: list[str] = []
        body = [paragraphs(docstring(target))]
        if target.is_class:
            kind = "py:exception" if inherits(target, "Error") or inherits(target, "Exception") else "py:class"
            signature = name
            if bases := [str(b) for b in target.bases if str(b) not in ("Protocol", "ABC")]:
                body.append("Bases: " + ", ".join(f"`{b}`" for b in bases))
            body += [self.directive(m, m.name, depth - 1) for m in members(target)]
        elif target.is_function and "property" not in target.labels:
            kind = "py:method" if target.parent.is_class else "py:function"
            lines += [f":{label}:" for label in ("classmethod", "staticmethod") if label in target.labels]
            signature = name + arguments(target)
        else:
            kind = "py:property" if target.is_function or "property" in target.labels else (
                "py:attribute" if target.parent.is_class else "py:data")  # fmt: skip
            signature = name
            annotation = target.annotation
            lines += [f":type: {json.dumps(one_line(annotation))}"] if annotation is not None else []
            if getattr(target, "value", None) is not None and target.parent.is_class:
                lines += [f":value: {json.dumps(default(target.value))}"]
        fence = "`" * depth
        inner = "\n\n".join(part for part in body if part)
        where = f"\n\n{{.source-link}}\n[Source]({self.source(target)})" if depth == 6 else ""
        return "\n".join((f"{fence}{{{kind}}} {signature}", *lines, "", inner + where, fence))

    def source(self, target: Any) -> str:
        path = Path(target.filepath).relative_to(self.root).as_posix()
        return f"{self.source_url}/{path}#L{target.lineno}-L{target.endlineno}"


def docstring(target: Any) -> str:
    return str(target.docstring.value) if target.docstring else ""


def inherits(target: Any, end: str) -> bool:
    return any(str(base).endswith(end) for base in target.bases)


def members(target: Any) -> Iterator[Any]:
    """The public members that a class defines itself, fields first; no attribute that only its methods set."""
    public = [m for m in target.members.values() if not m.is_alias and not m.name.startswith("_")]
    public = [m for m in public if m.is_function or "class-attribute" in m.labels or m.annotation or m.docstring]
    yield from (m for m in public if m.is_attribute)
    yield from (m for m in public if m.is_function)


def one_line(expression: Any) -> str:
    return " ".join(str(expression).split())


def default(value: Any) -> str:
    """A default value, without the call that makes it the default of a field."""
    text = one_line(value)
    found = re.fullmatch(r"(?:dataclasses\.)?field\(default(?:_factory)?=(.*?)(?:, compare=False)?\)", text)
    return found[1] if found else text


def arguments(function: Any) -> str:
    """The signature of a function, without `self` and `cls`."""
    shown, star = [], False
    for parameter in function.parameters:
        kind = parameter.kind.value if parameter.kind else ""
        if parameter.name in ("self", "cls") and function.parent.is_class:
            continue
        if kind == "keyword-only" and not star:
            shown.append("*")
        star = star or kind in ("keyword-only", "variadic positional")
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = prefix + parameter.name
        if parameter.annotation is not None:
            text += f": {one_line(parameter.annotation)}"
        if parameter.default is not None and not prefix:
            text += f" = {one_line(parameter.default)}"
        shown.append(text)
    returned = f" -> {one_line(function.returns)}" if function.returns is not None else ""
    return f"({', '.join(shown)}){returned}"


def paragraphs(text: str) -> str:
    """A docstring as Markdown: its indented blocks become blocks of Python."""
    result: list[str] = []
    block: list[str] = []

    def end_block() -> None:
        while block and not block[-1].strip():
            block.pop()
        if block:
            result.extend(["", "```python", *(line[4:] for line in block), "```", ""])
        block.clear()

    for line in text.splitlines():
        if line.startswith("    ") or (block and not line.strip()):
            block.append(line)
        else:
            end_block()
            result.append(line)
    end_block()
    return "\n".join(result)
