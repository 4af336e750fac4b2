"""Disables the adapter of a model, by whomever it is asked: core notes the `Adapted` of each model at the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune import stopping
from smollm3_finetune.api.helpers import evaluating
from smollm3_finetune.errors import UnsupportedOp

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.api.models import Adapted

NAME = "_smollm3_adapter"
"""The attribute of a trained module that holds its switch."""


class AdapterSwitch:
    """Disables one adapter. Contexts may be nested: the adapter is enabled again when the outermost one ends.

    A request to stop does not end the exchange of weights half-way: only what runs inside a context is interrupted.

    Copies of the model have none, so that a model can be copied and pickled even if its `Adapted` cannot.
    """

    def __init__(self, adapted: Adapted) -> None:
        self.adapted = adapted
        self.depth = 0
        self._off = contextlib.ExitStack()
        """Ends the adapter's own context, while it is disabled."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Disable the adapter inside the context. Raises UnsupportedOp if it changes the base."""
        with stopping.deferred() as outside, contextlib.ExitStack() as stack:
            if not self.depth:
                stack.enter_context(self.adapted.disabled())
                self._off = stack
            self.depth += 1
            try:
                with stopping.undeferred(unless=outside):
                    yield
            finally:
                self.depth -= 1

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Enable the adapter inside the context, also where it is disabled."""
        depth, disabled = self.depth, self._off
        if not depth:
            yield
            return
        with stopping.deferred() as outside:
            disabled.close()
            self.depth = 0
            try:
                with stopping.undeferred(unless=outside):
                    yield
            finally:
                disabled.enter_context(self.adapted.disabled())
                self.depth, self._off = depth, disabled


def note_adapter(adapted: Adapted) -> AdapterSwitch:
    """Note `adapted` at its module, where `without_adapter` finds it; returns its switch."""
    noted: Any = vars(adapted.model).get(NAME)
    if isinstance(noted, AdapterSwitch) and noted.adapted is adapted:
        return noted
    switch = AdapterSwitch(adapted)
    vars(adapted.model)[NAME] = switch
    return switch


def switch_of(model: nn.Module) -> AdapterSwitch | None:
    """The switch of `model`, or of the model that it wraps; None if core attached no adapter to it."""
    found: Any = next((vars(m)[NAME] for m in model.modules() if NAME in vars(m)), None)
    return found if isinstance(found, AdapterSwitch) else None


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """See `smollm3_finetune.api.without_adapter`."""
    switch = switch_of(model)
    if switch is None:
        raise UnsupportedOp(
            f"{type(model).__name__} has no adapter that could be disabled",
            hint='load_model("MODEL", adapter="NAME", purpose="train").model',
        )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(switch.off())
        except UnsupportedOp as e:
            raise UnsupportedOp(e.message, hint=e.hint or "name an adapter that can be disabled: smollm3 compat") from e
        yield stack.enter_context(as_reference(switch.adapted))


@contextlib.contextmanager
def as_reference(adapted: Adapted) -> Iterator[nn.Module]:
    """The model of `adapted`, whose weights were changed for this context: in evaluation mode and without gradients."""
    with contextlib.ExitStack() as stack:
        # autocast keeps casts of trained weights, also of those whose values were replaced
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        stack.enter_context(_without_cache(adapted))
        stack.enter_context(evaluating(adapted.model))
        stack.enter_context(torch.no_grad())
        yield adapted.model


@contextlib.contextmanager
def _without_cache(adapted: Adapted) -> Iterator[None]:
    """Inside the context, the base keeps no keys and values unless a call asks for it."""
    config: Any = getattr(adapted.base.model, "config", None)
    kept = getattr(config, "use_cache", None)
    if kept is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = kept
