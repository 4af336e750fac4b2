"""A component that was selected by name, with its validated options, and whose failure is whose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.components.kinds import Kind
from smollm3_finetune.components.registry import Offer, Registry
from smollm3_finetune.config.options import build


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
