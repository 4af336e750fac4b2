"""All that a plugin may import at module level. Light: nothing here imports torch or transformers.

A plugin is a module with hook functions. Each returns descriptors (`LoaderSpec`, `QuantizerSpec`, …) whose
`factory` and `options` are dotted strings, imported only when a run names the component:

    from smollm3_finetune.api import AdapterSpec, Op, hookimpl

    @hookimpl
    def smollm3_adapters():
        return [AdapterSpec(name="scale", summary="one learned factor per layer",
                            factory="my_scale.adapter:ScaleAdapter", needs={Op.FORWARD, Op.GRAD_INPUT})]

A factory is called with one validated options instance and returns an object with the methods of the matching
protocol below (`Loader`, `Quantizer`, `Adapter`, `Formatter`, `Objective`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pluggy

from smollm3_finetune.errors import (
    ConfigError,
    DataError,
    IncompatibleError,
    MissingRequirementError,
    ModelError,
    SmolLM3Error,
    UnsupportedOp,
)
from smollm3_finetune.identity import fingerprint

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from smollm3_finetune.cache.store import Cache

API_VERSION = 1
"""The version of this contract. A descriptor states the one it was written for in `api`."""

hookimpl = pluggy.HookimplMarker("smollm3_finetune")
"""Marks a plugin's hook function, so that pluggy finds it."""


# ------------------------------------------------------------------------------------------- capabilities


class Op(StrEnum):
    """What can be done with one base linear layer after the quantizer loaded it.

    Declaring an operation promises it in any sequence (evaluate, train, evaluate, save, train again), not for a
    single call: kernels that repack themselves at the first forward break exactly this.
    """

    FORWARD = "forward"
    """y = x Wᵀ + b can be computed, and added to in place."""
    GRAD_INPUT = "grad-input"
    """The gradient flows through the layer to its input, also after a forward in eval mode."""
    READ_WEIGHT = "read-weight"
    """`LinearOps.read_weight()` gives the weight that the forward uses."""
    GRAD_WEIGHT = "grad-weight"
    """The weight itself can be trained."""
    DENSE = "dense"
    """`.weight` is an ordinary floating-point Parameter, which may be replaced (PiSSA and OLoRA alter the base)."""


ALL_OPS: frozenset[Op] = frozenset(Op)


class Purpose(StrEnum):
    """Why a model is being loaded; a quantizer may choose another kernel for it."""

    TRAIN = "train"
    INFER = "infer"
    MERGE = "merge"
    QUANTIZE = "quantize"


@dataclass(frozen=True, kw_only=True)
class Env:
    """What a descriptor's `refine` may look at, without importing torch."""

    device: str
    """`cpu`, `cuda`, `mps`, `xpu`, … without an index."""
    purpose: Purpose = Purpose.TRAIN
    tools: frozenset[str] = frozenset()
    """Programs found on this machine: `c++` when there is a C++ compiler."""


# -------------------------------------------------------------------------------------------- descriptors


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
    """What every descriptor holds. Use one of its subclasses."""

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
    requires: Requires = Requires()
    suggests: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Configuration keys and values, such as `{"train.learning_rate": 2e-5}`, that hold where a user set nothing."""
    api: int = API_VERSION
    """The version of the contract that it was written for; a newer one than installed makes the plugin broken."""


@dataclass(frozen=True, kw_only=True)
class LoaderSpec(ComponentSpec):
    """Offers a `Loader`: a way to open a model reference."""

    claims: Callable[[str], bool] | None = None
    """Whether a reference is for this loader, from its text alone or a look at the file system; light."""
    rank: int = 0
    """Where several claim a reference, the highest rank takes it; a tie must be decided with `--loader`."""


@dataclass(frozen=True, kw_only=True)
class QuantizerSpec(ComponentSpec):
    """Offers a `Quantizer`: a way to load the weights of an opened source."""

    provides: Iterable[Op] = frozenset({Op.FORWARD})
    """What can be done with a layer that it loaded."""
    refine: Callable[[Any, Env], Mapping[Op, str]] | None = None
    """`refine(options, env)` names the operations that are absent with these options there, each with its reason."""
    absent: Mapping[Op, str] = dataclasses.field(default_factory=dict)
    """Reasons for operations that are never provided, shown when an adapter needs one."""
    claims: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a `config.json` is that of a checkpoint which this quantizer wrote."""
    marker_files: tuple[str, ...] = ()
    """Names of files that mark a checkpoint of this quantizer where `config.json` says nothing of quantisation."""
    needs_calibration: bool = False
    """Whether it asks for `BuildContext.calibration()`."""
    check: Callable[[Any, ModelSource], None] | None = None
    """`check(options, source)` raises a SmolLM3Error where this source cannot be loaded with these options.

    Asked while planning, so that `--dry-run` says it: from `source.config` and `source.has_file`, and where the
    source is a directory on disk from the headers of its files. No weights are read.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "provides", frozenset(Op(o) for o in self.provides))


@dataclass(frozen=True, kw_only=True)
class AdapterSpec(ComponentSpec):
    """Offers an `Adapter`: a way to make a loaded model trainable."""

    needs: Iterable[Op] = frozenset({Op.FORWARD, Op.GRAD_INPUT})
    """What it does with the base's layers."""
    refine: Callable[[AdapterSpec, Any], AdapterSpec] | None = None
    """`refine(spec, options)` returns the descriptor that holds with these options (other needs, other traits)."""
    identity_at_start: bool = True
    """The model computes exactly what its base computes until the first step."""
    packs: bool = False
    """Rows packed into one sequence do not influence each other."""
    merges: bool = True
    """`Adapter.merge` exists: the adapter can be folded into dense weights."""
    disables: bool = True
    """`Adapted.disabled()` gives the base alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(Op(o) for o in self.needs))


@dataclass(frozen=True, kw_only=True)
class FormatterSpec(ComponentSpec):
    """Offers a `Formatter`: a way to turn a dataset row into a conversation."""

    claims: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a row, by its columns, is of this shape; light."""
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(ComponentSpec):
    """Offers an `Objective`: what training minimises."""


