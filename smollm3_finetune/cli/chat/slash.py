"""The slash commands of a chat."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from smollm3_finetune.cli.output.chat import Screen
from smollm3_finetune.data.chat_template.reasoning import traces
from smollm3_finetune.errors import ConfigError, did_you_mean
from smollm3_finetune.inference.chat import Chat

NAME = re.compile(r"/[A-Za-z][\w-]*")
SHOWN = 60
"""Characters of a message that a confirmation repeats."""


@dataclass(frozen=True)
class Command:
    """A slash command."""

    help: str
    run: Callable[[Chat, Screen, str], None]
    argument: str = ""
    """What it takes, for the help."""
    required: bool = False


class Leave(Exception):
    """Ends the chat."""


def is_command(text: str) -> bool:
    """Whether a message is a slash command: its first word is `/name`. A path such as `/etc/hosts` is a message."""
    return NAME.fullmatch(text.split(maxsplit=1)[0] if text.strip() else "") is not None and text.startswith("/")


def run_command(text: str, chat: Chat, screen: Screen) -> None:
    """Carry out a command. Raises ConfigError for one that does not exist or has a wrong argument."""
    name, _, argument = text.strip().partition(" ")
    name, argument = name.split("\n")[0], argument.strip() or "\n".join(text.strip().split("\n")[1:]).strip()
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        similar = did_you_mean(name, COMMANDS)
        hint = f"{similar}?" if similar else "/help lists the commands"
        raise ConfigError(
            f"there is no command {name}", hint=f"{hint}; to send a message that begins with /, type a space before it"
        )
    if argument and not command.argument:
        raise ConfigError(f"{name} takes no argument", hint=name)
    if command.required and not argument:
        raise ConfigError(f"{name} needs an argument", hint=f"{name} {command.argument}")
    command.run(chat, screen, argument)


def _help(chat: Chat, screen: Screen, _: str) -> None:
    rows = [(f"{name} {c.argument}".strip(), c.help) for name, c in COMMANDS.items()]
    rows += [
        ('"""', "begin and end a message of several lines"),
        ("\\", "at the end of a line: the message continues on the next line"),
        ("Ctrl-C", "stop an answer; what was generated stays in the history"),
        ("Ctrl-D", "leave"),
    ]
    screen.table(rows)


def _undo(chat: Chat, screen: Screen, _: str) -> None:
    turn = chat.undo()
    if turn is None:
        raise ConfigError("there is no turn to remove")
    line = " ".join(turn.prompt.split())
    shown = line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
    screen.say(f"removed the last turn: {shown}")


def _reset(chat: Chat, screen: Screen, _: str) -> None:
    count = chat.reset()
    kept = "; the system message stays" if chat.system else ""
    screen.say(f"removed {count} turn{'s' * (count != 1)}{kept}")


def _system(chat: Chat, screen: Screen, text: str) -> None:
    if not text:
        screen.say(f"system message: {chat.system}" if chat.system else "there is no system message")
        return
    before = chat.system
    chat.set_system("" if text in ('""', "''") else text)
    history = "; the history stays" if chat.history.turns else ""
    screen.say(f"system message {'set' if chat.system else 'removed' if before else 'empty'}{history}")


def _think(on: bool) -> Callable[[Chat, Screen, str], None]:
    def run(chat: Chat, screen: Screen, _: str) -> None:
        chat.set_thinking(on)
        screen.say(f"reasoning is {'on' if on else 'off'}")

    return run


def _base(chat: Chat, screen: Screen, _: str) -> None:
    on = chat.switch_adapter()
    screen.say("the adapter is on again" if on else "the adapter is off: the base answers; /base switches it on again")


def _reasoning(chat: Chat, screen: Screen, _: str) -> None:
    found = traces({"content": chat.history.turns[-1].answer}) if chat.history.turns else []
    if not found:
        raise ConfigError("the last answer has no reasoning")
    screen.reasoning("\n\n".join(found))


def _save(chat: Chat, screen: Screen, file: str) -> None:
    from smollm3_finetune.inference.saved_chat import save

    row = save(chat.history, file)
    masked = sum(not turn.whole for turn in chat.history.turns)
    note = f"; {masked} cut answer{'s are' if masked != 1 else ' is'} masked in training" if masked else ""
    screen.say(f"saved as row {row} of {file}{note}")


def _exit(chat: Chat, screen: Screen, _: str) -> None:
    raise Leave


COMMANDS = {
    "/undo": Command("remove the last message and its answer", _undo),
    "/reset": Command("remove all messages except the system message", _reset),
    "/system": Command('set the system message; "" removes it; without TEXT, show it', _system, "TEXT"),
    "/think": Command("answer with reasoning", _think(True)),
    "/no_think": Command("answer without reasoning", _think(False)),
    "/reasoning": Command("show the reasoning of the last answer", _reasoning),
    "/base": Command("switch the adapter off, or on again", _base),
    "/save": Command("append the chat to a JSONL file, as a row for `smollm3 train`", _save, "FILE", required=True),
    "/help": Command("show this list", _help),
    "/exit": Command("leave", _exit),
}
ALIASES = {"/quit": "/exit", "/bye": "/exit", "/no-think": "/no_think", "/?": "/help"}
