"""The rows on which a quantizer calibrates: token ids of the run's own training rows, or of a file of their own.

They are chosen by the seed, made when the quantizer first asks for them, and kept with the run, because a base that
was quantized on them can be made again only from them (`saved.SavedAdapter.calibration`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from smollm3_finetune.config.schema import CalibrationConfig
from smollm3_finetune.data.render import Renderer
from smollm3_finetune.data.rows import Rows
from smollm3_finetune.data.tokens import Examples

Ids = list[list[int]]


@dataclass
class Calibration:
    """What `BuildContext.calibration` is in a run: makes the ids when first called, and remembers them."""

    make: Callable[[], Ids]
    used: Ids | None = None
    """None as long as nobody asked."""

    def __call__(self) -> Ids:
        if self.used is None:
            self.used = self.make()
        return self.used


def from_examples(examples: Examples, config: CalibrationConfig, seed: int) -> Ids:
    """Token ids of `config.rows` of the examples (all where there are fewer), each cut to `config.length` tokens."""
    import torch

    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[: config.rows].tolist())
    return [examples[i]["input_ids"][: config.length] for i in chosen]


def from_rows(rows: Rows, renderer: Renderer, config: CalibrationConfig) -> Ids:
    """The same of rows that are not tokenized: those whose content and the seed put them first."""
    first = heapq.nsmallest(config.rows, enumerate(rows.placed()), key=lambda r: (r[1].position, r[0]))
    in_order = sorted(first, key=lambda r: r[0])
    return [renderer.encode(row.conversation, config.length).input_ids for _, row in in_order]
