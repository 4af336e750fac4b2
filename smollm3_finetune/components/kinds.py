"""The kinds of components, each with its descriptor class, its hook and its command-line option."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import (
    AdapterSpec,
    CommandSpec,
    ComponentSpec,
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


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    spec: type[ComponentSpec]
    hook: str
    flag: str
    """The command-line option that selects a component of this kind."""
    section: str
    """The configuration section that holds its name and options; empty: a configuration does not name it."""
    methods: tuple[str, ...]
    """The methods that an object made by a factory of this kind must have."""
    reserved: tuple[str, ...] = ()
    """Names that a plugin cannot use, because they mean something built in."""


LOADER = Kind(
    name="loader", spec=LoaderSpec, hook="smollm3_loaders", flag="--loader", section="loader", methods=("open",)
)
QUANTIZER = Kind(
    name="quantizer", spec=QuantizerSpec, hook="smollm3_quantizers", flag="--quant", section="quant", methods=("load",)
)
ADAPTER = Kind(
    name="adapter",
    spec=AdapterSpec,
    hook="smollm3_adapters",
    flag="--adapter",
    section="adapter",
    methods=("attach", "restore"),
)
FORMATTER = Kind(
    name="formatter",
    spec=FormatterSpec,
    hook="smollm3_formatters",
    flag="--formatter",
    section="formatter",
    methods=("__call__",),
)
OBJECTIVE = Kind(
    name="objective",
    spec=ObjectiveSpec,
    hook="smollm3_objectives",
    flag="--objective",
    section="objective",
    methods=("prepare", "collator", "trainer_class", "loss_sum"),
)
EVALUATOR = Kind(
    name="evaluator",
    spec=EvaluatorSpec,
    hook="smollm3_evaluators",
    flag="--evaluator",
    section="evaluator",
    methods=("open",),
)

EXPORTER = Kind(
    name="exporter",
    spec=ExporterSpec,
    hook="smollm3_exporters",
    flag="--to",
    section="exporter",
    methods=("write", "verify", "reload"),
)

LAUNCHER = Kind(
    name="launcher",
    spec=LauncherSpec,
    hook="smollm3_launchers",
    flag="--launcher",
    section="launcher",
    methods=("describe", "launch"),
)

OPTIMIZER = Kind(
    name="optimizer",
    spec=OptimizerSpec,
    hook="smollm3_optimizers",
    flag="--optimizer",
    section="optimizer",
    methods=("create",),
)

TRACKER = Kind(
    name="tracker", spec=TrackerSpec, hook="smollm3_trackers", flag="--tracker", section="tracker", methods=("open",)
)

BUILT_IN_COMMANDS = (
    "train", "plan", "generate", "eval", "chat", "merge", "quantize", "export", "pipeline", "sweep", "push", "data",
    "runs", "compat", "plugins", "config", "cache", "doctor", "completion", "help",
)  # fmt: skip
"""The commands of core, and names that it keeps for itself."""

COMMAND = Kind(
    name="command",
    spec=CommandSpec,
    hook="smollm3_commands",
    flag="smollm3",
    section="",
    methods=("main",),
    reserved=BUILT_IN_COMMANDS,
)
"""Its factory is the command itself, a `click.Command`, not a function that makes it."""

KINDS = (
    LOADER, QUANTIZER, ADAPTER, FORMATTER, OBJECTIVE, EVALUATOR, EXPORTER, LAUNCHER, OPTIMIZER, TRACKER, COMMAND,
)  # fmt: skip
