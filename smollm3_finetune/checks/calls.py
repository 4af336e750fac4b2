"""Calls the functions of a component once on small input: `check`, `open` and a formatter.

Each may refuse its input, but as the contract says: with an error of `smollm3_finetune.api` and a hint, or for a row
with a ValueError. Anything else would reach users as a failure of the plugin. `claims` and `refine` are called by
`checks.component`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smollm3_finetune.api import (
    BuildContext,
    Conversation,
    Env,
    EvaluationContext,
    ModelSource,
    Purpose,
    Role,
    directory_source,
)
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.kinds import (
    ADAPTER,
    COMMAND,
    EVALUATOR,
    EXPORTER,
    FORMATTER,
    LAUNCHER,
    LOADER,
    OPTIMIZER,
    QUANTIZER,
    TRACKER,
)
from smollm3_finetune.components.locations import own_line
from smollm3_finetune.components.registry import RegisteredComponent
from smollm3_finetune.errors import PluginTimeoutError, SmolLM3Error

CLAIMED: Mapping[Any, tuple[Any, ...]] = {
    LOADER: ("", "tiny", "org/model", "./model", "/no/such/model.bin", "https://example.org/x"),
    QUANTIZER: ({}, {"model_type": "llama"}, {"quantization_config": None}, {"quantization_config": {}},
                {"quantization_config": {"quant_method": "another"}}),
    ADAPTER: ({}, {"base_model_name_or_path": None}, {"target_modules": 3, "r": "x"}),
    FORMATTER: ({}, {"a": None}, {"text": "x"}, {"messages": []}, {"messages": None, "n": 1}),
    EVALUATOR: ("", "task", "./task.yaml", "/no/such/task.jsonl", "a\nb", "\0"),
}  # fmt: skip
"""Simple inputs on which `claims` must not raise.

