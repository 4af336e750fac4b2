"""`smollm3 plugins index`: write an index of plugins, which `--index` reads. Does not import torch."""

from __future__ import annotations

import click

from smollm3_finetune.cli.options import debug_option

EXAMPLES = """
\b
Examples:
  smollm3 plugins index dist
  smollm3 plugins index ./my-plugin dist/acme_quant-1.2-py3-none-any.whl --output plugins.json
"""


@click.command("index", short_help="Write an index of plugins from wheels or folders.", epilog=EXAMPLES)
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER|WHEEL…")
@click.option("--output", metavar="FILE", help="File to write; an older index is replaced. Default: print it.")
@click.option("--published", is_flag=True, help="The default package index has these plugins; see the format.")
@debug_option
def index(paths: tuple[str, ...], output: str | None, published: bool) -> None:
    """Write an index of the plugins in wheels and folders, as JSON for --index.

    FOLDER is the folder of a plugin, with pyproject.toml, or a folder of wheels or of such folders. Nothing is
    installed. The hook modules of the plugins are imported, which is code of their authors.
    """
    from smollm3_finetune.cli.session import stdout_to_stderr
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.files.failures import writing
    from smollm3_finetune.files.writing import write_text
    from smollm3_finetune.installing.index import parsed
    from smollm3_finetune.installing.offers import index_of, offered_by, sources_in
    from smollm3_finetune.paths import user_path

    file = user_path(output, "--output") if output is not None else None
    if file is not None and file.exists():
        if file.is_dir():
            raise ConfigError(f"--output {output} is a directory", hint=f"--output {output}/plugins.json")
        try:
            parsed(file.read_text(encoding="utf-8"), str(output))
        except (ConfigError, OSError, UnicodeDecodeError) as e:
            raise ConfigError(
                f"--output {output} exists and is not an index of plugins", hint="name another file"
            ) from e
    with stdout_to_stderr():  # hook modules may print
        plugins = [offered_by(p, published) for p in sources_in([user_path(p, "the plugin") for p in paths])]
    text = index_of(plugins)
    if file is None:
        click.echo(text, nl=False)
        return
    with writing(file):
        write_text(file, text)
    click.echo(f"wrote {output}: {len(plugins)} plugin{'' if len(plugins) == 1 else 's'}")