# ------------------------------------------------------------------------------------------------- options


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: int | None = None,
) -> Any:
    """One field of an options dataclass: its default, one line of help with the unit, and its range.

    The annotation gives the type (`int`, `float`, `bool`, `str`, `Literal[…]`, `X | None`, `tuple[X, ...]`);
    use `tuple` for lists, since options are frozen.

        @dataclass(frozen=True, kw_only=True)
        class ScaleOptions:
            init: float = option(1.0, "Initial factor.", gt=0)
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "multiple_of": multiple_of}
    metadata = {"help": help, "limits": {k: v for k, v in limits.items() if v is not None}}
    return dataclasses.field(default=default, metadata=metadata)


# ------------------------------------------------------------------------------------------------- running


class Task(Protocol):
    """One piece of visible work."""

    def advance(self, steps: int = 1) -> None: ...


class Progress(Protocol):
    """Where a component tells what it is doing: a bar on a terminal, plain lines elsewhere."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Show a piece of work of `total` steps while the context is open."""
        ...

    def say(self, message: str) -> None:
        """Show one line."""
        ...


def _no_calibration() -> Sequence[Sequence[int]]:
    raise ConfigError(
        "this quantizer needs calibration rows and none were given",
        hint="pass calibration=… to load_model, or run it through `smollm3 train --data …`",
    )


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a component is told about the run."""

    purpose: Purpose
    device: str
    """A torch device: `cpu`, `cuda:0`, …"""
    dtype: str
    """`float32`, `bfloat16`, `float16` or `float64`: of weights that are not quantised, and of the computation."""
    seed: int
    cache: Cache
    progress: Progress
    calibration: Callable[[], Sequence[Sequence[int]]] = _no_calibration
    """Token ids of calibration rows, made when first called."""

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class ModelSource(Protocol):
    """A model that was opened; no weights were read.

    Not for `isinstance`, which would read `path` and so download or convert.
    """

    @property
    def ref(self) -> str:
        """What the user typed."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of `config.json`."""
        ...

    @property
    def path(self) -> Path:
        """A directory with everything; may download or convert when first read."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights: a Hub commit, or a hash of the files' contents."""
        ...

    def has_file(self, name: str) -> bool:
        """Whether the checkpoint has a file of that name, without reading it."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def load(self, **kwargs: Any) -> PreTrainedModel:
        """Make the model; `kwargs` are those of `from_pretrained`. The only place where weights are made."""
        ...

    def at(self, path: Path) -> ModelSource:
        """The same model (reference, trust) with all that is in `path`, a directory with config and weights."""
        ...


class Loader(Protocol):
    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        """Open a reference without reading weights.

        Raises ModelError where there is nothing to open; a remote one may do so when its `config` is first read.
        """
        ...


class LinearOps(Protocol):
    """A view of one quantised layer, made by `Base.ops_for`; not a module, holds no state of its own."""

    @property
    def ops(self) -> frozenset[Op]: ...

    @property
    def forward_rtol(self) -> float:
        """How far the forward is from `x @ read_weight().T`, relative, beyond float rounding.

        0 for kernels that dequantise and multiply (bnb-4bit, GPTQ, HQQ); 1e-2 where activations are rounded too
        (LLM.int8).
        """
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        ...

    def read_weight(self) -> Tensor:
        """The base weight as the forward pass sees it, dequantised.

        Returns a new tensor (out_features, in_features), float32 or wider, on the layer's device, without grad;
        valid before and after any forward. Raises UnsupportedOp where READ_WEIGHT is not among `ops`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Base:
    """A loaded model with what can be done to its layers."""

    model: PreTrainedModel
    fingerprint: str
    """Identifies the weights as quantised."""
    ops_for: Callable[[nn.Module], LinearOps | None] = lambda layer: None
    """The operations of a quantised layer; None for an ordinary one, which has them all."""


