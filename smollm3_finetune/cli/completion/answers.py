"""The answer to a shell: one line `KIND<TAB>VALUE<TAB>TEXT` for each completion."""

from __future__ import annotations

import os
import re

from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from smollm3_finetune.cli.completion import LINE, VARIABLE, WORD
from smollm3_finetune.cli.completion.root import root_command

UNSAFE = re.compile(r"[^\w./:=@%+,-]")
"""Characters that bash might not take as they are."""
ASSIGNMENT = re.compile(r"\w+=")
LONGEST = 200


class Completer(ShellComplete):
    """Completes the line in the environment, with click's search for the command and the parameter."""

    name = "smollm3"
    source_template = ""

    def __init__(self, shell: str) -> None:
        self.root = root_command()
        super().__init__(self.root, {}, "smollm3", VARIABLE)
        self.shell = shell
        self.inside = ""
        """What stands before the value in its word: `--quant=`."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get(LINE, "")
        words = split_arg_string(line)
        incomplete = words.pop() if words and len(split_arg_string(f"{line}x")) == len(words) else ""
        while words and ASSIGNMENT.match(words[0]):  # FOO=1 smollm3 …
            del words[0]
        name, equals, _ = incomplete.partition("=")
        self.inside = f"{name}=" if equals and name.startswith("--") else ""
        return words[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        command = _command_in(args)
        if command is not None and not self.root.has(command):
            return []
        found = super().get_completions(args, incomplete)
        return [item for item in found if str(item.value).isprintable()]  # a line break would end the answer

    def complete(self) -> str:
        args, incomplete = self.get_completion_args()
        items = self.get_completions(args, incomplete)
        return "".join(f"{self.format_completion(item)}\n" for item in items)

    def format_completion(self, item: CompletionItem[str]) -> str:
        value = str(item.value)
        if item.type in ("file", "dir"):  # the shell looks for them: what is in their word before them is the text
            return "\t".join((item.type, value, self.inside + (item.help or "")))
        value = self.inside + value
        help_text = "".join(c if c.isprintable() else " " for c in item.help or "")[:LONGEST]
        return "\t".join((item.type, self._as_in_bash(value) if self.shell == "bash" else value, help_text))

    def _as_in_bash(self, value: str) -> str:
        """The value without what bash counts to an earlier word, with what it would not take as it is escaped."""
        word = os.environ.get(WORD, "")
        if word[:1] in ("'", '"'):
            return value
        line = os.environ.get(LINE, "")
        incomplete = split_arg_string(line)[-1:] if line[-1:].strip() else []
        breaks = [c for c in "=:" if c in os.environ.get("COMP_WORDBREAKS", "=:")]
        cut = max((incomplete[0].rfind(c) + 1 for c in breaks), default=0) if incomplete else 0
        return UNSAFE.sub(lambda m: f"\\{m[0]}", value[cut:])


def _command_in(args: list[str]) -> str | None:
    """The first word that is neither an option nor the file of `-p`."""
    words = iter(args)
    for word in words:
        if word in ("-p", "--plugin"):
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def answer(instruction: str) -> str:
    """The answer to `_SMOLLM3_COMPLETE=SHELL_complete`, without a line break at its end."""
    os.environ.setdefault("SMOLLM3_MAX_PLUGIN_SECONDS", "5")
    return Completer(instruction.partition("_")[0]).complete().rstrip("\n")
