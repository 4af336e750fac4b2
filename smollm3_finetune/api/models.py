"""Protocols for models: loaders, quantizers and adapters, the context they receive and the objects they return."""

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
    """One task whose progress is shown."""

    def advance(self, steps: int = 1) -> None:
        """Report that `steps` more steps are done."""
        ...


class Progress(Protocol):
    """Reports what a component is doing: with a progress bar on a terminal, otherwise as plain lines."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Return a context manager that shows a task of `total` steps until it exits; None: the number is unknown."""
        ...

    def say(self, message: str) -> None:
        """Print one line."""
        ...


def _no_calibration() -> Sequence[Sequence[int]]:
    raise ConfigError(
        "this quantizer needs calibration rows, but none were passed",
        hint="pass calibration=… to load_model, or: smollm3 train --data ROWS",
    )


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """The facts about the run, passed to every component."""

    purpose: Purpose
    """`TRAIN`, `INFER` or `MERGE` for `Quantizer.load` and adapters, `QUANTIZE` for `write`, `EXPORT` for exporters."""
    device: str
    """A torch device: `cpu`, `cuda:0`, …"""
    dtype: str
    """Dtype of the computation and of weights that are not quantized: `float32`, `bfloat16`, `float16` or `float64`."""
    seed: int
    """Seed for the component's own random generators. torch is seeded with it only during `attach`."""
    cache: Cache
    """`get_or_build(kind, key, build)` returns the directory of an entry, which `build(directory)` fills only once."""
    progress: Progress
    calibration: Callable[[], Sequence[Sequence[int]]] = _no_calibration
    """Returns the token ids of the calibration rows, one sequence per row; they are computed at the first call."""
    grids: Mapping[str, Mapping[str, Tensor]] | None = None
    """Name of a layer to its fixed grid, for `write` after a run with `train.ship_as`: weights are rounded to it, and
    nothing is searched or calibrated. Layers with an empty grid are not in it. None: there was no such run."""
    new_tokens: tuple[int, ...] = ()
    """Ids of added tokens, for adapters that train their rows of the embeddings and of the head; see
    `AdapterSpec.trains_new_tokens`."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def trained_dtype(self) -> torch.dtype:
        """Dtype of parameters that are trained: float32 if a training run computes in half precision.

        In bfloat16, a step smaller than 1/256 of a value is rounded away; in float16, gradients cannot be scaled.
        Such a run trains under autocast. For every other run and purpose it is `torch_dtype`.
        """
        import torch

        half = self.torch_dtype.itemsize < torch.float32.itemsize
        return torch.float32 if half and self.purpose is Purpose.TRAIN else self.torch_dtype


class ModelSource(Protocol):
    """An opened model whose weights have not been read.

    If the content behind a reference may change, a source may also have the attribute `pins`: a mapping of loader
    options that open exactly this content again (for example a Hub commit). A run stores it.

    If all files are in a local directory already, a source may have the attribute `directory`: its path. Group sizes
    are then compared with the layers while a run is planned.

    Do not use `isinstance` with this protocol: it would read `path`, and so download or convert.
    """

    @property
    def ref(self) -> str:
        """The reference that the user typed."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of `config.json`."""
        ...

    @property
    def path(self) -> Path:
        """A directory with all files of the model. The first access may download or convert."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights: a Hub commit, or a hash of the contents of the files."""
        ...

    def has_file(self, name: str) -> bool:
        """Whether the checkpoint has a file with this name. Does not read the file."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; each call returns a new object. Raises ModelError if the model has no tokenizer."""
        ...

    def load(self, **kwargs: Any) -> PreTrainedModel:
        """Load the model with its weights. No other member reads weights.

        `kwargs` are those of `from_pretrained`: `dtype`, `quantization_config`, `config`.
        Raises ModelError if files are missing or damaged.
        """
        ...

    def at(self, path: Path) -> ModelSource:
        """Return a source with the same reference and trust settings, whose config and weights are read from `path`."""
        ...


class Loader(Protocol):
    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        """Open a model reference without reading weights.

        Called while a run is planned, including by `--dry-run` and `smollm3 config validate`.
        Raises ModelError if the model does not exist; a remote source may instead raise it when its `config` is first
        read.
        """
        ...


class LinearOps(Protocol):
    """The operations of one quantized layer, returned by `Base.ops_for`: a stateless view, not a module."""

    @property
    def ops(self) -> frozenset[Op]:
        """The operations that the layer provides."""
        ...

    @property
    def forward_rtol(self) -> float:
        """Upper bound of the relative error of the forward against `x @ read_weight().T`, beyond float rounding.

        0 for kernels that dequantize and multiply; about 0.1, for the worst layer, if the kernel also rounds
        activations to 8 bits.
        """
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        ...

    def read_weight(self) -> Tensor:
        """Return the dequantized weight that the forward uses.

        Returns a new tensor (out_features, in_features), float32 or wider, on the layer's device, without grad.
        Must work before and after any forward. Raises UnsupportedOp if READ_WEIGHT is not in `ops`.
        """
        ...


