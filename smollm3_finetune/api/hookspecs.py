"""The hooks. A plugin implements any of them with `@hookimpl`; each returns an iterable of descriptors.

Hooks are asked once, when a verb needs to know what is installed: never for the root help, always before anything
is loaded. They must be quick and light: a module that holds hooks imports `smollm3_finetune.api` and the standard
library, nothing like torch. A hook that raises, or returns something that is no valid descriptor, makes its plugin
`broken`; others are not affected. Order of calls never matters: what is found is sorted by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from smollm3_finetune.api import AdapterSpec, FormatterSpec, LoaderSpec, ObjectiveSpec, QuantizerSpec

hookspec = pluggy.HookspecMarker("smollm3_finetune")


@hookspec
def smollm3_loaders() -> Iterable[LoaderSpec]:  # type: ignore[empty-body]
    """Offer ways to open a model reference.

    Asked before a model is opened. Each descriptor's `claims(ref)` is then asked whether the reference is its own,
    unless `--loader` names one.

    Example:
        @hookimpl
        def smollm3_loaders():
            return [LoaderSpec(name="vault", summary="models in our vault", factory="vault.loader:VaultLoader",
                               claims=lambda ref: ref.startswith("vault://"), api=1)]
    """


@hookspec
def smollm3_quantizers() -> Iterable[QuantizerSpec]:  # type: ignore[empty-body]
    """Offer ways to load weights in fewer bits.

    Asked when a run needs a quantizer. `provides` (less what `refine` takes away) is compared with what
    the adapter needs, before any weights are read.

    Example:
        @hookimpl
        def smollm3_quantizers():
            return [QuantizerSpec(name="int8-rows", summary="rows rounded to 8 bits", factory="int8_rows:Int8Rows",
                                  provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}, api=1)]
    """


@hookspec
def smollm3_adapters() -> Iterable[AdapterSpec]:  # type: ignore[empty-body]
    """Offer ways to make a loaded model trainable.

    Asked when a run needs an adapter. `needs` lists the operations the adapter uses on the base's
    layers; a quantizer that provides them all will do, whoever wrote it.

    Example:
        @hookimpl
        def smollm3_adapters():
            return [AdapterSpec(name="scale", summary="one learned factor per layer", factory="scale:ScaleAdapter",
                                needs={Op.FORWARD, Op.GRAD_INPUT}, api=1)]
    """


@hookspec
def smollm3_formatters() -> Iterable[FormatterSpec]:  # type: ignore[empty-body]
    """Offer ways to read a dataset row as a conversation.

    Asked when rows are read. Each descriptor's `claims(row)` sees the first row of a file, unless the configuration
    names a formatter.

    Example:
        @hookimpl
        def smollm3_formatters():
            return [FormatterSpec(name="tickets", summary="our ticket export", factory="tickets:TicketFormatter",
                                  claims=lambda row: "ticket_body" in row, api=1)]
    """


@hookspec
def smollm3_objectives() -> Iterable[ObjectiveSpec]:  # type: ignore[empty-body]
    """Offer what training can minimize.

    Asked when a run is planned. The objective prepares examples, collates them and supplies a Trainer subclass.

    Example:
        @hookimpl
        def smollm3_objectives():
            return [ObjectiveSpec(name="unlikelihood", summary="push the bad answers down",
                                  factory="unlikelihood:Unlikelihood", api=1)]
    """
