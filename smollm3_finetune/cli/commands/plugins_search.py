"""`smollm3 plugins search`: find plugins in the index. Does not import torch, and uses no network without --index."""

from __future__ import annotations

import json

import click

from smollm3_finetune.cli.options import debug_option

EXAMPLES = """
\b
Examples:
  smollm3 plugins search
  smollm3 plugins search 4-bit
  smollm3 plugins search quantizer --index https://example.org/plugins.json
"""


@click.command("search", short_help="Find plugins: kinds, summary, how to install them.", epilog=EXAMPLES)
@click.argument("words", nargs=-1, metavar="[WORD…]")
@click.option("--index", metavar="FILE|URL", help="A newer index of plugins, as JSON; default: $SMOLLM3_PLUGIN_INDEX.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def search(words: tuple[str, ...], index: str | None, as_json: bool) -> None:
    """Find plugins in which every WORD occurs: in a name, a kind or a summary. Without WORD, list all.

    The index is part of smollm3-finetune. A newer one adds plugins and replaces those of the same name. Installed
    plugins are found too.
    """
    from smollm3_finetune.cli.completion.offered import offered
    from smollm3_finetune.cli.output.installing import print_found
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.installing.environment import installed
    from smollm3_finetune.installing.index import plugin_index
    from smollm3_finetune.installing.search import search_rows, with_installed

    known, found = plugin_index(index), installed()
    unlisted = any(one.is_plugin and known.distribution(one.name) is None for one in found.values())
    components = offered().components if unlisted else ()
    rows = search_rows(known, words, found, components)
    if as_json:
        click.echo(json.dumps([row.as_dict() for row in rows], indent=2, ensure_ascii=False))
        return
    if not rows:
        near = with_installed(known, found, components).near(words[0]) if len(words) == 1 else None
        raise ConfigError(
            f"no plugin of the index and no installed plugin has {' and '.join(map(repr, words))}",
            hint=f"did you mean {near!r}?" if near else "for all plugins: smollm3 plugins search",
        )
    print_found(rows)
