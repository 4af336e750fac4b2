"""What the installed plugins offer: the snapshot, or the plugins themselves where there is none."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterable
from types import ModuleType

from smollm3_finetune.components.snapshot import (
    OfferedComponent,
    OfferedOption,
    Snapshot,
    add_options,
    read_snapshot,
    snapshot_of,
)


@functools.cache
def offered() -> Snapshot:
    """The snapshot; without one, what the hooks of the plugins return, of which a snapshot is then written."""
    found = read_snapshot()
    if found is not None:
        return found
    from smollm3_finetune.cli.session import discovered
    from smollm3_finetune.errors import SmolLM3Error

    try:
        return snapshot_of(discovered((), False))
    except SmolLM3Error:  # for example a plugin that does not return
        return Snapshot((), ())


def named(kinds: Iterable[str], name: str | None) -> OfferedComponent | None:
    """The component that a line calls `name`, which may be an alias or begin with a distribution."""
    if not name:
        return None
    distribution, _, bare = name.rpartition(":")
    for kind in kinds:
        for component in offered().of(kind):
            if bare in (component.name, *component.aliases) and distribution in ("", component.distribution):
                return component
    return None


def options_of_component(component: OfferedComponent) -> tuple[OfferedOption, ...]:
    """Its options, from the snapshot; imported and added to it the first time. Empty if they cannot be imported."""
    if component.options is not None:
        return component.options
    from smollm3_finetune.cli.completion.described import options_of

    module, _, name = component.options_class.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            imported = importlib.import_module(module)
            options = tuple(OfferedOption(*row) for row in options_of(getattr(imported, name)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a broken plugin: using it says why
        return ()
    add_options(component, options, _files_of(imported))
    return options


def _files_of(module: ModuleType) -> list[str]:
    """The files of a plugin's package that are imported, or of one module of core."""
    package = module.__name__.partition(".")[0]
    found = [m for n, m in list(sys.modules.items()) if n.partition(".")[0] == package]
    files = (getattr(m, "__file__", None) for m in ([module] if package == "smollm3_finetune" else found))
    return [file for file in files if file is not None]
