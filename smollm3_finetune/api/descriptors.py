"""What a plugin's hooks return: a name, what it can do, what it needs, and where its code is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import pluggy

from smollm3_finetune.api.capabilities import Env, Op
from smollm3_finetune.api.optimizing import Role

if TYPE_CHECKING:
    from smollm3_finetune.api.launching import Sharding
    from smollm3_finetune.api.models import ModelSource

API_VERSION = 2
"""The version of the plugin API. The `api` of a descriptor states the version it was written for, from 1."""

hookimpl = pluggy.HookimplMarker("smollm3_finetune")
"""Marks a plugin's hook function, so that pluggy finds it."""


@dataclass(frozen=True, kw_only=True)
class Requires:
    """What must be there before a component can be used; checked before any weights are read."""

    distributions: tuple[str, ...] = ()
    """PEP 508 requirements, such as `bitsandbytes>=0.49`."""
    accelerators: tuple[str, ...] = ()
    """Device types of which one is needed (`cuda`, …); empty: any device, CPU included."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a component that has none."""


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """The fields of every descriptor. Use one of its subclasses."""

    name: str
    """`[a-z][a-z0-9]*(-[a-z0-9]+)*`, what users type."""
    summary: str
    """One line for `plugins list` and `--help`."""
    factory: str
    """`package.module:Class`, called with one validated options instance."""
    options: str = "smollm3_finetune.api:NoOptions"
    """`package.module:Class` of a frozen dataclass whose fields are made with `option()`; a light module."""
    aliases: tuple[str, ...] = ()
    """Other names that users may type for it."""
    replaces: tuple[str, ...] = ()
    """Former full names (`distribution:name`), such as `my_scale:scale` of a plugin file `my_scale.py`.

    Runs and adapters that name one are used with this component; a component that has the name itself comes first.
    """
    same_since: str = ""
    """The first version of the distribution whose options and saved adapters have the same meaning, such as `1.2`.

    Runs of earlier versions are refused. Default: the same major version, and before 1.0 the same minor version.
    """
    requires: Requires = Requires()
    suggests: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Configuration keys and values, such as `{"train.learning_rate": 2e-5}`, that hold where a user set nothing.

    Keys of `train`, `data.max_length`, `calibration.rows` and `calibration.length`: what decides no row.
    """
    api: int
    """The version of the plugin API that it was written for: 1 or 2. A newer one than the installed one is an error."""

    def __new__(cls, **fields: Any) -> Self:
        """Name the descriptor that has no `api`: the TypeError of a dataclass names the class only.

        Called without fields by `copy` and `pickle`, which set them afterwards.
        """
        if fields and "api" not in fields:
            raise TypeError(
                f"{cls.__name__} {fields.get('name')!r} does not state the plugin API that it was written for: "
                f"add api={API_VERSION}"
            )
        return super().__new__(cls)


@dataclass(frozen=True, kw_only=True)
class LoaderSpec(ComponentSpec):
    """Offers a `Loader`: a way to open a model reference."""

    claims: Callable[[str], bool] | None = None
    """Whether a reference is for this loader, from its text alone or a look at the file system; light."""
    rank: int = 0
    """Where several claim a reference, the highest rank takes it; a tie must be decided with `--loader`."""


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """The memory of one quantized linear layer on the run's device, in bytes, without its bias."""

    kept: int
    """What stays allocated: codes, scales, zero points."""
    sharded: int = 0
    """How much of `kept` FSDP 2 divides among the processes; 0 without `Op.SHARDS`."""
    transient: int = 0
    """The most that a forward or backward of the layer allocates beside its output and its input's gradient, and frees
    again, such as the dequantized weight."""


