"""Conformance tests for optimizers: groups, learning rates, frozen parameters, memory, and states that continue.

from smollm3_finetune.testing import OptimizerConformance

class TestMine(OptimizerConformance):
    component = "mine"
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from smollm3_finetune.api import OptimizerContext, Role, TrainedParameter
from smollm3_finetune.components.kinds import OPTIMIZER
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.testing.conformance import Conformance, demand, fail, outcome, plugin_path, skip
from smollm3_finetune.testing.every_role import EveryRole, every_role, same_random_numbers, saved_and_read
from smollm3_finetune.testing.small import token_ids
from smollm3_finetune.train.plugin_optimizer import PluginOptimizer

LIGHT = """
import json, sys
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import OPTIMIZER
from smollm3_finetune.components.selection import choose
files, name, options, roles = json.loads(sys.argv[1])
chosen = choose(discover(PluginSelection(files=tuple(files))), OPTIMIZER, name, options)
if chosen.spec.state_bytes is not None:
    for role in roles:
        chosen.spec.state_bytes(chosen.options, (8, 4), role)
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers"})))
"""
OF_NO_TENSOR = 64
"""Bytes of a state that do not depend on the parameter, such as the number of the step."""


class OptimizerConformance(Conformance):
    """Subclass it and name the optimizer. Its parameters have every role, in a model of two layers."""

    kind = OPTIMIZER
    learning_rate: ClassVar[float] = 2e-3
    weight_decay: ClassVar[float] = 0.1
    steps: ClassVar[int] = 20
    """Steps after which the loss must be lower than before."""
    adapters: ClassVar[Sequence[str]] = ()
    """Installed adapters with which a run is trained and resumed by commands, such as `("lora",)`."""

    # --------------------------------------------------------------------------------------- parts

    def optimizer_context(self) -> OptimizerContext:
        return OptimizerContext(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, total_steps=100, seed=0, device="cpu"
        )

    def prepared(self, adapted: EveryRole) -> PluginOptimizer:
        """The optimizer for a model, whose parameters in no group are frozen; what a run refuses fails the test."""
        chosen = self.choose()
        of_kit = SimpleNamespace(adapter=SimpleNamespace(component=chosen.component))
        loaded: Any = SimpleNamespace(adapted=adapted, model=adapted.model, plan=of_kit)
        found = PluginOptimizer(chosen=chosen, maker=chosen.create(), loaded=loaded, context=self.optimizer_context())
        _, error = outcome(found.freeze)
        self._refused(error)
        return found

    def created(self, prepared: PluginOptimizer) -> torch.optim.Optimizer:
        made, error = outcome(prepared.create)
        self._refused(error)
        assert made is not None
        return made

    def _refused(self, error: Exception | None) -> None:
        if isinstance(error, SmolLM3Error):
            fail(error.message)
        if error is not None:
            raise error

    def fresh(self, dtype: str | None = None) -> tuple[EveryRole, PluginOptimizer, torch.optim.Optimizer]:
        adapted = every_role(dtype or self.dtype)
        prepared = self.prepared(adapted)
        return adapted, prepared, self.created(prepared)

    def step(self, adapted: EveryRole, optimizer: torch.optim.Optimizer, batch: int = 0) -> float:
        """One step of training; the loss before it."""
        optimizer.zero_grad()
        ids = token_ids(4, 16, vocabulary=96, seed=batch)
        loss = adapted.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        with same_random_numbers():
            _, error = outcome(optimizer.step)
        self._refused(error)
        return float(loss.detach())

    def values(self, adapted: EveryRole) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in adapted.model.named_parameters()}

    # --------------------------------------------------------------------------------------- descriptor

    def test_the_descriptor_states_the_memory_of_the_state(self) -> None:
        spec, options = self.spec(), self.choose().options
        if spec.state_bytes is None:
            skip("state_bytes is not stated, so `smollm3 plan` does not know the memory of a run")
        for role in Role:
            found = spec.state_bytes(options, (8, 4), str(role))
            demand(type(found) is int and found >= 0, f"state_bytes() must return a number of bytes, not {found!r}")
            demand(
                found == 0 or role not in spec.freezes,
                f"state_bytes() states {found} bytes for the role {role}, which `freezes` has",
            )

    def test_planning_imports_nothing_heavy(self) -> None:
        """`state_bytes` is called while the memory of a run is predicted, and the module when plugins are listed."""
        files = [str(plugin_path(type(self), p)) for p in self.plugins]
        job = json.dumps([files, self.component, dict(self.options), list(Role)])
        done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
        demand(done.returncode == 0, f"the functions of the descriptor fail: {done.stderr[-300:]}")
        heavy = json.loads(done.stdout.splitlines()[-1])
        demand(not heavy, f"the module of the descriptor imports {', '.join(heavy)}")

    def test_the_state_needs_the_stated_memory(self) -> None:
        spec, options = self.spec(), self.choose().options
        if spec.state_bytes is None:
            skip("state_bytes is not stated")
        adapted, prepared, made = self.fresh("float32")
        self.step(adapted, made)
        for one in prepared.parameters:
            state = made.state.get(one.parameter, {}).values()
            found = sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
            stated = spec.state_bytes(options, tuple(one.parameter.shape), str(one.role))
            demand(
                abs(found - stated) <= OF_NO_TENSOR,
                f"the state of a parameter of shape {tuple(one.parameter.shape)} with the role {one.role} needs "
                f"{found} bytes, but state_bytes() states {stated}",
            )

    # --------------------------------------------------------------------------------------- groups

    def test_exactly_the_stated_roles_are_frozen(self) -> None:
        spec = self.spec()
        adapted, prepared, made = self.fresh()
        for one in prepared.parameters:
            is_frozen = one.name in prepared.frozen
            demand(
                is_frozen == (one.role in spec.freezes),
                f"the parameter {one.name}, with the role {one.role}, is in {'no' if is_frozen else 'a'} group, but "
                f"`freezes` {'has' if one.role in spec.freezes else 'does not have'} this role",
            )
        before = self.values(adapted)
        for batch in range(2):
            self.step(adapted, made, batch)
        after = self.values(adapted)
        own = {one.name for one in prepared.parameters} - set(prepared.frozen)
        for name in before:
            demand(
                name in own or torch.equal(before[name], after[name]), f"the step changes {name}, which is not trained"
            )
        still = [name for name in own if torch.equal(before[name], after[name])]
        demand(not still, f"two steps do not change {', '.join(still[:3])}")

    def test_the_needed_roles_are_given_to_a_group(self) -> None:
        """An adapter without a role that is not needed can be trained too."""
        spec = self.spec()
        adapted = every_role(self.dtype)
        needed = set(spec.needs_roles) or {Role.DOWN, Role.UP}
        for name, role in adapted.roles.items():
            if role not in needed:
                adapted.model.get_parameter(name).requires_grad_(False)
        if needed <= set(spec.freezes):
            skip("it freezes every role that it needs")
        prepared = self.prepared(adapted)
        demand(bool(self.created(prepared).param_groups), "the optimizer has no group")

    def test_it_is_created_again_the_same(self) -> None:
        """A resumed run, and one whose weights are shared, create it more than once."""
        _, prepared, first = self.fresh()
        second = self.created(prepared)
        names = {id(one.parameter): one.name for one in prepared.parameters}

        def about(made: torch.optim.Optimizer) -> list[tuple[float, list[str]]]:
            return [(float(g["lr"]), [names[id(p)] for p in g["params"]]) for g in made.param_groups]

        demand(about(first) == about(second), "create() returns other groups when it is called again")

    # --------------------------------------------------------------------------------------- steps

    def test_the_loss_falls(self) -> None:
        adapted, _, made = self.fresh()
        losses = [self.step(adapted, made) for _ in range(self.steps)]
        demand(
            losses[-1] < losses[0],
            f"after {self.steps} steps on one batch with the learning rate {self.learning_rate:g}, the loss is "
            f"{losses[-1]:.4f}; it was {losses[0]:.4f}",
        )

    def test_the_schedule_decides_the_size_of_a_step(self) -> None:
        """A schedule multiplies the rate of each group: at zero nothing moves, at a tenth less than at the peak."""
        moved = []
        for factor in (0.0, 0.1, 1.0):
            adapted, _, made = self.fresh()
            before = self.values(adapted)
            for group in made.param_groups:
                group["lr"] = group["lr"] * factor
            self.step(adapted, made)
            after = self.values(adapted)
            moved.append(float(sum((after[n] - before[n]).abs().sum() for n in before)))
        demand(moved[0] == 0, f"with the learning rate 0, a step moves the parameters by {moved[0]:.2g} in sum")
        demand(
            moved[1] < moved[2],
            f"with a tenth of the learning rate, a step moves the parameters by {moved[1]:.2g} in sum, with all of it "
            f"by {moved[2]:.2g}: it does not read `lr` of its groups",
        )

    def test_only_decaying_parameters_decay(self) -> None:
        """Without a gradient, nothing else moves a parameter."""
        adapted, prepared, made = self.fresh()
        with torch.no_grad():
            for one in prepared.parameters:
                one.parameter.add_(0.1)
                one.parameter.grad = torch.zeros_like(one.parameter)
        before = self.values(adapted)
        made.step()
        after = self.values(adapted)
        for one in prepared.parameters:
            demand(
                one.decays or torch.equal(before[one.name], after[one.name]),
                f"without a gradient, a step changes {one.name}, whose `decays` is false",
            )

    def test_equal_steps_give_equal_parameters(self) -> None:
        found = []
        for _ in range(2):
            adapted, _, made = self.fresh()
            for batch in range(3):
                self.step(adapted, made, batch)
            found.append(self.values(adapted))
        unequal = [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
        demand(not unequal, f"the same three steps give other values of {', '.join(unequal[:3])}")

    def test_a_saved_state_continues_bit_for_bit(self, tmp_path: Path) -> None:
        adapted, _, made = self.fresh()
        for batch in range(3):
            self.step(adapted, made, batch)
        read, error = outcome(lambda: saved_and_read(copy.deepcopy(made.state_dict()), tmp_path))
        if error is not None:
            fail(f"state_dict() has something that a checkpoint cannot hold: {type(error).__name__}: {error}")
        saved = self.values(adapted)
        again = every_role(self.dtype)
        with torch.no_grad():
            for name, parameter in again.model.named_parameters():
                parameter.copy_(saved[name])
        resumed = self.created(self.prepared(again))
        assert read is not None
        resumed.load_state_dict(read)
        for batch in range(3, 6):
            self.step(adapted, made, batch)
            self.step(again, resumed, batch)
        one, other = self.values(adapted), self.values(again)
        unequal = [name for name in one if not torch.equal(one[name], other[name])]
        demand(
            not unequal,
            f"after its state was saved and loaded, three steps give other values of {', '.join(unequal[:3])}: "
            "keep everything that steps depend on in self.state and in the groups",
        )

    def test_a_part_is_updated_as_the_whole_where_declared(self) -> None:
        """FSDP 2 divides each parameter by its first dimension."""
        if not self.spec().shards:
            skip("shards is not declared")
        adapted, prepared, made = self.fresh()
        for batch in range(2):
            self.step(adapted, made, batch)
        whole = self.values(adapted)
        parts = _halves(every_role(self.dtype), prepared.parameters)
        maker = self.choose().create()
        divided: torch.optim.Optimizer = maker.create(
            [part for pair in parts.values() for part in pair], self.optimizer_context()
        )
        reference = every_role(self.dtype)
        for batch in range(2):
            with torch.no_grad():
                for name, pair in parts.items():
                    reference.model.get_parameter(name).copy_(torch.cat([p.parameter for p in pair]))
            reference.model.zero_grad()
            ids = token_ids(4, 16, vocabulary=96, seed=batch)
            reference.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            for name, pair in parts.items():
                gradient = reference.model.get_parameter(name).grad
                assert gradient is not None
                for part, own in zip(pair, _split(gradient), strict=True):
                    part.parameter.grad = own.clone()
            divided.step()
        for name, pair in parts.items():
            if name in prepared.frozen:
                continue
            error = float((torch.cat([p.parameter.detach() for p in pair]) - whole[name]).abs().max())
            demand(
                error <= self.rounding,
                f"shards is declared, but the halves of {name}, updated alone, differ from the whole by {error:.2g}",
            )

    # --------------------------------------------------------------------------------------- runs

    @pytest.mark.long
    def test_a_run_resumes_bit_for_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`smollm3 train` on the embedded model, and the same run from its checkpoint."""
        from smollm3_finetune.testing.commands import OFFLINE, smollm3

        if not self.adapters:
            skip("the class names no adapters")
        monkeypatch.chdir(tmp_path)
        for name, value in {**OFFLINE, "SMOLLM3_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        own = [a for k, v in self.options.items() for a in ("--optimizer-opt", f"{k}={v}")]
        own += [a for p in self.plugins for a in ("-p", str(plugin_path(type(self), p)))]
        for adapter in self.adapters:
            check_resumes(smollm3, ["--adapter", adapter, "--optimizer", self.component, *own], tmp_path / adapter)


def check_resumes(smollm3: Any, arguments: Sequence[str], directory: Path, steps: int = 6) -> Mapping[str, Any]:
    """Train `tiny` in one go, and in two parts: the parameters must be equal bit for bit. Returns the report."""
    from safetensors.torch import load_file

    shared = ["--max-steps", str(steps), "--batch-size", "2", "--set", "data.limit=24", "--set", "data.max_length=64",
              "--set", "train.sample_tokens=1", "--device", "cpu"]  # fmt: skip
    runs = []
    for name, more in (("whole", []), ("parts", ["--set", f"train.save_every={steps // 2}"])):
        run = directory / name
        done = smollm3("train", *arguments, *shared, *more, "--output", run, "--json")
        demand(done.code == 0, f"smollm3 train ended with {done.code}: {done.stderr.strip()}")
        runs.append(json.loads(done.stdout))
    parts = directory / "parts"
    for checkpoint in (parts / "checkpoints").glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{steps // 2}":
            _remove(checkpoint)
    for name in ("report.json", "after.json", "trained.json"):
        (parts / name).unlink(missing_ok=True)
    _remove(parts / "adapter")
    files = [a for n, v in pairwise(arguments) if n == "-p" for a in (n, v)]
    done = smollm3("train", "--resume", parts, *files, "--json")
    demand(done.code == 0, f"smollm3 train --resume ended with {done.code}: {done.stderr.strip()}")
    one, other = (
        {n: t for f in sorted((directory / r / "adapter").glob("*.safetensors")) for n, t in load_file(f).items()}
        for r in ("whole", "parts")
    )
    demand(one.keys() == other.keys() and bool(one), "the two runs saved other parameters")
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    demand(not unequal, f"a resumed run gives other values of {', '.join(unequal[:3])}")
    report: Mapping[str, Any] = runs[0]
    return report


def _remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _split(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    half = tensor.shape[0] // 2
    return tensor[:half], tensor[half:]


def _halves(adapted: EveryRole, parameters: Sequence[TrainedParameter]) -> dict[str, list[TrainedParameter]]:
    """Each parameter as two, divided by the first dimension."""
    found = {}
    for one in parameters:
        whole = adapted.model.get_parameter(one.name).detach()
        if whole.ndim and whole.shape[0] > 1 and prod(whole.shape):
            halves = [nn.Parameter(part.clone()) for part in _split(whole)]
            found[one.name] = [replace(one, name=f"{one.name}.{n}", parameter=h) for n, h in enumerate(halves)]
    return found
