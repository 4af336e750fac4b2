"""What discovery requires of a plugin: its hooks, what they return, and the fields of its descriptors.

A violation is one sentence and a hint. What Python and pluggy say about the same mistakes is translated.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import pluggy

from smollm3_finetune import api
from smollm3_finetune.api import API_VERSION, ComponentSpec, Op, Requires
from smollm3_finetune.components.kinds import KINDS, Kind
from smollm3_finetune.errors import SmolLM3Error, did_you_mean

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
VERSION = re.compile(r"\d+(\.\d+)*")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
PREFIX = "smollm3_"
HOOKS = tuple(k.hook for k in KINDS)
LONGEST = 200
"""The longest text of a plugin's own exception in a message, in characters."""


class Violation(Exception):
    """A plugin does not follow the contract: one sentence, and a hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def hook_functions(manager: pluggy.PluginManager, plugin: Any) -> dict[str, Callable[[], Any]]:
    """The hooks of a plugin by name. Raises Violation for a misspelled, an undecorated or a wrong one, or for none."""
    found: dict[str, Callable[[], Any]] = {}
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        marks = manager.parse_hookimpl_opts(plugin, name)
        if marks is not None:
            if name not in HOOKS:
                raise Violation(f"there is no hook {name!r}", _hook_hint(name))
            if marks.get("wrapper") or marks.get("hookwrapper"):
                raise Violation(f"the hook {name!r} cannot be a wrapper: hooks return descriptors",
                                "write @hookimpl without arguments")  # fmt: skip
            _check_arguments(name, function)
            found[name] = function  # type: ignore[assignment]
        elif name in HOOKS and callable(function):
            raise Violation(f"the hook {name!r} is not decorated with @hookimpl", f"write @hookimpl above {name}")
        elif name.startswith("smollm3_") and inspect.isfunction(function) and near_hook(name):
            raise Violation(f"there is no hook {name!r}", f"did you mean {near_hook(name)!r}, with @hookimpl?")
    if not found:
        raise Violation("it has no hook", "define a function such as smollm3_adapters, with @hookimpl")
    return found


def near_hook(name: str) -> str | None:
    """The hook that a misspelled name was probably meant to be."""
    near = did_you_mean(name.removeprefix(PREFIX), [h.removeprefix(PREFIX) for h in HOOKS])
    return PREFIX + near if near else None


def _hook_hint(name: str) -> str:
    near = near_hook(name)
    return f"did you mean {near!r}?" if near else f"the hooks are: {', '.join(HOOKS)}"


def _check_arguments(name: str, function: Any) -> None:
    """Raises Violation for a hook that cannot be called without arguments."""
    try:
        needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        return
    names = [p.name for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if names[:1] == ["self"]:
        raise Violation(f"the hook {name!r} is a method of a class, not of an object",
                        "write it as a function of the module")  # fmt: skip
    if names:
        raise Violation(f"the hook {name!r} takes no arguments, but is defined with {', '.join(map(repr, names))}",
                        f"def {name}():")  # fmt: skip
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise Violation(f"the hook {name!r} is asynchronous", f"def {name}(): without async")


def descriptors(function: Callable[[], Any], kind: Kind) -> list[ComponentSpec]:
    """The descriptors that a hook returns, checked; a generator is consumed here, so that its errors are attributed."""
    answer = function()
    cls = kind.spec.__name__
    example = f"return [{cls}(…)]"
    if isinstance(answer, ComponentSpec):
        raise Violation(f"{kind.hook} must return a list of descriptors, but returned a single {described(answer)}",
                        f"return a list of descriptors: {example}")  # fmt: skip
    if answer is None or isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        raise Violation(
            f"{kind.hook} must return an iterable of descriptors, but returned {described(answer)}", example
        )
    found = list(answer)
    for spec in found:
        if isinstance(spec, list | tuple):
            raise Violation(f"{kind.hook} must yield {cls} objects, but yielded {described(spec)}",
                            "use yield from, or return the list")  # fmt: skip
        if not isinstance(spec, kind.spec):
            other = next((k for k in KINDS if isinstance(spec, k.spec)), None)
            raise Violation(f"{kind.hook} must return {cls} objects, but returned {described(spec)}",
                            f"return it from {other.hook}" if other else example)  # fmt: skip
        check_descriptor(spec)
    return found


def check_twice(kind: Kind, specs: Iterable[ComponentSpec]) -> None:
    """Raises Violation if a plugin uses a name twice in one kind: `dist:name` would be ambiguous."""
    taken = set[str]()
    for spec in specs:
        for name in {spec.name, *spec.aliases}:
            if name in taken:
                raise Violation(f"it offers the {kind.name} {name!r} twice", "give each one a name of its own")
            taken.add(name)


def check_reserved(kind: Kind, specs: Iterable[ComponentSpec]) -> None:
    """Raises Violation if a plugin uses a name that is built in: it would never be called by it."""
    for spec in specs:
        for name in (spec.name, *spec.aliases):
            if name in kind.reserved:
                raise Violation(f"its {kind.name} {name!r} has the name of the built-in {kind.flag} {name}",
                                f"rename it, for example name='my-{name}'")  # fmt: skip


FUNCTIONS = {
    "claims": ("what",), "refine": ("spec", "options", "env"), "check": ("options", "source"),
    "processes": ("options",), "sharding": ("options",), "joins": ("options",),
    "device": ("options",),
    "bytes_for": ("options", "shape", "env"),
}  # fmt: skip
"""The functions of descriptors and their arguments."""
TUPLES = ("aliases", "marker_files", "replaces", "fields", "weightless_options")
FLAGS = ("identity_at_start", "packs", "merges", "disables", "needs_calibration", "uses_labels", "ships",
         "trains_new_tokens", "round_trips", "waits", "sweeps")  # fmt: skip


def check_descriptor(spec: ComponentSpec) -> None:
    """Raises Violation that names the first wrong field."""
    name, values = spec.name, {f.name: getattr(spec, f.name) for f in fields(spec)}
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Violation(f"the name {short(name)} must be lower-case words joined by single hyphens",
                        f"name={_as_name(name)!r}")  # fmt: skip

    def wrong(label: str, expected: str, hint: str) -> Violation:
        return Violation(f"{name!r}: {label} must be {expected}, but is {described(values[label])}", hint)

    if type(spec.api) is not int or spec.api < 1:
        raise wrong("api", str(API_VERSION), f"write api={API_VERSION}")
    if spec.api > API_VERSION:
        raise Violation(f"{name!r} was written for api {spec.api}, but this smollm3-finetune has api {API_VERSION}",
                        "upgrade smollm3-finetune")  # fmt: skip
    if not isinstance(spec.requires, Requires):
        raise wrong("requires", "a Requires", "requires=Requires(distributions=('torch>=2.6',))")
    tuples = {**{n: values[n] for n in TUPLES if n in values}, **vars(spec.requires)}
    for label, value in tuples.items():
        if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(v, str) for v in value):
            raise Violation(f"{name!r}: {label} must be a tuple of strings, but is {described(value)}",
                            f"{label}=({value!r},)" if isinstance(value, str) else f"{label}=('…',)")  # fmt: skip
    for alias in spec.aliases:
        if not NAME.fullmatch(alias):
            raise Violation(f"the name {short(alias)} must be lower-case words joined by single hyphens",
                            f"aliases=({_as_name(alias)!r},)")  # fmt: skip
    for former in spec.replaces:
        if not all(former.partition(":")):
            raise Violation(f"{name!r}: replaces must hold names such as 'my_plugin:{name}', but has {short(former)}",
                            f"replaces=('my_plugin:{name}',)")  # fmt: skip
    if not isinstance(spec.same_since, str) or (spec.same_since and not VERSION.fullmatch(spec.same_since)):
        raise wrong("same_since", "a version such as '1.2'", "same_since='1.2'")
    for label in ("factory", "options"):
        if not isinstance(values[label], str) or not DOTTED.fullmatch(values[label]):
            raise Violation(f"{name!r}: {label} must be 'package.module:Class', but is {described(values[label])}",
                            f"{label}={_as_dotted(values[label])!r}")  # fmt: skip
    if not isinstance(spec.summary, str) or not spec.summary.strip():
        raise Violation(f"{name!r} has no summary", 'summary="what it does, in one line"')
    for label, arguments in FUNCTIONS.items():
        if values.get(label) is None:
            continue
        if not callable(values[label]):
            raise wrong(label, "a function", f"{label}=my_{label}, without calling it")
        try:
            inspect.signature(values[label]).bind(*arguments)
        except TypeError:
            takes = f"{len(arguments)} argument{'s' if len(arguments) > 1 else ''}"
            raise Violation(f"{name!r}: {label} must take {takes}, but is defined as "
                            f"{label}{inspect.signature(values[label])}",
                            f"def {label}({', '.join(arguments)}):") from None  # fmt: skip
        except ValueError:  # a builtin without a signature
            pass
    for label in (n for n in FLAGS if n in values):
        if not isinstance(values[label], bool):
            raise wrong(label, "True or False", f"{label}=True")
    if "rank" in values and type(values["rank"]) is not int:
        raise wrong("rank", "an integer", "rank=0")
    if not isinstance(spec.suggests, Mapping):
        raise wrong("suggests", "a mapping", 'suggests={"train.learning_rate": 1e-4}')


def _as_name(value: Any) -> str:
    """The valid name that is nearest to a wrong one."""
    words = re.findall(r"[a-z0-9]+", value.lower()) if isinstance(value, str) else []
    return "-".join(words).lstrip("0123456789-") or "mine"


def _as_dotted(value: Any) -> str:
    """`package.module:Class` for a class or a dotted name, else an example."""
    if isinstance(value, type):
        module = value.__module__
        return f"{api.__name__ if module.startswith(f'{api.__name__}.') else module}:{value.__qualname__}"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value):
        return ":".join(value.rpartition(".")[::2])
    return "package.module:Class"


def short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def described(value: Any) -> str:
    """A value in a few words: never the whole text of a descriptor."""
    if isinstance(value, ComponentSpec):
        return f"{type(value).__name__} ({value.name!r})" if isinstance(value.name, str) else type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    plain = value is None or isinstance(value, str | bytes | int | float)
    if plain or (isinstance(value, dict | list | tuple | set) and not value):
        return short(value)
    return f"an object of type {type(value).__name__}"


# ------------------------------------------------------------------------------------------- other exceptions

FIELD = re.compile(r"(\w+Spec)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
MISSING = re.compile(r"(\w+Spec)\.__init__\(\) missing \d+ required keyword-only arguments?: (.+)$")
POSITIONAL = re.compile(r"Spec\.__(?:new|init)__\(\) takes 1 positional argument but")
NO_API = re.compile(r"^(\w+Spec .+ does not state the plugin API that it was written for): (add api=\d+)$")
VALUE = re.compile(
    r"^(\w+Spec .+: (provides|needs|absent|card|reference|reference_model|fields|takes) must be .+, got .+)$"
)
EXAMPLES = {
    "provides": "provides={Op.FORWARD, Op.GRAD_INPUT}",
    "needs": "needs={Op.FORWARD, Op.GRAD_INPUT}",
    "absent": 'absent={Op.GRAD_INPUT: "the reason"}',
    "card": 'card=AdapterCard(title="…")',
    "reference": 'reference="base"',
    "reference_model": 'reference="model", reference_model="org/name"',
    "fields": 'fields=("rejected",)',
    "takes": 'takes="model"',
}
OPERATION = re.compile(r"^'(.*)' is not a valid Op$")


def translated(error: BaseException) -> Violation | None:
    """The violation behind an exception that Python raised while a plugin made its descriptors; None: another one."""
    text = " ".join(str(error).split())
    if isinstance(error, TypeError):
        if found := FIELD.search(text):
            cls: Any = getattr(api, found[1], None)
            known = [f.name for f in fields(cls)] if cls is not None else []
            near = did_you_mean(found[2], known)
            return Violation(f"{found[1]} has no field {found[2]!r}",
                             f"did you mean {near!r}?" if near else f"its fields: {', '.join(known)}")  # fmt: skip
        if found := MISSING.search(text):
            names = re.findall(r"'(\w+)'", found[2])
            word = "fields" if len(names) > 1 else "field"
            return Violation(f"{found[1]} needs the {word} {' and '.join(map(repr, names))}",
                             ", ".join(f"{n}='…'" for n in names))  # fmt: skip
        if POSITIONAL.search(text):
            return Violation("the fields of a descriptor are keyword arguments, but one has no name",
                             "name='…', summary='…', factory='package.module:Class'")  # fmt: skip
        if found := NO_API.search(text):
            return Violation(found[1], found[2])
        if found := VALUE.search(text):
            return Violation(found[1], EXAMPLES[found[2]])
    if isinstance(error, ImportError) and error.name and error.name.partition(".")[0] == "smollm3_finetune":
        return _of_import(error)
    if isinstance(error, ValueError) and (found := OPERATION.search(text)):
        ops = [str(op) for op in Op]
        near = did_you_mean(found[1], ops)
        return Violation(f"{found[1]!r} is not an operation",
                         f"did you mean {near!r}?" if near else f"operations: {', '.join(ops)}")  # fmt: skip
    return None


def _of_import(error: ImportError) -> Violation:
    """The violation of a plugin that imports a name which core does not have."""
    module = str(error.name)
    if isinstance(error, ModuleNotFoundError):
        return Violation(f"there is no module {module!r}", "plugins import smollm3_finetune.api only")
    found = re.search(r"cannot import name '(\w+)'", str(error))
    name = found[1] if found else ""
    if module != api.__name__:
        return Violation(f"{module} has no {name!r}", "plugins import smollm3_finetune.api only")
    near = did_you_mean(name, api.__all__)
    return Violation(f"{module} has no {name!r}",
                     f"did you mean {near!r}?" if near else "docs/api.md lists its names")  # fmt: skip


def sentence(error: BaseException) -> str:
    """An exception as part of a one-line message."""
    violation = error if isinstance(error, Violation) else translated(error)
    if violation is not None:
        return str(violation)
    if isinstance(error, SmolLM3Error):
        return " ".join(error.message.split())
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def hint_of(error: BaseException) -> str | None:
    """The hint of a violation or of an error that was raised on purpose."""
    violation = error if isinstance(error, Violation) else translated(error)
    if violation is not None:
        return violation.hint
    if isinstance(error, SmolLM3Error):
        return error.hint
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.partition('.')[0]}, or import it inside the function that uses it"
    return None


def leave_out(name: str, origin: str) -> str:
    """The option that leaves a plugin out, for a hint."""
    import shlex

    if origin == "entry point":
        return f"to disable it: -p no:{name}"
    return f"omit -p {shlex.quote(origin.removeprefix('module '))}"
