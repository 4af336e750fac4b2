"""A component that was selected by name, with its validated options, and whose failure is whose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.components.kinds import Kind
from smollm3_finetune.components.registry import Offer, Registry
from smollm3_finetune.config.options import build
from smollm3_finetune.errors import PluginError, SmolLM3Error, first_line, is_of_the_machine


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A component and the validated options it will be made with."""

    offer: Offer
    options: Any

    @property
    def spec(self) -> Any:
        return self.offer.spec

    def create(self) -> Any:
        return self.offer.create(self.options)


def choose(
    registry: Registry, kind: Kind, name: str, options: Mapping[str, Any], origins: Mapping[str, str] | None = None
) -> Choice:
    """A named component with its options validated. Raises what `Registry.find` and `options.build` raise."""
    offer = registry.find(kind, name)
    prefix = f"{kind.section}."
    where = {k.removeprefix(prefix): v for k, v in (origins or {}).items() if k.startswith(prefix)}
    return Choice(offer=offer, options=build(offer.options_class(), options, kind.section, where))


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
