"""A plugin in a folder: what its pyproject.toml and its descriptors state. Nothing is installed."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, GROUP, PluginSelection, discover
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.version import __version__

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "plugins"
BUNDLED = ROOT / "plugins"


@dataclass(frozen=True)
class Plugin:
    folder: Path

    @cached_property
    def _pyproject(self) -> Mapping[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def project(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._pyproject["project"]
        return found

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def version(self) -> str:
        """That of core, if pyproject.toml computes it."""
        return str(self.project.get("version", __version__))

    @property
    def modules(self) -> list[str]:
        """The modules of its entry points."""
        return sorted(set(self.project["entry-points"][GROUP].values()))

    @property
    def package(self) -> Path:
        """The folder of its code."""
        return self.folder / self.modules[0].partition(".")[0]

    @property
    def place(self) -> str:
        """Its folder in this repository; of a folder elsewhere, the name alone."""
        inside = self.folder.is_relative_to(ROOT)
        return self.folder.relative_to(ROOT).as_posix() if inside else self.folder.name

    @property
    def requires(self) -> list[str]:
        """Its dependencies, without core."""
        return [str(d) for d in self.project.get("dependencies", ()) if not str(d).startswith("smollm3-finetune")]

    @property
    def own_cells(self) -> Mapping[str, str]:
        """Name to shell script: the table `tool.smollm3-gallery.cells`."""
        found: Mapping[str, str] = self._pyproject.get("tool", {}).get("smollm3-gallery", {}).get("cells", {})
        return found

    @property
    def lines(self) -> int:
        """Lines of Python outside of the tests."""
        files = (f for f in self.folder.rglob("*.py") if "tests" not in f.relative_to(self.folder).parts)
        return sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)

    @cached_property
    def registry(self) -> Registry:
        """What its hooks return, beside the components of core."""
        sys.path.insert(0, str(self.folder))
        try:
            return discover(PluginSelection(files=tuple(self.modules), entry_points=False))
        finally:
            sys.path.remove(str(self.folder))

    @property
    def components(self) -> list[dict[str, str]]:
        """Kind, name and summary of each component, in the order of its hooks' kinds."""
        return [
            {"kind": c.kind.name, "name": c.spec.name, "summary": c.spec.summary}
            for c in self.registry.components
            if c.distribution != CORE_DISTRIBUTION
        ]


def plugins(above: Path = EXAMPLES) -> list[Plugin]:
    return [Plugin(file.parent) for file in sorted(above.glob("*/pyproject.toml"))]


def named(names: list[str]) -> list[Plugin]:
    """The plugins with these names or folders; without names, those of examples/plugins. Raises SystemExit."""
    if not names:
        return plugins()
    known = {p.name: p for p in (*plugins(), *plugins(BUNDLED))}
    chosen = []
    for name in names:
        if name not in known and not (Path(name) / "pyproject.toml").is_file():
            raise SystemExit(f"gallery: no plugin {name!r}; choose from: {', '.join(known)}, or a folder")
        chosen.append(known.get(name) or Plugin(Path(name).resolve()))
    return chosen
