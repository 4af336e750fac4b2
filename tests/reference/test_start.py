"""The exchange of trained parameters with their initial values, on its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from smollm3_finetune import stopping
from smollm3_finetune.api import Base, without_adapter
from smollm3_finetune.api.adapter_switch import note_adapter, switch_of
from smollm3_finetune.errors import UnsupportedOp
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.reference.start import Start
from smollm3_finetune.testing.small import random_model

IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))


class Biased:
    """An `Adapted` that trains a scale after each projection, which does not start as the identity."""

    def __init__(self, *, disables: bool = True) -> None:
        self.model = random_model(torch.float32, std=0.2)
        self.model.requires_grad_(False)
        self.base, self.active, self.disables = Base(model=self.model, fingerprint="small"), True, disables
        for name, layer in self.model.named_modules():
            if name.endswith("_proj"):
                layer.register_parameter("factor", nn.Parameter(torch.full((layer.out_features,), 1.25)))
                layer.register_forward_hook(self._scaled)

    def _scaled(self, layer: Any, args: Any, out: Tensor) -> Tensor:
        return out * layer.factor.to(out) if self.active else out

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        assert self.active, "it is disabled twice"
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def on_step(self, step: int) -> None: ...

    def save(self, path: Path) -> None: ...

    def move(self) -> None:
        torch.manual_seed(3)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def adapted() -> Biased:
    made = Biased()
    note_adapter(made)
    return made


@pytest.fixture
def start(adapted: Biased) -> Start:
    """The start of the model, whose weights have moved since."""
    made = Start(adapted.model)
    adapted.move()
    return made


def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found.detach()


def test_the_model_is_as_it_was_and_then_as_it_is(adapted: Biased, start: Start) -> None:
    ours, begun = logits(adapted.model), logits(Biased().model)
    addresses = [p.data_ptr() for p in adapted.model.parameters()]
    adapted.model.train()
    with start.at_start(adapted.model) as reference:
        assert torch.equal(logits(reference), begun)
        assert not torch.is_grad_enabled() and not reference.training
    assert adapted.model.training and torch.is_grad_enabled()
    assert torch.equal(logits(adapted.model.eval()), ours) and not torch.equal(ours, begun)
    assert [p.data_ptr() for p in adapted.model.parameters()] == addresses


def test_only_trained_parameters_are_copied(adapted: Biased, start: Start) -> None:
    trained = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert start.values().keys() == trained.keys()
    assert sum(v.numel() for v in start.values().values()) < 0.1 * sum(p.numel() for p in adapted.model.parameters())


def test_contexts_can_be_nested_in_every_order(adapted: Biased, start: Start) -> None:
    model, ours, begun = adapted.model, logits(adapted.model), logits(Biased().model)
    switch = switch_of(model)
    assert switch is not None
    with switch.off():
        base = logits(model)
    with start.at_start(model), start.at_start(model):
        assert torch.equal(logits(model), begun)
        with without_adapter(model):
            assert torch.equal(logits(model), base)
            with start.at_start(model):
                assert torch.equal(logits(model), begun), "the adapter is enabled again"
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), begun)
    assert torch.equal(logits(model), ours) and adapted.active
    with without_adapter(model), without_adapter(model), start.at_start(model), without_adapter(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), ours) and adapted.active


@pytest.mark.parametrize("outside", [False, True], ids=["alone", "disabled"])
def test_weights_are_back_after_an_exception(adapted: Biased, start: Start, outside: bool) -> None:
    ours = logits(adapted.model)

    class Stop(Exception):
        pass

    def stops() -> None:
        with without_adapter(adapted.model) if outside else contextlib.nullcontext(), start.at_start(adapted.model):
            raise Stop

    with pytest.raises(Stop):
        stops()
    assert torch.equal(logits(adapted.model), ours) and adapted.active


def test_an_exchange_that_fails_half_way_is_undone(
    adapted: Biased, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smollm3_finetune.reference import start as module

    ours, own, calls = logits(adapted.model), module._exchange, []

    def failing(parameter: Tensor, value: Tensor) -> None:
        calls.append(parameter)
        if len(calls) == 4:
            raise torch.OutOfMemoryError
        own(parameter, value)

    monkeypatch.setattr(module, "_exchange", failing)
    with pytest.raises(torch.OutOfMemoryError), start.at_start(adapted.model):
        pass
    assert len(calls) == 7  # three were exchanged, and exchanged back
    assert torch.equal(logits(adapted.model), ours)


@pytest.fixture
def sends_a_signal() -> Iterator[Callable[[], None]]:
    """Sends SIGTERM to this process; in the context of `main`, in which a measurement of a run can be stopped."""

    def send() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # the handler runs

    with stopping.handled(), stopping.deferred():
        yield send
        stopping._forget()


def measured(context: contextlib.AbstractContextManager[Any]) -> bool:
    """Whether a measurement in the context, that a request to stop may end as in `train.measuring`, was completed."""
    done = False
    with contextlib.suppress(stopping.Stop), stopping.undeferred():
        with context:
            pass
        done = True
    return done


@pytest.mark.parametrize("call", [2, 30, 60], ids=["first exchange", "late", "exchange back"])
def test_a_request_to_stop_leaves_no_weights_exchanged(
    adapted: Biased, start: Start, monkeypatch: pytest.MonkeyPatch, call: int, sends_a_signal: Callable[[], None]
) -> None:
    """A run saves a checkpoint of the model after it."""
    from smollm3_finetune.reference import start as module

    ours = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    begun = {name: value.clone() for name, value in start.values().items()}
    calls: list[Tensor] = []

    def disturbed(parameter: Tensor, value: Tensor) -> None:
        calls.append(parameter)
        with torch.no_grad():
            kept = parameter.data.clone()
            parameter.data.copy_(value)
            if len(calls) == min(call, 2 * len(begun)):
                sends_a_signal()  # between the two copies
            value.copy_(kept)

    monkeypatch.setattr(module, "_exchange", disturbed)
    assert not measured(start.at_start(adapted.model))
    assert stopping.requested() is not None
    assert all(torch.equal(p, ours[name]) for name, p in adapted.model.named_parameters())
    assert all(torch.equal(value, begun[name]) for name, value in start.values().items())


@pytest.mark.parametrize("when", ["begins", "ends"])
def test_a_request_to_stop_leaves_no_adapter_disabled_half_way(
    adapted: Biased, monkeypatch: pytest.MonkeyPatch, when: str, sends_a_signal: Callable[[], None]
) -> None:
    whole = adapted.disabled

    @contextlib.contextmanager
    def disturbed() -> Iterator[None]:
        """Not protected itself: as a method that restores weights one by one."""
        with whole():
            if when == "begins":
                adapted.model.get_input_embeddings().weight.data.mul_(2)
                sends_a_signal()
                adapted.model.get_input_embeddings().weight.data.mul_(0.5)
            try:
                yield
            finally:
                adapted.model.get_input_embeddings().weight.data.mul_(2)
                if when == "ends":
                    sends_a_signal()
                adapted.model.get_input_embeddings().weight.data.mul_(0.5)

    monkeypatch.setattr(adapted, "disabled", disturbed)
    ours = logits(adapted.model)
    assert not measured(without_adapter(adapted.model))
    assert torch.equal(logits(adapted.model), ours) and adapted.active
    switch = switch_of(adapted.model)
    assert switch is not None and switch.depth == 0


def test_what_runs_without_the_adapter_is_interrupted_at_once(
    adapted: Biased, sends_a_signal: Callable[[], None]
) -> None:
    """An evaluation without the adapter may take hours."""
    reached = []

    def evaluate() -> None:
        with without_adapter(adapted.model):
            sends_a_signal()
            reached.append("the end")

    with pytest.raises(stopping.Stop), stopping.undeferred():
        evaluate()
    assert reached == [] and adapted.active


def test_casts_of_autocast_and_gradients_are_right(adapted: Biased, start: Start) -> None:
    """autocast keeps casts of trained weights, which would be used for the reference, or the reference's afterwards."""
    full = random_model(torch.float32, std=0.2)
    begun = random_model(torch.float32, std=0.2)

    class Whole(Biased):
        def __init__(self) -> None:
            self.model, self.base, self.active = full, Base(model=full, fingerprint="small"), True

    whole = Whole()
    note_adapter(whole)
    of_full = Start(full)
    whole.move()
    with autocast("cpu", "bfloat16"):
        ours = full(input_ids=IDS, use_cache=False).logits
        with of_full.at_start(full) as reference:
            found = logits(reference)
        again = full(input_ids=IDS, use_cache=False).logits
        (ours.sum() + again.sum()).backward()
    with autocast("cpu", "bfloat16"):
        assert torch.equal(found, logits(begun))
    assert torch.equal(ours, again) and not torch.equal(found, ours)
    gradients = {n: p.grad.clone() for n, p in full.named_parameters() if p.grad is not None}
    full.zero_grad()
    with autocast("cpu", "bfloat16"):
        (2 * full(input_ids=IDS, use_cache=False).logits.sum()).backward()
    for name, parameter in full.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0.05, atol=0.05 * float(parameter.grad.norm()))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS: list[Callable[[Any], Any]] = [
    nn.parallel.DistributedDataParallel,
    lambda model: torch.compile(model, backend="eager"),
    lambda model: nn.ModuleDict({"model": model}),
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["DDP", "compiled", "inside"])
def test_a_wrapped_model_is_found(adapted: Biased, start: Start, wrap: Any, one_process: None) -> None:
    ours, begun = logits(adapted.model), logits(Biased().model)
    with start.at_start(wrap(adapted.model)) as reference:
        assert torch.equal(logits(reference), begun)
    assert torch.equal(logits(adapted.model), ours)


def test_a_model_without_an_adapter_has_no_start(adapted: Biased, start: Start) -> None:
    with pytest.raises(UnsupportedOp, match="has no adapter, so its start is not known"):
        start.at_start(random_model(torch.float32)).__enter__()
