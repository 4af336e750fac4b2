"""The `-p` files of a run: found by their content wherever they are now, or replaced by an installed plugin."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.versions import run_components, saved_versions

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent, Registry


def check_plugin_files(run: RunDir, named: Iterable[str]) -> None:
    """Check the files of `-p` before they are executed: where the run used one of their names, the content is the same.

    Raises IncompatibleError if it differs, ConfigError if only the name differs, ModelError if the file is gone.
    """
    given = _given(named)
    for file, digest in saved_versions(run)["plugin_files"].items():
        recorded = Path(file)
        same_name = [p for p in given if p.name == recorded.name]
        if any(given[p] == digest for p in same_name):
            continue
        if recorded in same_name and given[recorded] is None:
            raise ModelError(f"the plugin file {file}, which the run {run.path} used, no longer exists")
        if same_name:
            raise _changed(run, same_name[0], recorded, digest)
        for path in (p for p, found in given.items() if found == digest):
            renamed = path.with_name(recorded.name)
            raise ConfigError(
                f"the plugin file {_shown(path)} was called {recorded.name} when the run {run.path} used it",
                hint=f"cp {shlex.quote(_shown(path))} {shlex.quote(_shown(renamed))}, and pass -p "
                f"{shlex.quote(_shown(renamed))}",
            )


def check_missing_plugin_files(run: RunDir, named: Iterable[str], registry: Registry) -> None:
    """Check that each plugin file of the run is named again, or replaced by the components of an installed plugin.

    A file is never executed without being named. Raises ConfigError with the `-p` to type, ModelError if the file is
    not found, IncompatibleError if its content has changed.
    """
    given = _given(named)
    for file, digest in saved_versions(run)["plugin_files"].items():
        recorded = Path(file)
        if digest in (found for path, found in given.items() if path.name == recorded.name):
            continue
        if _replaced(run, recorded.stem, registry):
            continue
        copy = next((p for p in _places(run, recorded) if _digest(p) == digest), None)
        if copy is None and recorded.is_file():
            raise _changed(run, recorded, recorded, digest)
        if copy is None:
            raise ModelError(
                f"the plugin file {file}, which the run {run.path} used, no longer exists",
                hint=f"pass a copy with the same content: -p PATH/TO/{recorded.name}; its SHA-256 begins with "
                f"{digest[:12]}",
            )
        raise ConfigError(
            f"the run {run.path} used the plugin file {_shown(recorded)}",
            hint=f"pass it again: -p {shlex.quote(_shown(copy))}",
        )


def _changed(run: RunDir, path: Path, recorded: Path, digest: str) -> IncompatibleError:
    copy = next((p for p in _places(run, recorded) if p != path and _digest(p) == digest), None)
    return IncompatibleError(
        f"the plugin file {path} has changed since the run {run.path} used it"
        if path == recorded
        else f"the plugin file {path} differs from {recorded}, which the run {run.path} used",
        hint=f"to use an unchanged copy: -p {shlex.quote(_shown(copy))}"
        if copy is not None
        else "restore the file, or start a new run",
    )


def _given(named: Iterable[str]) -> Mapping[Path, str | None]:
    """The files of `-p` and their hashes; None for a file that cannot be read."""
    paths = [user_path(n, "-p").resolve() for n in named if n.endswith(".py")]
    return {path: _digest(path) for path in paths}


def _shown(path: Path) -> str:
    """The path as short as it can be typed."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


def _places(run: RunDir, recorded: Path) -> Iterator[Path]:
    """Where the file may be: where it was, in the working directory, or near the run."""
    yield recorded
    for directory in (Path.cwd(), run.path.resolve(), *run.path.resolve().parents[:2]):
        yield directory / recorded.name


def _replaced(run: RunDir, plugin: str, registry: Registry) -> bool:
    """Whether installed plugins offer the components that the run has from the file `plugin`.py."""
    found = [c for c in run_components(run, registry) if plugin in _identities(c)]
    return bool(found) and not any(c.distribution == plugin and c.is_file for c in found)


def _identities(component: RegisteredComponent) -> set[str]:
    return {component.distribution, *(name.partition(":")[0] for name in component.spec.replaces)}
