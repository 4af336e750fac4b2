"""Whose fault it is that something failed: a component's, unless it is the user's or the machine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from smollm3_finetune.errors import PluginError, SmolLM3Error, first_line, is_of_the_machine

if TYPE_CHECKING:
    from smollm3_finetune.plan import Choice


@contextlib.contextmanager
def blamed_on(choice: Choice, where: str = "") -> Iterator[None]:
    """An exception that a component did not raise on purpose becomes a PluginError that names it.

    `where` is the place of the row over which it fails, where it is given one.
    """
    try:
        yield
    except SmolLM3Error:
        raise
    except Exception as e:
        if is_of_the_machine(e):
            raise
        offer = choice.offer
        raise PluginError(
            f"{where}{': ' if where else ''}{offer.title} ({offer.distribution} {offer.version}) failed: "
            f"{type(e).__name__}: {first_line(e)}",
            hint="the same command with --debug shows where",
        ) from e
