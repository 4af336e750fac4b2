"""Calls into trackers: what they raise is shown in one line, and never ends a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.errors import SmolLM3Error, first_line


@dataclass
class Contained:
    """Calls the functions of one tracker, which gets no more metrics after one of them failed."""

    name: str
    say: Callable[[str], None]
    failed: bool = False

    def call(self, act: Callable[[], Any]) -> Any:
        """The result of `act`; None if it fails, or if the tracker has failed before."""
        return None if self.failed else self.attempt(act)

    def attempt(self, act: Callable[[], Any]) -> Any:
        """The result of `act`; None if it fails. The first failure is reported."""
        try:
            return act()
        except (Exception, SystemExit) as e:
            if not self.failed:
                self.failed = True
                what = e.message if isinstance(e, SmolLM3Error) else f"{type(e).__name__}: {first_line(e)}"
                self.say(
                    f"warning: the tracker {self.name} failed and gets no more metrics of this run: "
                    f"{' '.join(what.split())}"
                )
            return None
