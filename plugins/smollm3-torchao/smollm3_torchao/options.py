"""The options of `torchao-int8`. Light: no torch, no torchao."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class TorchaoInt8Options:
    """Options of `torchao-int8`."""

    group_size: int | None = option(None, "Inputs that share a scale; none: a whole row.", ge=8, multiple_of=8)
    skip_modules: tuple[str, ...] = option(
        (), "Names of layers, or of modules that hold some, to leave unquantized, beside the output head."
    )
