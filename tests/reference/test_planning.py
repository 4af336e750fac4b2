"""What is decided about a reference before weights are read: descriptors, options, adapters, launchers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from smollm3_finetune.api import ObjectiveSpec
from smollm3_finetune.checks.component import component_findings
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, OBJECTIVE
from smollm3_finetune.components.negotiation import environment, refined
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import IncompatibleError, PluginError
from smollm3_finetune.reference.other_model import own_model
from smollm3_finetune.reference.plan import plan_reference

FILES = ("toy_pairs.py", "scale_adapter.py")
TRAIN = (
    "train",
    "-p",
    FILES[0],
    "-p",
    FILES[1],
    "--objective",
    "toy-pairs",
    "--device",
    "cpu",
    "--data",
    "pairs.jsonl",
)


@pytest.fixture
def registry(toy: ModuleType) -> Registry:
    return discover(PluginSelection.of(FILES))


@pytest.mark.parametrize(
    ("options", "adapter", "line"),
    [
        ((), "scale", "its base; computed in each step"),
        (("reference=start",), "scale", "itself before the first step, which is its base; computed in each step"),
        (("reference=start",), "full",
         "itself before the first step, whose trained weights are saved in start/; computed in each step"),
        (("reference=model",), "full", "its own source 'tiny'; computed once, before the first step"),
        (("reference=model", "model=other"), "full", "the model 'other'; computed once, before the first step"),
    ],
)  # fmt: skip
def test_a_dry_run_says_which_reference_is_used_and_when(
    cli: Any, toy: ModuleType, options: tuple[str, ...], adapter: str, line: str
) -> None:
    import shutil

    from smollm3_finetune.testing.small import EMBEDDED

    shutil.copytree(EMBEDDED, "other")
    chosen = [part for option in options for part in ("--objective-opt", option)]
    shown = cli(*TRAIN, "--adapter", adapter, *chosen, "--dry-run")
    assert shown.code == 0, shown.stderr
    assert f"# the loss compares the model with {line}\n" in shown.stdout


def test_once_is_shown_and_an_objective_without_reference_shows_nothing(cli: Any, toy: ModuleType) -> None:
    shown = cli(*TRAIN, "--adapter", "scale", "--set", "train.reference=once", "--dry-run")
    assert "# the loss compares the model with its base; computed once, before the first step\n" in shown.stdout
    about = json.loads(cli(*TRAIN, "--adapter", "scale", "--dry-run", "--json").stdout)
    assert (about["reference"], about["reference_line"][:8]) == ("base", "the loss")
    none = cli(*TRAIN, "--adapter", "full", "--objective-opt", "reference=none", "--dry-run")
    assert none.code == 0 and "the loss compares" not in none.stdout


def test_only_the_base_needs_an_adapter_that_can_be_disabled(cli: Any, toy: ModuleType) -> None:
    Path("pairs.jsonl").write_text("not json\n")  # refused before rows are read
    refused = cli(*TRAIN, "--adapter", "full", "--dry-run")
    assert refused.code == 3
    assert refused.stderr.startswith(
        "error: --objective toy-pairs compares the model with its base, but --adapter full changes the base and cannot "
        "be disabled\n"
    )


@pytest.mark.parametrize(("continues", "exchanged"), [(False, False), (True, True)])
def test_an_adapter_that_was_trained_before_does_not_start_as_the_base(
    registry: Registry, continues: bool, exchanged: bool
) -> None:
    planned = plan_reference(registry, chosen(registry), model_of(registry), TrainConfig(), continues=continues)
    assert (planned.kind, planned.exchanged) == ("start", exchanged)


def test_sharded_weights_are_not_exchanged(registry: Registry) -> None:
    about = (registry, chosen(registry), model_of(registry))
    assert not plan_reference(*about, TrainConfig(), continues=False, shares=True).exchanged
    assert plan_reference(*about, TrainConfig(reference="once"), continues=True, shares=True).exchanged
    with pytest.raises(IncompatibleError, match="cannot be exchanged in each step if the processes share") as refused:
        plan_reference(*about, TrainConfig(), continues=True, shares=True)
    assert refused.value.hint == "--set train.reference=once"


@pytest.mark.parametrize(
    ("name", "change", "hint"),
    [
        ("model", "options.model", "--objective-opt model=MODEL"),
        ("taught_by", "None if options.taught_by == 'base' else options.taught_by", "--objective-opt taught_by=MODEL"),
        ("other", "None", "--model MODEL"),
    ],
)
def test_the_option_that_names_another_model_is_part_of_the_hint(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, change: str, hint: str
) -> None:
    """Whatever its name and its default are; without such an option, the trained model must be another one."""
    text = Path("toy_pairs.py").read_text()
    text = text.replace("model: str | None = option(None,", f"{name}: str | None = option('base',")
    Path("toy_pairs.py").write_text(text.replace("reference_model=options.model", f"reference_model={change}"))
    sys.modules.pop("toy_pairs")
    registry = discover(PluginSelection.of(FILES))
    objective = choose(registry, OBJECTIVE, "toy-pairs", {"reference": "model"})
    monkeypatch.setattr("smollm3_finetune.reference.other_model.claiming_quantizers", lambda *a: ["gptq"])
    with pytest.raises(IncompatibleError, match="'tiny' is a quantized checkpoint") as refused:
        own_model(registry, objective, model_of(registry))
    assert refused.value.hint == hint


def chosen(registry: Registry) -> Any:
    return choose(registry, OBJECTIVE, "toy-pairs", {"reference": "start"})


def model_of(registry: Registry) -> Any:
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model

    request = ModelRequest(ref="tiny", adapter=ComponentConfig(name="scale"))
    return plan_model(registry, select_model(registry, request), build_context("train", "cpu", "float32", 0))


# ---------------------------------------------------------------------------------------------- descriptors


def test_options_decide_the_reference(registry: Registry) -> None:
    component = choose(registry, OBJECTIVE, "toy-pairs", {"reference": "model", "model": "org/name"})
    spec: ObjectiveSpec = refined(component, environment("cpu", "train"))
    assert (spec.reference, spec.reference_model) == ("model", "org/name")
    assert choose(registry, ADAPTER, "scale", {}).spec.disables


def test_refine_must_return_a_descriptor_of_an_objective(
    cli: Any, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path("toy_pairs.py").read_text()
    Path("toy_pairs.py").write_text(text.replace("    return dataclasses.replace(spec, ", "    return dict("))
    sys.modules.pop("toy_pairs")
    registry = discover(PluginSelection.of(FILES))
    with pytest.raises(PluginError, match=r"refine\(\).*not an ObjectiveSpec"):
        refined(choose(registry, OBJECTIVE, "toy-pairs", {}), environment("cpu", "train"))


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ('reference="begin"', "reference must be one of 'none', 'base', 'start', 'model', got 'begin'",
         'reference="base"'),
        ('reference="base", reference_model="org/x"',
         "reference_model must be None with reference='base', got 'org/x'", 'reference="model"'),
        ('reference="model", reference_model=" "', "reference_model must be the name of a model, got ' '",
         'reference_model="org/name"'),
        ('fields="rejected"', "fields must be a tuple of 'rejected' and 'desirable', got 'rejected'",
         'fields=("rejected",)'),
        ("fields=3", "fields must be a tuple of 'rejected' and 'desirable', got 3", 'fields=("rejected",)'),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_a_hint(cli: Any, isolated: Path, fields: str, message: str, hint: str) -> None:
    Path("wrong.py").write_text(
        "from smollm3_finetune.api import ObjectiveSpec, hookimpl\n\n@hookimpl\ndef smollm3_objectives():\n"
        f"    return [ObjectiveSpec(name='w', summary='w', factory='wrong:W', api=2, {fields})]\n"
    )
    shown = cli("plugins", "check", "-p", "wrong.py")
    assert shown.code != 0
    assert f"ObjectiveSpec 'w': {message}" in shown.stdout + shown.stderr
    assert hint in shown.stdout + shown.stderr


def test_plugins_info_shows_the_reference_and_the_fields(cli: Any, toy: ModuleType) -> None:
    text = Path("toy_pairs.py").read_text()
    for reference, line in {
        "base": "the model with its base: the adapter must be one that can be disabled",
        "start": "the model with itself before the first step",
        "model": "the model with another model, which is evaluated first",
    }.items():
        changed = text.replace('reference="base",\n', f'reference="{reference}",\n            fields=("rejected",),\n')
        Path("toy_pairs.py").write_text(changed.replace("            refine=_refine,\n", ""))
        sys.modules.pop("toy_pairs", None)
        info = cli("plugins", "info", "toy-pairs", "-p", "toy_pairs.py", "--device", "cpu")
        assert f"compares     {line}\n" in info.stdout
        assert "rejected" in info.stdout


FAULTS = {
    "never called": ('reference="base"', 'reference="none"', "its reference_values is declared",
                     "reference is 'none', so the method is never called"),
    "no method": ("def reference_values", "def other_values", "its reference_values is declared",
                  "reference is 'start', but it has no method reference_values"),
    "no options": ("    reference_options = ()\n", "", "it is a ReferenceObjective",
                   "reference_options is missing: the names of the options on which the values depend"),
    "unknown option": ("reference_options = ()", "reference_options = ('other',)", "it is a ReferenceObjective",
                       "reference_options names 'other', which is not an option"),
    "arguments": ("def reference_values(self, model, batch)", "def reference_values(self, model)",
                  "it is a ReferenceObjective", "reference_values(model, batch): too many positional arguments"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_plugins_check_finds_an_objective_that_differs_from_its_descriptor(toy: ModuleType, fault: str) -> None:
    right, wrong, check, said = FAULTS[fault]
    text = Path("toy_pairs.py").read_text().replace("            refine=_refine,\n", "")
    if fault == "no method":
        text = text.replace('reference="base"', 'reference="start"')
    assert right in text

    def failed(content: str) -> list[str]:
        Path("toy_pairs.py").write_text(content)
        sys.modules.pop("toy_pairs", None)
        found = discover(PluginSelection.of(("toy_pairs.py",)))
        findings = component_findings(found.find(OBJECTIVE, "toy-pairs"), found)
        return [f.found for f in findings if f.check == check and not f.ok]

    assert failed(text) == []
    assert failed(text.replace(right, wrong)) == [said]
