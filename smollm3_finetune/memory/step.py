"""Traces a training step of a model without weights, and adds up the layers of the complete model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.batching.attention import RowsNotApart, attention_within_rows, plan_rows
from smollm3_finetune.batching.head import supervised_logits_planned
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.memory.build import Built, Plan, Unknown
from smollm3_finetune.memory.replay import Place, ordered
from smollm3_finetune.memory.trace import Segment, Trace

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = "head"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is allocated at the moment of a step that needs most, beside weights, adapter and optimizer: bytes."""

    activations: int
    """What is kept for the backward pass."""
    logits: int
    """What the output layer and the loss allocate."""
    transient: int
    """What a layer allocates and frees again."""
    gradients: int

    @property
    def total(self) -> int:
        return self.activations + self.logits + self.transient + self.gradients


@dataclass(frozen=True, kw_only=True)
class Step:
    """A traced forward and backward pass."""

    moment: Moment
    padded: bool
    supervised: bool
    """Whether logits are computed at supervised tokens only."""
    segments: list[Segment] = field(default_factory=list, repr=False)


def trace_step(built: Built, plan: Plan, length: int, batch: int, round_up: Callable[[int], int]) -> Step:
    """The forward and backward pass of the longest batch. Call it inside `Built.mode`. Raises Unknown."""
    train, context = plan.config.train, plan.model.context
    device = context.device.partition(":")[0]
    model, base = built.adapted.model, built.base.model
    recorder = _Recorder(Trace(round_up=round_up), built)
    with contextlib.ExitStack() as stack:
        flat = _flat(stack, plan, base)
        supervised = train.logits == "supervised" and stack.enter_context(supervised_logits_planned(base))
        if train.gradient_checkpointing:
            _recompute(base, True)
        stack.enter_context(recorder.hooks())
        stack.enter_context(autocast(context.device, context.dtype))
        inputs = _flat_batch(length, batch, device) if flat else _padded_batch(length, batch, device)
        for parameter in model.parameters():
            parameter.grad = None
        try:
            with recorder.trace:
                out = model(**inputs, use_cache=False, num_items_in_batch=length * batch)
                loss = out["loss"] if isinstance(out, Mapping) else out[0]
                recorder.backward()
                loss.backward()
                del out, loss
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as e:
            raise Unknown(f"the step cannot be traced without weights ({type(e).__name__}: {str(e)[:120]})") from e
        finally:
            recorder.trace.finish()
            if train.gradient_checkpointing:
                _recompute(base, False)
    accumulates = train.gradient_accumulation > 1
    moment = recorder.composed(accumulates)
    for parameter in model.parameters():
        parameter.grad = None
    return Step(moment=moment, padded=not flat, supervised=supervised, segments=recorder.trace.segments)


def _recompute(base: Any, enabled: bool) -> None:
    """Switch gradient checkpointing; transformers 5 renamed it."""
    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    if enabled:
        getattr(base, f"{name}_checkpointing_enable")(**{f"{name}_checkpointing_kwargs": {"use_reentrant": False}})
    else:
        getattr(base, f"{name}_checkpointing_disable")()


def _flat(stack: contextlib.ExitStack, plan: Plan, base: Any) -> bool:
    """Whether rows follow each other in one sequence; the attention of the model is then switched until `stack` ends.

    The run decides this in the same way, and then measures that rows do not influence each other.
    """
    train, adapter = plan.config.train, plan.model.adapter
    assert adapter is not None
    if train.padding == "always" or not refined(adapter, plan.model.env).packs:
        return False
    try:
        stack.enter_context(attention_within_rows(base))
    except RowsNotApart:
        return False
    return True


def _flat_batch(length: int, batch: int, device: str) -> dict[str, Any]:
    """The inputs of rows that follow each other, as `api.batches.flatten` makes them; without values."""
    total = length * batch
    boundaries = torch.zeros(batch + 1, dtype=torch.int32, device=device)
    plan_rows(boundaries, [row * length for row in range(batch + 1)])
    ids = torch.zeros((3, 1, total), dtype=torch.int64, device=device)
    return {
        "input_ids": ids[0], "labels": ids[1], "position_ids": ids[2], "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries, "max_length_q": length, "max_length_k": length,
    }  # fmt: skip


def _padded_batch(length: int, batch: int, device: str) -> dict[str, Any]:
    ids = torch.zeros((3, batch, length), dtype=torch.int64, device=device)
    return {"input_ids": ids[0], "labels": ids[1], "attention_mask": ids[2]}


@dataclass
class _Recorder:
    """Divides a trace into the layers of the model."""

    trace: Trace
    built: Built
    in_backward: bool = False
    names: list[str] = field(default_factory=list)
    """The kept layers in the order in which they ran."""

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Inside the context, the layers report when they begin and end."""
        handles = []
        for stack in self.built.reduced.stacks:
            layers = self.built.base.model.get_submodule(stack.name)
            for index, layer in enumerate(layers):
                name = f"{stack.name}.{index}"
                handles.append(layer.register_forward_pre_hook(self._before(name)))
                handles.append(layer.register_forward_hook(self._after(name, index + 1 == len(layers))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def backward(self) -> None:
        """Called before the backward pass."""
        self.in_backward = True
        self.trace.begin(f"backward {HEAD}")

    def _before(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if not self.in_backward:  # else activations are recomputed
                self.names.append(name)
                self.trace.begin(f"forward {name}")

        return hook

    def _after(self, name: str, last: bool) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if self.in_backward:
                return
            hidden: Tensor = output if isinstance(output, torch.Tensor) else output[0]
            if hidden.requires_grad:
                hidden.register_hook(self._gradient_of(name))
            if last:
                self.trace.begin(f"forward {HEAD}")

        return hook

    def _gradient_of(self, name: str) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            self.trace.begin(f"backward {name}")

        return hook

    def ordered(self) -> Iterator[tuple[Place, Segment]]:
        """The segments of the complete model, in the order in which it runs."""
        stacks, segments = self.built.reduced.stacks, self.trace.segments
        if len(stacks) != 1:  # all its layers were traced
            return iter([((s.name.partition(" ")[0] or "forward", -1), s) for s in segments])
        return ordered(segments, stacks[0].name, stacks[0].chain)

    def composed(self, accumulates: bool) -> Moment:
        """The moment of the complete model that needs most."""
        own = _gradients_by_layer(self.built)
        total = self.built.gradients if accumulates else 0
        best = Moment(activations=0, logits=0, transient=0, gradients=total)
        kept, gradients = 0, total
        for _, segment in self.ordered():
            rise = segment.rise
            is_head = segment.name.endswith(HEAD)
            moment = Moment(
                activations=kept,
                logits=rise if is_head else 0,
                transient=0 if is_head else rise,
                gradients=gradients,
            )
            if moment.total > best.total:
                best = moment
            made = own.get(segment.name.removeprefix("backward "), 0) if segment.name.startswith("backward") else 0
            kept += segment.kept - made
            gradients += 0 if accumulates else made
        return best


def _gradients_by_layer(built: Built) -> dict[str, int]:
    """The bytes of the gradients of each kept layer, and of what is in no layer by the name of the head."""
    base, found = built.base.model, dict[str, int]()
    inside: dict[int, str] = {}
    for name in built.reduced.counts:
        for parameter in base.get_submodule(name).parameters():
            if parameter.requires_grad:
                inside[id(parameter)] = name
    for parameter, _ in built.trained:
        place = inside.get(id(parameter), HEAD)
        found[place] = found.get(place, 0) + (0 if parameter.grad is None else parameter.grad.nbytes)
    return found
