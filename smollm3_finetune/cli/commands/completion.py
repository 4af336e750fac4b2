"""`smollm3 completion`"""

from __future__ import annotations

import click

from smollm3_finetune.cli.completion import SHELLS
from smollm3_finetune.cli.options import debug_option

EXAMPLES = """\b
Examples:
  smollm3 completion bash --install
  source <(smollm3 completion zsh)
  smollm3 completion fish > ~/.config/fish/completions/smollm3.fish
"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS), metavar="bash|zsh|fish")
@click.option(
    "--install", "installs", is_flag=True, help="Write the script where the shell looks for it, after asking."
)
@click.option("--yes", "-y", is_flag=True, help="With --install: write without asking; required without a terminal.")
@debug_option
def completion(shell: str, installs: bool, yes: bool) -> None:
    """Print the script that completes commands, options, component names, runs and files in a shell.

    The first lines of the script say how to install it by hand.
    """
    from smollm3_finetune.cli.completion.install import install, place_for, script
    from smollm3_finetune.errors import ConfigError

    if not installs:
        if yes:
            raise ConfigError("--yes answers the question of --install", hint="add --install")
        click.echo(script(shell), nl=False)
        return
    import sys

    place = place_for(shell)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nothing was installed: completion --install needs confirmation", hint="pass --yes")
        click.confirm(f"{'Replace' if place.file.exists() else 'Write'} {place.file}?", abort=True, err=True)
    install(shell, place)
    click.echo(f"wrote {place.file}", err=True)
    click.echo(place.to_do or f"start a new {shell} to use it", err=True)
