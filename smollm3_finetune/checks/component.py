"""Whether one component keeps what its descriptor says: options, implementation, requirements, negotiation."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from smollm3_finetune import api
from smollm3_finetune.api import Env, Purpose, options_dict
from smollm3_finetune.checks.findings import Finding
from smollm3_finetune.components.kinds import ADAPTER, FORMATTER, LOADER, OBJECTIVE, QUANTIZER
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.components.requirements import unmet_distributions
from smollm3_finetune.components.suggestions import SUGGESTIBLE, may_be_suggested
from smollm3_finetune.config.load import Setting, assemble, plain
from smollm3_finetune.config.options import build, describe, field_types
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.model.device import KINDS as DEVICES

PROTOCOLS: Mapping[Any, Any] = {
    LOADER: api.Loader, QUANTIZER: api.Quantizer, ADAPTER: api.Adapter, FORMATTER: api.Formatter,
    OBJECTIVE: api.Objective,
}  # fmt: skip
PLAIN = (int, float, bool, str, type(None))
CLAIMED: Mapping[Any, tuple[Any, ...]] = {
    LOADER: ("", "tiny", "org/model", "./model", "/no/such/model.bin", "https://example.org/x"),
    QUANTIZER: ({}, {"model_type": "llama"}, {"quantization_config": None}, {"quantization_config": {}},
                {"quantization_config": {"quant_method": "another"}}),
    FORMATTER: ({}, {"a": None}, {"text": "x"}, {"messages": []}, {"messages": None, "n": 1}),
}  # fmt: skip
"""Plain input on which `claims` must not raise. No formatter claims the empty row, no quantizer any of these."""


def component_findings(component: RegisteredComponent, registry: Registry) -> list[Finding]:
    """Every check of one component."""
    checks = (_options, _factory, _requirements, _api, _names, _suggests, _claims, _refine)
    found = []
    for check in checks:
        try:
            found += list(check(component, registry))
        except SmolLM3Error as e:
            found.append(_finding(component, "it can be looked at", False, e.message, e.hint or ""))
    return found


def _finding(component: RegisteredComponent, check: str, ok: bool, found: str = "", fix: str = "") -> Finding:
    return Finding(subject=component.title, check=check, ok=ok, found=" ".join(found.split()), fix="" if ok else fix)


def _problem(raises: Callable[[], Any]) -> str:
    """What a call raises, in one line; empty where it does not."""
    try:
        raises()
    except SmolLM3Error as e:
        return " ".join(str(e.message).split())
    except Exception as e:
        return f"{type(e).__name__}: {' '.join(str(e).split())}"
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
    yield _finding(component, f"options {dotted} is a frozen dataclass", frozen, "" if frozen else "it can be changed",
                   "@dataclass(frozen=True, kw_only=True)")  # fmt: skip
    kinds = {n: t for n, t in field_types(cls).items() if n in {f.name for f in dataclasses.fields(cls)}}
    odd = [f"{n}: {getattr(t, '__name__', t)}" for n, t in kinds.items() if not _supported(t)]
    yield _finding(component, "its options are of types that users can write", not odd, ", ".join(odd),
                   "int, float, bool, str, Literal[…], X | None or tuple[X, …]")  # fmt: skip
    silent = [i.name for i in describe(cls) if not i.help]
    yield _finding(
        component, "every option has help", not silent, ", ".join(silent), 'option(default, "One line of help.")'
    )
    if odd:
        return
    trip = _problem(lambda: _round_trip(cls, component.kind.section))
    yield _finding(component, "its defaults pass their own checks and survive run.yaml", not trip, trip,
                   "a default must be within its range and equal after being written and read")  # fmt: skip


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
    """Raises where the defaults, written into a run's configuration and read again, are refused or others."""
    made: Any = build(cls, {}, section)
    written = json.loads(json.dumps(plain(options_dict(made)), allow_nan=False))
    again: Any = build(cls, written, section)
    if again != made:
        raise ValueError(f"{made} became {again}")


# ----------------------------------------------------------------------------------------- implementation


