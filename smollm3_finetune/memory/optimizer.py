"""The memory of an optimizer: its state, and what a step allocates; found by taking steps without values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from smollm3_finetune.api import OptimizerContext
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.memory.build import STEPS, Built, Plan, Unknown
from smollm3_finetune.memory.trace import Trace
from smollm3_finetune.train.optimizer import state_bytes

OF_TORCH = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""The optimizers of transformers that are torch's own and work on each parameter alone."""


@dataclass(frozen=True, kw_only=True)
class OptimizerBytes:
    """Bytes for all trained parameters."""

    state: int
    transient: int
    """The most that a step allocates beside its state, and frees again."""
    tensors: tuple[int, ...] = ()
    """The sizes of the tensors of the state."""


def optimizer_bytes(built: Built, plan: Plan, device: str, round_up: Callable[[int], int]) -> OptimizerBytes:
    """The memory of the optimizer of a run. Call it inside `Built.mode`. Raises Unknown."""
    train = plan.config.train
    if plan.optimizer is not None:
        return _of_plugin(built, plan, plan.optimizer, device, round_up)
    if train.optimizer not in OF_TORCH:
        raise Unknown(f"the memory of the optimizer {train.optimizer!r} was not measured")
    state = largest = total = 0
    known: dict[tuple[Any, ...], tuple[int, int, list[int]]] = {}
    tensors: list[int] = []
    for parameter, times in built.trained:
        key = (tuple(parameter.shape), parameter.dtype)
        if key not in known:
            known[key] = _of_parameter(parameter, train.optimizer, device, round_up)
        own, transient, sizes = known[key]
        tensors += sizes * times
        state += own * times
        largest = max(largest, transient)
        total += transient * times
    one_by_one = device == "cpu" or "fused" in train.optimizer
    return OptimizerBytes(state=state, transient=largest if one_by_one else total, tensors=tuple(tensors))


def _of_parameter(
    parameter: torch.nn.Parameter, name: str, device: str, round_up: Callable[[int], int]
) -> tuple[int, int, list[int]]:
    """The bytes of the state of one parameter, what a step allocates for it, and the sizes of the state's tensors."""
    copy = torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
    copy.grad = torch.empty_like(copy)
    trace = Trace(round_up=round_up, value=1)  # the number of the step
    with trace:
        optimizer = _made(name, copy)
        optimizer.step()
        state = trace.live
        trace.begin("second step")
        optimizer.step()
        trace.finish()
    sizes = [t.nbytes for t in optimizer.state[copy].values() if isinstance(t, torch.Tensor)]
    return state, trace.segments[-1].rise, sizes


def _made(name: str, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    if name.startswith("adamw_torch"):
        return torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.01, foreach=False)
    return {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}[name](
        [parameter], lr=1e-4, foreach=False
    )


def _of_plugin(
    built: Built, plan: Plan, optimizer: SelectedComponent, device: str, round_up: Callable[[int], int]
) -> OptimizerBytes:
    """The memory of the optimizer of a plugin: its state as the descriptor states it, and a traced step."""
    roles = {id(p.parameter): p.role for p in built.parameters}
    state, tensors = 0, list[int]()
    for parameter, times in built.trained:
        found = state_bytes(optimizer, tuple(parameter.shape), roles[id(parameter)])
        if found is None:
            raise Unknown(f"{optimizer.component.title} does not state the memory of its state")
        own = found * parameter.element_size() // 4  # stated for float32
        parts, rest = divmod(own, max(parameter.nbytes, 1))
        tensors += ([rest] * bool(rest) + [parameter.nbytes] * parts) * times
        state += own * times
    transient = _traced_step(built, plan, optimizer, round_up)
    if device != "cpu":  # where the parameters may be updated together
        traced = sum(p.nbytes for p, _ in built.trained)
        transient = transient * sum(p.nbytes * times for p, times in built.trained) // max(traced, 1)
    return OptimizerBytes(state=state, transient=transient, tensors=tuple(tensors))


def _traced_step(built: Built, plan: Plan, optimizer: SelectedComponent, round_up: Callable[[int], int]) -> int:
    """What a step allocates and frees again. Raises Unknown if it needs values."""
    train = plan.config.train
    context = OptimizerContext(
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        total_steps=STEPS,
        seed=plan.config.seed,
        device=plan.model.context.device,
    )
    trace = Trace(round_up=round_up, value=1)  # the number of the step
    try:
        made: torch.optim.Optimizer = optimizer.create().create(list(built.parameters), context)
        for parameter, _ in built.trained:
            parameter.grad = torch.empty_like(parameter)
        with trace:
            made.step()
            trace.begin("second step")
            made.step()
            trace.finish()
    except SmolLM3Error:
        raise
    except Exception as e:
        raise Unknown(f"a step of {optimizer.component.title} cannot be traced ({type(e).__name__})") from e
    finally:
        for parameter, _ in built.trained:
            parameter.grad = None
    return trace.segments[-1].rise
