"""Finding a component by name, alias or `distribution:name`, and the errors if it is not found."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import AdapterSpec, FormatterSpec, LoaderSpec, NoOptions, QuantizerSpec
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, FORMATTER, KINDS, LOADER, OPTIMIZER, QUANTIZER, Kind
from smollm3_finetune.components.registry import (
    PluginRecord,
    RegisteredComponent,
    Registry,
    known_components,
)
from smollm3_finetune.errors import (
    MissingRequirementError,
    PluginConflictError,
    PluginError,
    SmolLM3Error,
    UnknownComponentError,
)

ROOT = Path(__file__).parents[2]


def component(
    name: str, distribution: str = "acme", version: str = "1.0", kind: Kind = QUANTIZER, **fields: Any
) -> RegisteredComponent:  # fmt: skip
    spec = kind.spec(name=name, summary="s", api=2, **{"factory": "acme_impl:Thing", **fields})
    return RegisteredComponent(kind=kind, spec=spec, distribution=distribution, version=version, plugin=distribution)


TWO = Registry(
    components=(component("int8"), component("int8", "zeta", "2.1"), component("rows", aliases=("row-wise",)))
)


def test_a_full_name_that_is_not_installed_shows_how_to_install_it() -> None:
    with pytest.raises(UnknownComponentError, match="the quantizer 'kernels:int3' is not installed") as caught:
        TWO.find(QUANTIZER, "kernels:int3")
    assert caught.value.hint == (
        "smollm3 plugins install kernels, or for a plugin of your own: -p kernels.py or -p kernels"
    )
    with pytest.raises(UnknownComponentError) as caught:  # neither a file nor a module can have this name
        TWO.find(QUANTIZER, "smollm3-ternary:int3")
    assert caught.value.hint == "smollm3 plugins install smollm3-ternary"
    with pytest.raises(UnknownComponentError) as caught:
        TWO.find(QUANTIZER, "acmee:int8")
    assert caught.value.hint == "did you mean 'acme:int8'?"


def test_a_name_an_alias_and_a_full_name_find_the_component() -> None:
    for name in ("rows", "row-wise", "acme:rows", "acme:row-wise"):
        assert TWO.find(QUANTIZER, name).full_name == "acme:rows"


def test_a_name_of_another_kind_is_not_found() -> None:
    with pytest.raises(UnknownComponentError, match="there is no adapter 'rows'"):
        TWO.find(ADAPTER, "rows")


def test_a_conflict_names_both_distributions_and_is_resolved_by_full_names() -> None:
    with pytest.raises(PluginConflictError, match=r"quantizer 'int8' is offered by acme 1\.0 and zeta 2\.1") as caught:
        TWO.find(QUANTIZER, "int8")
    assert caught.value.hint == "--quant acme:int8 or --quant zeta:int8"
    assert TWO.find(QUANTIZER, "zeta:int8").version == "2.1"
    assert TWO.find(QUANTIZER, "acme:int8").version == "1.0"


def test_an_alias_equal_to_another_name_is_a_conflict() -> None:
    registry = Registry(components=(component("int8"), component("eight", "zeta", aliases=("int8",))))
    with pytest.raises(PluginConflictError, match=r"zeta 1\.0 and acme 1\.0"):
        registry.find(QUANTIZER, "int8")


def test_plugins_that_share_a_name_conflict_only_if_it_is_used(fake_distribution: Any) -> None:
    source = (
        "from smollm3_finetune.api import *\n@hookimpl\ndef smollm3_quantizers():\n"
        "    return [QuantizerSpec(name='int5', summary='s', factory='x:Y', api=2)]\n"
    )
    fake_distribution("acme", "1.0", {"acme_hooks": source}, {"acme": "acme_hooks"})
    fake_distribution("zeta", "2.0", {"zeta_hooks": source}, {"zeta": "zeta_hooks"})
    registry = discover()
    assert registry.find(QUANTIZER, "none").distribution == "smollm3-finetune"
    assert registry.find(QUANTIZER, "zeta:int5").version == "2.0"
    with pytest.raises(PluginConflictError, match=r"acme 1\.0 and zeta 2\.0"):
        registry.find(QUANTIZER, "int5")


def test_a_plugin_with_a_built_in_name_does_not_replace_the_built_in(fake_distribution: Any) -> None:
    source = (
        "from smollm3_finetune.api import *\n@hookimpl\ndef smollm3_quantizers():\n"
        "    return [QuantizerSpec(name='none', summary='s', factory='x:Y', api=2)]\n"
    )
    fake_distribution("acme", "1.0", {"acme_hooks": source}, {"acme": "acme_hooks"})
    registry = discover()
    with pytest.raises(PluginConflictError, match=r"acme 1\.0 and smollm3-finetune"):
        registry.find(QUANTIZER, "none")
    assert registry.find(QUANTIZER, "smollm3-finetune:none").spec.factory.startswith("smollm3_finetune.builtin")


def test_a_mistyped_name_gets_a_suggestion_and_an_unknown_one_the_list() -> None:
    with pytest.raises(UnknownComponentError) as caught:
        TWO.find(QUANTIZER, "rwos")
    assert caught.value.hint == "did you mean 'rows'?"
    with pytest.raises(UnknownComponentError) as caught:
        TWO.find(QUANTIZER, "zzzzzz")
    assert caught.value.hint == "installed: int8, row-wise, rows"


def test_a_known_name_that_is_not_installed_gets_the_install_command() -> None:
    for kind, name, folder in (
        (OPTIMIZER, "muon", "smollm3-muon"),
        (QUANTIZER, "bnb-4bit", "smollm3-bitsandbytes"),
        (ADAPTER, "lora", "smollm3-peft"),
        (LOADER, "gguf", "smollm3-gguf"),
    ):
        with pytest.raises(UnknownComponentError) as caught:
            discover(PluginSelection.of([], no_plugins=True)).find(kind, name)
        if "is not installed" in caught.value.message:
            assert caught.value.hint == f"smollm3 plugins install {name}"
        else:  # it is installed, and --no-plugins disables it
            assert f"is in {folder}, but installed plugins are disabled" in caught.value.message
    with pytest.raises(UnknownComponentError) as caught:
        TWO.find(ADAPTER, "lorra")
    assert caught.value.hint == "did you mean 'lora'?"


def test_every_install_hint_points_to_an_existing_project() -> None:
    kinds = {k.name for k in KINDS}
    assert set(known_components()) <= kinds
    for names in known_components().values():
        for name in names.values():
            (file,) = (
                f for above in ("plugins", "examples/plugins") for f in ROOT.glob(f"{above}/{name}/pyproject.toml")
            )
            project = tomllib.loads(file.read_text())["project"]
            assert name == project["name"]
            assert "smollm3_finetune" in project["entry-points"]


def _broken(distribution: str) -> PluginRecord:
    error = PluginError(f"plugin {distribution!r} is broken: RuntimeError: no license")
    return PluginRecord(
        name=distribution, distribution=distribution, version="1", origin="entry point", status="broken",
        error="RuntimeError: no license", exceptions=[error],
    )  # fmt: skip


def test_a_name_of_a_broken_plugin_raises_the_error_of_the_plugin() -> None:
    registry = Registry(components=(component("rows"),), plugins=(_broken("smollm3-peft"), _broken("acme-bad")))
    with pytest.raises(PluginError, match=r"smollm3-peft.*no license"):
        registry.find(ADAPTER, "lora")
    with pytest.raises(PluginError, match=r"acme-bad.*no license"):
        registry.find(ADAPTER, "acme-bad:whatever")
    with pytest.raises(UnknownComponentError, match=r"broken plugins that may offer it: smollm3-peft, acme-bad"):
        registry.find(ADAPTER, "fancy")


def test_a_name_of_a_disabled_plugin_is_reported_as_disabled() -> None:
    record = PluginRecord(
        name="peft", distribution="smollm3-peft", version="1", origin="entry point", status="disabled"
    )
    with pytest.raises(UnknownComponentError, match="offered by the plugin 'peft', which is disabled"):
        Registry(components=(), plugins=(record,)).find(ADAPTER, "lora")


def test_components_are_sorted_by_name_in_any_order_of_discovery() -> None:
    backwards = Registry(components=TWO.components[::-1])
    names = [o.full_name for o in backwards.of(QUANTIZER)]
    assert names == [o.full_name for o in TWO.of(QUANTIZER)] == ["acme:int8", "zeta:int8", "acme:rows"]


def test_a_missing_package_of_a_factory_is_named_and_a_broken_factory_names_the_plugin(
    fake_distribution: Any,
) -> None:
    fake_distribution(
        "acme", "1.0",
        {
            "acme.needy": "import no_such_package.deep\n",
            "acme.wrong": "from acme import gone\n",
            "acme.lost": "import acme.not_there\n",
            "acme.exits": "raise SystemExit(1)\n",
            "acme.fine": (
                "class Refuses:\n    def __init__(self, options): raise RuntimeError('no license')\n"
                "class Takes:\n    def __init__(self, options): self.options = options\n"
                "    def load(self, source, ctx): ...\n"
            ),
        },
    )  # fmt: skip
    with pytest.raises(MissingRequirementError, match="needs the package 'no_such_package'") as caught:
        component("q", factory="acme.needy:X").create(NoOptions())
    assert caught.value.hint == "pip install no_such_package"
    for module in ("acme.wrong", "acme.lost", "acme.exits", "acme.absent", "acme.fine"):
        with pytest.raises(PluginError, match=rf"quantizer 'q' \(acme 1\.0\), {module}:X, cannot be imported"):
            component("q", factory=f"{module}:X").create(NoOptions())
    with pytest.raises(PluginError, match=r"quantizer 'q' \(acme 1\.0\).*RuntimeError: no license"):
        component("q", factory="acme.fine:Refuses").create(NoOptions())
    options = NoOptions()
    assert component("q", factory="acme.fine:Takes").create(options).options is options


def test_options_that_are_not_a_dataclass_are_a_plugin_error(fake_distribution: Any) -> None:
    fake_distribution("acme", "1.0", {"acme_options": "number = 3\nclass Plain: pass\n"})
    from smollm3_finetune.config.options import build

    with pytest.raises(PluginError, match="acme_options:number"):
        component("q", options="acme_options:number").options_class()
    with pytest.raises(PluginError, match="not a dataclass"):
        build(component("q", options="acme_options:Plain").options_class(), {}, "quant")


def _claiming(name: str, distribution: str, claims: Any, kind: Kind = FORMATTER, rank: int = 0) -> RegisteredComponent:
    extra = {} if kind is QUANTIZER else {"rank": rank}
    return component(name, distribution, kind=kind, claims=claims, **extra)


def _raises(_: Any) -> bool:
    raise AttributeError("not what I expected")


def test_a_claim_that_raises_counts_as_false_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(components=(_claiming("bad", "acme", _raises), _claiming("good", "zeta", lambda row: True)))
    assert [o.spec.name for o in registry.claiming(FORMATTER, {"a": 1})] == ["good"]
    assert "formatter 'bad' (acme 1.0)" in caplog.text
    assert "AttributeError: not what I expected" in caplog.text


def test_the_claims_of_highest_rank_are_returned() -> None:
    def yes(_: Any) -> bool:
        return True

    low, high, also = (
        _claiming(n, "acme", yes, LOADER, r) for n, r in (("low", -10), ("high", 0), ("also", 0))
    )  # fmt: skip
    assert Registry(components=(low, high)).claiming(LOADER, "x") == [high]
    assert Registry(components=(low, high, also)).claiming(LOADER, "x") == [also, high]
    assert Registry(components=(component("silent", kind=LOADER),)).claiming(LOADER, "x") == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_descriptor_without_api_is_named(kind: Kind) -> None:
    with pytest.raises(TypeError, match=rf"{kind.spec.__name__} 'mine' does not state .*: add api=2$"):
        kind.spec(name="mine", summary="s", factory="a:B")
    spec = kind.spec(name="mine", summary="s", factory="a:B", api=2)
    assert copy.copy(spec) == pickle.loads(pickle.dumps(spec)) == dataclasses.replace(spec) == spec


def test_descriptors_are_frozen() -> None:
    for cls in (LoaderSpec, QuantizerSpec, AdapterSpec, FormatterSpec):
        spec = cls(name="a", summary="s", factory="a:B", api=2)
        with pytest.raises(AttributeError):
            spec.name = "b"  # type: ignore[misc]
    assert issubclass(PluginConflictError, SmolLM3Error)