class Quantizer(Protocol):
    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """Load the weights of `source` onto `ctx.device`, frozen, ready for `ctx.purpose`."""
        ...


@runtime_checkable
class CheckpointQuantizer(Quantizer, Protocol):
    """A quantizer that turns one checkpoint into another."""

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the quantised checkpoint, config and all, into the empty directory `out`."""
        ...


class Adapted(Protocol):
    """A model with an adapter on it."""

    model: nn.Module
    """What the trainer trains; takes and returns what a causal LM of transformers does."""
    base: Base

    def disabled(self) -> AbstractContextManager[None]:
        """The base alone, while the context is open. Raises UnsupportedOp where the base was altered (`full`)."""
        ...

    def on_step(self, step: int) -> None:
        """Called after each optimizer.step and before zero_grad; `step` counts from 1."""
        ...

    def save(self, path: Path) -> None:
        """Write the adapter into `path`, as safetensors, with whatever state the method has."""
        ...


class Adapter(Protocol):
    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> Adapted:
        """Put a fresh adapter on `base`; afterwards only what is trained has `requires_grad`."""
        ...

    def restore(self, base: Base, path: Path, ctx: BuildContext) -> Adapted:
        """Put a saved adapter on `base`; trainable when `ctx.purpose` is `train`."""
        ...

    def merge(self, dense: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Fold a saved adapter into `dense` (its base with every weight dequantised) and return the plain model."""
        ...


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One training row in the form that chat templates take, or raw text."""

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The row's own `chat_template_kwargs`."""
    learn: tuple[int, ...] | None = None
    """The indices of the messages to learn from; None: every assistant message."""
    rejected: tuple[Mapping[str, Any], ...] | None = None
    """For objectives that compare: the messages of the worse conversation, beside `messages`, the better one."""
    text: str | None = None
    """Raw text to learn as it is, instead of messages."""

    def learned_messages(self) -> list[int]:
        """The indices of the messages to learn from."""
        if self.learn is not None:
            return list(self.learn)
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]


class Formatter(Protocol):
    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        """Raises ValueError, with what is wrong, for a row without usable fields."""
        ...


class Encoded(Protocol):
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    """The token itself where it is learned, -100 elsewhere."""


class Renderer(Protocol):
    """Turns conversations into tokens by the run's template and options."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        """Token ids and labels, cut to `max_length` tokens. Raises DataError where the template refuses."""
        ...


class Objective(Protocol):
    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        """One example, as named lists of integers; None where the row can teach nothing (nothing supervised)."""
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]: ...

    def trainer_class(self) -> type[Trainer]: ...

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """The summed loss of a batch and the number of terms in it (supervised tokens, for `sft`)."""
        ...


@runtime_checkable
class FlatObjective(Objective, Protocol):
    """An objective whose rows may share a sequence, in batches without padding."""

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """As `collator`, and its batches are those of `flatten_rows`, perhaps with more in them."""
        ...


# ------------------------------------------------------------------------------------------------- helpers


def options_dict(options: Any) -> dict[str, Any]:
    """The fields of an options instance, for a fingerprint or a saved file."""
    return dataclasses.asdict(options)


def flatten_rows(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Rows of `input_ids` and `labels` as arguments of a causal language model, (1, T) each with T the sum of lengths.

    The first label of each row is ignored: it would be learned from the last token of the row before.
    """
    from smollm3_finetune.batching.flat import flatten

    return flatten(examples)


def directory_source(path: Path, *, ref: str, fingerprint: str | None = None, **kwargs: Any) -> ModelSource:
    """A `ModelSource` for a directory in Hugging Face's layout, for loaders that convert into one.

    `fingerprint` saves hashing the files where the identity is known; `kwargs` are added to every
    `from_pretrained`.
    """
    from smollm3_finetune.source import DirectorySource

    return DirectorySource(ref=ref, directory=path, known_fingerprint=fingerprint, load_kwargs=kwargs)


__all__ = [
    "ALL_OPS",
    "API_VERSION",
    "Adapted",
    "Adapter",
    "AdapterSpec",
    "Base",
    "BuildContext",
    "CheckpointQuantizer",
    "ComponentSpec",
    "ConfigError",
    "Conversation",
    "DataError",
    "Encoded",
    "Env",
    "FlatObjective",
    "Formatter",
    "FormatterSpec",
    "IncompatibleError",
    "LinearOps",
    "Loader",
    "LoaderSpec",
    "MissingRequirementError",
    "ModelError",
    "ModelSource",
    "NoOptions",
    "Objective",
    "ObjectiveSpec",
    "Op",
    "Progress",
    "Purpose",
    "Quantizer",
    "QuantizerSpec",
    "Renderer",
    "Requires",
    "SmolLM3Error",
    "Task",
    "UnsupportedOp",
    "directory_source",
    "fingerprint",
    "flatten_rows",
    "hookimpl",
    "option",
    "options_dict",
]
