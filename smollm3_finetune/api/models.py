"""What a factory makes for a model: loaders, quantizers and adapters, and what they are told and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from smollm3_finetune.api.capabilities import Op, Purpose
from smollm3_finetune.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from smollm3_finetune.cache.store import Cache


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
    """`load` and adapters see `TRAIN`, `INFER` or `MERGE`; `write` sees `QUANTIZE`."""
    device: str
    """A torch device: `cpu`, `cuda:0`, …"""
    dtype: str
    """`float32`, `bfloat16`, `float16` or `float64`: of weights that are not quantized, and of the computation."""
    seed: int
    """For generators of the component's own; torch's is seeded with it around `attach` alone."""
    cache: Cache
    """`get_or_build(kind, key, build)` gives the directory of an entry that `build(directory)` fills at most once."""
    progress: Progress
    calibration: Callable[[], Sequence[Sequence[int]]] = _no_calibration
    """Token ids of calibration rows, made when first called."""

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def trained_dtype(self) -> torch.dtype:
        """What parameters are kept in while they are trained: float32 where the run computes in half precision.

        In bfloat16 a step of less than 1/256 of a value is rounded away, and gradients in float16 cannot be scaled.
        Training then runs under autocast. Where nothing is trained it is `torch_dtype`.
        """
        import torch

        half = self.torch_dtype.itemsize < torch.float32.itemsize
        return torch.float32 if half and self.purpose is Purpose.TRAIN else self.torch_dtype


class ModelSource(Protocol):
    """A model that was opened; no weights were read.

    One whose contents may change under the same reference may have `pins`, a mapping of loader options under which
    exactly these are opened again (a Hub commit); a run keeps them.

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

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A new one each time. Raises ModelError where there is none."""
        ...

    def load(self, **kwargs: Any) -> PreTrainedModel:
        """Make the model; `kwargs` are those of `from_pretrained` (`dtype`, `quantization_config`, `config`).

        The only place where weights are made. Raises ModelError where files are missing or damaged.
        """
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
    """A view of one quantized layer, made by `Base.ops_for`; not a module, holds no state of its own."""

    @property
    def ops(self) -> frozenset[Op]: ...

    @property
    def forward_rtol(self) -> float:
        """How far the forward is from `x @ read_weight().T`, relative, beyond float rounding.

        0 for kernels that dequantize and multiply; 0.1 or so, a bound on the worst layer, where activations are
        rounded to 8 bits too.
        """
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        ...

    def read_weight(self) -> Tensor:
        """The base weight as the forward pass sees it, dequantized.

        Returns a new tensor (out_features, in_features), float32 or wider, on the layer's device, without grad;
        valid before and after any forward. Raises UnsupportedOp where READ_WEIGHT is not among `ops`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Base:
    """A loaded model with what can be done to its layers."""

    model: PreTrainedModel
    fingerprint: str
    """Identifies the weights as quantized."""
    ops_for: Callable[[nn.Module], LinearOps | None] = lambda layer: None
    """The operations of a quantized layer; None for an ordinary one, which has them all."""


class Quantizer(Protocol):
    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """Load the weights of `source` onto `ctx.device`, frozen, ready for `ctx.purpose`."""
        ...


@runtime_checkable
class CheckpointQuantizer(Quantizer, Protocol):
    """A quantizer that turns one checkpoint into another."""

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the quantized checkpoint, config and all, into the empty directory `out`."""
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
        """Fold a saved adapter into `dense` (its base with every weight dequantized) and return the plain model."""
        ...
