"""The entry point: `smollm3 VERB …`.

Root help reads the table below and imports nothing but click; a verb's module is imported when the verb is used.
This is the only place where errors are shown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from smollm3_finetune.cli import cli
from smollm3_finetune.errors import Problems, SmolLM3Error

FULL_HINT = "make room there, or write elsewhere: --output DIR, SMOLLM3_CACHE=DIR"
MEMORY_HINT = (
    "weights in few bits, or --device cpu; to train, a smaller --batch-size or --max-length, or "
    "--set train.gradient_checkpointing=true"
)


@dataclass
class State:
    """What every verb shares."""

    debug: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or the exit code of the error that is shown (see `errors`)."""
    # Threads that spin for long while they wait make a run ten times slower as soon as another program uses a core;
    # threads that never spin are a fifth slower on idle cores. See docs/measurements.md.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Tensors in huge pages, where Linux has them: the kernel clears far fewer pages. See docs/speed.md.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _take_any_text()
    state = State()
    try:
        code = cli.main(
            args=list(argv) if argv is not None else None, prog_name="smollm3", standalone_mode=False, obj=state
        )
        sys.stdout.flush()
    except click.exceptions.Abort:
        _say("interrupted")
        sys.exit(130)
    except click.ClickException as e:
        with contextlib.suppress(OSError):  # nobody can be told
            e.show()
        sys.exit(e.exit_code)
    except SmolLM3Error as e:
        _show(e, state)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # whoever read has read enough
        _drop_output()
        sys.exit(141)
    except Exception as e:
        known = _of_the_machine(e)
        if known is not None:
            _drop_output()
            _show(known, state)
            sys.exit(SmolLM3Error.exit_code)
        if state.debug:
            raise
        first = next(iter(str(e).strip().splitlines()), "")
        _say(f"unexpected {type(e).__name__}: {first}")
        _say("  hint: the same command with --debug shows where; a fault of smollm3 or of a plugin, please report it")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _of_the_machine(error: Exception) -> SmolLM3Error | None:
    """What is nobody's fault, but the machine's: a full disk, memory that does not suffice."""
    from smollm3_finetune.errors import is_full, is_out_of_memory

    if is_full(error):
        reason = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
        return SmolLM3Error(f"nothing more can be written: {reason}", hint=FULL_HINT)
    text = str(error).strip().partition("\n")[0]
    if is_out_of_memory(error):
        return SmolLM3Error(f"the memory does not suffice: {text or 'Python has no more'}", hint=MEMORY_HINT)
    return None


def _take_any_text() -> None:
    """What the encoding of an output cannot hold is written as `\\u2026`, which JSON reads too, instead of failing."""
    import codecs

    def escaped(error: UnicodeError) -> tuple[str, int]:
        import json

        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("smollm3", escaped)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or one of another kind
            stream.reconfigure(errors="smollm3")  # type: ignore[union-attr]


def _drop_output() -> None:
    """What still waits to be written to standard output goes nowhere, so that Python does not fail over it again."""
    with contextlib.suppress(OSError, ValueError):  # it has no file descriptor, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody can be told
        click.echo(f"smollm3: {text}" if not text.startswith(" ") else text, err=True)


def _show(error: SmolLM3Error, state: State) -> None:
    if state.debug:
        import traceback

        traceback.print_exception(error)
    several: tuple[Any, ...] = error.problems if isinstance(error, Problems) else (error,)
    with contextlib.suppress(OSError):  # nobody can be told
        for one in several:
            click.echo(f"{click.style('error', fg='red', bold=True)}: {one.message}", err=True)
            if one.hint:
                click.echo(f"  {click.style('hint', fg='cyan')}: {one.hint}", err=True)


if __name__ == "__main__":
    main()
