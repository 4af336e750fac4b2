"""The loop of a chat: read a message, answer it or carry out its command."""

from __future__ import annotations

from smollm3_finetune import stopping
from smollm3_finetune.cli.chat.interrupts import Interrupts
from smollm3_finetune.cli.chat.reading import Reader
from smollm3_finetune.cli.chat.slash import Leave, is_command, run_command
from smollm3_finetune.cli.output.chat import Screen
from smollm3_finetune.errors import DataError, SmolLM3Error
from smollm3_finetune.files.failures import resource_error
from smollm3_finetune.inference.chat import Chat


def converse(chat: Chat, reader: Reader, screen: Screen, interrupts: Interrupts, *, interactive: bool) -> None:
    """Chat until the input ends. Errors end the chat if it is not `interactive`, because a script must not continue."""
    leaving = False
    while True:
        try:
            message = reader.read()
        except stopping.Stop:
            raise
        except KeyboardInterrupt:
            if leaving and not interrupts.typed:
                screen.say("left")
                return
            leaving = not interrupts.typed
            screen.say("\nto leave: Ctrl-C again, Ctrl-D or /exit" if leaving else "")
            continue
        except DataError as e:
            if not interactive:
                raise
            screen.error(e)
            continue
        leaving = False
        if message is None:
            return
        if not message.strip():
            continue
        try:
            if is_command(message) and not reader.is_block:
                carry_out(message, chat, screen, interactive=interactive)
            else:
                answer(chat, message.removeprefix(" "), screen, interrupts)
        except Leave:
            return
        except SmolLM3Error as e:
            if not interactive:
                raise
            screen.error(e)
        except Exception as e:
            known = resource_error(e)
            if known is None or not interactive:
                raise
            screen.error(known)


def carry_out(command: str, chat: Chat, screen: Screen, *, interactive: bool) -> None:
    """Carry out a slash command. Ctrl-C ends the command, and the chat only if it is not `interactive`."""
    try:
        run_command(command, chat, screen)
    except stopping.Stop:
        raise
    except KeyboardInterrupt:
        if not interactive:
            raise
        screen.say(f"\n{command.split()[0]} was interrupted")


def answer(chat: Chat, message: str, screen: Screen, interrupts: Interrupts) -> None:
    """Answer a message on each side, and say what is noteworthy about the history."""
    turns = len(chat.history.turns)
    with interrupts.answer(), screen.answering(message, chat.sides) as answering:
        chat.ask(message, stream=answering.write, stopped=interrupts.pending, done=answering.done)
    if len(chat.history.turns) == turns:
        screen.say("nothing was generated: the message is not in the history")
    if (used := chat.near_limit()) is not None:
        screen.say(
            f"the history has {used:,} of the {chat.limit:,} tokens of the context; the next message and its answer "
            "must fit into the rest: /undo or /reset makes room"
        )
