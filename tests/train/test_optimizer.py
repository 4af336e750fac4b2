"""Optimizers of plugins: what planning refuses, what core checks, and a run that is told apart from no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from smollm3_finetune.api import OptimizerContext, Purpose, Role, Sharding, TrainedParameter
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, OPTIMIZER, QUANTIZER
from smollm3_finetune.components.negotiation import environment
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.errors import ConfigError, IncompatibleError, PluginError
from smollm3_finetune.model.roles import trained_parameters
from smollm3_finetune.testing.commands import Result
from smollm3_finetune.testing.every_role import every_role
from smollm3_finetune.train.distributed.layout import Layout
from smollm3_finetune.train.optimizer import check_optimizer_fits, select_optimizer
from smollm3_finetune.train.plugin_optimizer import PluginOptimizer

Cli = Callable[..., Result]
FILE = Path(__file__).parents[1] / "out_of_tree" / "optimizers.py"
GIVEN = ("-p", str(FILE))
SMALL = ("--device", "cpu", "--batch-size", "2", "--max-steps", "3", "--set", "data.limit=16",
         "--set", "data.max_length=48", "--set", "train.sample_tokens=1", "--set", "train.report=false",
         "--set", "train.save_minutes=off")  # fmt: skip


@cache
def found_plugins() -> Registry:
    return discover(PluginSelection(files=(str(FILE),)))


# ---------------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            ("--optimizer", "plain", "--set", "train.optimizer=sgd"),
            "--optimizer plain and train.optimizer=sgd cannot be used together: a run has one optimizer",
            "omit --optimizer, or leave train.optimizer out",
        ),
        (("--optimizer", "plain", "--set", "train.optimizer=adamw_torch"), "cannot be used together", "omit"),
        (("--optimizer-opt", "ratio=2"), "optimizer.ratio is set, but no optimizer is named", "--optimizer NAME"),
        (("--optimizer", "plane"), "there is no optimizer 'plane'", "did you mean 'plain'?"),
        (
            ("--optimizer", "needs-up", "--adapter", "full"),
            "needs trained parameters with the role up, but the adapter is full, whose roles are embedding, norm, "
            "weight",
            "--adapter lora (others that have it: adalora, ",
        ),
        (
            ("--optimizer", "needs-up", "--adapter", "full", "--adapter-opt", "parameters=*norm*"),
            "but the adapter is full, which states no roles",
            "--adapter lora",
        ),
        (
            ("--optimizer", "freezes-scales", "--adapter", "ia3"),
            "trains nothing of --adapter ia3: it freezes parameters with the role scale",
            "--adapter lora",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_planning_refuses(cli: Cli, arguments: tuple[str, ...], message: str, hint: str) -> None:
    done = cli("train", *GIVEN, *arguments, "--dry-run", "--device", "cpu")
    assert done.code in (2, 3)
    error, _, advice = done.stderr.partition("\n")
    assert message in error
    assert advice.strip().startswith(f"hint: {hint}")


@pytest.mark.parametrize("sharding", ["fsdp2", "zero1"])
def test_an_optimizer_that_needs_whole_parameters_is_refused_with_sharding(sharding: Sharding) -> None:
    registry = found_plugins()
    model: Any = SimpleNamespace(
        adapter=choose(registry, ADAPTER, "lora", {}),
        quantizer=choose(registry, QUANTIZER, "none", {}),
        env=environment("cpu", Purpose.TRAIN),
    )
    layout = Layout(processes=2, sharding=sharding)
    with pytest.raises(IncompatibleError, match=f"needs-up does not work with {sharding}: it needs whole parameters"):
        check_optimizer_fits(registry, choose(registry, OPTIMIZER, "needs-up", {}), model, layout)
    check_optimizer_fits(registry, choose(registry, OPTIMIZER, "plain", {}), model, layout)


def test_a_saved_configuration_names_the_default_of_the_trainer_too() -> None:
    """As run.yaml does: that is no second optimizer."""

    def loaded(value: str, origin: str) -> LoadedConfig:
        own = Setting(key=("optimizer", "name"), value="plain", origin="run.yaml:1")
        return assemble([[own, Setting(key=("train", "optimizer"), value=value, origin=origin)]])

    found = select_optimizer(found_plugins(), loaded("adamw_torch", "run.yaml:2"))
    assert found is not None
    assert found.spec.name == "plain"
    with pytest.raises(ConfigError, match="cannot be used together"):
        select_optimizer(found_plugins(), loaded("sgd", "run.yaml:2"))


# ------------------------------------------------------------------------------------- what plugins return


def made_by(create: Callable[[list[nn.Parameter]], Any]) -> PluginOptimizer:
    """The optimizer of a plugin that returns what `create` returns for the parameters of a small model."""
    adapted = every_role()

    class Maker:
        def create(self, parameters: list[TrainedParameter], ctx: OptimizerContext) -> Any:
            return create([p.parameter for p in parameters])

    context = OptimizerContext(learning_rate=1e-3, weight_decay=0.0, total_steps=9, seed=0, device="cpu")
    plan = SimpleNamespace(adapter=choose(found_plugins(), ADAPTER, "lora", {}))
    loaded: Any = SimpleNamespace(adapted=adapted, model=adapted.model, plan=plan)
    return PluginOptimizer(
        chosen=choose(found_plugins(), OPTIMIZER, "plain", {}), maker=Maker(), loaded=loaded, context=context
    )


class Repeating(torch.optim.SGD):
    """Groups that torch would refuse."""

    def add_param_group(self, group: Any) -> None:
        self.param_groups.append({**self.defaults, **group})


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda given: None, "create() returned None, not a torch.optim.Optimizer"),
        (lambda given: torch.optim.SGD([nn.Parameter(torch.zeros(2, 3))], lr=0.1),
         "create() has a parameter that it was not given: a tensor of shape (2, 3)"),
        (lambda given: Repeating([{"params": [given[0]]}, {"params": [given[0]]}], lr=0.1),
         "create() has the parameter 'model.embed_tokens.weight' twice"),
        (lambda given: torch.optim.SGD([{"params": given}, {"params": given}], lr=0.1),
         "failed in create(): ValueError: some parameters appear in more than one parameter group"),
        (lambda given: torch.optim.SGD([], lr=0.1), "failed in create(): ValueError: optimizer got an empty"),
        (lambda given: torch.optim.SGD([{"params": []}], lr=0.1), "create() has no parameter in its groups"),
        (lambda given: torch.optim.SGD([{"params": given, "lr": float("nan")}], lr=0.1),
         "create() gives a group the learning rate nan"),
        (lambda given: given[99], "failed in create(): IndexError: list index out of range"),
    ],
    ids=["nothing", "foreign", "twice", "twice-in-torch", "empty", "no-parameter", "rate", "raises"],
)  # fmt: skip
def test_what_a_plugin_returns_is_checked(create: Any, message: str) -> None:
    with pytest.raises(PluginError) as raised:
        made_by(create).freeze()
    assert message in raised.value.message
    assert raised.value.message.startswith("optimizer 'plain' (optimizers 0+")
    assert "\n" not in raised.value.message


def test_parameters_in_no_group_are_frozen_and_the_rest_is_reported() -> None:
    optimizer = made_by(lambda given: torch.optim.SGD([p for p in given if p.ndim == 1], lr=0.1))
    optimizer.freeze()
    own = {one.name for one in optimizer.parameters} - set(optimizer.frozen)
    model = optimizer.loaded.model
    assert {n for n, p in model.named_parameters() if p.requires_grad} == own
    assert all(model.get_parameter(name).ndim == 1 for name in own)
    about = optimizer.about()
    assert about["groups"][0]["roles"] == ["bias", "norm", "scale"]
    assert about["groups"][0]["parameters"] == sum(model.get_parameter(n).numel() for n in own)
    assert about["frozen_parameters"] == sum(model.get_parameter(n).numel() for n in optimizer.frozen)


def test_learning_rates_are_named_by_role_or_by_the_group() -> None:
    def create(given: list[nn.Parameter]) -> Any:
        own = [next(p for p in given if p.shape == shape) for shape in ((96, 32), (4, 32), (32, 4), (32,), (64, 32))]
        groups = [{"params": [p], "lr": rate} for p, rate in zip(own, (1.0, 2.0, 3.0, 3.0, 4.0), strict=True)]
        groups[4]["name"] = "slow"
        return torch.optim.SGD(groups, lr=0.1)

    optimizer = made_by(create)
    optimizer.freeze()
    assert optimizer.rate_names == {1: "learning_rate_down", 2: "learning_rate_up", 4: "learning_rate_slow"}


# --------------------------------------------------------------------------------------------------- runs


def rows(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_adamw_of_a_plugin_is_adamw_of_the_trainer_and_is_named_everywhere(cli: Cli) -> None:
    decay = ("--set", "train.weight_decay=0.1")
    own = cli("train", *GIVEN, "--optimizer", "plain", *SMALL, *decay, "--output", "own", "--json").report()
    usual = cli("train", *SMALL, *decay, "--output", "usual", "--json").report()
    one, other = (load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("own", "usual"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert own["optimizer"]["name"] == "optimizers:plain"
    assert own["optimizer"]["groups"][0]["roles"] == ["down", "up"]
    assert usual["optimizer"] == {"name": "adamw_torch"}
    assert "| `optimizer` | plain (optimizers 0+" in Path("own/adapter/README.md").read_text()
    assert "| `optimizer` | adamw_torch |" in Path("usual/adapter/README.md").read_text()
    assert "optimizer      optimizers:plain" in cli("runs", "show", "own").stdout
    assert "optimizer      adamw_torch" in cli("runs", "show", "usual").stdout
    assert "learning_rate_up" not in rows("own")[0]
    done = cli("train", *GIVEN, "--resume", "own", "--optimizer", "two-rates", "--max-steps", "9")
    assert "--optimizer cannot be used with --resume: the run uses its saved optimizer.name" in done.stderr


def test_rates_of_groups_follow_the_schedule_and_a_failing_step_names_the_plugin(cli: Cli) -> None:
    cli(
        "train", *GIVEN, "--optimizer", "two-rates", "--learning-rate", "1e-3", *SMALL, "--output", "two", "--json"
    ).report()
    found = rows("two")
    assert [row["learning_rate_up"] for row in found] == pytest.approx([4 * row["learning_rate"] for row in found])
    assert len({row["learning_rate"] for row in found}) == 3
    done = cli("train", *GIVEN, "--optimizer", "fails-later", *SMALL, "--output", "fails")
    assert done.code == PluginError.exit_code
    assert "optimizer 'fails-later' (optimizers 0+" in done.stderr
    assert "failed in step(): IndexError: no third step" in done.stderr
    assert "Traceback" not in done.stderr


def test_roles_without_labels_follow_shape_and_place() -> None:
    adapted = every_role()
    stated = dict(adapted.roles)
    adapted.roles = {}
    found = {one.name: one for one in trained_parameters(adapted)}
    assert found.keys() == stated.keys()
    wrong = {name: (str(one.role), str(stated[name])) for name, one in found.items() if one.role != stated[name]}
    assert set(wrong.values()) <= {("scale", "bias")}, "factors and biases have the same shape"
    assert found["model.layers.0.mlp.down_proj.up"].layer == "model.layers.0.mlp.down_proj"
    assert found["model.norm.weight"].role is Role.NORM


def test_a_role_for_an_unknown_parameter_names_the_adapter() -> None:
    adapted = every_role()
    adapted.roles["model.layers.9.x"] = Role.UP
    with pytest.raises(PluginError, match=r"names the parameter 'model.layers.9.x', which the model does not have"):
        trained_parameters(adapted)
