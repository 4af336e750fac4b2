"""Checks one component against its descriptor: options, implementation, requirements, negotiation."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from smollm3_finetune import api
from smollm3_finetune.api import Env, options_dict
from smollm3_finetune.checks.calls import CLAIMED, calls, environments
from smollm3_finetune.checks.findings import Finding
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.kinds import (
    ADAPTER,
    COMMAND,
    EVALUATOR,
    EXPORTER,
    FORMATTER,
    LAUNCHER,
    LOADER,
    OBJECTIVE,
    OPTIMIZER,
    QUANTIZER,
    TRACKER,
)
from smollm3_finetune.components.locations import own_line
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.components.requirements import unmet_distributions
from smollm3_finetune.components.suggestions import SUGGESTIBLE, may_be_suggested
from smollm3_finetune.config.load import Setting, assemble, plain
from smollm3_finetune.config.options import build, describe, field_types
from smollm3_finetune.data.columns import stated_columns
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.model.device import KINDS as DEVICES

PROTOCOLS: Mapping[Any, Any] = {
    LOADER: api.Loader, QUANTIZER: api.Quantizer, ADAPTER: api.Adapter, FORMATTER: api.Formatter,
    OBJECTIVE: api.Objective, EVALUATOR: api.Evaluator, EXPORTER: api.Exporter,
    LAUNCHER: api.Launcher, OPTIMIZER: api.OptimizerMaker, TRACKER: api.Tracker,
}  # fmt: skip
PLAIN = (int, float, bool, str, type(None))


def component_findings(component: RegisteredComponent, registry: Registry) -> list[Finding]:
    """Every check of one component."""
    checks = [_options, _factory, _requirements, _api, _names, _suggests, _claims, _refine, _calls]
    if component.kind is COMMAND:
        checks = [_command, _requirements, _api, _names]
    found = []
    if (unset := _unset(component)) is not None:
        checks = [c for c in checks if c not in (_factory, _refine, _calls)]
        found.append(Finding(subject=component.title, check="it can be created with its default options", ok=False,
                             serious=False, found=f"not checked: {unset}",
                             fix="test it with the kit, in a class that sets options"))  # fmt: skip
    for check in checks:
        try:
            found += list(check(component, registry))
        except SmolLM3Error as e:
            found.append(_finding(component, "it can be checked", False, e.message, e.hint or ""))
    return found


def _unset(component: RegisteredComponent) -> str | None:
    """Why a component cannot be used without options: one of them must be set; None if it can."""
    try:
        build(component.options_class(), {}, component.kind.section)
    except ConfigError as e:
        return e.message
    except SmolLM3Error:  # a fault of the plugin, which another check reports
        return None
    return None


def _finding(component: RegisteredComponent, check: str, ok: bool, found: str = "", fix: str = "") -> Finding:
    return Finding(subject=component.title, check=check, ok=ok, found=" ".join(found.split()), fix="" if ok else fix)


def _problem(raises: Callable[[], Any]) -> str:
    """The exception of a call, in one line; empty if it raises none."""
    try:
        raises()
    except SmolLM3Error as e:
        return " ".join(str(e.message).split())
    except (Exception, SystemExit) as e:
        line = own_line(e)
        return f"{type(e).__name__}: {' '.join(str(e).split())}" + (f" ({line})" if line else "")
    return ""


# ------------------------------------------------------------------------------------------------ options


def _options(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    dotted = component.spec.options
    try:
        cls = component.options_class()
        describe(cls)
    except SmolLM3Error as e:
        yield _finding(component, f"options {dotted} is a dataclass", False, e.message, e.hint or "")
        return
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    yield _finding(component, f"options {dotted} is a frozen dataclass", frozen, "" if frozen else "it is mutable",
                   "@dataclass(frozen=True, kw_only=True)")  # fmt: skip
    types_by_name = {n: t for n, t in field_types(cls).items() if n in {f.name for f in dataclasses.fields(cls)}}
    unsupported = [f"{n}: {getattr(t, '__name__', t)}" for n, t in types_by_name.items() if not _supported(t)]
    yield _finding(component, "its options have supported types", not unsupported, ", ".join(unsupported),
                   "int, float, bool, str, Literal[…], X | None or tuple[X, …]")  # fmt: skip
    undocumented = [i.name for i in describe(cls) if not i.help]
    yield _finding(
        component,
        "every option has help",
        not undocumented,
        ", ".join(undocumented),
        'option(default, "One line of help.")',
    )
    if unsupported or _unset(component) is not None:
        return
    problem = _problem(lambda: _round_trip(cls, component.kind.section))
    yield _finding(component, "its defaults are valid and survive run.yaml", not problem, problem,
                   "keep each default within its range, and equal after it is written and read")  # fmt: skip


def _supported(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return all(isinstance(a, PLAIN) for a in get_args(annotation))
    if origin in (Union, types.UnionType):
        return all(_supported(a) for a in get_args(annotation))
    if origin is tuple:
        inner = get_args(annotation)
        return len(inner) == 2 and inner[1] is Ellipsis and _supported(inner[0])
    if origin in (dict, Mapping, typing.Mapping) or annotation in (dict, Any):
        return True
    return annotation in PLAIN


def _round_trip(cls: type, section: str) -> None:
    """Raises if the defaults, written to a run's configuration and read again, are refused or differ."""
    made: Any = build(cls, {}, section)
    written = json.loads(json.dumps(plain(options_dict(made)), allow_nan=False))
    again: Any = build(cls, written, section)
    if again != made:
        raise ValueError(f"{made} became {again}")


