"""Whose a name is. A plugin that was not published with this core has a name that anybody may take on a package index.

Such a name is therefore taken from the clone, from a folder of wheels, or from an index that the user names; never from
the default package index, where a stranger's version 99 would win over the right one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from smollm3_finetune.errors import SmolLM3Error, did_you_mean
from smollm3_finetune.installing.contents import of_wheel
from smollm3_finetune.installing.environment import InstalledDistribution, from_package_index
from smollm3_finetune.installing.index import IndexedPlugin

NAMES_OF_COMPONENTS = "names of components come from the index of plugins: --index FILE"
"""What a user must know who names a component that no known index has."""


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


def distributions_in(folders: Iterable[Path]) -> list[str]:
    """The names of the distributions that folders have as wheels or source archives."""
    files = (file.name for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    return list(dict.fromkeys(name for name, _ in map(of_file_name, files) if name is not None))


def meant_wheel(folders: Collection[Path], name: str) -> str | None:
    """The distribution whose wheel is in a folder, and whose plugin a user calls by its short name; None: not needed.

    A folder that has the name itself needs no suggestion.
    """
    own = canonicalize_name(name)
    known = distributions_in(folders)
    if own in known:
        return None
    return next((one for one in known if one == f"smollm3-{own}" or name.lower() in _plugins(folders, one)), None)


def _plugins(folders: Iterable[Path], distribution: str) -> tuple[str, ...]:
    """The names of the plugins in the newest wheel of a distribution; empty if it cannot be read."""
    file = newest_file(folders, distribution, SpecifierSet())
    if file is None or file.suffix != ".whl":
        return ()
    try:
        return of_wheel(file).plugins or ()
    except SmolLM3Error:
        return ()


def near_wheel(folders: Collection[Path], name: str) -> str | None:
    """The distribution in folders of wheels that a mistyped name may mean."""
    found = distributions_in(folders)
    names = {**{one.removeprefix("smollm3-"): one for one in found}, **{one: one for one in found}}
    near = did_you_mean(canonicalize_name(name), names)
    return meant_wheel(folders, name) or (names[near] if near is not None else None)
