"""Waits for the light functions of plugins: a slow one is named, and one that never returns is an error.

Hooks, `claims`, `refine`, `check` and the import of a hook module run in a thread of their own, and the calling thread
waits for it: a wait ends after the limit, and at Ctrl-C, on every system and in every thread, which no signal does.
The thread of a call that never returns stays behind, and ends with the process.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from smollm3_finetune.components.contract import leave_out
from smollm3_finetune.errors import PluginTimeoutError

T = TypeVar("T")

VARIABLE = "SMOLLM3_MAX_PLUGIN_SECONDS"
SECONDS = 120
"""The limit for the import of a hook module, and for one call of a hook, `claims`, `refine` or `check`."""
NAMED_AFTER = 1.0
"""Seconds after which a plugin that is waited for is named on standard error."""
SLICE = 0.2
"""Seconds between two looks: on Windows, Ctrl-C does not end a wait."""


_inside = threading.local()


def waited(function: Callable[[], T], *, plugin: str, origin: str, doing: str) -> T:
    """The result of `function`, a light function of a plugin; what it raises is raised here.

    `doing` names the function (`smollm3_quantizers`), `origin` says where the plugin is from (see `PluginRecord`).
    Raises PluginTimeoutError after the limit. A call from inside such a call is part of it.
    """
    if getattr(_inside, "waited_for", False):
        return function()
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        _inside.waited_for = True
        try:
            results.append(context.run(function))
        except BaseException as e:  # raised in the calling thread
            errors.append(e)
        finally:
            done.set()

    thread = threading.Thread(target=work, name=f"smollm3 plugin {plugin}", daemon=True)
    began = time.monotonic()
    thread.start()
    if not done.wait(NAMED_AFTER):
        print(f"waiting for plugin {plugin}: {doing}", file=sys.stderr, flush=True)
        limit = _limit()
        while not done.wait(SLICE):
            if time.monotonic() - began >= limit:
                raise PluginTimeoutError(
                    f"plugin {plugin!r}: {doing} did not return within {limit} s",
                    hint=f"{leave_out(plugin, origin)}; to wait longer: {VARIABLE}={10 * limit}",
                )
    thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # the traceback refers to this frame
    return results[0]


def _limit() -> int:
    from smollm3_finetune.files.limits import Limit  # only for a slow plugin: --help stays fast

    return Limit(VARIABLE, SECONDS, "").value()