@dataclass(frozen=True, kw_only=True)
class QuantizerSpec(ComponentSpec):
    """Offers a `Quantizer`: a way to load the weights of an opened source."""

    provides: Iterable[Op] = frozenset({Op.FORWARD})
    """What can be done with a layer that it loaded."""
    refine: Callable[[QuantizerSpec, Any, Env], QuantizerSpec] | None = None
    """`refine(spec, options, env)` returns the descriptor for these options on this machine: `spec.without({…})`."""
    absent: Mapping[Op, str] = dataclasses.field(default_factory=dict)
    """Reasons for operations that are never provided, shown when an adapter needs one."""
    claims: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a `config.json` is that of a quantized checkpoint which this quantizer reads, whoever wrote it."""
    marker_files: tuple[str, ...] = ()
    """Names of files that mark a checkpoint of this quantizer where `config.json` says nothing of quantization."""
    needs_calibration: bool = False
    """Whether it asks for `BuildContext.calibration()`."""
    check: Callable[[Any, ModelSource], None] | None = None
    """`check(options, source)` raises a SmolLM3Error where this source cannot be loaded with these options.

    Asked while planning, so that `--dry-run` says it: from `source.config` and `source.has_file`, and where the
    source is a directory on disk from the headers of its files. No weights are read.
    """
    bytes_for: Callable[[Any, tuple[int, int], Env], LayerBytes] | None = None
    """`bytes_for(options, shape, env)` states the memory of a layer with a weight of `shape` (out, in), for the memory
    plan of `smollm3 plan`; light. None: the plan says that the memory of this quantizer is unknown."""
    options_for: Callable[[Any, ModelSource], Any] | None = None
    """`options_for(options, source)` returns the options for `bytes_for`, if they depend on the model: a quantized
    checkpoint keeps its own, and a value of `none` may mean one that fits the layers. Reads no weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "provides", _operations(self, "provides"))
        if not isinstance(self.absent, Mapping):
            raise TypeError(f"QuantizerSpec {self.name!r}: absent must be a mapping, got {self.absent!r}")
        object.__setattr__(self, "absent", {Op(o): reason for o, reason in self.absent.items()})

    def without(self, absent: Mapping[Op, str]) -> Self:
        """This descriptor with more absent operations, each with its reason; for `refine`.

        def refine(spec, options, env):
            return spec.without({Op.GRAD_INPUT: "…"} if options.kernel == "packed" else {})
        """
        return dataclasses.replace(self, absent={**self.absent, **absent})


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter adds to the model card that core writes with each saved adapter."""

    title: str = ""
    """The method's name in the literature, such as `DoRA`; default: the component's name."""
    library: str = "smollm3-finetune"
    """The Hub's `library_name`: the library that loads the saved directory."""
    tags: tuple[str, ...] = ()
    """Tags for the Hub, besides the component's name."""
    usage: str = ""
    """Python statements that load the adapter without smollm3-finetune: from `base`, the unquantized base as
    transformers loads it, and from the files in the current directory, they make `model`. Default: there are none.
    The card leaves them out if the `Adapted` has an attribute `loads_alone` that is False: on that base, they do not
    hold."""
    complete: bool = False
    """Whether the saved directory is a complete model, for which `usage` needs no `base`."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec(ComponentSpec):
    """Offers an `Adapter`: a way to make a loaded model trainable."""

    needs: Iterable[Op] = frozenset({Op.FORWARD, Op.GRAD_INPUT})
    """What it does with the base's layers."""
    refine: Callable[[AdapterSpec, Any, Env], AdapterSpec] | None = None
    """`refine(spec, options, env)` returns the descriptor for these options on this machine: other needs or traits."""
    identity_at_start: bool = True
    """The model computes exactly what its base computes until the first step."""
    packs: bool = False
    """Rows packed into one sequence do not influence each other."""
    claims: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether an `adapter_config.json` is that of an adapter of this method, saved by this package or another tool."""
    read_options: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """The options that an `adapter_config.json` of this method states, for a run that trains an adapter of another
    tool further; light. What is left out, or is not a valid value, keeps its default."""
    training_options: Collection[str] = ()
    """Names of options that may change when a saved adapter is trained further, such as a dropout: `Adapter.restore`
    takes their values from its options, not from the saved adapter. The others are fixed by the adapter."""
    merges: bool = True
    """`Adapter.merge` exists: the adapter can be folded into dense weights."""
    disables: bool = True
    """`Adapted.disabled()` gives the base alone."""
    ships: bool = False
    """Its `Adapted` has `merged_layers`, so that `train.ship_as` can train what is shipped; see `MergingAdapted`."""
    shards: bool = True
    """FSDP 2 may divide its parameters: each is used only in the forward of the transformer block that has it, is
    shared by no other block, has no hook on its gradient, and is not a single number. False: runs with FSDP are refused
    while planning."""
    trains_new_tokens: bool = False
    """It trains, saves and merges the rows of `BuildContext.new_tokens`, beside what it trains otherwise."""
    roles: Iterable[str] = ()
    """Roles (`Role`) that its trained parameters have, for optimizers that need them; see `LabelingAdapted`."""
    card: AdapterCard = AdapterCard()
    """Its part of the model card."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", _operations(self, "needs"))
        object.__setattr__(self, "roles", _roles(self, "roles"))
        if not isinstance(self.card, AdapterCard):
            raise TypeError(f"AdapterSpec {self.name!r}: card must be an AdapterCard, got {self.card!r}")


