"""Runs with train.ship_as: the configuration, what is refused before weights are read, and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shipped_models import PLUGIN

from smollm3_finetune import finetune
from smollm3_finetune.api import Requires
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import Setting, as_dict, assemble, assignment, file_settings, set_options, ship_config
from smollm3_finetune.config.yaml12 import dump_yaml
from smollm3_finetune.errors import ConfigError, IncompatibleError, MissingRequirementError, SmolLM3Error
from smollm3_finetune.shipping.target import _find

KEY = ("train", "ship_as")


def loaded(*layers: list[Setting]) -> Any:
    return assemble(layers).config


def setting(value: Any, *key: str) -> Setting:
    return Setting(key=(*KEY, *key), value=value, origin="run.yaml:3")


def test_a_name_and_a_mapping_are_merged_layer_by_layer() -> None:
    assert loaded([setting("grid")]).train.ship_as == "grid"
    assert loaded([setting({"bits": 3, "name": "grid"})]).train.ship_as == {"name": "grid", "bits": 3}
    flags = [assignment("bits=3", "--ship-as-opt", "train.ship_as"), setting("grid")]
    assert loaded(flags).train.ship_as == {"name": "grid", "bits": 3}
    assert list(loaded(flags).train.ship_as) == ["name", "bits"]
    later = [assignment("train.ship_as.bits=5", "--set")]
    assert loaded(flags, later).train.ship_as == {"name": "grid", "bits": 5}
    assert loaded(flags, [setting("other")]).train.ship_as == "other"
    assert loaded(flags, [setting(None)]).train.ship_as is None
    assert loaded([setting(None)], flags).train.ship_as == {"name": "grid", "bits": 3}
    assert loaded(flags, [setting("acme:grid")]).train.ship_as == {"name": "acme:grid", "bits": 3}


@pytest.mark.parametrize("value", [True, ["grid"], {"bits": 3}, {"name": 4}])
def test_other_values_are_refused_with_their_origin(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml:3: .*ship_as"):
        loaded([setting(value)])


def test_a_saved_configuration_knows_which_options_were_set(tmp_path: Path) -> None:
    first = loaded([setting({"name": "grid", "bits": 3, "embeddings": False}), Setting(
        key=("given",), value=["train.ship_as.bits"], origin="run.yaml:9")])  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(as_dict(first)))
    again = loaded(file_settings(file))
    assert again == first
    ship = ship_config(again)
    assert ship is not None and ship.set_options() == {"bits"}
    assert set_options(again) == ("train.ship_as.bits",)


def planned(ship_as: Any, **more: Any) -> dict[str, Any]:
    train = {"ship_as": ship_as, **more.pop("train", {})}
    return finetune(train=train, plugins=[PLUGIN], dry_run=True, quiet=True, **more)


@pytest.mark.plugins
def test_a_plan_states_the_format(tmp_path: Path) -> None:
    about = planned({"name": "grid", "bits": 3})
    assert about["ship_as"] == {"kind": "quantizer", "name": "grid_quantizers:grid", "options": {"bits": 3}}
    ship = {"name": "grid_quantizers:grid", "bits": 3, "embeddings": False}
    assert about["config"]["train"]["ship_as"] == ship
    assert about["config"]["given"] == ["train.ship_as.bits"]
    assert planned("grid-export")["ship_as"]["kind"] == "exporter"


@pytest.mark.parametrize(("quant", "warned"), [("grid", True), ("grid-file", False), ("none", False)])
def test_a_base_in_the_same_format_is_named_as_a_trap(quant: str, warned: bool, run_cli: Any) -> None:
    plugins = ("-p", PLUGIN, "-p", str(Path(__file__).with_name("rank_one_adapter.py")))
    result = run_cli("train", *plugins, "--adapter", "rank-one", "--quant", quant, "--ship-as", "grid", "--dry-run")
    assert result.code == 0, result.stderr
    assert ("the base has the weights of grid already" in result.stdout) == warned


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("ship_as", "more", "says", "hint"),
    [
        ("no-trip", {}, "does not provide round-trip (its codes depend on the device)", "--ship-as bnb-4bit or"),
        ("grit", {}, "no installed plugin has a format 'grit'", "did you mean 'grid'?"),
        ({"name": "grid-export", "bits": 8}, {}, "these options cannot be trained for", "with its default options"),
        ({"name": "grid", "bitz": 3}, {}, "quantizer 'grid' has no option 'bitz'", "did you mean 'bits'?"),
        ("grid", {"adapter": "full"}, "which --adapter full does not declare", "--adapter lora or --adapter dora"),
        ("grid", {"adapter": {"name": "lora", "dropout": 0.1}}, "with dropout=0.1", "its default options"),
        ("grid", {"adapter": {"name": "dora", "bias": "all"}}, "with bias=all", "its default options"),
        ("grid", {"train": {"compile": True}}, "cannot be compiled", "--set train.compile=false"),
    ],
)
def test_what_does_not_go_is_refused_with_what_does(ship_as: Any, more: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(SmolLM3Error) as refused:
        planned(ship_as, **more)
    assert says in refused.value.message
    assert hint in (refused.value.hint or "")


def test_a_format_of_a_plugin_that_is_not_installed_shows_how_to_install_it() -> None:
    with pytest.raises(SmolLM3Error, match="the quantizer 'bnb-4bit' is not installed") as refused:
        _find(Registry(components=()), "bnb-4bit", None)
    assert refused.value.hint == "smollm3 plugins install bnb-4bit"


@pytest.mark.plugins
@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharding_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(IncompatibleError, match="shards its parameters"):
        planned("grid")


@pytest.mark.plugins
def test_the_packages_of_the_format_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm3_finetune.api import QuantizerSpec

    original = QuantizerSpec.__post_init__

    def with_requirement(self: Any) -> None:
        original(self)
        if self.name == "grid":
            object.__setattr__(self, "requires", Requires(distributions=("acme-grid>=1",)))

    monkeypatch.setattr(QuantizerSpec, "__post_init__", with_requirement)
    with pytest.raises(MissingRequirementError, match="requires acme-grid>=1"):
        planned("grid")


@pytest.mark.plugins
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    def run(name: str, steps: int, **more: Any) -> dict[str, Any]:
        train = {
            "ship_as": {"name": "grid-rows", "bits": 3}, "max_steps": steps, "schedule": "constant", "batch_size": 2,
            "save_every": 2, "sample_tokens": 4, "learning_rate": 0.01, "report": False,
        }  # fmt: skip
        data = {"limit": 24, "max_length": 64}
        where = tmp_path / name
        return finetune(data=data, train=train, output=where, plugins=[PLUGIN], quiet=True, **more)

    whole = run("whole", 4)
    run("parts", 2)
    rest = finetune(resume=tmp_path / "parts", train={"max_steps": 4}, plugins=[PLUGIN], quiet=True)
    assert rest["steps"] == 4
    for file in ("adapter_model.safetensors", "grids.safetensors", "shipped.json"):
        one, other = ((tmp_path / name / "adapter" / file).read_bytes() for name in ("whole", "parts"))
        assert one == other, file
    assert rest["after"]["held_out_loss"] == whole["after"]["held_out_loss"]
    assert whole["ship_as"]["name"] == "grid_quantizers:grid-rows"
    about = json.loads((tmp_path / "whole" / "adapter" / "shipped.json").read_text())
    assert len(about["layers"]) == len(about["grids"]) > 0
    assert (tmp_path / "whole" / "checkpoints" / "checkpoint-4" / "grids.safetensors").is_file()
