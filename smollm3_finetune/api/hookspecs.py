"""The hooks. A plugin implements any of them with `@hookimpl`; each returns an iterable of descriptors.

A command that needs the installed components calls every hook once, before it opens a model; the root help calls none.
Hooks take no arguments and must be fast: a module with hooks imports only `smollm3_finetune.api` and the standard
library, not torch. If a hook raises, or returns an invalid descriptor, its plugin is marked `broken`; other plugins are
not affected. The order of calls does not matter, because components are sorted by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from smollm3_finetune.api import (
    AdapterSpec,
    CommandSpec,
    EvaluatorSpec,
    ExporterSpec,
    FormatterSpec,
    LauncherSpec,
    LoaderSpec,
    ObjectiveSpec,
    OptimizerSpec,
    QuantizerSpec,
    TrackerSpec,
)

hookspec = pluggy.HookspecMarker("smollm3_finetune")


@hookspec
def smollm3_loaders() -> Iterable[LoaderSpec]:  # type: ignore[empty-body]
    """Return the loaders of this plugin: each opens a kind of model reference.

    Called once per command, before a model is opened. Returns an iterable of `LoaderSpec`, empty if there are none.
    Unless `--loader` names a loader, the one whose `claims(ref)` returns true opens the reference.

    Example:
        @hookimpl
        def smollm3_loaders():
            return [LoaderSpec(name="vault", summary="models in our vault", factory="vault.loader:VaultLoader",
                               claims=lambda ref: ref.startswith("vault://"), api=2)]
    """


@hookspec
def smollm3_quantizers() -> Iterable[QuantizerSpec]:  # type: ignore[empty-body]
    """Return the quantizers of this plugin: each loads weights in low precision.

    Called once per command, before a model is opened. Returns an iterable of `QuantizerSpec`, empty if there are none.
    Before weights are read, the operations in `provides`, minus those that `refine` returns, are compared with the
    operations that the adapter needs.

    Example:
        @hookimpl
        def smollm3_quantizers():
            return [QuantizerSpec(name="int8-rows", summary="rows rounded to 8 bits", factory="int8_rows:Int8Rows",
                                  provides={Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}, api=2)]
    """


@hookspec
def smollm3_adapters() -> Iterable[AdapterSpec]:  # type: ignore[empty-body]
    """Return the adapters of this plugin: each makes a loaded model trainable.

    Called once per command, before a model is opened. Returns an iterable of `AdapterSpec`, empty if there are none.
    `needs` lists the operations that the adapter uses on the layers of the base. The adapter works with every quantizer
    that provides them, including the quantizers of other plugins.

    Example:
        @hookimpl
        def smollm3_adapters():
            return [AdapterSpec(name="scale", summary="one learned factor per layer", factory="scale:ScaleAdapter",
                                needs={Op.FORWARD, Op.GRAD_INPUT}, api=2)]
    """


@hookspec
def smollm3_formatters() -> Iterable[FormatterSpec]:  # type: ignore[empty-body]
    """Return the formatters of this plugin: each converts dataset rows into conversations.

    Called once per command, before rows are read. Returns an iterable of `FormatterSpec`, empty if there are none.
    Unless the configuration names a formatter, the one whose `claims(row)` returns true for the first row of a data
    source converts all its rows.

    Example:
        @hookimpl
        def smollm3_formatters():
            return [FormatterSpec(name="tickets", summary="our ticket export", factory="tickets:TicketFormatter",
                                  claims=lambda row: "ticket_body" in row, api=2)]
    """


@hookspec
def smollm3_objectives() -> Iterable[ObjectiveSpec]:  # type: ignore[empty-body]
    """Return the objectives of this plugin: each defines a loss that training minimizes.

    Called once per command, before the run is planned. Returns an iterable of `ObjectiveSpec`, empty if there are none.
    An objective prepares examples, collates them into batches and supplies a subclass of `transformers.Trainer`.

    Example:
        @hookimpl
        def smollm3_objectives():
            return [ObjectiveSpec(name="unlikelihood", summary="push the bad answers down",
                                  factory="unlikelihood:Unlikelihood", api=2)]
    """


@hookspec
def smollm3_evaluators() -> Iterable[EvaluatorSpec]:  # type: ignore[empty-body]
    """Return the evaluators of this plugin: each measures a model on tasks, document by document.

    Called once per command, before tasks are opened. Returns an iterable of `EvaluatorSpec`, empty if there are none.
    Unless `--evaluator` names an evaluator, the one whose `claims(task)` returns true evaluates the task.

    Example:
        @hookimpl
        def smollm3_evaluators():
            return [EvaluatorSpec(name="exact-match", summary="answers compared with references",
                                  factory="exact_match:ExactMatch", claims=lambda task: task.endswith(".jsonl"), api=2)]
    """


@hookspec
def smollm3_exporters() -> Iterable[ExporterSpec]:  # type: ignore[empty-body]
    """Return the exporters of this plugin: each writes a model or an adapter for other software, and verifies it.

    Called once per command, before a model is opened. Returns an iterable of `ExporterSpec`, empty if there are none.
    `smollm3 export --to NAME` names one. A run is merged, and the merge checked, before an exporter of models writes.

    Example:
        @hookimpl
        def smollm3_exporters():
            return [ExporterSpec(name="npz", summary="weights as one NumPy archive", factory="npz:NpzExporter", api=2)]
    """


@hookspec
def smollm3_launchers() -> Iterable[LauncherSpec]:  # type: ignore[empty-body]
    """Return the launchers of this plugin: each starts the processes of a run, here or on other machines.

    Called once per command, before a run is planned. Returns an iterable of `LauncherSpec`, empty if there are none.
    `smollm3 train --launcher NAME` names one. The run is planned and checked before it is called.

    Example:
        @hookimpl
        def smollm3_launchers():
            return [LauncherSpec(name="pods", summary="one pod per process", factory="pods:PodLauncher",
                                 options="pods:PodOptions", processes=lambda options: options.pods, api=2)]
    """


@hookspec
def smollm3_optimizers() -> Iterable[OptimizerSpec]:  # type: ignore[empty-body]
    """Return the optimizers of this plugin: each updates the trained parameters.

    Called once per command, before a run is planned. Returns an iterable of `OptimizerSpec`, empty if there are none.
    `smollm3 train --optimizer NAME` names one. Adapters state the roles of their parameters, such as the two matrices
    of a low-rank update; an optimizer that needs a role is refused beside an adapter that does not have it.

    Example:
        @hookimpl
        def smollm3_optimizers():
            return [OptimizerSpec(name="lora-plus", summary="a higher learning rate for the second matrix",
                                  factory="lora_plus:LoraPlus", needs_roles={"up"}, api=2)]
    """


@hookspec
def smollm3_trackers() -> Iterable[TrackerSpec]:  # type: ignore[empty-body]
    """Return the trackers of this plugin: each receives the metrics of runs.

    Called once per command, before a run is planned. Returns an iterable of `TrackerSpec`, empty if there are none.
    `smollm3 train --tracker NAME` names one.

    Example:
        @hookimpl
        def smollm3_trackers():
            return [TrackerSpec(name="dashboard", summary="metrics on our dashboard", factory="dashboard:Dashboard",
                                options="dashboard:DashboardOptions", api=2)]
    """


@hookspec
def smollm3_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands of this plugin: each is `smollm3 NAME`.

    Called if a command is not built in, and by completion after the installed packages changed. Returns an iterable of
    `CommandSpec`, empty if there are none. The module of a command is imported when the command is used.

    Example:
        @hookimpl
        def smollm3_commands():
            return [CommandSpec(name="serve", summary="Serve a model over HTTP.", factory="serve.cli:serve", api=2)]
    """
