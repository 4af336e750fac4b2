"""The entry point: `smollm3 COMMAND …`.

It starts `smollm3_finetune.cli`. This is the only module that prints errors.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from smollm3_finetune import stopping
from smollm3_finetune.cli import cli
from smollm3_finetune.cli.streams import drop_output, prepare_streams
from smollm3_finetune.errors import Problems, SmolLM3Error, WriteError


@dataclass
class State:
    """State that all commands share."""

    debug: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, then exit with 0 or with the exit code of the error that was printed (see `errors`)."""
    set_environment()
    prepare_streams()
    with stopping.handled():
        _run(argv)


def set_environment() -> None:
    """Set the variables that torch and OpenMP read when they start, unless the user has set them."""
    # OpenMP threads that spin for long while waiting make a run ten times slower as soon as another program uses a
    # core; threads that never spin are a fifth slower on idle cores. See docs/measurements.md.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Allocate tensors in huge pages if Linux has them: the kernel clears far fewer pages. See docs/speed.md.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _run(argv: Sequence[str] | None) -> None:
    """Run a command, print its error, and exit."""
    state = State()
    try:
        code = cli.main(
            args=list(argv) if argv is not None else None, prog_name="smollm3", standalone_mode=False, obj=state
        )
        sys.stdout.flush()
    except click.exceptions.Abort as e:
        stop = e.__cause__
        if isinstance(stop, stopping.Stop):
            _show(stop, state)
            sys.exit(stop.exit_code)
        _say("interrupted")
        sys.exit(130)
    except click.ClickException as e:
        with contextlib.suppress(OSError):  # standard error is closed
            e.show()
        sys.exit(e.exit_code)
    except SmolLM3Error as e:
        stopped = None if isinstance(e, WriteError) else stopping.delivered()
        _show(stopped or e, state)
        sys.exit((stopped or e).exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader closed the pipe
        drop_output()
        sys.exit(141)
    except Exception as e:
        from smollm3_finetune.files.failures import resource_error

        known = resource_error(e)
        if known is not None:
            drop_output()
            _show(known, state)
            sys.exit(known.exit_code)
        if (stopped := stopping.delivered()) is not None:
            _show(stopped, state)
            sys.exit(stopped.exit_code)
        if state.debug:
            raise
        from smollm3_finetune.launching.ended import lost_another
        from smollm3_finetune.train.distributed.processes import world_size

        if lost_another(e, world_size()):
            hint = "read its error; to continue from the newest checkpoint, add --resume auto to the same command"
            _show(SmolLM3Error("another process of this run has ended", hint=hint), state)
            sys.exit(1)
        first = next(iter(str(e).strip().splitlines()), "")
        _say(f"unexpected {type(e).__name__}: {first}")
        _say("  hint: run the same command with --debug, and report it: this is a bug in smollm3 or in a plugin")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # standard error is closed
        click.echo(f"smollm3: {text}" if not text.startswith(" ") else text, err=True)


def _show(error: SmolLM3Error | stopping.Stop, state: State) -> None:
    if state.debug:
        import traceback

        traceback.print_exception(error)
    several: tuple[Any, ...] = error.problems if isinstance(error, Problems) else (error,)
    with contextlib.suppress(OSError):  # standard error is closed
        for one in several:
            click.echo(f"{click.style('error', fg='red', bold=True)}: {one.message}", err=True)
            if one.hint:
                click.echo(f"  {click.style('hint', fg='cyan')}: {one.hint}", err=True)


if __name__ == "__main__":
    main()
