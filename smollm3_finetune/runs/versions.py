"""The distributions that a run uses: recorded when it starts, compared when it is used again."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from smollm3_finetune.components.kinds import FORMATTER, KINDS, LAUNCHER, Kind
from smollm3_finetune.components.recorded import compare_recorded
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.load import PATHS, file_settings
from smollm3_finetune.errors import ModelError, SmolLM3Error
from smollm3_finetune.files.json import file_sha256, json_object
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.runs.rundir import RunDir

PIPELINE = "pipeline"
"""The key of versions.json and of reports for the pipeline and the stage that a run is."""


def pipeline_of(run: RunDir) -> dict[str, str] | None:
    """`pipeline` and `stage` of a run that is a stage of a pipeline; None for any other run."""
    about = json_object(run.versions).get(PIPELINE)
    if not isinstance(about, dict) or not all(isinstance(about.get(key), str) for key in ("pipeline", "stage")):
        return None
    return {key: about[key] for key in ("pipeline", "stage")}


def versions(selected: Iterable[SelectedComponent], registry: Registry) -> Mapping[str, Any]:
    """The distributions of the selected components, to reproduce a run and to compare when it is resumed."""
    from smollm3_finetune.components.requirements import installed_version

    used = {c.component.distribution: c.component.version for c in selected}
    libraries = ("torch", "transformers", "accelerate", "safetensors")
    files = {p.origin: file_sha256(p.origin) for p in registry.plugins if p.origin.endswith(".py")}
    return {"plugins": used, "libraries": {n: installed_version(n) for n in libraries}, "plugin_files": files}


def saved_versions(run: RunDir) -> dict[str, Any]:
    """The content of versions.json. Raises ModelError if it is damaged."""
    try:
        saved: dict[str, Any] = load_json(run.versions)
        if not isinstance(saved["plugins"], dict) or not isinstance(saved["plugin_files"], dict):
            raise TypeError("plugins and plugin_files must be objects")
        if not all(isinstance(v, str) for part in ("plugins", "plugin_files") for v in saved[part].values()):
            raise TypeError("versions and hashes must be text")
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ModelError(f"{run.versions} is damaged: {type(e).__name__}: {e}") from e
    return saved


def run_components(run: RunDir, registry: Registry, kinds: Collection[Kind] = KINDS) -> list[RegisteredComponent]:
    """The installed components of these kinds that the run's configuration names."""
    found = []
    for kind, name in _names(run):
        if kind in kinds:
            with contextlib.suppress(SmolLM3Error):  # reported when the component is selected
                found.append(registry.find(kind, name))
    return found


def _names(run: RunDir) -> Iterator[tuple[Kind, str]]:
    """The components that the run's configuration names, formatters of single sources included."""
    sections = {kind.section: kind for kind in KINDS}
    for setting in file_settings(run.config):
        section, *rest = setting.key
        if section in sections and rest == ["name"] and isinstance(setting.value, str):
            yield sections[section], setting.value
        elif setting.key in PATHS:
            entries = setting.value if isinstance(setting.value, list) else [setting.value]
            named = [entry.get("formatter") for entry in entries if isinstance(entry, Mapping)]
            yield from ((FORMATTER, name) for name in named if isinstance(name, str))


DECISIVE = tuple(kind for kind in KINDS if kind is not LAUNCHER)
"""The kinds of components that decide the result of a run."""


def compare_versions(run: RunDir, registry: Registry, kinds: Collection[Kind] = DECISIVE) -> list[str]:
    """A line for each plugin whose version changed since the run started; see `compare_recorded`.

    Raises IncompatibleError if a version may compute something else.
    """
    return compare_recorded(saved_versions(run)["plugins"], run_components(run, registry, kinds), "the run")
