"""Core and the plugins have one version, and every range and extra follows it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from distributions import CORE, ROOT, core_range, extras, notes, plugins, selected, version, version_problems
from set_version import set_version

NAMES = [plugin.name for plugin in plugins()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files of this project that state a version, with version 0.1.0."""
    files = ["pyproject.toml", "CHANGELOG.md", "smollm3_finetune/version.py"]
    files += [str(p.folder.relative_to(ROOT) / "pyproject.toml") for p in plugins()]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    set_version("0.1.0", tmp_path)
    return tmp_path


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_this_tree_has_one_version() -> None:
    assert version_problems() == []
    assert set(extras()) == {*(n.removeprefix("smollm3-") for n in NAMES), "all"}


@pytest.mark.parametrize(
    ("release", "expected"),
    [("0.1.0", ">=0.1.0,<0.2"), ("0.9.3", ">=0.9.3,<0.10"), ("0.2.0rc1", ">=0.2.0rc1,<0.3"), ("1.4.2", ">=1.4.2,<2")],
)
def test_a_plugin_requires_its_own_release_or_a_later_compatible_one(release: str, expected: str) -> None:
    assert core_range(release) == expected


@pytest.mark.parametrize("release", ["0.2", "v0.2.0", "latest", ""])
def test_a_text_that_is_not_a_version_is_refused(release: str) -> None:
    with pytest.raises(SystemExit, match="is not a version"):
        core_range(release)


def test_one_command_changes_every_version(tree: Path) -> None:
    changed = set_version("0.2.0", tree)
    assert len(changed) == len(NAMES) + 2
    assert (version(tree), version_problems(tree)) == ("0.2.0", [])
    for file in changed:
        assert not re.search(rf'"{CORE}[^"]*0\.1\.0|^version = "0\.1\.0"|smollm3-\w+==0\.1\.0', file.read_text(), re.M)
    assert set_version("0.2.0", tree) == []
    set_version(version(), tree)
    for file in changed:
        assert file.read_text() == (ROOT / file.relative_to(tree)).read_text()


def test_a_new_plugin_gets_its_extra(tree: Path) -> None:
    shutil.copytree(tree / "plugins" / "smollm3-gptq", tree / "plugins" / "smollm3-acme")
    replace(tree / "plugins/smollm3-acme/pyproject.toml", 'name = "smollm3-gptq"', 'name = "smollm3-acme"')
    assert [p.partition(" of")[0] for p in version_problems(tree)] == ["the extra 'acme'", "the extra 'all'"]
    set_version("0.1.0", tree)
    assert version_problems(tree) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("plugins/smollm3-gptq/pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"', "has version 0.1.1"),
        ("plugins/smollm3-gptq/pyproject.toml", "finetune>=0.1.0,<0.2", "finetune", "requires smollm3-finetune, not"),
        ("plugins/smollm3-gptq/pyproject.toml", '"smollm3-finetune>=0.1.0,<0.2",', "", "requires no smollm3-finetune"),
        ("pyproject.toml", "smollm3-gptq==0.1.0", "smollm3-gptq", "the extra 'gptq' of"),
        ("pyproject.toml", ",gptq,", ",", "the extra 'all' of"),
        ("pyproject.toml", 'test = ["griffelib>=2"', 'test = ["smollm3-other"', "which this release does not publish"),
        ("smollm3_finetune/version.py", "0.1.0", "0.1.1", "smollm3-finetune has 0.1.1"),
    ],
)  # fmt: skip
def test_a_version_that_differs_is_found(tree: Path, file: str, old: str, new: str, problem: str) -> None:
    replace(tree / file, old, new)
    assert any(problem in found for found in version_problems(tree)), version_problems(tree)


def test_the_changes_of_a_release_and_its_date(tree: Path) -> None:
    file = tree / "CHANGELOG.md"
    file.write_text("# Changes\n\n## 0.1.0 (unreleased)\n\n* New.\n\n## 0.0.1 (2026-01-02)\n\n* Old.\n")
    assert notes(tree) == ("", "* New.")
    replace(file, "unreleased", "2026-12-01")
    assert notes(tree) == ("2026-12-01", "* New.")
    replace(file, "## 0.1.0", "## 9.9.9")
    with pytest.raises(SystemExit, match="has no section"):
        notes(tree)


def test_some_or_all_distributions_are_selected() -> None:
    assert selected([]) == {"plugins": NAMES, "core": True}
    assert selected([NAMES[1]]) == {"plugins": [NAMES[1]], "core": False}
    assert selected([CORE]) == {"plugins": [], "core": True}
    with pytest.raises(SystemExit, match="there is no distribution 'smollm3-acme'"):
        selected(["smollm3-acme"])
