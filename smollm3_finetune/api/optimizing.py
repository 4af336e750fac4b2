"""Protocols for optimizers: the parameters that they get, with roles that adapters state, and what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Role(StrEnum):
    """What a trained parameter does in its layer."""

    DOWN = "down"
    """The first matrix of a low-rank update: rank x inputs."""
    UP = "up"
    """The second matrix of a low-rank update: outputs x rank."""
    SCALE = "scale"
    """Factors of outputs, inputs or ranks, such as the magnitudes of DoRA."""
    BIAS = "bias"
    EMBEDDING = "embedding"
    """Rows of the embeddings or of the output layer."""
    WEIGHT = "weight"
    """A whole weight matrix of a layer."""
    NORM = "norm"
    """The factors of a normalization layer."""
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class TrainedParameter:
    """A parameter that a run trains."""

    name: str
    """Its name in the model, unique."""
    parameter: nn.Parameter
    """The parameter itself."""
    role: Role
    layer: str
    """The name of the layer of the base that it changes; parameters of one layer have the same. Empty: none."""
    decays: bool
    """Whether the run's weight decay applies to it: not to biases and normalization layers."""


@dataclass(frozen=True, kw_only=True)
class OptimizerContext:
    """The facts about the run that an optimizer gets."""

    learning_rate: float
    """The peak of the schedule. The schedule multiplies the rate of each group of the optimizer by the same factor."""
    weight_decay: float
    """That of the run, for parameters whose `decays` is true."""
    total_steps: int
    """The optimizer steps of the whole run."""
    seed: int
    """The random seed of the run."""
    device: str
    """A torch device: `cpu`, `cuda:0`, …"""


class OptimizerMaker(Protocol):
    """Creates the optimizer of a run."""

    def create(self, parameters: Sequence[TrainedParameter], ctx: OptimizerContext) -> Optimizer:
        """Return an optimizer of torch whose groups hold these parameters, each at most once.

        Its groups have the rates of the peak of the schedule. A parameter in none of its groups is frozen by core
        before the first step. It is called more than once before the first step, and must return the same each time. A
        resumed run calls it again, with the same arguments, and then loads the state.
        Raises IncompatibleError if it cannot train these parameters.
        """
        ...


@runtime_checkable
class LabelingAdapted(Protocol):
    """An `Adapted` that states the roles of its parameters."""

    def parameter_roles(self) -> Mapping[str, Role]:
        """The role of each parameter, by its name in `model`; those left out get a role from their shape and place."""
        ...
