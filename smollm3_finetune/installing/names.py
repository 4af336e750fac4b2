"""Whose a name is. A plugin that was not published with this core has a name that anybody may take on a package index.

Such a name is therefore taken from the clone, from a folder of wheels, or from an index that the user names; never from
the default package index, where a stranger's version 99 would win over the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from smollm3_finetune.installing.environment import InstalledDistribution, from_package_index
from smollm3_finetune.installing.index import IndexedPlugin


def may_be_anybodys(entry: IndexedPlugin, found: Mapping[str, InstalledDistribution]) -> bool:
    """Whether the default package index may have this name from somebody else."""
    return not entry.published or (entry.folder is not None and not from_package_index(found))


def of_file_name(file: str) -> tuple[str | None, str]:
    """The canonical name and the version of the distribution of a wheel or a source archive."""
    try:
        name, version, *_ = parse_wheel_filename(file) if file.endswith(".whl") else parse_sdist_filename(file)
    except ValueError:
        return None, ""
    return name, str(version)


def newest_file(folders: Iterable[Path], name: str, wanted: SpecifierSet) -> Path | None:
    """The wheel or source archive of a distribution with the highest version that is wanted; a wheel before sources."""
    found = []
    for file in (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())):
        own, version = of_file_name(file.name)
        if own == canonicalize_name(name) and wanted.contains(version, prereleases=bool(wanted.prereleases)):
            found.append((Version(version), file.suffix == ".whl", file))
    return max(found)[2] if found else None
