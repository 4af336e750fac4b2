"""`smollm3 cache list|verify|clean`. Does not import torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import Number, debug_option
from smollm3_finetune.cli.parsing import CommandGroup

if TYPE_CHECKING:
    from smollm3_finetune.cache.entries import Entry


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cache() -> None:
    """List, check or clean the cache: converted files, quantized weights, tokenized rows, values of references."""


def _cache_and_runs(kind: str | None, runs: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """The cache's root, and the runs that may depend on its entries.

    Raises ConfigError if a folder of `--runs` or the kind does not exist.
    """
    from smollm3_finetune.cache.store import default_root
    from smollm3_finetune.cache.use import runs_below
    from smollm3_finetune.errors import ConfigError, did_you_mean
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.rundir import RUNS

    folders = [user_path(text, "--runs") for text in runs]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--runs {folder} is not a directory", hint="--runs RUN, or --runs FOLDER_OF_RUNS")
    root = default_root()
    if root.exists() and not root.is_dir():
        raise ConfigError(f"the cache {root} is not a directory", hint="SMOLLM3_CACHE=DIRECTORY")
    kinds = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if kind is not None and kind not in kinds:
        similar = did_you_mean(kind, kinds)
        known = f"kinds in the cache: {', '.join(kinds)}" if kinds else "the cache is empty: omit --kind"
        hint = f"did you mean {similar!r}?" if similar else known
        raise ConfigError(f"--kind {kind[:80]}: the cache {root} has no entries of this kind", hint=hint)
    return root, list(runs_below([RUNS, *folders]))


RUNS_OPTION = click.option(
    "--runs", multiple=True, metavar="DIR", help="Also check the runs in this directory, besides those in runs/."
)
KIND_OPTION = click.option("--kind", metavar="NAME", help="Only entries of this kind.")


@cache.command("list", short_help="List entries with size, last use, origin and runs.")
@KIND_OPTION
@RUNS_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def list_entries(kind: str | None, runs: tuple[str, ...], as_json: bool) -> None:
    """List the cache entries, largest first: size, last use, origin, and the runs that depend on each entry."""
    from smollm3_finetune.cache.entries import entries, leftovers
    from smollm3_finetune.files.room import shown_size

    root, known = _cache_and_runs(kind, runs)
    found, left = entries(root, known, kind), leftovers(root, kind)
    if as_json:
        about = {"root": str(root), "entries": [_about(e) for e in found], "leftovers": [str(p) for p in left]}
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    if found:
        _print_table(found)
    total = shown_size(sum(e.size for e in found))
    click.echo(f"{root}: {len(found)} {'entry' if len(found) == 1 else 'entries'}, {total}")
    if left:
        click.echo(f"leftovers of killed builds: {len(left)}; to delete them: smollm3 cache clean")


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.path.name,
        "path": str(entry.path),
        "bytes": entry.size,
        "days_since_use": round(entry.days, 2),
        "made_from": entry.made_from,
        "runs": [str(r) for r in entry.runs],
        "in_use": entry.in_use,
    }


def _print_table(found: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from smollm3_finetune.cache.entries import shown_origin
    from smollm3_finetune.files.room import shown_size

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("entry", "size", "last used", "origin", "runs"):
        table.add_column(column, overflow="fold", no_wrap=column in ("entry", "size", "last used"))
    for e in found:
        runs = ", ".join([*(r.name for r in e.runs), *(["in use"] if e.in_use else [])])
        table.add_row(Text(f"{e.kind}/{e.path.name[:8]}"), shown_size(e.size), shown_age(e.days),
                      Text(shown_origin(e.made_from)), Text(runs or "none"))  # fmt: skip
    Console().print(table)


def shown_age(days: float) -> str:
    if days >= 1:
        return f"{days:.0f} d ago"
    return f"{days * 24:.0f} h ago" if days * 24 >= 1 else f"{days * 1440:.0f} min ago"


@cache.command(short_help="Compare entries with their checksums.")
@KIND_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def verify(kind: str | None, as_json: bool) -> None:
    """Compare every file of the cache with its checksum, and name the damaged entries.

    This command changes nothing. A run verifies the entries that it uses, and rebuilds damaged ones. The exit code is
    1 if any entry is damaged.
    """
    from smollm3_finetune.cache.entries import entries
    from smollm3_finetune.errors import SmolLM3Error
    from smollm3_finetune.files.room import shown_size
    from smollm3_finetune.progress import for_stream

    root, _ = _cache_and_runs(kind, ())
    found = entries(root, (), kind)
    with for_stream().task("checking", len(found)) as task:
        states = []
        for entry in found:
            states.append((entry, entry.damage()))
            task.advance()
    damaged = [(entry, damage) for entry, damage in states if damage is not None]
    unchecked = [entry for entry in found if not entry.has_checksums]
    intact = [entry for entry, damage in states if damage is None and entry not in unchecked]
    if as_json:
        about = {"root": str(root), "damaged": [{**_about(e), "damage": damage} for e, damage in damaged],
                 "intact": [str(e.path) for e in intact],
                 "without_checksums": [str(e.path) for e in unchecked]}  # fmt: skip
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
    else:
        for entry, damage in damaged:
            click.echo(f"damaged: {entry.kind}/{entry.path.name[:8]}  {shown_size(entry.size)}  {damage}")
        for entry in unchecked:
            click.echo(f"no checksums: {entry.kind}/{entry.path.name[:8]}  {shown_size(entry.size)}")
        rebuilt = "; a run that needs a damaged entry rebuilds it" if damaged else ""
        counts = f"{len(intact)} intact, {len(damaged)} damaged, {len(unchecked)} without checksums"
        click.echo(f"{root}: {counts}{rebuilt}")
    if damaged:
        click.get_current_context().exit(SmolLM3Error.exit_code)


@cache.command(short_help="Delete entries that no run depends on.")
@KIND_OPTION
@click.option("--older-than", type=Number(min=0), metavar="DAYS", help="Only entries that were not used for this long.")
@RUNS_OPTION
@click.option("--force", is_flag=True, help="Also delete entries that runs depend on.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, without deleting it.")
@click.option("--yes", "-y", is_flag=True, help="Delete without asking; required without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes or --dry-run.")
@debug_option
def clean(
    kind: str | None, older_than: float | None, runs: tuple[str, ...], force: bool, dry_run: bool, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Delete cache entries that no run depends on, and leftovers of killed builds.

    A run depends on the entries that its base model was built from: a converted file, or weights that were quantized
    first. An entry that another process is using is never deleted. A deleted entry is rebuilt when it is needed, if its
    source still exists.
    """
    from smollm3_finetune.cache.entries import chosen, entries, leftovers, take_away
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.files.room import shown_size, size_of

    root, known = _cache_and_runs(kind, runs)
    to_delete, kept = chosen(entries(root, known, kind), older_than or 0.0, force)
    left = leftovers(root, kind)
    sizes = {**{e.path: e.size for e in to_delete}, **{p: size_of(p) for p in left}}
    if not as_json:
        if sizes and not yes:
            click.echo("would delete:")
        for path, size in sizes.items():
            note = "leftover of a killed build" if path in left else f"last used {shown_age(_days(to_delete, path))}"
            click.echo(f"{path.parent.name}/{path.name[:8]}  {shown_size(size)}  {note}")
        for e in kept:
            why = "in use by another process" if e.in_use else ", ".join(map(str, e.runs))
            click.echo(f"kept: {e.kind}/{e.path.name[:8]}  {shown_size(e.size)}  {why}")
    if sizes and not dry_run and not yes:
        if as_json or not sys.stdin.isatty():
            raise ConfigError("nothing was deleted: cache clean needs confirmation", hint="pass --yes")
        count = f"{len(sizes)} {'directory' if len(sizes) == 1 else 'directories'}"
        click.confirm(f"Delete {count} ({shown_size(sum(sizes.values()))}) from {root}?", abort=True, err=True)
    if not dry_run:  # a run may have started to use an entry while the question was open
        still = {e.path for e in chosen(entries(root, known, kind), older_than or 0.0, force)[0]}
        sizes = {p: size for p, size in sizes.items() if p in still or p in left}
    gone = [] if dry_run else [p for p in sizes if take_away(p, root)]
    busy = [] if dry_run else [p for p in sizes if p not in gone]
    if as_json:
        about = {"root": str(root), "dry_run": dry_run, "deleted": [str(p) for p in (sizes if dry_run else gone)],
                 "bytes": sum(sizes[p] for p in (sizes if dry_run else gone)),
                 "kept": [_about(e) for e in kept], "not_deleted": [str(p) for p in busy]}  # fmt: skip
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for path in busy:
        click.echo(f"not deleted: {path} is in use by another process, or cannot be written", err=True)
    total = shown_size(sum(sizes[p] for p in (sizes if dry_run else gone)))
    command = "would delete" if dry_run else "deleted"
    needed, using = sum(not e.in_use for e in kept), sum(e.in_use for e in kept)
    aside = f", kept {needed} that runs depend on (to delete them too: --force)" if needed else ""
    aside += f", kept {using} in use" if using else ""
    click.echo(f"{command} {len(sizes if dry_run else gone)}, {total}{aside}")


def _days(found: list[Entry], path: Path) -> float:
    return next(e.days for e in found if e.path == path)
