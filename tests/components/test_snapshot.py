"""The snapshot of what plugins offer: when it is used, when it is not, and that it never gets in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smollm3_finetune.cache.store import default_root
from smollm3_finetune.components import snapshot as module
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.snapshot import (
    OfferedOption,
    Snapshot,
    add_options,
    package_folders,
    read_snapshot,
    write_snapshot,
)

HOOKS = """
from smollm3_finetune.api import QuantizerSpec, Op, hookimpl

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="{name}", summary="{summary}", factory="acme.q:Q", provides={{Op.FORWARD}}, api=2)]
"""
Make = Callable[..., Path]


def written() -> Snapshot:
    write_snapshot(discover())
    found = read_snapshot()
    assert found is not None
    return found


def names(found: Snapshot | None) -> list[str]:
    assert found is not None
    return [c.name for c in found.of("quantizer") if c.distribution == "acme"]


def file_of() -> Path:
    (file,) = (default_root() / "plugins").glob("*.json")
    return file


@pytest.fixture
def acme(fake_distribution: Make) -> Path:
    return fake_distribution("acme", "1.0", {"acme.hooks": HOOKS.format(name="tens", summary="in tens")},
                             {"acme": "acme.hooks"})  # fmt: skip


def test_it_holds_what_the_registry_offers(acme: Path) -> None:
    registry, found = discover(), written()
    assert {(c.kind, c.name, c.summary, c.distribution) for c in found.components} == {
        (c.kind.name, c.spec.name, c.spec.summary, c.distribution) for c in registry.components
    }
    assert ("acme", "acme", "1.0", "active") in {(p.name, p.distribution, p.version, p.status) for p in found.plugins}
    (tens,) = (c for c in found.components if c.distribution == "acme")
    assert tens.options is None


def test_there_is_none_before_the_first_command() -> None:
    assert read_snapshot() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\0", "[" * 3000], ids=range(7))
def test_a_damaged_file_is_not_used_and_is_replaced(text: str) -> None:
    written()
    file_of().write_text(text)
    assert read_snapshot() is None
    assert written().components


def test_every_damaged_value_is_noticed(acme: Path) -> None:
    """One value after another is replaced by one of another type: the result is None, or a snapshot without it."""
    written()
    good = json.loads(file_of().read_text())
    rows: list[tuple[str, object]] = [
        ("components", 3),
        ("plugins", [[1, 2, 3, 4]]),
        ("folders", None),
        ("files", {"a": 1}),
    ]
    rows += [("components", [{**good["components"][0], key: 7}]) for key in good["components"][0]]
    for key, value in rows:
        file_of().write_text(json.dumps({**good, key: value}))
        found = read_snapshot()
        assert found is None, (key, value)


def test_it_ends_when_a_package_is_installed_changed_or_removed(acme: Path, fake_distribution: Make) -> None:
    assert names(written()) == ["tens"]
    site = acme.parent / "acme"
    other = site / "other-1.0.dist-info"
    other.mkdir()
    assert read_snapshot() is None
    assert names(written()) == ["tens"]
    other.rmdir()
    assert read_snapshot() is None
    written()
    (site / "unrelated.txt").write_text("x")  # the folder changed, its packages did not
    assert names(read_snapshot()) == ["tens"]
    (site / "acme-1.0.dist-info").rename(site / "acme-1.1.dist-info")
    assert read_snapshot() is None
    assert names(written()) == ["tens"]
    fake_distribution("third", "1.0")  # a new entry of sys.path
    assert read_snapshot() is None


def test_it_ends_when_the_hooks_of_a_plugin_are_edited(acme: Path, run_cli: Callable[..., object]) -> None:
    """As in an editable installation: nothing but the source changes."""
    assert names(written()) == ["tens"]
    (acme / "acme" / "hooks.py").write_text(HOOKS.format(name="elevens", summary="in elevens"))
    assert read_snapshot() is None


def test_a_command_writes_what_differs_also_where_the_state_seems_the_same(acme: Path) -> None:
    written()
    data = json.loads(file_of().read_text())
    data["components"] = []
    file_of().write_text(json.dumps(data))
    assert read_snapshot() == Snapshot(read_snapshot().plugins, ())  # type: ignore[union-attr]
    assert names(written()) == ["tens"]


def test_an_unchanged_snapshot_is_not_written_again_and_keeps_its_options(acme: Path) -> None:
    (tens,) = (c for c in written().components if c.distribution == "acme")
    options = [OfferedOption("bits", "4|8", "4", "Bits.", ("4", "8"))]
    source = acme / "acme" / "options.py"
    source.write_text("")
    add_options(tens, options, [str(source)])
    before = file_of().stat().st_mtime_ns
    write_snapshot(discover())
    assert file_of().stat().st_mtime_ns == before
    (again,) = (c for c in read_snapshot().components if c.distribution == "acme")  # type: ignore[union-attr]
    assert again.options == tuple(options)
    source.write_text("x = 1")  # their file was edited
    assert read_snapshot() is None


def test_plugins_of_p_are_not_in_it(plugin_file: Callable[[str, str], Path]) -> None:
    file = plugin_file("mine", HOOKS.format(name="mine", summary="of a file"))
    write_snapshot(discover(PluginSelection.of([str(file)])))
    found = read_snapshot()
    assert found is not None
    assert "mine" not in {c.name for c in found.components} | {p.name for p in found.plugins}


def test_a_registry_without_some_plugins_is_not_written(acme: Path) -> None:
    write_snapshot(discover(PluginSelection.of(["no:acme"])))
    write_snapshot(discover(PluginSelection.of([], no_plugins=True)))
    assert read_snapshot() is None


def test_disabled_plugins_are_left_out(acme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written()
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "acme")
    assert names(read_snapshot()) == []
    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "all")
    found = read_snapshot()
    assert found is not None
    assert {p.name for p in found.plugins} == {"builtin"}
    assert {c.distribution for c in found.components} == {"smollm3-finetune"}


def test_another_python_or_version_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written()
    monkeypatch.setattr(module, "__version__", "9.9")
    assert read_snapshot() is None
    monkeypatch.undo()


def test_packages_that_were_installed_while_plugins_were_imported_prevent_writing(acme: Path) -> None:
    before = package_folders()
    registry = discover()
    (acme / "late-1.0.dist-info").mkdir()
    write_snapshot(registry, before)
    assert read_snapshot() is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("SMOLLM3_CACHE", str(blocked))
    write_snapshot(discover())
    assert read_snapshot() is None
    monkeypatch.delenv("SMOLLM3_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    write_snapshot(discover())
    assert read_snapshot() is None


def test_a_full_disk_leaves_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.json, "dump", full)
        write_snapshot(discover())
    assert list((default_root() / "plugins").iterdir()) == []


WRITER = """
import sys
from smollm3_finetune.components.discovery import discover
from smollm3_finetune.components import snapshot
registry, folders = discover(), snapshot.package_folders()
data = {**snapshot._about(folders), **snapshot._offered(registry), "files": []}
snapshot.write_snapshot(registry)
for _ in range(60):
    snapshot._write(snapshot._file(folders), data)
    found = snapshot.read_snapshot()
    assert found is not None and found.components
"""


def test_two_processes_may_write_at_once() -> None:
    both = [subprocess.Popen([sys.executable, "-c", WRITER]) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    assert [f.suffix for f in (default_root() / "plugins").iterdir()] == [".json"]


def test_files_of_environments_that_are_gone_are_deleted() -> None:
    folder = default_root() / "plugins"
    folder.mkdir(parents=True)
    (folder / "old.json").write_text("{}")
    os.utime(folder / "old.json", (0, 0))
    written()
    assert not (folder / "old.json").exists()


def test_commands_write_it_and_the_working_directory_does_not_matter(
    cli: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("plugins", "list")
    assert read_snapshot() is not None
    monkeypatch.chdir(tmp_path)
    assert read_snapshot() is not None


def test_reading_imports_no_metadata_and_no_plugin() -> None:
    written()
    code = (
        "import sys; from smollm3_finetune.components.snapshot import read_snapshot; read_snapshot();"
        "print(sorted(m for m in sys.modules if m.startswith(('importlib.metadata', 'smollm3_', 'pluggy', 'email'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = ("cache", "cache.place", "components", "components.snapshot", "version")
    assert done.stdout.strip() == str(["smollm3_finetune", *(f"smollm3_finetune.{m}" for m in own)])
