"""Fixtures for the tests of core: an isolated environment, fake distributions on disk, and the command line."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from smollm3_finetune.testing.commands import Result, smollm3

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which may be while tests are collected
if "SMOLLM3_CORE_ALONE" in os.environ:  # in each of pytest's processes
    assert importlib.util.find_spec("peft") is None, "core is not alone"
PLUGIN_VARIABLES = (
    "SMOLLM3_DISABLE_PLUGINS", "SMOLLM3_STRICT_PLUGINS", "SMOLLM3_TRACE_PLUGINS", "SMOLLM3_PLUGIN_INDEX",
)  # fmt: skip
GROUP = "smollm3_finetune"
LONGEST = ("two_processes", "merge", "compiling", "train", "tutorials", "gptqmodel", "quantizing", "sharding", "check",
           "measure", "kit")  # fmt: skip
"""The slowest test files, slowest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first: if one started last, a single process would run it alone at the end."""
    order = {f"test_{name}.py": at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, a separate cache, no network, and no plugin settings from the environment.

    Modules that a test imported from its own directory are removed afterwards.
    """
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in PLUGIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SMOLLM3_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    yield work
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]
    importlib.invalidate_caches()


FakeDistribution = Callable[..., Path]


@pytest.fixture
def fake_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDistribution:
    """Create an installed distribution for this process and its child processes; returns its folder.

    `fake_distribution("acme", "1.0", {"acme.hooks": SOURCE}, {"acme": "acme.hooks"})`
    """

    def make(
        name: str, version: str = "1.0", modules: Mapping[str, str] | None = None,
        entry_points: Mapping[str, str] | None = None,
    ) -> Path:  # fmt: skip
        site = tmp_path / "site" / name
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = [f"[{GROUP}]", *(f"{k} = {v}" for k, v in (entry_points or {}).items())]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for dotted, source in sorted((modules or {}).items(), reverse=True):  # a package after its modules
            write_module(site, dotted, source)
        monkeypatch.syspath_prepend(str(site))
        before = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), before))))
        importlib.invalidate_caches()
        return site

    return make


def write_module(site: Path, dotted: str, source: str) -> Path:
    """The file of a module, and the packages above it."""
    *packages, last = dotted.split(".")
    folder = site
    for package in packages:
        folder = folder / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    is_package = (folder / last).is_dir()
    file = folder / last / "__init__.py" if is_package else folder / f"{last}.py"
    file.write_text(source, encoding="utf-8")
    return file


@pytest.fixture
def run_cli() -> Callable[..., Result]:
    """Run `smollm3 ARGS` in a separate process, which sees the fake distributions."""

    def run(*args: str, timeout: float = 300, input: str | None = None, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "smollm3_finetune.main", *map(str, args)],
            capture_output=True, text=True, timeout=timeout, input=input, env={**os.environ, **env}, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run `smollm3 ARGS` in this process: the same entry point, without starting Python."""
    return smollm3


@pytest.fixture
def plugin_file(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a plugin file for `-p`, outside the working directory."""

    def make(name: str, source: str) -> Path:
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        file = folder / f"{name}.py"
        file.write_text(source, encoding="utf-8")
        return file

    return make


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    """A directory that looks like a model. Its weight file is invalid, so reading the weights fails."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "smollm3", "architectures": ["X"]}))
    (directory / "model.safetensors").write_bytes(b"not weights")
    return directory


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Four usable rows of messages."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A number {n}."}]}
        for n in range(4)
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file
