"""A sweep of six tiny trials, run once for all tests; each test gets a copy."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import InThisProcess, write_files

from smollm3_finetune.sweep.trials import ChildProcess
from smollm3_finetune.testing.commands import OFFLINE, smollm3


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory in which the sweep was run; do not modify it."""
    place = tmp_path_factory.mktemp("sweep")
    write_files(place)
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        for name, value in {"SMOLLM3_CACHE": str(place / "cache"), **OFFLINE}.items():
            patch.setenv(name, value)
        patch.setattr(ChildProcess, "launch", lambda *args: InThisProcess()(*args))
        result = smollm3("sweep", "run", "s.yaml")
    assert result.code == 0, result.stderr
    (place / "report.txt").write_text(result.stdout, encoding="utf-8")
    (place / "s.yaml").unlink()  # a copy of the sweep belongs to the file beside it
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trials that were started, by the name of their directory; each in this process."""
    runner = InThisProcess()
    monkeypatch.setattr(ChildProcess, "launch", lambda *args: runner(*args))
    return runner.trials


@pytest.fixture
def fresh(finished: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files in the working directory, and a cache with their tokens; nothing was run there."""
    write_files(isolated)
    shutil.copytree(finished / "cache", isolated / "cache")
    monkeypatch.setenv("SMOLLM3_CACHE", str(isolated / "cache"))
    return isolated


@pytest.fixture
def copied(finished: Path, fresh: Path) -> Path:
    """A copy of the finished sweep in the working directory."""
    shutil.copytree(finished / "found", fresh / "found")
    return fresh / "found"


@pytest.fixture
def edit(isolated: Path) -> Callable[[str, str], None]:
    """Replace a text in the file of the sweep."""

    def replace(old: str, new: str) -> None:
        text = Path("s.yaml").read_text(encoding="utf-8")
        assert old in text
        Path("s.yaml").write_text(text.replace(old, new), encoding="utf-8")

    return replace


@pytest.fixture
def status(cli: Callable[..., Any]) -> Callable[[], dict[str, dict[str, Any]]]:
    """What `sweep status --json` says about each trial."""

    def read() -> dict[str, dict[str, Any]]:
        about = cli("sweep", "status", "s.yaml", "--json").report()
        return {trial["trial"]: trial for trial in about["trials"]}

    return read
