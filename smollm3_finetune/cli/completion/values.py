"""The possible values of an option or argument: components and their options, configuration keys, runs, files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from smollm3_finetune.cli.completion.keys import COMPONENTS, NAMING
from smollm3_finetune.cli.completion.offered import named, offered, options_of_component
from smollm3_finetune.components.snapshot import OfferedComponent, OfferedOption

Item = CompletionItem[str]
PATHS = ("FILE", "PATH", "RUN", "MODEL", "REF")
"""Parts of the metavar of a value that may be a path."""
KEY = "key"
"""The type of an item after which no space follows, because its value does."""


def complete(
    row: dict[str, Any], described: dict[str, Any], ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[Item]:
    """The completions of a value; `row` describes the parameter, `described` its command."""
    found = _matching(_values(row, described, ctx, incomplete), incomplete)
    return found or list(_paths(row, ctx, incomplete))


def _matching(items: Iterable[Item], incomplete: str) -> list[Item]:
    return [item for item in items if item.type in ("file", "dir") or str(item.value).startswith(incomplete)]


def _values(row: dict[str, Any], described: dict[str, Any], ctx: click.Context, incomplete: str) -> Iterable[Item]:
    flag = next((o for o in row["opts"] if o.startswith("--")), "")
    if row["choices"]:
        return [CompletionItem(value) for value in row["choices"]]
    if flag in NAMING:
        more = [CompletionItem("all", help="all installed adapters")] if flag == "--with-adapter" else []
        return [*more, *_components(NAMING[flag])]
    if flag.endswith("-opt"):
        return _assignments(_options(flag.removesuffix("-opt"), described, ctx), incomplete)
    if flag == "--set":
        return _settings(described, ctx, incomplete)
    if flag == "--preset":
        return list(_presets())
    if flag == "--plugin" and incomplete.startswith("no:"):
        return [CompletionItem(f"no:{name}", help=text) for name, text in _plugins()]
    if "RUN" in row["metavar"] or (row["argument"] and row["name"] in ("run", "runs")):
        more = [CompletionItem("auto", help="the newest unfinished run of this configuration")]
        return [*(more if flag == "--resume" else []), *_runs(ctx)]
    if row["metavar"] == "REF" or (row["argument"] and row["name"] == "model"):
        return [CompletionItem("tiny", help="the built-in model")]
    return _names(row, ctx)


def _names(row: dict[str, Any], ctx: click.Context) -> Iterable[Item]:
    """The names that the commands of `plugins`, `config presets` and `cache` take."""
    command, path = ctx.info_name, ctx.command_path.split()
    if row["opts"] == ["--kind"] and "cache" in path:
        return [CompletionItem(name) for name in _cache_kinds()]
    if not row["argument"]:
        return []
    if command == "presets":
        return list(_presets())
    if "plugins" in path and command in ("info", "show"):
        return [CompletionItem(c.name, help=f"{c.kind}: {c.summary}") for c in offered().components]
    if "plugins" in path and command == "check":
        return [CompletionItem(name, help=text) for name, text in _plugins()]
    if "plugins" in path and command in ("uninstall", "upgrade"):
        found = {p.distribution: p.version for p in offered().plugins if p.name != "builtin"}
        return [CompletionItem(name, help=version) for name, version in found.items()]
    return []


def _plugins() -> Iterator[tuple[str, str]]:
    for plugin in offered().plugins:
        if plugin.name != "builtin":
            broken = " (broken)" if plugin.status == "broken" else ""
            yield plugin.name, f"{plugin.distribution} {plugin.version}{broken}"


# ------------------------------------------------------------------------------------------------------ components


def _components(kinds: Iterable[str]) -> Iterator[Item]:
    """The names of components; with their distribution where several offer one name, and aliases after them."""
    for kind in kinds:
        found = offered().named(kind)
        yield from (CompletionItem(name, help=c.summary) for name, c in found)
        yield from (CompletionItem(a, help=f"the same as {c.name}") for _, c in found for a in c.aliases)


def _chosen(flag: str, described: dict[str, Any], ctx: click.Context) -> OfferedComponent | None:
    """The component that a line names with `flag`, or the one that a run has without it."""
    name = flag.lstrip("-").replace("-", "_")
    value = ctx.params.get(name)
    if value is None:
        value = described["defaults"].get(name)
    last = value[-1] if isinstance(value, tuple | list) and value else value
    return named(NAMING.get(flag, ()), last if isinstance(last, str) else None)


def _options(flag: str, described: dict[str, Any], ctx: click.Context) -> Iterator[OfferedOption]:
    component = _chosen(flag, described, ctx)
    return iter(options_of_component(component) if component is not None else ())


def _assignments(options: Iterable[OfferedOption], incomplete: str, section: str = "") -> Iterator[Item]:
    """`KEY=`, or once the key is typed, `KEY=VALUE` for its possible values."""
    for o in options:
        key = f"{section}{o.name}="
        if incomplete.startswith(key):
            yield from (CompletionItem(f"{key}{v}", help="the default" if v == _typed(o) else None) for v in o.values)
        else:
            yield CompletionItem(key, type=KEY, help=o.help)


def _typed(option: OfferedOption) -> str:
    return option.default.lower() if option.default in ("True", "False") else option.default


def _settings(described: dict[str, Any], ctx: click.Context, incomplete: str) -> Iterator[Item]:
    """The assignments of `--set`: keys of the configuration, and options of the components of the run."""
    for key, help_text, values in described["keys"]:
        section, _, last = key.partition(".")
        if not incomplete.startswith(f"{key}="):
            yield CompletionItem(f"{key}=", type=KEY, help=help_text)
        elif last == "name" and section in COMPONENTS:
            yield from (CompletionItem(f"{key}={c.value}", help=c.help) for c in _components(values))
        elif key in ("data.path", "data.validation", "calibration.path", "from"):
            yield CompletionItem(incomplete.partition("=")[2], type="file", help=f"{key}=")
        else:
            yield from (CompletionItem(f"{key}={value}") for value in values)
    for section in COMPONENTS:
        if incomplete.startswith(f"{section}.") or not incomplete:
            yield from _assignments(_options(f"--{section}", described, ctx) if incomplete else (), incomplete,
                                    f"{section}.")  # fmt: skip


# ------------------------------------------------------------------------------------------- runs, presets, files


def _runs(ctx: click.Context) -> Iterator[Item]:
    """The runs below `--runs`, by default `runs/`, the newest first."""
    from smollm3_finetune.runs.traces import run_folders

    def started(folder: str) -> float:
        with contextlib.suppress(OSError):
            return os.stat(os.path.join(folder, "run.yaml")).st_mtime
        return 0.0

    top = ctx.params.get("runs")
    folder = os.path.expanduser(top) if isinstance(top, str) and "--runs" in _flags(ctx) else "runs"
    found = [(started(run), run) for run in run_folders(folder)]
    yield from (CompletionItem(run) for _, run in sorted(found, key=lambda one: (-one[0], one[1])))


def _flags(ctx: click.Context) -> set[str]:
    return {flag for param in ctx.command.params for flag in param.opts}


def _presets() -> Iterator[Item]:
    from smollm3_finetune.config.preset_names import preset_summaries

    yield from (CompletionItem(name, help=text) for name, text in preset_summaries().items())


def _cache_kinds() -> list[str]:
    from smollm3_finetune.cache.place import cache_folder

    with contextlib.suppress(OSError):
        found = os.scandir(os.path.expanduser(cache_folder() or ""))
        return sorted(e.name for e in found if e.is_dir() and e.name not in ("plugins", "completion"))
    return []


def _paths(row: dict[str, Any], ctx: click.Context, incomplete: str) -> Iterator[Item]:
    """A request to the shell to complete a path, if the value is one."""
    metavar = row["metavar"].upper()
    if "DIR" in metavar:
        yield CompletionItem(incomplete, type="dir")
        return
    installs = row["argument"] and ctx.info_name in ("install", "check")
    if installs or (any(part in metavar for part in PATHS) and not incomplete.startswith("no:")):
        yield CompletionItem(incomplete, type="file")