# ----------------------------------------------------------------------------------------- implementation


def _factory(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    dotted, kind = component.spec.factory, component.kind
    title = f"factory {dotted} creates the component"
    unmet = unmet_distributions(component.spec.requires)
    try:
        made = component.create(build(component.options_class(), {}, kind.section))
    except SmolLM3Error as e:
        aside = f" (unmet: {', '.join(text for text, _ in unmet)})" if unmet else ""
        cause = e.__cause__
        line = own_line(cause) if cause is not None else None
        where = f"{type(cause).__name__} in {line}" if line is not None else ""
        yield _finding(component, title, False, e.message + aside, where or e.hint or "")
        return
    yield _finding(component, title, True, type(made).__name__)
    methods = [*kind.methods, *(["merge"] if getattr(component.spec, "merges", False) else [])]
    misfits = [p for name in methods if (p := _misfit(made, name, PROTOCOLS[kind]))]
    if kind is QUANTIZER and callable(getattr(made, "write", None)):
        misfits += [p] if (p := _misfit(made, "write", api.CheckpointQuantizer)) else []
    yield _finding(component, "its methods accept the protocol's arguments", not misfits, "; ".join(misfits),
                   "see the protocols in smollm3_finetune.api")  # fmt: skip
    if kind is OBJECTIVE:
        yield from _reference(component, made)
    if kind is FORMATTER and getattr(made, "columns", None) is not None:
        problem = _problem(lambda: stated_columns(made))
        yield _finding(component, "columns names the columns that it reads", not problem, problem,
                       'columns = ("question", "answer")')  # fmt: skip


def _command(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    """Checks of the click command that is the factory of a component."""
    from smollm3_finetune.checks.commands import missing_help, runs_help

    title = f"factory {component.spec.factory} is a click command"
    try:
        command = component.command()
    except SmolLM3Error as e:
        yield _finding(component, title, False, e.message, e.hint or "")
        return
    yield _finding(component, title, True, type(command).__name__)
    problem = _problem(lambda: runs_help(command, component.spec.name))
    yield _finding(component, "its --help can be shown", not problem, problem,
                   "help must need no argument, no file and no model")  # fmt: skip
    missing = missing_help(command, component.spec.name)
    yield _finding(component, "it and each of its options have help", not missing, ", ".join(missing),
                   'a docstring, and click.option(…, help="One line of help.")')  # fmt: skip


def _reference(component: RegisteredComponent, made: Any) -> Iterator[Finding]:
    """Whether the descriptor and the objective agree on the reference.

    The use of the base is seen from the imports of its module. An objective that decides by its options is not judged.
    """
    spec: Any = component.spec
    module, declared, decides = (
        sys.modules.get(type(made).__module__),
        spec.reference != "none",
        spec.refine is not None,
    )
    if module is not None and any(value is api.without_adapter for value in vars(module).values()):
        yield _finding(component, "its use of without_adapter is declared", declared or decides,
                       "" if declared or decides else "reference is 'none', so a run with --adapter full is not "
                       "refused early", 'reference="base"')  # fmt: skip
    if hasattr(made, "reference_values"):
        yield _finding(component, "its reference_values is declared", declared or decides,
                       "" if declared or decides else "reference is 'none', so the method is never called",
                       'reference="base"')  # fmt: skip
        problem = _misfit(made, "reference_values", api.ReferenceObjective)
        names = getattr(made, "reference_options", None)
        if names is None or isinstance(names, str):
            problem = problem or "reference_options is missing: the names of the options on which the values depend"
        elif unknown := sorted({*names} - {o.name for o in dataclasses.fields(component.options_class())}):
            problem = problem or f"reference_options names {unknown[0]!r}, which is not an option"
        yield _finding(component, "it is a ReferenceObjective", not problem, problem, "reference_options = ()")
    elif spec.reference in ("start", "model"):
        yield _finding(component, "its reference_values is declared", False,
                       f"reference is {spec.reference!r}, but it has no method reference_values",
                       "def reference_values(self, model, batch):")  # fmt: skip


def _misfit(made: Any, name: str, protocol: Any) -> str:
    """Why a call of a method with the protocol's arguments would fail; empty if it would not."""
    arguments = [p.name for p in inspect.signature(getattr(protocol, name)).parameters.values() if p.name != "self"]
    try:
        inspect.signature(getattr(made, name)).bind(*arguments)
    except TypeError as e:
        return f"{name}({', '.join(arguments)}): {e}"
    except ValueError:  # a builtin without a signature
        return ""
    return ""


# ------------------------------------------------------------------------------------ requirements, names


def _requirements(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    requires = component.spec.requires
    try:
        unmet = unmet_distributions(requires)
    except SmolLM3Error as e:
        yield _finding(component, "its requirements can be read", False, e.message, "PEP 508, such as 'torch>=2.6'")
        return
    found = "; ".join(f"{text}: {why}" for text, why in unmet)
    named = ", ".join(requires.distributions) or "none"
    yield _finding(component, f"its requirements are met ({named})", not unmet, found,
                   "pip install " + " ".join(f"'{text}'" for text, _ in unmet))  # fmt: skip
    unknown = [a for a in requires.accelerators if a not in DEVICES]
    if requires.accelerators:
        yield _finding(
            component, "its accelerators are torch devices", not unknown, ", ".join(unknown), ", ".join(DEVICES)
        )


def _api(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    yield _finding(component, f"it was written for api {component.spec.api}; this is api {api.API_VERSION}",
                   1 <= component.spec.api <= api.API_VERSION, "", f"write api={api.API_VERSION}")  # fmt: skip


def _names(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    mine = (component.spec.name, *component.spec.aliases)
    taken = [
        f"{name!r} by {o.distribution} {o.version}"
        for o in registry.of(component.kind)
        if o is not component
        for name in mine
        if name in (o.spec.name, *o.spec.aliases)
    ]
    fix = f"choose another name; otherwise users must type {component.kind.flag} {component.full_name}"
    yield _finding(component, "no other component uses its name or aliases", not taken, ", ".join(taken), fix)
    repeated = [a for a in component.spec.aliases if mine.count(a) > 1]
    if component.spec.aliases:
        yield _finding(component, "its aliases are distinct", not repeated, ", ".join(repeated), "list each name once")


def _suggests(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    suggests = component.spec.suggests
    if not suggests:
        return
    settings = [Setting(key=tuple(str(k).split(".")), value=v, origin="suggests") for k, v in suggests.items()]
    problem = _problem(lambda: assemble([settings]))
    yield _finding(component, f"its suggestions are configuration keys ({', '.join(suggests)})", not problem, problem,
                   "to see every key: smollm3 config show")  # fmt: skip
    late = [str(key) for key in suggests if not may_be_suggested(str(key))]
    if late and not problem:
        yield _finding(component, "its suggestions select no rows", False, f"{', '.join(late)} would apply too late",
                       f"suggest keys of train, or {', '.join(SUGGESTIBLE)}")  # fmt: skip


# --------------------------------------------------------------------------------------------- negotiation


def _claims(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    claims: Any = getattr(component.spec, "claims", None)
    if claims is None:
        return
    if not callable(claims):
        yield _finding(component, "claims can be called", False, f"it is {claims!r}", "set claims to a function")
        return
    problems = []
    for n, subject in enumerate(CLAIMED[component.kind]):
        answers: list[Any] = []
        problem = _problem(lambda s=subject, a=answers: a.append(component.waited(lambda: claims(s), "claims")))  # type: ignore[misc]
        if problem:
            problems.append(f"claims({subject!r}) raises {problem}")
        elif answers[0] and ((n == 0 and component.kind is FORMATTER) or component.kind in (QUANTIZER, ADAPTER)):
            problems.append(f"claims({subject!r}) is true, so runs that do not name it would use it")
    text = "; ".join(problems)
    yield _finding(component, "claims accepts any input and does not claim everything", not problems, text,
                   "use .get() and check types")  # fmt: skip
    rank: Any = getattr(component.spec, "rank", 0)
    if not isinstance(rank, int):
        yield _finding(component, "rank is an integer", False, repr(rank), "rank=0")


def _refine(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    spec: Any = component.spec
    if getattr(spec, "refine", None) is None:
        return
    defaults = build(component.options_class(), {}, component.kind.section)
    problems = [p for env in environments() if (p := _refine_problem(spec, defaults, env))]
    yield _finding(component, "refine works on every device and for every purpose", not problems,
                   "; ".join(dict.fromkeys(problems)),
                   f"return the {type(spec).__name__} that it is given, or a changed copy")  # fmt: skip


def _calls(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    try:
        options: Any = build(component.options_class(), {}, component.kind.section)
        component.create(options)
    except SmolLM3Error:  # `_options` and `_factory` report it
        return
    for check, problem, fix in calls(component, options):
        yield _finding(component, check, not problem, problem, fix)


def _refine_problem(spec: Any, options: Any, env: Env) -> str:
    answers: list[Any] = []
    problem = _problem(lambda: answers.append(spec.refine(spec, options, env)))
    if problem:
        return f"it raises {problem}"
    return "" if isinstance(answers[0], type(spec)) else f"it returns {described(answers[0])}"