def _factory(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    dotted, kind = component.spec.factory, component.kind
    title = f"factory {dotted} makes what a run needs"
    unmet = unmet_distributions(component.spec.requires)
    try:
        made = component.create(build(component.options_class(), {}, kind.section))
    except SmolLM3Error as e:
        aside = f" (unmet: {', '.join(text for text, _ in unmet)})" if unmet else ""
        cause = e.__cause__
        where = f"{type(cause).__name__} in {_last_file(cause)}" if cause is not None else ""
        yield _finding(component, title, False, e.message + aside, where or e.hint or "")
        return
    yield _finding(component, title, True, type(made).__name__)
    methods = [*kind.methods, *(["merge"] if getattr(component.spec, "merges", False) else [])]
    misfits = [p for name in methods if (p := _misfit(made, name, PROTOCOLS[kind]))]
    if kind is QUANTIZER and callable(getattr(made, "write", None)):
        misfits += [p] if (p := _misfit(made, "write", api.CheckpointQuantizer)) else []
    yield _finding(component, "its methods take what they are given", not misfits, "; ".join(misfits),
                   "smollm3_finetune.api holds the protocol")  # fmt: skip


def _last_file(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"


def _misfit(made: Any, name: str, protocol: Any) -> str:
    """How a method's signature differs from the protocol's, where a call with the protocol's arguments would fail."""
    right = [p.name for p in inspect.signature(getattr(protocol, name)).parameters.values() if p.name != "self"]
    try:
        inspect.signature(getattr(made, name)).bind(*right)
    except TypeError as e:
        return f"{name}({', '.join(right)}): {e}"
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
    odd = [a for a in requires.accelerators if a not in DEVICES]
    if requires.accelerators:
        yield _finding(component, "its accelerators are devices of torch", not odd, ", ".join(odd), ", ".join(DEVICES))


def _api(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    yield _finding(component, f"it was written for api {component.spec.api}, and this is api {api.API_VERSION}",
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
    fix = f"another name, or users must type {component.kind.flag} {component.full_name}"
    yield _finding(component, "nobody else offers its name or an alias", not taken, ", ".join(taken), fix)
    again = [a for a in component.spec.aliases if mine.count(a) > 1]
    if component.spec.aliases:
        yield _finding(component, "its aliases are other names", not again, ", ".join(again), "name each once")


def _suggests(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    suggests = component.spec.suggests
    if not suggests:
        return
    settings = [Setting(key=tuple(str(k).split(".")), value=v, origin="suggests") for k, v in suggests.items()]
    problem = _problem(lambda: assemble([settings]))
    yield _finding(component, f"what it suggests is in the configuration ({', '.join(suggests)})", not problem, problem,
                   "smollm3 config show prints every key")  # fmt: skip
    late = [str(key) for key in suggests if not may_be_suggested(str(key))]
    if late and not problem:
        yield _finding(component, "what it suggests decides no row", False, f"{', '.join(late)} would come too late",
                       f"keys of train, or {', '.join(SUGGESTIBLE)}")  # fmt: skip


# --------------------------------------------------------------------------------------------- negotiation


def _claims(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    claims: Any = getattr(component.spec, "claims", None)
    if claims is None:
        return
    if not callable(claims):
        yield _finding(component, "claims can be asked", False, f"it is {claims!r}", "a function")
        return
    problems = []
    for n, subject in enumerate(CLAIMED[component.kind]):
        answers: list[Any] = []
        problem = _problem(lambda s=subject, a=answers: a.append(claims(s)))  # type: ignore[misc]
        if problem:
            problems.append(f"claims({subject!r}) raises {problem}")
        elif answers[0] and ((n == 0 and component.kind is FORMATTER) or component.kind is QUANTIZER):
            problems.append(f"claims({subject!r}) is {answers[0]!r}, so runs that never named it would get it")
    text = "; ".join(problems)
    yield _finding(component, "claims answers for anything and claims not everything", not problems, text,
                   "use .get() and check types")  # fmt: skip
    rank: Any = getattr(component.spec, "rank", 0)
    if not isinstance(rank, int):
        yield _finding(component, "rank is a number", False, repr(rank), "rank=0")


def _refine(component: RegisteredComponent, registry: Registry) -> Iterator[Finding]:
    spec: Any = component.spec
    if getattr(spec, "refine", None) is None:
        return
    defaults = build(component.options_class(), {}, component.kind.section)
    problems = [p for env in _environments() if (p := _refine_problem(spec, defaults, env))]
    yield _finding(component, "refine answers on every device and for every purpose", not problems,
                   "; ".join(dict.fromkeys(problems)),
                   f"return the {type(spec).__name__} that it is given, or a changed copy")  # fmt: skip


def _environments() -> Iterator[Env]:
    for device in ("cpu", "cuda", "mps"):
        for purpose in Purpose:
            for tools in (frozenset[str](), frozenset({"c++"})):
                yield Env(device=device, purpose=purpose, tools=tools)


def _refine_problem(spec: Any, options: Any, env: Env) -> str:
    answers: list[Any] = []
    problem = _problem(lambda: answers.append(spec.refine(spec, options, env)))
    if problem:
        return f"it raises {problem}"
    return "" if isinstance(answers[0], type(spec)) else f"it returns {answers[0]!r}"
