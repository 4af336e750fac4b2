"""Fixtures for tests of plugins. To use them: `pytest_plugins = ["smollm3_finetune.testing.fixtures"]`.

A pytest run that does not name this module does not load it.
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
    """A registry without components. During the test, discovery ignores installed plugins."""
    from smollm3_finetune.components.registry import Registry

    monkeypatch.setenv("SMOLLM3_DISABLE_PLUGINS", "1")
    return Registry(components=())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for this test, without access to the Hub; returns its directory."""
    cache = tmp_path / "cache"
    for name, value in {**OFFLINE, "SMOLLM3_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return cache


@pytest.fixture
def fake_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a fake distribution for this process and its child processes; returns its directory.

    `fake_distribution("acme", "1.0", {"acme_hooks": SOURCE}, {"acme": "acme_hooks"})` takes a mapping from dotted
    module names to sources, and a mapping from names of entry points to modules. Its modules are removed from
    `sys.modules` after the test.
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
    """Directory of the embedded, trained model with two million parameters. Do not modify it."""
    return EMBEDDED


@pytest.fixture(scope="session")
def small_model() -> Path:
    """Directory of a random SmolLM3 of two layers, with the tokenizer of the embedded model. Do not modify it."""
    return small_model_directory()


@pytest.fixture
def cli(own_cache: Path) -> Callable[..., Result]:
    """Runs `smollm3 ARGS` in this process: `cli("plugins", "list").stdout`."""
    return smollm3


@pytest.fixture
def run_cli(own_cache: Path) -> Callable[..., Result]:
    """Runs `smollm3 ARGS` in a child process, in which the fake distributions are installed."""

    def run(*args: Any, timeout_s: float = 300, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "smollm3_finetune.main", *map(str, args)],
            capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **env}, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run
