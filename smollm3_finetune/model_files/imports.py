"""Import torch, transformers and what builds on them sooner, without a change of what a later use finds.

Measured by `benchmarks/first_step.py`; docs/speed.md has the figures.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Inside the context, modules are imported without garbage collection and without what the process may never use.

    * The garbage collector does not run: an import creates hundreds of thousands of objects that all stay.
    * A function that a library compiles when it is imported is compiled at its first call (see `_deferred_compile`).
    * transformers' Trainer is imported without the library of data sets (see `import_trainer`).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with _deferred_compile():
            yield
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _deferred_compile() -> Iterator[None]:
    """Inside the context, `torch.compile` of a function is carried out at the first call of the function.

    Optional backends of transformers compile functions when they are imported, which imports torch's compiler: a
    quarter of the time to the first step of a run that compiles nothing.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or getattr(torch.compile, "deferring", False):
        yield
        return
    compile_now = torch.compile

    def compile_later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda function: compile_later(function, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        return _compiled_at_first_call(model, compile_now, options)

    compile_later.deferring = True  # type: ignore[attr-defined]
    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now


def _compiled_at_first_call(function: FunctionType, compile_now: Callable[..., Any], options: dict[str, Any]) -> Any:
    compiled: Any = None

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            import torch

            if torch.compiler.is_compiling():  # a caller is being compiled, and takes this function in
                return function(*args, **kwargs)
            compiled = compile_now(function, **options)
        return compiled(*args, **kwargs)

    return wrapper


def import_transformers() -> ModuleType:
    """Import transformers, which lists the names of its model files twice; the second time from its cache.

    Its cache of folders, `create_import_structure_from_path`, has room for 128, and there are more than 400.
    """
    bounded = functools.lru_cache

    def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
        if getattr(maxsize, "__name__", None) == "create_import_structure_from_path":
            return functools.cache(maxsize)
        return bounded(maxsize, typed)

    functools.lru_cache = lru_cache
    try:
        with quick_imports():
            return importlib.import_module("transformers")
    finally:
        functools.lru_cache = bounded


def import_for_training() -> None:
    """Import what every run imports, and exempt it from garbage collection: for a process that only trains.

    Each full collection, of which accelerate asks for two before the first step, otherwise visits a million objects
    that were imported.
    """
    import_trainer()
    gc.freeze()


def import_trainer() -> None:
    """Import transformers' Trainer without `datasets`, which it needs only to recognize data sets of that library.

    An object can be such a data set only if `datasets` was imported, which the Trainer then finds. Losses of object
    detection, which the Trainer imports too, import scipy at their first call.
    """
    name = "transformers.trainer"
    if name in sys.modules:
        return
    import_transformers()
    import transformers.utils

    hidden = {n: getattr(transformers.utils, n) for n in ("is_datasets_available", "is_scipy_available")}
    for function in hidden:
        setattr(transformers.utils, function, lambda: False)
    try:
        with quick_imports():
            trainer: Any = importlib.import_module(name)
    finally:
        for function, available in hidden.items():
            setattr(transformers.utils, function, available)
    for module, loss in list(sys.modules.items()):
        if module.startswith("transformers.loss.") and "is_scipy_available" in vars(loss):
            vars(loss).setdefault("linear_sum_assignment", _linear_sum_assignment)
            vars(loss)["is_scipy_available"] = hidden["is_scipy_available"]

    def imported() -> bool:
        if "datasets" not in sys.modules:
            return False
        trainer.datasets = sys.modules["datasets"]
        return True

    if "datasets" in vars(trainer) or vars(trainer).get("is_datasets_available") is None:
        return  # another version of transformers
    trainer.is_datasets_available = imported


def _linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
    """That of scipy, imported when it is called."""
    return importlib.import_module("scipy.optimize").linear_sum_assignment(*args, **kwargs)
