"""The options of commands, stored in the cache: imported once for each command, then read in a millisecond."""

from __future__ import annotations

import contextlib
import sys
import zlib
from typing import Any

from smollm3_finetune.cache.small import DAMAGED, file_states, read_small, small_file, unchanged, write_small
from smollm3_finetune.version import __version__

FORMAT = 1


def stored_command(name: str) -> dict[str, Any] | None:
    """What `describe_command` says about a command; None if it cannot be imported."""
    file = _file(name)
    data = read_small(file) if file is not None else None
    try:
        if data is not None and data["about"] == _about() and unchanged(data["files"]):
            return dict(data["command"])
    except DAMAGED:
        pass
    return store_command(name)


def store_command(name: str) -> dict[str, Any] | None:
    """Import a command, and store its description if the cache can be written. None if it cannot be imported."""
    import click

    from smollm3_finetune.cli import cli
    from smollm3_finetune.cli.completion.described import describe_command

    context = click.Context(cli, info_name="smollm3", **cli.context_settings)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the answer is on standard output
            command = cli.get_command(context, name) or _of_plugin(context, name)
            described = describe_command(command, context)
    except Exception:  # a broken command of a plugin: it has nothing to complete, and running it says why
        return None
    if (file := _file(name)) is not None:
        write_small(file, {"about": _about(), "files": file_states(_files(command)), "command": described})
    return described


def _of_plugin(context: Any, name: str) -> Any:
    """The click command of a plugin. Raises what its use would raise."""
    from smollm3_finetune.cli.plugin_command import add_debug, find_command

    command = find_command(context, name, (), ()).component.command()
    add_debug(command)
    return command


def _about() -> list[Any]:
    return [FORMAT, __version__, sys.version]


def _file(name: str) -> str | None:
    """The file of a command of this environment."""
    where = f"{sys.prefix}\n{__file__}"
    return small_file("completion", f"{zlib.crc32(where.encode('utf-8', 'surrogateescape')):08x}-{name}")


def _files(command: Any) -> list[str]:
    """The files that decide what a command offers: of core's command line and schema, and of the plugin's package."""
    package = getattr(getattr(command, "callback", None), "__module__", "").partition(".")[0]
    own = ("smollm3_finetune.cli", "smollm3_finetune.config")
    names = [
        name
        for name in sorted(sys.modules)
        if name.startswith(own) or (package != "smollm3_finetune" and name.partition(".")[0] == package)
    ]
    found = (getattr(sys.modules[name], "__file__", None) for name in names)
    return [file for file in found if file is not None]