No formatter may claim the empty row, no quantizer or adapter any of these.
"""
ROWS: tuple[Mapping[str, Any], ...] = (
    {},
    {"text": "a text"},
    {"messages": [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]},
    {"messages": None, "n": 1},
)
"""Rows that every formatter converts or refuses; a row with all columns that it states is added."""
ABSENT = "no-such-directory/model"
ABSENT_TASK = "no-such-directory/task"
REFUSED = object()
OF_A_ROW = (ValueError, LookupError, TypeError, AttributeError)
"""What a formatter may raise for a row that it cannot convert."""


def calls(component: RegisteredComponent, options: Any) -> Iterator[tuple[str, str, str]]:
    """Yields (check, problem, fix) for each call of a component with its default options; no problem is empty text.

    Nothing is yielded for a component whose required packages are missing.
    """
    from smollm3_finetune.components.requirements import unmet_distributions

    if unmet_distributions(component.spec.requires):
        return
    if component.kind in (QUANTIZER, EXPORTER) and getattr(component.spec, "check", None) is not None:
        yield ("check accepts a small model, or refuses it with a hint", _check(component, options),
               "raise IncompatibleError or ConfigError with a hint; return nothing")  # fmt: skip
    if component.kind is LAUNCHER:
        yield ("it states the processes of a run, or refuses its options with a hint", _launch(component, options),
               "return a number or None from processes, and raise ConfigError with a hint in check")  # fmt: skip
    if component.kind is OPTIMIZER and component.spec.state_bytes is not None:  # type: ignore[attr-defined]
        yield ("state_bytes returns a number of bytes for every role", _state_bytes(component, options),
               "return 0 for roles in freezes, otherwise bytes for a float32 parameter of this shape")  # fmt: skip
    if component.kind is TRACKER and getattr(component.spec, "check", None) is not None:
        yield ("check accepts its options, or refuses them with a hint", _check_options(component, options),
               "raise ConfigError with a hint; return nothing")  # fmt: skip
    if component.kind is LOADER:
        yield ("open returns a source, or refuses the reference with a hint", _open(component, options),
               "raise ModelError with a hint; return a ModelSource")  # fmt: skip
    if component.kind is FORMATTER:
        yield ("it converts a row, or raises ValueError with the reason", _format(component, options),
               "return a Conversation, or raise ValueError for a row that it cannot convert")  # fmt: skip
    if component.kind is EVALUATOR:
        yield ("open refuses a task that does not exist with a hint", _open_task(component, options),
               "raise ConfigError with a hint")  # fmt: skip


def _small_source() -> ModelSource:
    from smollm3_finetune.builtin.tiny_loader import DIRECTORY

    return directory_source(DIRECTORY, ref="tiny")


def _check(component: RegisteredComponent, options: Any) -> str:
    source = _small_source()
    check = component.spec.check  # type: ignore[attr-defined]
    answer, problem = _called(component, "check", lambda: check(options, source))
    if problem or answer is None:
        return problem
    return f"check(options, source) returned {described(answer)}, which is ignored"


def _launch(component: RegisteredComponent, options: Any) -> str:
    spec: Any = component.spec
    functions = {"processes": (int, type(None)), "sharding": (str,), "joins": (bool,), "device": (str, type(None))}
    for name, allowed in functions.items():
        if (function := getattr(spec, name)) is None:
            continue
        answer, problem = _called(component, f"{name}(options)", partial(lambda f: (f(options),), function))
        if problem:
            return problem
        if answer is not None and (not isinstance(answer[0], allowed) or (answer[0] is True and name == "processes")):
            return f"{name}(options) returned {described(answer[0])}"
    for env in environments() if spec.check is not None else ():
        _, problem = _called(component, "check(options, env)", partial(spec.check, options, env))
        if problem:
            return problem
    return ""


def _state_bytes(component: RegisteredComponent, options: Any) -> str:
    spec: Any = component.spec
    for role in Role:
        answer, problem = _called(component, "state_bytes", partial(_stated_bytes, component, options, role))
        if problem:
            return problem
        if not isinstance(answer, int) or isinstance(answer, bool) or answer < 0:
            return f"state_bytes(options, shape, {str(role)!r}) returned {described(answer)}"
        if answer and role in spec.freezes:
            return f"state_bytes states {answer} bytes for the role {str(role)!r}, which freezes has"
    return ""


def _stated_bytes(component: RegisteredComponent, options: Any, role: Role) -> Any:
    spec: Any = component.spec
    return spec.state_bytes(options, (8, 4), str(role))


def _check_options(component: RegisteredComponent, options: Any) -> str:
    check = component.spec.check  # type: ignore[attr-defined]
    for env in environments():
        answer, problem = _called(component, "check(options, env)", partial(check, options, env))
        if problem or answer is not None:
            return problem or f"check(options, env) returned {described(answer)}, which is ignored"
    return ""


def _open(component: RegisteredComponent, options: Any) -> str:
    import tempfile

    from smollm3_finetune.builtin.tiny_loader import DIRECTORY
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.progress import Silent

    loader = component.create(options)
    with tempfile.TemporaryDirectory(prefix="smollm3-check-") as work:
        context = BuildContext(purpose=Purpose.INFER, device="cpu", dtype="float32", seed=0,
                               cache=Cache(Path(work)), progress=Silent())  # fmt: skip
        for shown, ref in (("a small model", str(DIRECTORY)), (repr(ABSENT), ABSENT)):
            opened, problem = _called(component, f"open({shown})", partial(_opened, loader, ref, context))
            if problem:
                return problem
            if opened is not None and not isinstance(opened[1], Mapping):
                return f"open({shown}) returned {described(opened[0])}, not a ModelSource with a mapping as config"
    return ""


def _opened(loader: Any, ref: str, context: BuildContext) -> tuple[Any, Any]:
    """What a loader opens, and its `config`."""
    made = loader.open(ref, context)
    return made, getattr(made, "config", None)


def _open_task(component: RegisteredComponent, options: Any) -> str:
    from smollm3_finetune.progress import Silent

    context = EvaluationContext(limit=1, batch_size=1, seed=0, progress=Silent())
    evaluator = component.create(options)
    doing = f"open([{ABSENT_TASK!r}])"
    made, problem = _called(component, doing, lambda: (evaluator.open([ABSENT_TASK], context),))
    return problem or ("" if made is None else f"{doing} returned {described(made[0])}")


def _format(component: RegisteredComponent, options: Any) -> str:
    formatter = component.create(options)
    columns = getattr(formatter, "columns", None) or ()
    for row in (*ROWS, {str(c): "a text" for c in columns}):
        made, problem = _called(component, f"a row with the columns {', '.join(row) or 'none'}",
                                partial(formatter, dict(row)), OF_A_ROW)  # fmt: skip
        if problem:
            return problem
        if made is not REFUSED and not isinstance(made, Conversation):
            return (
                f"a row with the columns {', '.join(row) or 'none'}: it returned {described(made)}, not a Conversation"
            )
    return ""


def _called(
    component: RegisteredComponent, doing: str, function: Callable[[], Any], allowed: tuple[type[Exception], ...] = ()
) -> tuple[Any, str]:
    """The result of a call and its problem. A refusal with a hint is None (`REFUSED` if it is `allowed`)."""
    try:
        return component.waited(function, doing), ""
    except allowed:
        return REFUSED, ""
    except PluginTimeoutError as e:
        return None, e.message
    except SmolLM3Error as e:
        return (REFUSED if allowed else None), "" if e.hint else f"{doing} refuses without a hint: {e.message}"
    except (Exception, SystemExit) as e:
        line = own_line(e)
        text = " ".join(str(e).split())
        return None, f"{doing} raises {type(e).__name__}: {text}" + (f" ({line})" if line else "")


def environments() -> Iterator[Env]:
    for device in ("cpu", "cuda", "mps"):
        for purpose in Purpose:
            for tools in (frozenset[str](), frozenset({"c++"})):
                yield Env(device=device, purpose=purpose, tools=tools)


TORCH = frozenset(("torch", "transformers"))
Call = tuple[str, frozenset[str] | None, Callable[[], Any]]


def light_calls(component: RegisteredComponent) -> Iterator[Call]:
    """Yields the name of each function that is called while a run is planned, and a call of it on small input.

    With each call, the modules that the function must not import; None: no large library.
    """
    spec: Any = component.spec
    if component.kind is COMMAND:
        yield "--help", TORCH, component.command
        return
    if (claims := getattr(spec, "claims", None)) is not None:
        for subject in CLAIMED[component.kind]:
            yield "claims", None, partial(claims, subject)
    try:
        options = component.options_class()()  # validated by another check, with a library that takes long to import
    except Exception:
        return
    if (refine := getattr(spec, "refine", None)) is not None:
        for env in environments():
            yield "refine", None, partial(refine, spec, options, env)
    if component.kind is LAUNCHER:
        yield "processes, sharding or check", TORCH, lambda: _launch(component, options)
    elif component.kind is TRACKER and spec.check is not None:
        yield "check", TORCH, lambda: _check_options(component, options)
    elif (check := getattr(spec, "check", None)) is not None:
        yield "check", TORCH, lambda: check(options, _small_source())
    if component.kind is OPTIMIZER and spec.state_bytes is not None:
        yield "state_bytes", TORCH, lambda: [_stated_bytes(component, options, role) for role in Role]
    if component.kind is LOADER:
        yield "open", TORCH, lambda: _open(component, options)
    if component.kind is FORMATTER:
        yield "the formatter", TORCH, lambda: _format(component, options)
