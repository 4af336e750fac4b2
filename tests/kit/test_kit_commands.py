"""A command with one fault each fails the kit with a sentence that names it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing import CommandConformance

SOURCE = '''
import click
from smollm3_finetune.api import CommandSpec, ConfigError, hookimpl

@hookimpl
def smollm3_commands():
    return [CommandSpec(name="count", aliases=("tally",), summary="Count.", factory="counting:count", api=2)]

@click.group()
def count():
    """Count things."""

@count.command()
@click.argument("text")
@click.option("--each", default="", help="Count only this.")
@click.pass_obj
def letters(tools, text, each):
    """Count the letters of TEXT."""
    if not text:
        raise ConfigError("there is no text", hint="smollm3 count letters TEXT")
    tools.print(str(text.count(each) if each else len(text)))
'''
HELP, CALLED, WORKS = (
    "test_it_and_every_option_have_help", "test_it_is_called_as_its_descriptor_says", "test_it_works",
)  # fmt: skip
REFUSES, LIGHT, UNKNOWN = (
    "test_mistakes_are_refused_in_a_sentence", "test_help_is_shown_and_imports_nothing_heavy",
    "test_an_unknown_option_is_refused",
)  # fmt: skip
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "no-help": (HELP, ', help="Count only this."', "", "no help: count letters --each"),
    "no-docstring": (HELP, '    """Count things."""', "    pass", "no help: count"),
    "no-click": (HELP, "@click.group()\ndef count", "def other(): pass\ndef count", "has no attribute 'command'"),
    "heavy": (LIGHT, "import click\n", "import click, sys\nsys.modules['torch'] = sys\n", "its --help imports torch"),
    "help-fails": (HELP, "@count.command()", "@count.command(cls=type('Bad', (click.Command,), {'get_help': "
                   "lambda self, ctx: 1 / 0}))", "its help cannot be shown: ZeroDivisionError"),
    "raises": (WORKS, "tools.print(str(", "tools.print(dict(", "count letters words ends with 7"),
    "result": (WORKS, "tools.print(str(", "raise SystemExit(5 or (", "count letters words ends with 5"),
    "accepts": (REFUSES, "if not text:", "if False:", "count letters  succeeds"),
    "mistake": (REFUSES, 'raise ConfigError("there is no text", hint="smollm3 count letters TEXT")',
                'raise KeyError("text")', "fails in the plugin"),
    "silent": (REFUSES, 'raise ConfigError("there is no text", hint="smollm3 count letters TEXT")',
               "raise SystemExit(3)", "ends with 3 without an error in a sentence"),
    "options": (UNKNOWN, "@count.command()", "@count.command(context_settings={'allow_extra_args': True})\n"
                "@click.option('--no-such-option', is_flag=True, expose_value=False, callback=lambda *_: 1 / 0)",
                "count letters --no-such-option ends with 7, not 2"),
}  # fmt: skip


class Count(CommandConformance):
    component = "count"

    def works(self, directory: Path) -> Iterable[Sequence[str]]:
        return [["letters", "words"], ["letters", "words", "--each", "s"]]

    def refused(self, directory: Path) -> Iterable[Sequence[str]]:
        return [["letters", ""], ["letters"], ["sylables"]]


def run_one(name: str, test: str, source: str, plugin_file: Callable[[str, str], Path], tmp_path: Path) -> None:
    file = plugin_file(name, source.replace('"counting:', f'"{name}:'))
    function = getattr(type("Case", (Count,), {"plugins": (file,)})(), test)
    function(**dict.fromkeys(inspect.signature(function).parameters, tmp_path))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_with_a_sentence(fault: str, plugin_file: Any, tmp_path: Path) -> None:
    test, right, wrong, sentence = FAULTS[fault]
    assert right in SOURCE
    name = f"counting_{fault.replace('-', '_')}"
    with pytest.raises(pytest.fail.Exception, match=re.escape(sentence)):
        run_one(name, test, SOURCE.replace(right, wrong), plugin_file, tmp_path)


@pytest.mark.parametrize("test", sorted({CALLED, *(test for test, *_ in FAULTS.values())}))
def test_without_a_fault_it_passes(test: str, plugin_file: Any, tmp_path: Path) -> None:
    run_one("counting_whole", test, SOURCE, plugin_file, tmp_path)