def _operations(spec: QuantizerSpec | AdapterSpec, field: str) -> frozenset[Op]:
    values = getattr(spec, field)
    if isinstance(values, str) or not isinstance(values, Iterable):  # a single Op is a text
        raise TypeError(f"{type(spec).__name__} {spec.name!r}: {field} must be a set of operations, got {values!r}")
    return frozenset(Op(o) for o in values)


@dataclass(frozen=True, kw_only=True)
class FormatterSpec(ComponentSpec):
    """Offers a `Formatter`: a way to turn a dataset row into a conversation."""

    claims: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a row, by its columns, is of this shape; light. Asked of the first row of each source."""
    rank: int = 0
    """Where several claim a row, the highest rank takes it; a tie must be decided with `--formatter`.

    `preference` has 10, `messages`, `sharegpt` and `alpaca` 0, `prompt-completion` -5, `text` -10.
    """


REFERENCES = ("none", "base", "start", "model")
"""The values of `ObjectiveSpec.reference`."""
ROW_FIELDS = ("rejected", "desirable")
"""The values of `ObjectiveSpec.fields`: fields of `Conversation` that a row may lack."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(ComponentSpec):
    """Offers an `Objective`: what training minimizes."""

    uses_labels: bool = False
    """`prepare` reads `Conversation.desirable`. For other objectives, rows with a false label are left out."""
    fields: Iterable[str] = ()
    """Names of `Conversation` fields that every row must have: `rejected`, `desirable`. Rows without one are left out
    and counted with the reason; a run is refused if no row of a source has it. `desirable` includes `uses_labels`."""
    reference: Literal["none", "base", "start", "model"] = "none"
    """The model that the loss compares the trained one with; see `ReferenceObjective`.

    `base`: the model without its adapter. A run whose adapter cannot be disabled, such as `full`, is then refused
    before rows are read. `start`: the model as it was before the first step; works with every adapter. `model`: another
    model, `reference_model`, which is evaluated and freed before the trained one is loaded.
    """
    reference_model: str | None = None
    """For `model`: a model reference, as users type it; None: the run's own model, neither quantized nor adapted."""
    batch_term: str | None = None
    """The part of the loss that depends on which rows share a batch, as a noun with its article: `the KL term`. Such a
    run is not resumed with another number of processes. Default: none, each row has a loss of its own."""
    refine: Callable[[ObjectiveSpec, Any, Env], ObjectiveSpec] | None = None
    """`refine(spec, options, env)` returns the descriptor for these options on this machine, such as another
    `reference`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", _row_fields(self.name, self.fields))
        if "desirable" in self.fields:
            object.__setattr__(self, "uses_labels", True)
        if self.reference not in REFERENCES:
            expected = f"one of {', '.join(map(repr, REFERENCES))}"
            raise TypeError(f"ObjectiveSpec {self.name!r}: reference must be {expected}, got {self.reference!r}")
        model = self.reference_model
        if model is not None and (not isinstance(model, str) or not model.strip() or self.reference != "model"):
            expected = "None" if isinstance(model, str) and model.strip() else "the name of a model"
            aside = f" with reference={self.reference!r}" if expected == "None" else ""
            raise TypeError(f"ObjectiveSpec {self.name!r}: reference_model must be {expected}{aside}, got {model!r}")
        term = self.batch_term
        if term is not None and (not isinstance(term, str) or not term.strip()):
            raise TypeError(f"ObjectiveSpec {self.name!r}: batch_term must be a noun phrase or None, got {term!r}")


def _row_fields(name: str, fields: Iterable[str]) -> tuple[str, ...]:
    if isinstance(fields, str) or not isinstance(fields, Iterable) or not {*fields} <= {*ROW_FIELDS}:
        expected = " and ".join(map(repr, ROW_FIELDS))
        raise TypeError(f"ObjectiveSpec {name!r}: fields must be a tuple of {expected}, got {fields!r}")
    return tuple(fields)


@dataclass(frozen=True, kw_only=True)
class EvaluatorSpec(ComponentSpec):
    """Offers an `Evaluator`: a way to measure a model on tasks."""

    claims: Callable[[str], bool] | None = None
    """Whether a task reference is for this evaluator, from its text alone or a look at the file system; light."""
    rank: int = 0
    """Where several claim a task, the highest rank takes it; a tie must be decided with `--evaluator`."""


@dataclass(frozen=True, kw_only=True)
class ExporterSpec(ComponentSpec):
    """Offers an `Exporter`: a way to write a model or an adapter for other software."""

    takes: Literal["model", "adapter"] = "model"
    """`model`: a full-precision model; an adapter is merged first. `adapter`: a saved adapter alone."""
    round_trips: bool = False
    """Its factory makes a `RoundTripMaker`, so that `train.ship_as` can name it."""
    weightless_options: Collection[str] = ()
    """Names of options that change no weight, such as an additional file: a run that was trained with `train.ship_as`
    for this format may be exported with other values of them, and is compared bit for bit."""
    loads: bool = False
    """A loader opens what `write` has written, so that a later stage of a pipeline can begin with it: the directory, if
    it has a `config.json`, otherwise its largest file."""
    disk: float | None = None
    """Bytes that `write` needs on the disk for each parameter, its temporary files included; None: as many as the
    model that it is passed."""
    refine: Callable[[ExporterSpec, Any, Env], ExporterSpec] | None = None
    """`refine(spec, options, env)` returns the descriptor for these options on this machine, such as another
    `round_trips`, `loads` or `disk`."""
    check: Callable[[Any, ModelSource], None] | None = None
    """`check(options, source)` raises a SmolLM3Error where this model cannot be exported with these options.

    Asked before the merge, from `source.config` and `source.has_file`; reads no weights.
    """

    def __post_init__(self) -> None:
        if self.takes not in EXPORTS:
            expected = " or ".join(map(repr, EXPORTS))
            raise TypeError(f"ExporterSpec {self.name!r}: takes must be {expected}, got {self.takes!r}")


EXPORTS = ("model", "adapter")
"""The values of `ExporterSpec.takes`."""


@dataclass(frozen=True, kw_only=True)
class LauncherSpec(ComponentSpec):
    """Offers a `Launcher`: a way to start the processes of a run."""

    processes: Callable[[Any], int | None] | None = None
    """`processes(options)` is the number of processes of a run, on all machines together; light. None as a result: it
    may change while the run lasts. Default: one process."""
    sharding: Callable[[Any], Sharding] | None = None
    """`sharding(options)` is what the processes share; light. Default: `none`."""
    joins: Callable[[Any], bool] | None = None
    """`joins(options)` says whether this command only starts its share of the processes of a run that the same command
    on another machine plans and hands over; light. Default: no."""
    device: Callable[[Any], str | None] | None = None
    """`device(options)` is the device type of the machines on which the run will execute, such as `cuda`; light. The
    run is planned for it, although the planning machine may not have such a device. None: this machine's."""
    waits: bool = True
    """`launch` returns when the run has ended; False: it submits a job."""
    sweeps: bool = False
    """Its factory makes a `SweepLauncher`, so that `smollm3 sweep --launcher NAME` runs trials with it."""
    check: Callable[[Any, Env], None] | None = None
    """`check(options, env)` raises a SmolLM3Error where these options cannot be used on this machine; starts nothing
    and imports no torch. Asked while planning, so that `--dry-run` says it."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(ComponentSpec):
    """Offers an `OptimizerMaker`: a way to update the trained parameters."""

    needs_roles: Iterable[str] = ()
    """Roles of parameters (`Role`) that it needs: adapters whose `roles` lack one are refused while planning."""
    shards: bool = False
    """It updates a part of a parameter as it updates the whole, so that FSDP 2 may divide the parameters."""
    state_bytes: Callable[[Any, tuple[int, ...], str], int] | None = None
    """`state_bytes(options, shape, role)` is the memory of its state for a float32 parameter, in bytes; light. A
    parameter that it freezes needs 0. None: `smollm3 plan` says that the memory of this optimizer is unknown."""
    freezes: Collection[str] = ()
    """Roles of parameters that it does not train, whose gradients need no memory."""

    def __post_init__(self) -> None:
        for field in ("needs_roles", "freezes"):
            object.__setattr__(self, field, _roles(self, field))


@dataclass(frozen=True, kw_only=True)
class TrackerSpec(ComponentSpec):
    """Offers a `Tracker`: what receives the metrics of a run."""

    check: Callable[[Any, Env], None] | None = None
    """`check(options, env)` raises a SmolLM3Error if the options cannot be used, such as a missing environment
    variable. Light, and without network access: called while a run is planned."""


@dataclass(frozen=True, kw_only=True)
class CommandSpec(ComponentSpec):
    """Offers a command, `smollm3 NAME`.

    `factory` is the dotted name of a `click.Command` or group, imported when the command is used or its help is shown:
    import torch inside its functions. They get a `CommandTools` with `@click.pass_obj`. `name` must not be that of a
    built-in command. `options` is not used: a command declares its options with click.
    """


def _roles(spec: OptimizerSpec | AdapterSpec, field: str) -> frozenset[Role]:
    values = getattr(spec, field)
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{type(spec).__name__} {spec.name!r}: {field} must be a set of roles, got {values!r}")
    return frozenset(Role(r) for r in values)


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: int | None = None,
    former_name: str | None = None,
    former_values: Mapping[str | None, Any] | None = None,
) -> Any:
    """One field of an options dataclass: its default, one line of help with the unit, and its range.

    The annotation gives the type (`int`, `float`, `bool`, `str`, `Literal[…]`, `X | None`, `tuple[X, ...]`,
    `Mapping[str, X]`); use `tuple` for lists, since options are frozen. The default of a mapping may be a dict: each
    instance gets a copy.

    A renamed option keeps the configurations and runs of earlier versions valid: `former_name` is its old key,
    `former_values` maps old values to new ones, also null: `{None: 4}`. Help shows neither. An option whose effect
    depends on whether it was set needs no null: `given` tells the default from the same value that a user set.

        @dataclass(frozen=True, kw_only=True)
        class ScaleOptions:
            init: float = option(1.0, "Initial factor.", gt=0)
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "multiple_of": multiple_of}
    metadata = {
        "help": help,
        "limits": {k: v for k, v in limits.items() if v is not None},
        "former_name": former_name,
        "former_values": dict(former_values or {}),
    }
    if isinstance(default, dict):  # dataclasses refuse mutable defaults
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
