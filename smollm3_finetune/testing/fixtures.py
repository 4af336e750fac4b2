"""Fixtures for tests of plugins, for those who ask for them: `pytest_plugins = ["smollm3_finetune.testing.fixtures"]`.

Nothing here is loaded into a pytest run that does not name it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smollm3_finetune.testing.commands import OFFLINE, Result, smollm3
from smollm3_finetune.testing.small import EMBEDDED, small_model_directory

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry

GROUP = "smollm3_finetune"


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with nothing in it; meanwhile no installed plugin is found by anything that looks."""
    from smollm3_finetune.components.registry import Registry

    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "1")
    return Registry(components=())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test alone; nothing is asked of the Hub."""
    cache = tmp_path / "cache"
    for name, value in {**OFFLINE, "SMOLLM3_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return cache


@pytest.fixture
def fake_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Make an installed distribution, for this process and those it starts; returns the folder it lies in.

    `fake_distribution("acme", "1.0", {"acme_hooks": SOURCE}, {"acme": "acme_hooks"})`: modules by their dotted names,
    entry points by theirs. Its modules are forgotten after the test.
    """
    sites: list[Path] = []

    def make(
        name: str,
        version: str = "1.0",
        modules: Mapping[str, str] | None = None,
        entry_points: Mapping[str, str] | None = None,
    ) -> Path:
        site = tmp_path / "site" / name
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = [f"[{GROUP}]", *(f"{k} = {v}" for k, v in (entry_points or {}).items())]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        names = set(modules or {})
        for dotted, source in (modules or {}).items():
            parts = dotted.split(".")
            for i in range(1, len(parts)):
                package = site.joinpath(*parts[:i])
                package.mkdir(parents=True, exist_ok=True)
                (package / "__init__.py").touch()
            package_itself = any(n.startswith(f"{dotted}.") for n in names)
            file = site.joinpath(*parts, "__init__.py") if package_itself else site.joinpath(*parts).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        before = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), before))))
        importlib.invalidate_caches()
        sites.append(site)
        return site

    yield make
    for name, module in list(sys.modules.items()):
        if any(str(getattr(module, "__file__", None) or "").startswith(f"{site}{os.sep}") for site in sites):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The embedded, trained model of two million parameters; its directory, which is not to be altered."""
    return EMBEDDED


@pytest.fixture(scope="session")
def small_model() -> Path:
    """A random SmolLM3 of two layers with the embedded model's tokenizer; its directory, which is not to be altered."""
    return small_model_directory()


@pytest.fixture
def cli(own_cache: Path) -> Callable[..., Result]:
    """`smollm3 ARGS` in this process: `cli("plugins", "list").stdout`."""
    return smollm3


@pytest.fixture
def run_cli(own_cache: Path) -> Callable[..., Result]:
    """`smollm3 ARGS` in a process of its own, which sees the fake distributions."""

    def run(*args: Any, timeout_s: float = 300, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "smollm3_finetune.main", *map(str, args)],
            capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **env}, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run
