"""Discovery: broken plugins are contained, plugins named with -p are required, nothing else is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.registry import PluginRecord, Registry
from smollm3_finetune.errors import ConfigError, PluginError

HEAD = "from smollm3_finetune.api import *\n"
GOOD = HEAD + (
    "@hookimpl\n"
    "def smollm3_adapters():\n"
    "    return [AdapterSpec(name='scale', summary='a factor', factory='good_plugin:Scale', api=1)]\n"
)


def hook(body: str, kind: str = "quantizers") -> str:
    return f"{HEAD}@hookimpl\ndef smollm3_{kind}():\n    {body}\n"


def quantizer(fields: str) -> str:
    return hook(f"return [QuantizerSpec({fields if 'api=' in fields else fields + ', api=1'})]")


BROKEN = {
    "import-error": ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    "syntax-error": ("def (:\n", "SyntaxError"),
    "system-exit": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "misspelled-hook": (hook("return []", "quantizer"), "did you mean 'smollm3_quantizers'?"),
    "undecorated-hook": ("def smollm3_adapters():\n    return []\n", "'smollm3_adapters' is not decorated"),
    "wrong-signature": (f"{HEAD}@hookimpl\ndef smollm3_adapters(model):\n    return []\n", "model"),
    "raising-hook": (hook("raise RuntimeError('no license')"), "RuntimeError: no license"),
    "exiting-hook": (hook("raise SystemExit('bye')"), "SystemExit: bye"),
    "late-generator": (
        hook("yield QuantizerSpec(name='q', summary='s', factory='a:B', api=1); raise ValueError('late')"),
        "ValueError: late",
    ),
    "wrapper": (
        f"{HEAD}import pluggy\n@pluggy.HookimplMarker('smollm3_finetune')(wrapper=True)\n"
        "def smollm3_adapters():\n    return (yield)\n",
        "cannot be a wrapper",
    ),
    "returns-none": (hook("pass"), "must return an iterable of descriptors, but returned None"),
    "returns-text": (hook("return 'gptq'"), "must return an iterable of descriptors, but returned 'gptq'"),
    "returns-number": (hook("return 3"), "must return an iterable of descriptors, but returned 3"),
    "wrong-descriptor": (
        hook("return [AdapterSpec(name='a', summary='s', factory='a:B', api=1)]"),
        "smollm3_quantizers must return QuantizerSpec objects",
    ),
    "unknown-field": (quantizer("name='q', summary='s', factory='a:B', color=1"), "color"),
    "unknown-op": (quantizer("name='q', summary='s', factory='a:B', provides={'fly'}"), "'fly'"),
    "bad-name": (quantizer("name='My_Quant', summary='s', factory='a:B'"), "'My_Quant' must be lower-case"),
    "bad-alias": (quantizer("name='q', aliases=('Q 4',), summary='s', factory='a:B'"), "'Q 4' must be lower-case"),
    "alias-is-text": (quantizer("name='q', aliases='bnb', summary='s', factory='a:B'"), "aliases"),
    "requires-text": (
        quantizer("name='q', summary='s', factory='a:B', requires=Requires(distributions='torch')"),
        "distributions",
    ),
    "bad-factory": (quantizer("name='q', summary='s', factory='a.b.C'"), "factory must be 'package.module:Class'"),
    "class-as-factory": (quantizer("name='q', summary='s', factory=dict"), "factory must be 'package.module:Class'"),
    "bad-options": (quantizer("name='q', summary='s', factory='a:B', options='c'"), "options must be"),
    "no-summary": (quantizer("name='q', summary='', factory='a:B'"), "'q' has no summary"),
    "no-api": (
        hook("return [QuantizerSpec(name='q', summary='s', factory='a:B')]"),
        "QuantizerSpec 'q' does not state the plugin API that it was written for",
    ),
    "api-is-text": (quantizer("name='q', summary='s', factory='a:B', api='1'"), "'q': api must be 1, but is '1'"),
    "newer-api": (quantizer("name='q', summary='s', factory='a:B', api=99"), "upgrade smollm3-finetune"),
    "one-name-twice": (
        hook("return [QuantizerSpec(name='q', summary='s', factory='a:B', api=1) for _ in range(2)]"),
        "'q' twice",
    ),
}  # fmt: skip


def record(registry: Registry, name: str) -> PluginRecord:
    found = [p for p in registry.plugins if p.name == name]
    assert len(found) == 1
    return found[0]


def offered(registry: Registry, kind: Any) -> set[str]:
    return {o.full_name for o in registry.of(kind)}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_contained_and_its_error_is_recorded(case: str, fake_distribution: Any) -> None:
    source, expected = BROKEN[case]
    fake_distribution("acme-broken", "2.1", {"broken_plugin": source}, {"broken": "broken_plugin"})
    fake_distribution("acme-good", "1.0", {"good_plugin": GOOD}, {"good": "good_plugin"})
    registry = discover()
    broken = record(registry, "broken")
    assert (broken.status, broken.distribution, broken.version) == ("broken", "acme-broken", "2.1")
    assert expected in (broken.error or "") or expected in (broken.hint or "")
    assert "\n" not in (broken.error or "")
    assert not any(o.distribution == "acme-broken" for o in registry.components)
    assert record(registry, "good").status == "active"
    assert "acme-good:scale" in offered(registry, ADAPTER)
    assert "smollm3-finetune:none" in offered(registry, QUANTIZER)


def test_all_broken_plugins_together_leave_the_good_one_working(fake_distribution: Any) -> None:
    modules = {f"broken_{i}": source for i, (source, _) in enumerate(BROKEN.values())}
    fake_distribution("acme-broken", "1", modules, {f"x{i}": m for i, m in enumerate(modules)})
    fake_distribution("acme-good", "1.0", {"good_plugin": GOOD}, {"a-good": "good_plugin", "z-good": "good_again"})
    registry = discover()
    assert len(list(registry.broken())) >= len(BROKEN) + 1  # the module of z-good does not exist
    assert record(registry, "a-good").status == "active"


def test_an_entry_point_to_a_missing_module_is_broken(fake_distribution: Any) -> None:
    fake_distribution("acme", "1", {"acme_hooks": GOOD}, {"gone": "acme_missing", "attr": "acme_hooks:Absent"})
    registry = discover()
    assert "acme_missing" in (record(registry, "gone").error or "")
    assert "Absent" in (record(registry, "attr").error or "")


def test_a_distribution_without_metadata_is_found(fake_distribution: Any) -> None:
    site = fake_distribution("acme", "1", {"good_plugin": GOOD}, {"acme": "good_plugin"})
    next(site.glob("*.dist-info/METADATA")).unlink()
    assert record(discover(), "acme").status == "active"


def test_strict_makes_any_broken_plugin_an_error(fake_distribution: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_distribution("acme", "2.1", {"acme_bad": "raise RuntimeError('no license')\n"}, {"acme": "acme_bad"})
    monkeypatch.setenv("SMOLLM3_STRICT_PLUGINS", "0")
    discover()
    monkeypatch.setenv("SMOLLM3_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=r"plugin 'acme' \(acme 2\.1, entry point\) is broken.*no license") as caught:
        discover()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.hint is not None and "-p no:acme" in caught.value.hint


def test_trace_prints_a_line_for_each_plugin(
    fake_distribution: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_distribution("acme", "1", {"good_plugin": GOOD}, {"acme": "good_plugin", "bad": "acme_missing"})
    monkeypatch.setenv("SMOLLM3_TRACE_PLUGINS", "1")
    discover()
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("smollm3: plugin acme: active, ") and line.endswith(" ms") for line in lines)
    assert any(line.startswith("smollm3: plugin bad: broken, ") for line in lines)


@pytest.mark.parametrize("name", ["acme", "acme-tools"])
def test_a_blocked_plugin_is_not_imported(name: str, fake_distribution: Any, tmp_path: Path) -> None:
    source = f"open({str(tmp_path / 'imported')!r}, 'w').close()\n" + GOOD
    fake_distribution("acme-tools", "1", {"acme_hooks": source}, {"acme": "acme_hooks"})
    registry = discover(PluginSelection.of([f"no:{name}"]))
    assert record(registry, "acme").status == "disabled"
    assert not (tmp_path / "imported").exists()
    assert "acme_hooks" not in sys.modules
    discover()
    assert (tmp_path / "imported").exists()  # shows that the test can fail


def test_the_environment_variable_blocks_names_or_all_plugins(
    fake_distribution: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_distribution("acme", "1", {"good_plugin": GOOD}, {"acme": "good_plugin"})
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "acme,")
    assert record(discover(PluginSelection.of([])), "acme").status == "disabled"
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "1")
    assert [p.name for p in discover(PluginSelection.of([])).plugins] == ["builtin"]
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "0")
    assert record(discover(PluginSelection.of([])), "acme").status == "active"


def test_an_unknown_blocked_name_is_an_error_with_a_suggestion(fake_distribution: Any) -> None:
    fake_distribution("acme-tools", "1", {"good_plugin": GOOD}, {"acme": "good_plugin"})
    with pytest.raises(ConfigError, match="there is no plugin 'acmee' to disable") as caught:
        discover(PluginSelection.of(["no:acmee"]))
    assert caught.value.hint == "did you mean -p no:acme?"


def test_the_built_in_components_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="built-in"):
        discover(PluginSelection.of(["no:builtin"]))


def test_no_plugins_skips_entry_points_but_loads_named_files(
    fake_distribution: Any, plugin_file: Callable[[str, str], Path]
) -> None:
    fake_distribution("acme", "1", {"good_plugin": GOOD}, {"acme": "good_plugin"})
    mine = plugin_file("mine", GOOD.replace("good_plugin", "mine"))
    registry = discover(PluginSelection.of([str(mine)], no_plugins=True))
    assert [p.name for p in registry.plugins] == ["builtin", "mine"]


def test_no_plugins_with_a_name_in_the_environment_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "acme")
    assert [p.name for p in discover(PluginSelection.of([], no_plugins=True)).plugins] == ["builtin"]


def test_files_and_modules_given_with_p_offer_components(
    plugin_file: Callable[[str, str], Path], fake_distribution: Any
) -> None:
    mine = plugin_file("mine", GOOD.replace("'scale'", "'mine'"))
    fake_distribution("acme", "1", {"acme.hooks": GOOD})  # importable, but without an entry point
    registry = discover(PluginSelection.of([str(mine), "acme.hooks"]))
    assert {"mine:mine", "acme.hooks:scale"} <= offered(registry, ADAPTER)
    assert record(registry, "mine").origin == str(mine.resolve())


def test_a_plugin_named_twice_is_one_plugin(plugin_file: Callable[[str, str], Path], fake_distribution: Any) -> None:
    mine = plugin_file("mine", GOOD.replace("'scale'", "'mine'"))
    fake_distribution("acme", "1", {"acme_hooks": GOOD}, {"acme": "acme_hooks"})
    relative = os.path.relpath(mine)
    registry = discover(PluginSelection.of([str(mine), relative, "acme_hooks"]))  # the module is also an entry point
    names = [o.full_name for o in registry.of(ADAPTER) if o.spec.name in ("mine", "scale")]
    assert names == ["mine:mine", "acme:scale"]
    assert registry.shared_names() == {}


@pytest.mark.parametrize("text", ["missing.py", "./missing.py", "no_such_module_at_all", "no_such_package.inside"])
def test_a_missing_plugin_given_with_p_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=f"the plugin (file|module) {text!r} "):
        discover(PluginSelection.of([text]))


def test_a_directory_or_a_file_of_another_type_given_with_p_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="Python file"):
            discover(PluginSelection.of([f"{path}"]))


def test_a_broken_plugin_given_with_p_is_an_error(
    plugin_file: Callable[[str, str], Path], fake_distribution: Any
) -> None:
    mine = plugin_file("mine", "raise RuntimeError('no license')\n")
    fake_distribution("acme", "1", {"acme": "raise RuntimeError('no package')\n", "acme.hooks": GOOD})
    with pytest.raises(PluginError, match=r"plugin 'mine' .* is broken: RuntimeError: no license") as caught:
        discover(PluginSelection.of([str(mine)]))
    assert caught.value.hint is not None and "no:mine" not in caught.value.hint
    assert "mine" not in sys.modules
    with pytest.raises((ConfigError, PluginError), match=r"acme\.hooks"):
        discover(PluginSelection.of(["acme.hooks"]))


def test_a_plugin_file_never_replaces_a_module_of_its_name(plugin_file: Callable[[str, str], Path]) -> None:
    mine = plugin_file("json", GOOD)
    before = sys.modules["json"]
    with pytest.raises(PluginError, match="the name 'json' is taken by another module"):
        discover(PluginSelection.of([str(mine)]))
    assert sys.modules["json"] is before


def test_files_in_the_working_directory_are_not_imported(isolated: Path) -> None:
    (isolated / "conftest.py").write_text("raise RuntimeError('imported')\n")
    (isolated / "smollm3_plugin.py").write_text("raise RuntimeError('imported')\n")
    assert all(p.origin in ("built in", "entry point") for p in discover().plugins)


def test_one_entry_point_name_in_two_distributions_loads_both_and_is_reported(fake_distribution: Any, cli: Any) -> None:
    fake_distribution("acme", "1.0", {"good_plugin": GOOD}, {"tools": "good_plugin"})
    fake_distribution("zeta", "2.0", {"zeta_hooks": GOOD.replace("'scale'", "'zoom'")}, {"tools": "zeta_hooks"})
    registry = discover()
    assert {"acme:scale", "zeta:zoom"} <= offered(registry, ADAPTER)
    assert [r.distribution for r in registry.shared_names()["tools"]] == ["acme", "zeta"]
    assert "the plugin name 'tools' is used by acme 1.0 and zeta 2.0" in cli("train", "--help").stderr


def test_discovery_does_not_depend_on_the_order_of_the_path(fake_distribution: Any) -> None:
    for name in ("zeta", "acme", "mid"):
        fake_distribution(name, "1", {f"{name}_hooks": GOOD.replace("'scale'", f"'{name}'")}, {name: f"{name}_hooks"})
    names = [p.name for p in discover().plugins if p.name in ("zeta", "acme", "mid")]
    assert names == ["acme", "mid", "zeta"]


def test_a_file_and_a_module_without_hooks_are_refused(isolated: Path) -> None:
    Path("plain.py").write_text("def smollm3():\n    pass\n")
    for named in ("plain.py", "json"):
        with pytest.raises(PluginError, match="is broken: it has no hook"):
            discover(PluginSelection.of((named,), no_plugins=True))


def test_an_installed_module_without_hooks_is_broken_and_contained(fake_distribution: Any) -> None:
    fake_distribution("acme", "1.0", {"acme_hooks": "x = 1"}, {"acme": "acme_hooks"})
    (record,) = [r for r in discover().plugins if r.name == "acme"]
    assert (record.status, record.components) == ("broken", ())