class StackOps(Protocol):
    """The operations of a quantized stack of experts, returned by `stack_ops_for`.

    A model of experts keeps their weights in one tensor (E, out, in), or (E, in, out). If it is quantized, a module of
    the same name stands for it.
    """

    transposed: bool
    """Whether the layout is (E, in, out)."""

    @property
    def ops(self) -> frozenset[Op]:
        """The operations that every expert provides."""
        ...

    @property
    def forward_rtol(self) -> float:
        """The largest of the experts; see `LinearOps.forward_rtol`."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(E, out, in), whatever the layout."""
        ...

    def read_expert(self, expert: int) -> Tensor:
        """Return the dequantized weight (out, in) of one expert, as `LinearOps.read_weight` does."""
        ...

    def updated(self, up: Tensor, down: Tensor, scaling: float) -> AbstractContextManager[None]:
        """Inside the context, the forward uses W[e] + scaling · up[e] @ down[e]; gradients reach both factors.

        `up` is (E, out, r) and `down` (E, r, in). No dense weight is created.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Base:
    """A loaded model and the operations of its layers."""

    model: PreTrainedModel
    """The loaded model, with all parameters frozen."""
    fingerprint: str
    """Identifies the weights after quantization."""
    ops_for: Callable[[nn.Module], LinearOps | None] = lambda layer: None
    """Returns the operations of a quantized layer, or None for an ordinary layer, which supports all of them."""


class Quantizer(Protocol):
    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """Load the weights of `source` onto `ctx.device`.

        All parameters of the returned model must be frozen, and its kernels must suit `ctx.purpose`.
        Raises IncompatibleError if the quantizer does not support this model.
        """
        ...


@runtime_checkable
class CheckpointQuantizer(Quantizer, Protocol):
    """A quantizer that can also write a quantized checkpoint."""

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the quantized checkpoint of `source`, including `config.json`, into the empty directory `out`.

        Called by `smollm3 quantize`, and by `smollm3 merge` if it quantizes again; `ctx.purpose` is `QUANTIZE`. The
        weights of `source` are not quantized: `smollm3 quantize` refuses others.
        """
        ...


class Adapted(Protocol):
    """A model with an adapter attached."""

    model: nn.Module
    """The module that is trained. It has the inputs and outputs of a causal language model of transformers."""
    base: Base

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context manager; inside the context, `model` computes exactly what the base alone computes.

        Raises UnsupportedOp if the base itself was changed (`full`).
        """
        ...

    def on_step(self, step: int) -> None:
        """Called after each `optimizer.step()`, before the gradients are cleared; `step` counts from 1."""
        ...

    def save(self, path: Path) -> None:
        """Write the adapter and all state of the method into the directory `path`, as safetensors."""
        ...


class Adapter(Protocol):
    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> Adapted:
        """Attach a new adapter to `base`, whose parameters are frozen.

        Afterwards only trained parameters may have `requires_grad`. torch is seeded with `ctx.seed` during the call.
        `total_steps` is the number of optimizer steps of the run, for methods with a schedule; None if it is unknown.
        """
        ...

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> Adapted:
        """Attach the adapter saved in the directory `path` to `base`.

        Its parameters must be trainable if `ctx.purpose` is `Purpose.TRAIN`, and frozen otherwise.
        `total_steps` is the number of optimizer steps of the resumed run, with those taken before; it differs from the
        number that `attach` received if `train.max_steps` or `train.epochs` changed. None if it is unknown, as in
        `generate` and `merge`: the adapter then computes what it computed when it was saved.

        In version 1 of the API, it is called without `total_steps`.
        """
        ...

    def merge(self, dense: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Merge the adapter saved in the directory `path` into `dense` and return the model without adapter modules.

        `dense` is the base with every weight dequantized; it may be modified in place. If its head shares the weight
        of its embeddings, they must still be equal afterwards, unless `dense.config.tie_word_embeddings` is False
        (`smollm3 merge --untie`): then the head may get a weight of its own.
        Required unless the descriptor declares `merges=False`.
        """
        ...


@dataclass(frozen=True)
class StoredLayers:
    """How `load_layerwise` stores the layers of a slow quantizer, and builds them again.

    StoredLayers(save=Int4Linear.state_dict, restore=Int4Linear.restored)
    """

    save: Callable[[Any], Mapping[str, Tensor]]
    """Returns the tensors of a quantized layer that `restore` needs."""
    restore: Callable[[nn.Linear, Mapping[str, Tensor]], nn.Module]
    """Returns the quantized layer for the dense layer that it replaces, and the tensors of `save`, on the CPU.

    Bit for bit the layer that was saved, with the bias of the dense layer.
    """
